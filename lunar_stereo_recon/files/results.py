"""Files written for one reconstruction: PLY cloud, depth and confidence images, arrays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from lunar_stereo_recon.datatypes import FloatImage, Reconstruction
from lunar_stereo_recon.files.atomic import atomic_file, write_bytes
from lunar_stereo_recon.geometry.disparity import depth_millimetres
from lunar_stereo_recon.visualize import (
    ColorScale,
    CONFIDENCE_SCALE,
    depth_scale,
    RgbImage,
)

CONFIDENCE_UNITS = 65535.0
MIN_LEGEND_WIDTH = 160


def write_reconstruction(
    directory: Path, stem: str, reconstruction: Reconstruction, arrays: bool = False
) -> list[Path]:
    """Write every file of a reconstruction as `directory/stem*`; return their paths.

    The PLY cloud, 16-bit depth (millimetres, 0 invalid) and confidence (65535 = certain) for
    using, both colour-mapped for looking, and with `arrays` the `.npz`.
    """
    directory.mkdir(parents=True, exist_ok=True)
    paths = {
        kind: directory / f'{stem}{ending}'
        for kind, ending in (
            ('cloud', '.ply'),
            ('depth', '_depth.png'),
            ('depth_view', '_depth_view.png'),
            ('confidence', '_confidence.png'),
            ('confidence_view', '_confidence_view.png'),
        )
    }
    write_ply(paths['cloud'], reconstruction)
    write_png(paths['depth'], depth_millimetres(reconstruction.depth))
    depth = reconstruction.depth
    write_png(paths['depth_view'], with_legend(depth_scale([depth]), depth, 'no depth'))
    units = np.rint(reconstruction.confidence * CONFIDENCE_UNITS).astype(np.uint16)
    write_png(paths['confidence'], units)
    view = with_legend(CONFIDENCE_SCALE, reconstruction.confidence)
    write_png(paths['confidence_view'], view)
    if arrays:
        paths['arrays'] = directory / f'{stem}.npz'
        write_arrays(paths['arrays'], reconstruction)
    return list(paths.values())


def write_ply(path: Path, reconstruction: Reconstruction) -> int:
    """Write the valid points in the left optical frame as a binary PLY; return how many."""
    valid = reconstruction.valid_mask
    return write_ply_points(
        path,
        reconstruction.points[valid],
        reconstruction.color[valid],
        reconstruction.confidence[valid],
        'left optical frame: x right, y down, z forward, metres',
    )


def write_ply_points(
    path: Path,
    points: NDArray[np.floating],
    colors: NDArray[np.uint8],
    confidence: NDArray[np.floating],
    frame: str,
) -> int:
    """Write a binary PLY; return the number of points.

    Vertex: x y z float32 metres, red green blue uchar, confidence float32.

    Args:
        path: File to write.
        points: (N, 3), metres.
        colors: (N, 3) uint8 RGB.
        confidence: (N,) in [0, 1].
        frame: What the coordinates refer to, one line, for the comment in the header.
    """
    vertex = np.empty(
        len(points), dtype=[('xyz', '<f4', 3), ('rgb', 'u1', 3), ('confidence', '<f4')]
    )
    vertex['xyz'] = points
    vertex['rgb'] = colors
    vertex['confidence'] = confidence
    header = [
        'ply',
        'format binary_little_endian 1.0',
        f'comment {frame}',
        f'element vertex {len(vertex)}',
        *(f'property float {axis}' for axis in 'xyz'),
        *(f'property uchar {channel}' for channel in ('red', 'green', 'blue')),
        'property float confidence',
        'end_header\n',
    ]
    with atomic_file(path) as file:
        file.write('\n'.join(header).encode('ascii'))
        file.write(vertex.tobytes())
    return len(vertex)


def write_pcd(path: Path, reconstruction: Reconstruction) -> int:
    """Write the valid points in the left optical frame as a binary PCD 0.7; return how many.

    Fields: x y z float32 metres, rgb as PCL packs it (the bits of 0x00RRGGBB), confidence float32.
    """
    valid = reconstruction.valid_mask
    color = reconstruction.color[valid].astype(np.uint32)
    count = len(color)
    vertex = np.empty(count, dtype=[('xyz', '<f4', 3), ('rgb', '<u4'), ('confidence', '<f4')])
    vertex['xyz'] = reconstruction.points[valid]
    vertex['rgb'] = color[:, 0] << 16 | color[:, 1] << 8 | color[:, 2]
    vertex['confidence'] = reconstruction.confidence[valid]
    header = [
        '# .PCD v0.7 - left optical frame: x right, y down, z forward, metres',
        'VERSION 0.7',
        'FIELDS x y z rgb confidence',
        'SIZE 4 4 4 4 4',
        'TYPE F F F F F',
        'COUNT 1 1 1 1 1',
        f'WIDTH {count}',
        'HEIGHT 1',
        'VIEWPOINT 0 0 0 1 0 0 0',
        f'POINTS {count}',
        'DATA binary\n',
    ]
    with atomic_file(path) as file:
        file.write('\n'.join(header).encode('ascii'))
        file.write(vertex.tobytes())
    return count


def write_arrays(path: Path, reconstruction: Reconstruction) -> None:
    """Write disparity, depth, confidence and points as float32 and `ms`, the time it took.

    With `sigma_px` and `depth_sigma_m` where the reconstruction has them.
    """
    sigma = {
        name: values
        for name in ('sigma_px', 'depth_sigma_m')
        if (values := getattr(reconstruction, name)) is not None
    }
    with atomic_file(path) as file:
        np.savez_compressed(
            file,
            **sigma,
            disparity=reconstruction.disparity,
            depth=reconstruction.depth,
            confidence=reconstruction.confidence,
            points=reconstruction.points,
            ms=np.float64(sum(reconstruction.timings_ms.values())),
        )


def write_png(path: Path, image: NDArray[Any]) -> None:
    """Write (H, W) uint8 or uint16, or (H, W, 3) uint8 RGB.

    Raises:
        OSError: The file cannot be written.
    """
    if image.ndim == 3:
        image = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    encoded, data = cv2.imencode('.png', image)
    if not encoded:
        raise OSError(f'cannot encode an image of shape {image.shape} and type {image.dtype}')
    write_bytes(path, data.tobytes())


def with_legend(scale: ColorScale, values: FloatImage, no_value: str = '') -> RgbImage:
    """Return (H + legend, W, 3) RGB: the map in the scale's colours above its labelled bar.

    Maps too narrow for the bar's text are returned without it.
    """
    if values.shape[1] < MIN_LEGEND_WIDTH:
        return scale.colors(values)
    return np.vstack([scale.colors(values), scale.bar(values.shape[1], no_value)])
