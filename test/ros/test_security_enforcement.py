"""SROS 2 policies enforced: who has no enclave hears nothing, and an enclave opens no more.

Needs a middleware with security, and `sros2`. The wheels of Fast DDS are built without.
"""

import json
import subprocess
import sys

import pytest

pytest.importorskip('rclpy')
pytestmark = pytest.mark.ros

from std_srvs.srv import Trigger  # noqa: E402

from lunar_stereo_recon.ros.security_policy import ENCLAVE, POLICIES, policy  # noqa: E402

RIG = ('left/image_rect', 'right/image_rect', 'left/camera_info', 'right/camera_info')
HEARD = ('points2', 'confidence', 'frame_status')
FRIEND = '/rover/cameras'
# What the program of this test opens as the node `cameras`: it plays the rig and hears results.
FRIENDS_POLICY = """<policy version="0.2.0"><enclaves><enclave path="{enclave}"><profiles>
<profile ns="{namespace}" node="cameras">
<services request="ALLOW">
<service>{namespace}/reconstruction_node/set_model</service></services>
<services reply="ALLOW">{own}</services>
<topics subscribe="ALLOW"><topic>/parameter_events</topic>{results}</topics>
<topics publish="ALLOW"><topic>/rosout</topic><topic>/parameter_events</topic>{rig}</topics>
</profile></profiles></enclave></enclaves></policy>
"""
OWN = (
    *('describe_parameters', 'get_parameter_types', 'get_parameters', 'list_parameters'),
    *('set_parameters', 'set_parameters_atomically', 'get_type_description'),
)
MISSING = "doesn't have the security libraries"
# A program of its own: with some middlewares all of a process is secured, or nothing.
OTHER = """
import json, sys, time
import numpy as np
import rclpy
from lunar_stereo_recon.datatypes import StereoCalibration
from lunar_stereo_recon.result_messages import camera_info_message, image_message
from lunar_stereo_recon.ros.rclpy_messages import make_message, message_class
namespace, enclave, stamp_ns = *sys.argv[1:3], int(sys.argv[3])
rclpy.init(args=['--ros-args', '--enclave', enclave])
node = rclpy.create_node('cameras', namespace=namespace)
heard = []
node.create_subscription(message_class('sensor_msgs/msg/PointCloud2'), 'points2', heard.append, 9)
rig = StereoCalibration(60.0, 60.0, 47.5, 31.5, 47.5, 0.2, 96, 64)
messages = {}
for side in ('left', 'right'):
    image, info = (message_class(f'sensor_msgs/msg/{n}') for n in ('Image', 'CameraInfo'))
    grey = np.zeros((64, 96), np.uint8)
    messages[node.create_publisher(info, f'{side}/camera_info', 9)] = camera_info_message(
        make_message, rig, stamp_ns, 'left', right=side == 'right')
    messages[node.create_publisher(image, f'{side}/image_rect', 9)] = image_message(
        make_message, grey, 'mono8', stamp_ns, 'left')
end = time.monotonic() + 10
while time.monotonic() < end:
    for publisher, message in messages.items():
        publisher.publish(message)
    rclpy.spin_once(node, timeout_sec=0.2)
print(json.dumps([len(heard), node.count_publishers('points2')]))
"""
# Tries what the recorder must not, and prints what was refused.
INSIDER = """
import json, sys
import rclpy
from nav_msgs.msg import OccupancyGrid
from sensor_msgs.msg import Image, PointCloud2
from std_srvs.srv import Trigger
namespace, enclave = sys.argv[1:]
rclpy.init(args=['--ros-args', '--enclave', enclave])
node = rclpy.create_node('recorder_node', namespace=namespace)
node.create_subscription(PointCloud2, 'points2', print, 1)  # allowed
refused = []
for name, attempt in {
    'publish': lambda: node.create_publisher(Image, 'left/image_rect', 1),
    'hear': lambda: node.create_subscription(OccupancyGrid, 'hazard', print, 1),
    'serve': lambda: node.create_service(Trigger, 'reconstruction_node/set_model', print),
}.items():
    try:
        attempt()
    except RuntimeError:
        refused.append(name)
print(json.dumps(refused))
"""
# A stamp of which no other pair of the test is near.
OTHERS_STAMP_S = 5


def tags(kind, names):
    return ''.join(f'<{kind}>{name}</{kind}>' for name in names)


@pytest.fixture
def secured(tmp_path, namespace, monkeypatch, join):
    """Make a keystore with the enclaves of this test, and demand security of all who start."""
    keystore = pytest.importorskip('sros2.keystore')
    keys, rules = tmp_path / 'keys', tmp_path / 'policy.xml'
    keystore.create_keystore(keys)
    rules.write_text(policy(namespace))
    friends_rules = tmp_path / 'friend.xml'
    friends_rules.write_text(
        FRIENDS_POLICY.format(
            enclave=FRIEND,
            namespace=namespace,
            own=tags('service', [f'~/{name}' for name in OWN]),
            results=tags('topic', HEARD),
            rig=tags('topic', RIG),
        )
    )
    for enclave, file in [
        *((f'{ENCLAVE}/{node}', rules) for node in POLICIES),
        (FRIEND, friends_rules),
    ]:
        keystore.create_enclave(keys, enclave)
        keystore.create_permission(keys, enclave, file)
    security = {
        'ROS_SECURITY_KEYSTORE': str(keys),
        'ROS_SECURITY_ENABLE': 'true',
        'ROS_SECURITY_STRATEGY': 'Enforce',
    }
    for name, value in security.items():
        monkeypatch.setenv(name, value)
    try:
        join(FRIEND).close()
    except RuntimeError as error:
        if MISSING in str(error):
            pytest.skip(f'the middleware has no security: {error}')
        raise
    return monkeypatch


@pytest.fixture
def rover(secured, join, processes):
    """Return a friend that plays the rig to a node under its enclave, and has been answered."""
    friend = join(FRIEND)
    friend.advertise()
    friend.listen(*HEARD)
    enclave = f'{ENCLAVE}/reconstruction_node'
    processes.start('reconstruction_node', enclave=enclave, backend='sgbm', threads=1)
    friend.wait_until_heard()
    friend.wait_until_served('points2')
    return friend


def test_friend_is_served(rover):
    stamp = rover.publish()
    assert rover.answer(stamp).message == 'published'
    assert rover.result('points2', stamp).width == 96
    assert rover.call(Trigger, 'set_model').success


@pytest.mark.parametrize('enclave', [FRIEND, None])
def test_participant_without_enclave_is_not_there(enclave, rover, secured, namespace):
    """The same program with an enclave hears the node and is heard; without, neither."""
    if enclave is None:
        secured.setenv('ROS_SECURITY_ENABLE', 'false')
    arguments = [namespace, enclave or '/', str(OTHERS_STAMP_S * 10**9)]
    other = subprocess.Popen([sys.executable, '-c', OTHER, *arguments], stdout=subprocess.PIPE)
    while other.poll() is None:
        rover.answer(rover.publish())  # there is something to hear
        rover.spin_for(0.2)
    assert other.returncode == 0
    heard, publishers = json.loads(other.stdout.read())
    # Of pairs that reach the node it says what became of them.
    stamps = {message.header.stamp.sec for message in rover.received['frame_status']}
    answered = OTHERS_STAMP_S in stamps
    if enclave is None:
        assert (heard, publishers, answered) == (0, 0, False)
    else:
        assert heard > 0 and publishers == 1 and answered


def test_enclave_opens_no_more_than_its_policy(secured, namespace):
    """The recorder hears results; it can neither publish images nor serve or hear more."""
    done = subprocess.run(
        [sys.executable, '-c', INSIDER, namespace, f'{ENCLAVE}/recorder_node'],
        stdout=subprocess.PIPE,
        timeout=120,
        check=True,
    )
    assert json.loads(done.stdout) == ['publish', 'hear', 'serve']


def test_node_without_its_enclave_does_not_start(secured, processes):
    """It ends instead of running unprotected, and says why."""
    process = processes.start('reconstruction_node', enclave='/nobody', backend='sgbm')
    assert process.wait(60) == 1
    assert 'SECURITY ERROR' in processes.log('reconstruction_node')
    enclave = f'{ENCLAVE}/recorder_node'
    process = processes.start('reconstruction_node', enclave=enclave, backend='sgbm')
    assert process.wait(60) == 1
