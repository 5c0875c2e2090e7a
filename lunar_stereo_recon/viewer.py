"""Frames in the rerun viewer, live or as a recording: images, depth, confidence, cloud, poses.

Extra [viewer]. Paths: `camera` is the left optical frame in the frame of the poses, or at the
origin where there are none; `camera/left`, `camera/depth`, `camera/confidence` are its images,
`camera/cloud` its points; `path` is where the camera was.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
import logging
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lunar_stereo_recon.datatypes import Reconstruction, StereoPair
from lunar_stereo_recon.errors import InputError
from lunar_stereo_recon.extras import require

log = logging.getLogger(__name__)

APPLICATION = 'lunar_stereo_recon'
SUFFIX = '.rrd'
POINT_SIZE = 1.5  # of the screen, so that near and far ones are seen alike
# Share of the first frame's depths that the colours spread over; the horizon would take them all.
DEPTH_SHARE = 0.9
# Where the cloud is looked at from, metres in the camera's frame: from above and behind it.
EYE_M, EYE_TARGET_M = (0.0, -2.0, -4.0), (0.0, 0.5, 8.0)
FLUSH_S = 10.0


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
        # In the frame of the camera: it goes with the rover, and there need not be a pose.
        cloud = rrb.Spatial3DView(
            origin='/camera',
            contents=['/camera', '/camera/cloud', '/camera/left', '/path'],
            eye_controls=rrb.EyeControls3D(
                position=EYE_M, look_target=EYE_TARGET_M, eye_up=(0.0, -1.0, 0.0)
            ),
            line_grid=rrb.LineGrid3D(visible=False),
        )
        views = rrb.Horizontal(cloud, rrb.Vertical(*images), column_shares=[3, 1])
        self._stream.send_blueprint(rrb.Blueprint(views, collapse_panels=True))
        self._positions: list[Any] = []
        self._count = 0
        self._z_up: bool | None = None
        self._farthest_m = 0.0

    def show(
        self,
        pair: StereoPair,
        result: Reconstruction,
        pose: NDArray[np.float64] | None = None,
    ) -> None:
        """Show one frame, under its stamp where it has one.

        Args:
            pair: Its images.
            result: What was made of them.
            pose: (4, 4) transform from the left optical frame to a fixed frame whose z is up,
                metres; None where it is not known.
        """
        rr, stream = self._rr, self._stream
        stream.set_time('frame', sequence=self._count)
        if result.stamp_ns:
            stream.set_time('stamp', timestamp=np.datetime64(result.stamp_ns, 'ns'))
        self._count += 1
        z_up = pose is not None or bool(self._positions)
        if z_up != self._z_up:
            up = rr.ViewCoordinates.RIGHT_HAND_Z_UP if z_up else rr.ViewCoordinates.RDF
            stream.log('/', up, static=True)
            self._z_up = z_up
        if pose is not None:
            stream.log('camera', rr.Transform3D(translation=pose[:3, 3], mat3x3=pose[:3, :3]))
            self._positions.append(pose[:3, 3])
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
        valid = result.valid_mask
        if self._farthest_m == 0.0 and valid.any():
            self._farthest_m = float(np.quantile(result.depth[valid], DEPTH_SHARE))
        # Not a number would be drawn as near: rerun takes 0 for unknown.
        depth, colours = np.nan_to_num(result.depth), (0.0, self._farthest_m or 1.0)
        stream.log('camera/depth', rr.DepthImage(depth, meter=1.0, depth_range=colours))
        stream.log(
            'camera/confidence', rr.Image(np.rint(255 * result.confidence).astype(np.uint8))
        )
        stream.log(
            'camera/cloud',
            rr.Points3D(
                result.points[valid],
                colors=result.color[valid],
                radii=rr.Radius.ui_points(POINT_SIZE),
            ),
        )

    def close(self) -> None:
        """Write what is still on its way; what nobody takes within seconds is lost."""
        try:
            self._stream.flush(timeout_sec=FLUSH_S)
        except RuntimeError as error:  # nobody listens: the window was closed
            log.warning('the viewer did not take everything: %s', error)
        self._stream.disconnect()


def open_viewer(file: Path | None, name: str) -> RerunViewer:
    """Open the viewer's window, or begin a recording.

    Args:
        file: Recording to write; None opens the window.
        name: Of the argument or parameter that names the file, for errors.

    Raises:
        InputError: The file has another ending than .rrd, or its folder does not exist.
        ReconError: rerun-sdk is not installed.
    """
    require('rerun')
    if file is not None and file.suffix != SUFFIX:
        raise InputError(f'{name} is {file}; a name with the ending {SUFFIX} is needed')
    if file is not None and not file.resolve().parent.is_dir():
        raise InputError(f'{name} is {file}; its folder does not exist')
    return RerunViewer(file)


@contextmanager
def opened_viewer(args: argparse.Namespace) -> Iterator[RerunViewer | None]:
    """Give the viewer that the arguments ask for, None where they ask for none.

    Raises:
        InputError, ReconError: See `open_viewer`.
    """
    file = args.viewer_file
    if file is None and args.viewer is None:
        yield None
        return
    viewer = open_viewer(file, '--viewer-file')
    try:
        yield viewer
    finally:
        viewer.close()
