"""Frames in the rerun viewer, live or as a recording: images, depth, confidence, cloud, poses.

Extra [viewer]. Paths: `camera` is the left optical frame in the frame of the poses, or at the
origin where there are none; `camera/left`, `camera/depth`, `camera/confidence` are its images,
`camera/cloud` its points; `path` is where the camera was.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TYPE_CHECKING

import numpy as np

from lunar_stereo_recon.datatypes import Reconstruction, StereoPair
from lunar_stereo_recon.errors import InputError
from lunar_stereo_recon.extras import require

if TYPE_CHECKING:
    from lunar_stereo_recon.bags.reader import Pose

APPLICATION = 'lunar_stereo_recon'
SUFFIX = '.rrd'
POINT_RADIUS_M = 0.004


class RerunViewer:
    """Shows one frame after the other.

    Args:
        file: Recording to write; None opens the viewer's window.
    """

    def __init__(self, file: Path | None) -> None:
        import rerun as rr
        import rerun.blueprint as rrb

        self._rr: Any = rr
        self._stream: Any = rr.RecordingStream(APPLICATION)
        if file is None:
            self._stream.spawn()
        else:
            self._stream.save(str(file))
        images = [rrb.Spatial2DView(origin=f'camera/{n}') for n in ('left', 'depth', 'confidence')]
        views = rrb.Horizontal(
            rrb.Spatial3DView(origin='/'), rrb.Vertical(*images), column_shares=[3, 1]
        )
        self._stream.send_blueprint(rrb.Blueprint(views, collapse_panels=True))
        self._positions: list[Any] = []
        self._count = 0

    def show(self, pair: StereoPair, result: Reconstruction, pose: Pose | None = None) -> None:
        """Show one frame, under its stamp where it has one.

        Args:
            pair: Its images.
            result: What was made of them.
            pose: Of the left optical frame in a fixed frame whose z is up; None where unknown.
        """
        rr, stream = self._rr, self._stream
        stream.set_time('frame', sequence=self._count)
        if result.stamp_ns:
            stream.set_time('stamp', timestamp=np.datetime64(result.stamp_ns, 'ns'))
        if self._count == 0:
            up = rr.ViewCoordinates.RDF if pose is None else rr.ViewCoordinates.RIGHT_HAND_Z_UP
            stream.log('/', up, static=True)
        self._count += 1
        if pose is not None:
            matrix = pose.matrix
            stream.log('camera', rr.Transform3D(translation=matrix[:3, 3], mat3x3=matrix[:3, :3]))
            self._positions.append(matrix[:3, 3])
            stream.log('path', rr.LineStrips3D([self._positions]))
        calibration = result.calibration
        pinhole = rr.Pinhole(
            image_from_camera=calibration.intrinsics,
            resolution=[calibration.width, calibration.height],
            camera_xyz=rr.ViewCoordinates.RDF,
        )
        for name in ('left', 'depth', 'confidence'):
            stream.log(f'camera/{name}', pinhole)
        stream.log('camera/left', rr.Image(result.color))
        stream.log('right', rr.Image(np.rint(255 * np.clip(pair.right, 0, 1)).astype(np.uint8)))
        # Not a number would be drawn as near: rerun takes 0 for unknown.
        stream.log('camera/depth', rr.DepthImage(np.nan_to_num(result.depth), meter=1.0))
        stream.log(
            'camera/confidence', rr.Image(np.rint(255 * result.confidence).astype(np.uint8))
        )
        valid = result.valid_mask
        stream.log(
            'camera/cloud',
            rr.Points3D(result.points[valid], colors=result.color[valid], radii=POINT_RADIUS_M),
        )

    def close(self) -> None:
        """Write what is still on its way."""
        self._stream.flush()
        self._stream.disconnect()


@contextmanager
def opened_viewer(args: argparse.Namespace) -> Iterator[RerunViewer | None]:
    """Give the viewer that the arguments ask for, None where they ask for none.

    Raises:
        InputError: The file has another ending than .rrd, or its folder does not exist.
        ReconError: rerun-sdk is not installed.
    """
    file = args.viewer_file
    if file is None and args.viewer is None:
        yield None
        return
    require('rerun')
    if file is not None and file.suffix != SUFFIX:
        raise InputError(f'--viewer-file is {file}; a name with the ending {SUFFIX} is needed')
    if file is not None and not file.resolve().parent.is_dir():
        raise InputError(f'--viewer-file is {file}; its folder does not exist')
    viewer = RerunViewer(file)
    try:
        yield viewer
    finally:
        viewer.close()
