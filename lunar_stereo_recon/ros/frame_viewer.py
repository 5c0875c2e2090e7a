"""Shows the newest results of a node in a viewer, which neither holds the node up nor ends it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from rclpy.impl.rcutils_logger import RcutilsLogger

from lunar_stereo_recon.datatypes import Reconstruction, StereoPair
from lunar_stereo_recon.files.bounded import user_path
from lunar_stereo_recon.ros.newest_item_worker import NewestItemWorker
from lunar_stereo_recon.viewer import open_viewer

LOG_THROTTLE_S = 30.0
# How long an ending node waits for the frame that is being shown.
PATIENCE_S = 5.0

Frame = tuple[StereoPair, Reconstruction]


class FrameViewer:
    """A viewer with a thread of its own; frames that come while it is busy replace each other."""

    def __init__(
        self,
        file: str,
        pose_of: Callable[[Reconstruction], NDArray[np.float64] | None],
        logger: RcutilsLogger,
    ) -> None:
        """Open it.

        Args:
            file: Recording to write; empty opens the window.
            pose_of: Returns what `RerunViewer.show` takes as pose.
            logger: Of the node.

        Raises:
            InputError: The file has another ending than .rrd, or its folder does not exist.
            ReconError: rerun-sdk is not installed.
        """
        path = user_path(file) if file else None
        self._viewer = open_viewer(path, 'parameter viewer_file')
        self._pose_of, self._logger = pose_of, logger
        self._worker: NewestItemWorker[Frame] = NewestItemWorker(self._show, self._on_failure)

    def submit(self, pair: StereoPair, result: Reconstruction) -> None:
        """Show a frame soon, unless a newer one comes before."""
        self._worker.submit((pair, result))

    def close(self) -> None:
        """End; what the viewer has not taken within seconds is lost."""
        self._worker.stop(PATIENCE_S)
        self._viewer.close()

    def _show(self, frame: Frame) -> None:
        pair, result = frame
        self._viewer.show(pair, result, self._pose_of(result))

    def _on_failure(self, frame: Frame, error: Exception) -> None:
        self._logger.error(
            f'a frame is not shown: {type(error).__name__}: {error}',
            throttle_duration_sec=LOG_THROTTLE_S,
        )
