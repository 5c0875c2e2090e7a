"""What the wheels of ROS lack has an equivalent here: compared with the real one where it is.

The synchronizers of message_filters are compared in test_stereo_sync.py, the cloud is read by
sensor_msgs_py in test_rclpy_messages.py.
"""

from __future__ import annotations

import cv2
import numpy as np
import pytest

pytest.importorskip('rclpy')
pytestmark = pytest.mark.ros

from lunar_stereo_recon.messages import decode_image  # noqa: E402
from lunar_stereo_recon.result_messages import image_message  # noqa: E402
from lunar_stereo_recon.ros.rclpy_messages import (  # noqa: E402
    diagnostic_array,
    diagnostic_status,
    make_message,
    OK,
    WARN,
)

STATUSES = {
    'input': (OK, '5.0 pairs per second', {'pair rate [Hz]': 5.0, 'pairs': 17}),
    'output': (WARN, 'pairs come in, but no reconstruction came out', {'row alignment': ''}),
}


def test_diagnostics_have_the_form_of_diagnostic_updater():
    diagnostic_updater = pytest.importorskip('diagnostic_updater')
    import rclpy

    context = rclpy.Context()
    rclpy.init(context=context)
    node = rclpy.create_node('reconstruction_node', context=context)
    try:
        updater = diagnostic_updater.Updater(node)
        updater.setHardwareID('none')
        assert updater.publisher.topic_name == '/diagnostics'
        for name, (level, text, values) in STATUSES.items():

            def fill(status, level=level, text=text, values=values):
                status.summary(level, text)
                for key, value in values.items():
                    status.add(key, f'{value:.6g}' if isinstance(value, float) else str(value))
                return status

            updater.add(name, fill)
        published = []
        updater.publisher = type('Publisher', (), {'publish': published.append})
        updater.force_update()
    finally:
        node.destroy_node()
        context.try_shutdown()
    ours = diagnostic_array(
        0,
        '',
        [
            diagnostic_status(level, f'reconstruction_node: {name}', text, values)
            for name, (level, text, values) in STATUSES.items()
        ],
    )
    assert published[0].status == ours.status
    assert published[0].header.frame_id == ours.header.frame_id


ENCODINGS = {
    'mono8': (np.uint8, 1),
    'mono16': (np.uint16, 1),
    'rgb8': (np.uint8, 3),
    'bgr8': (np.uint8, 3),
    'rgba8': (np.uint8, 4),
    'bgra8': (np.uint8, 4),
    'rgb16': (np.uint16, 3),
    'bgr16': (np.uint16, 3),
    'rgba16': (np.uint16, 4),
    'bgra16': (np.uint16, 4),
    'bayer_rggb8': (np.uint8, 1),
    'bayer_bggr8': (np.uint8, 1),
    'bayer_gbrg8': (np.uint8, 1),
    'bayer_grbg8': (np.uint8, 1),
    'bayer_rggb16': (np.uint16, 1),
    'bayer_bggr16': (np.uint16, 1),
    'bayer_gbrg16': (np.uint16, 1),
    'bayer_grbg16': (np.uint16, 1),
    'yuv422': (np.uint8, 2),
    'yuv422_yuy2': (np.uint8, 2),
    '8UC1': (np.uint8, 1),
    '8UC3': (np.uint8, 3),
    '16UC1': (np.uint16, 1),
    '32FC1': (np.float32, 1),
    '64FC1': (np.float64, 1),
}


@pytest.fixture
def bridge():
    return pytest.importorskip('cv_bridge').CvBridge()


@pytest.mark.parametrize('encoding', ENCODINGS)
def test_images_are_those_of_cv_bridge(bridge, encoding):
    dtype, channels = ENCODINGS[encoding]
    rng = np.random.default_rng(3)
    largest = 1.0 if np.dtype(dtype).kind == 'f' else np.iinfo(dtype).max
    values = (rng.uniform(0, largest, (12, 16, channels))).astype(dtype)
    message = image_message(make_message, values.squeeze(), encoding, 0, 'left')
    ours = decode_image(message, 'left')
    if encoding.endswith('C1') or encoding == 'mono16':
        expected = bridge.imgmsg_to_cv2(message, 'passthrough')
    elif encoding == '8UC3':
        expected = bridge.imgmsg_to_cv2(message, 'passthrough')[..., ::-1]
    elif encoding == 'mono8':
        expected = bridge.imgmsg_to_cv2(message, 'mono8')
    else:
        expected = bridge.imgmsg_to_cv2(message, 'rgb16' if '16' in encoding else 'rgb8')
    np.testing.assert_array_equal(ours, expected)


def test_compressed_images_are_those_of_cv_bridge(bridge):
    values = cv2.GaussianBlur(
        np.random.default_rng(0).integers(0, 255, (24, 32, 3)).astype(np.uint8), (0, 0), 2.0
    )
    for extension in ('.png', '.jpg'):
        data = cv2.imencode(extension, values)[1].reshape(-1)
        message = make_message(
            'sensor_msgs/msg/CompressedImage',
            format=f'bgr8; {extension[1:]} compressed bgr8',
            data=data,
        )
        np.testing.assert_array_equal(
            decode_image(message, 'left'), bridge.compressed_imgmsg_to_cv2(message, 'rgb8')
        )
