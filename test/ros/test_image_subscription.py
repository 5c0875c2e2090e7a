"""Names of the topics that an image's other forms have."""

import pytest

pytest.importorskip('rclpy')
pytestmark = pytest.mark.ros

import rclpy  # noqa: E402
from rclpy.parameter import Parameter  # noqa: E402

from lunar_stereo_recon.ros.node_parameters import declare_parameters  # noqa: E402
from lunar_stereo_recon.ros.parameters import ReconstructionParameters  # noqa: E402
from lunar_stereo_recon.ros.result_outputs import ResultOutputs  # noqa: E402
from lunar_stereo_recon.ros.stereo_inputs import source_names  # noqa: E402

RULES = (
    'left/image_rect:=/camera/left',
    'right/image_rect/compressed:=/camera/right_jpeg',
    'depth/image:=/far/depth',
)


@pytest.fixture
def node():
    context = rclpy.Context()
    words = ['--ros-args', *(word for rule in RULES for word in ('-r', rule))]
    rclpy.init(context=context, args=words)
    node = rclpy.create_node(
        'node',
        context=context,
        namespace='rover',
        parameter_overrides=[Parameter('input_transport', value='compressed')],
    )
    yield node
    node.destroy_node()
    context.try_shutdown()


def test_other_forms_of_an_image_follow_its_name_as_with_image_transport(node):
    parameters = declare_parameters(node, ReconstructionParameters)
    topics = source_names(node, parameters)
    assert topics.left_image == '/camera/left/compressed'
    assert topics.right_image == '/camera/right_jpeg'
    assert topics.left_info == '/rover/left/camera_info'
    offered = ResultOutputs(node, lambda: parameters).offered
    assert {'/far/depth', '/far/depth/compressedDepth', '/rover/points2'} <= set(offered)
