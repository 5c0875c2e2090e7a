"""Subscriptions of images: names of the other forms, publishers that do not fit."""

import time

import pytest

pytest.importorskip('rclpy')
pytestmark = pytest.mark.ros

import rclpy  # noqa: E402
from rclpy.executors import SingleThreadedExecutor  # noqa: E402
from rclpy.parameter import Parameter  # noqa: E402
from rclpy.qos import qos_profile_sensor_data  # noqa: E402
from sensor_msgs.msg import Image  # noqa: E402

from lunar_stereo_recon.ros.image_subscription import ImageSubscription  # noqa: E402
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


def test_a_conflict_ends_with_the_publisher_that_did_not_fit(node):
    executor = SingleThreadedExecutor(context=node.context)
    executor.add_node(node)
    subscription = ImageSubscription(node, Image, 'image', lambda _: None, 'reliable')
    unfit = node.create_publisher(Image, 'image', qos_profile_sensor_data)

    def wait_for(conflict):
        end = time.monotonic() + 20
        while subscription.conflict != conflict and time.monotonic() < end:
            subscription.refresh()
            executor.spin_once(timeout_sec=0.1)
        assert subscription.conflict == conflict

    subscription.refresh()
    wait_for('RELIABILITY')
    for _ in range(3):
        subscription.refresh()
    assert subscription.conflict == 'RELIABILITY'
    node.destroy_publisher(unfit)
    wait_for('')
    executor.shutdown()
