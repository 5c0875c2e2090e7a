"""The core's log in that of a node, and the parameters as the core takes them."""

import logging
import math

import pytest

pytest.importorskip('rclpy')
pytestmark = pytest.mark.ros

from lunar_stereo_recon.datatypes import Region  # noqa: E402
from lunar_stereo_recon.geometry.hazard import HazardOptions  # noqa: E402
from lunar_stereo_recon.result_messages import CloudForm  # noqa: E402
from lunar_stereo_recon.ros.core_logs import log_core_to, stop_logging_core  # noqa: E402
from lunar_stereo_recon.ros.parameters import ReconstructionParameters  # noqa: E402


class Logger:
    def __init__(self):
        self.said = []

    def error(self, text):
        self.said.append(('error', text))

    def warning(self, text):
        self.said.append(('warning', text))

    def info(self, text):
        self.said.append(('info', text))


def test_severities_are_kept_and_the_handler_goes():
    logger = Logger()
    handler = log_core_to(logger)
    core = logging.getLogger('lunar_stereo_recon.network_width')
    try:
        core.warning('a pair takes %d ms', 90)
        core.info('network width %d px', 480)
        core.error('broken')
        core.debug('not of interest')
        logging.getLogger('another_package').error('not ours')
    finally:
        stop_logging_core(handler)
    core.warning('nobody listens')
    assert logger.said == [
        ('warning', 'a pair takes 90 ms'),
        ('info', 'network width 480 px'),
        ('error', 'broken'),
    ]


def test_parameters_become_options_of_the_core():
    parameters = ReconstructionParameters(
        target_ms=80.0,
        confidence_threshold=0.7,
        min_range=0.5,
        refine=False,
        align_rows=False,
        roi=[1, 2, 30, 40],
        decimation=2,
        organized=False,
        voxel_size=0.1,
        color=False,
        hazard_clearance=0.4,
        hazard_max_slope=15.0,
        hazard_footprint=2.0,
    )
    options = parameters.options
    assert options.target_ms == 80.0
    assert options.confidence_threshold == 0.7
    assert (options.min_range_m, options.max_range_m) == (0.5, math.inf)
    assert not options.refine
    assert not options.align_rows
    assert options.region == Region(1, 2, 30, 40)
    assert parameters.cloud_form == CloudForm(2, False, 0.1, False)
    assert parameters.hazard_options == HazardOptions(0.4, 15.0, 2.0)
