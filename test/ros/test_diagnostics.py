"""What the diagnostics say of a rig whose rows have moved."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip('rclpy')
pytestmark = pytest.mark.ros

from lunar_stereo_recon.datatypes import (  # noqa: E402
    Reconstruction,
    RowAlignment,
    StereoCalibration,
)
from lunar_stereo_recon.messages import StereoTopics  # noqa: E402
from lunar_stereo_recon.ros.conversions import OK, WARN  # noqa: E402
from lunar_stereo_recon.ros.diagnostics import FrameStatistics, NodeReport  # noqa: E402
from lunar_stereo_recon.ros.stereo_sync import SyncStatistics  # noqa: E402

CALIBRATION = StereoCalibration(60.0, 60.0, 31.5, 23.5, 31.5, 0.2, 64, 48)


def output_status(alignment: RowAlignment):
    shape = (48, 64)
    flat = np.ones(shape, np.float32)
    result = Reconstruction(
        flat,
        flat,
        flat,
        np.ones((*shape, 3), np.float32),
        np.zeros((*shape, 3), np.uint8),
        CALIBRATION,
        row_alignment=alignment,
    )
    frames = FrameStatistics()
    frames.count_published(20.0, result)
    report = NodeReport('node', StereoTopics(), 0)
    statuses = report.statuses(SyncStatistics(), frames.snapshot(), {}, '', False, True)
    (status,) = [s for s in statuses if s.name == 'node: output']
    return status, {entry.key: entry.value for entry in status.values}


def test_moved_rows_are_a_warning_with_the_advice():
    status, values = output_status(RowAlignment(0.6, 0.0, 0.01))
    assert status.level == WARN
    assert status.message == values['row alignment'] == 'right rows 0.6 px low: recalibrate'


def test_aligned_rows_are_fine():
    status, values = output_status(RowAlignment(0.1, 0.0, 0.01))
    assert status.level == OK
    assert values['row alignment'] == 'rows aligned within 0.10 px'
    assert float(values['mean confidence']) == 1.0
