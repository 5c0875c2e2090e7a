"""The SROS 2 policies against what the nodes really open, over DDS."""

import itertools
import os
from pathlib import Path
import socket
import time
import xml.etree.ElementTree as ElementTree

import pytest

pytest.importorskip('rclpy')
pytestmark = pytest.mark.ros

from sensor_msgs.msg import CompressedImage, Image, PointCloud2  # noqa: E402

from lunar_stereo_recon.ros.recorder_node import TOPIC_TYPES  # noqa: E402
from lunar_stereo_recon.ros.security_policy import (  # noqa: E402
    ENCLAVE,
    main,
    POLICIES,
    policy,
)

FILE = Path(__file__).resolve().parents[2] / 'config' / 'sros2' / 'policy.xml'
PROFILE = Path(__file__).resolve().parents[2] / 'lunar_stereo_recon/ros/fastdds_loopback.xml'
# What a node of these options opens; together they are all that it may open.
VARIANTS = {
    'reconstruction_node': [
        {'hazard_gravity': 'tf', 'temporal': 'odometry'},
        {'hazard_gravity': 'imu', 'rectify': True, 'temporal': 'pose'},
        {'input_transport': 'compressed', 'hazard_gravity': 'fixed'},
        {'input_transport': 'compressed', 'rectify': True},
    ],
    'recorder_node': [{}],
    'camera_info_relay': [{}],
    'replay_node': [{'clock': True, 'loop': True, 'flow_control': True}],
    'simulator_node': [{}, {'faults': 'lens'}],
    'terrain_node': [{'pose_source': 'odometry'}, {'pose_source': 'pose'}],
}
RIG = ('left/image_rect', 'right/image_rect', 'left/camera_info', 'right/camera_info')
SMALL = {'width': 160, 'height': 120, 'preset': 'mare', 'seed': 3, 'shadow_cache': False}
PATIENCE_S = 60.0
# What a node opens last.
LAST = {
    'reconstruction_node': ('publish', 'frame_status'),
    'simulator_node': ('subscribe', 'cmd_vel'),
    'replay_node': ('subscribe', 'frame_status'),
    'terrain_node': ('subscribe', 'points2'),
    'recorder_node': ('subscribe', 'right/image_raw'),
}
# Follows use_sim_time, which these nodes are not given, or the parameter of an overridden QoS.
# grid_map_msgs is not among the wheels.
NOT_OPENED = {'/clock', '/parameter_events', '/tf_static', '/tf', 'terrain/grid_map'}


def allowed(document: str, node: str) -> dict[str, set[str]]:
    """Return names by what is allowed with them."""
    root = ElementTree.fromstring(document)
    (profile,) = root.findall(f".//profile[@node='{node}']")
    found = {}
    for group in profile:
        ((action, verdict),) = group.attrib.items()
        assert verdict == 'ALLOW'
        found[action] = {entry.text for entry in group}
    return found


def opened(cameras, node: str) -> dict[str, set[str]] | None:
    """Return names by what the running node does with them, in the policy's form; None if gone."""
    namespace = cameras.node.get_namespace()
    queries = {
        'publish': cameras.node.get_publisher_names_and_types_by_node,
        'subscribe': cameras.node.get_subscriber_names_and_types_by_node,
        'reply': cameras.node.get_service_names_and_types_by_node,
        'request': cameras.node.get_client_names_and_types_by_node,
    }
    found = {}
    for action, query in queries.items():
        try:
            names = {name for name, _ in query(node, namespace)}
        except Exception as error:  # noqa: BLE001 (rclpy's NodeNameNonExistentError, by release)
            assert 'ode' in type(error).__name__
            return None
        own = f'{namespace}/{node}/'
        names = {f'~/{n[len(own) :]}' if n.startswith(own) else n for n in names}
        found[action] = {n.removeprefix(f'{namespace}/') for n in names}
    return found


@pytest.mark.parametrize('node', VARIANTS)
def test_policy_is_what_the_node_opens(node, processes, cameras, tmp_path, make_bag):
    if node == 'simulator_node':
        pytest.importorskip('torch')
        pytest.importorskip('numba')
    cameras.advertise()
    # It hears images and clouds where somebody publishes them.
    if node == 'terrain_node':
        clouds = cameras.node.create_publisher(PointCloud2, 'points2', 1)
        cameras.publishers['points2'] = clouds
    for topic in ('left/image_raw', 'right/image_raw'):
        cameras.publishers[topic] = cameras.node.create_publisher(Image, topic, 1)
    for side, kind in itertools.product(('left', 'right'), ('raw', 'rect')):
        topic = f'{side}/image_{kind}/compressed'
        cameras.publishers[topic] = cameras.node.create_publisher(CompressedImage, topic, 1)
    rules, seen = allowed(FILE.read_text(), node), {}
    for options in VARIANTS[node]:
        if node == 'reconstruction_node':
            options = {'backend': 'sgbm', 'threads': 1, 'lazy': False, **options}
        if node == 'recorder_node':
            topics = ', '.join(sorted(TOPIC_TYPES))
            options = {'bag': tmp_path / 'bag', 'topics': f'[{topics}]'}
        if node == 'replay_node':
            topics = ', '.join(f'/rig/{topic}' for topic in RIG)
            options = {'bag': make_bag(frames=3), 'topics': f'[{topics}]', **options}
        if node == 'simulator_node':
            faults = tmp_path / 'faults.yaml'
            faults.write_text('distortion: [-0.1, 0.0, 0.0, 0.0, 0.0]\n')
            options = {**SMALL, **dict.fromkeys(options, faults)}
        # A replay has the names of its bag; they are remapped to those of the rig.
        remap = {f'/rig/{topic}': topic for topic in RIG} if node == 'replay_node' else None
        process = processes.start(node, remap, **options)
        now = settled(cameras, node)
        for action, names in now.items():
            assert names <= rules.get(action, set()), (action, options)
            seen.setdefault(action, set()).update(names)
        process.terminate()
        process.wait(PATIENCE_S)
        # The next one has the same name.
        cameras.spin_until(lambda: opened(cameras, node) is None)
    for action, names in rules.items():
        unused = names - seen[action] - NOT_OPENED
        assert not unused, f'{node} may {action} {unused} and does not'


def settled(cameras, node: str) -> dict[str, set[str]]:
    """Return what a node has open once that no longer grows."""
    end, now, same = time.monotonic() + PATIENCE_S, {}, 0
    while time.monotonic() < end and same < 12:
        cameras.publish()
        cameras.spin_for(0.25)
        new = opened(cameras, node)
        if new is None:
            continue
        action, last = LAST.get(node, ('reply', '~/set_parameters'))
        same = same + 1 if new == now and new['reply'] and last in new[action] else 0
        now = new
    return now


def udp_addresses(process) -> set[tuple[str, int]]:
    """Return the local addresses of a process's UDP sockets."""
    folder = Path('/proc') / str(process.pid)
    links = {os.readlink(link) for link in (folder / 'fd').iterdir() if link.exists()}
    found = set()
    for line in (folder / 'net' / 'udp').read_text().splitlines()[1:]:
        words = line.split()
        if f'socket:[{words[9]}]' in links:
            address, port = words[1].split(':')
            found.add((socket.inet_ntoa(bytes.fromhex(address)[::-1]), int(port, 16)))
    return found


@pytest.mark.skipif(not Path('/proc/self/net/udp').exists(), reason='reads /proc')
@pytest.mark.parametrize('loopback', [False, True])
def test_addresses_that_ports_of_dds_are_open_on(loopback, processes, cameras):
    """Those that RTPS reckons from the domain: 7400 + 250 * domain and up."""
    if loopback:
        profile = str(PROFILE)
        processes.environment['FASTRTPS_DEFAULT_PROFILES_FILE'] = profile
        processes.environment['FASTDDS_DEFAULT_PROFILES_FILE'] = profile
    processes.environment['ROS_AUTOMATIC_DISCOVERY_RANGE'] = 'LOCALHOST'
    cameras.advertise()
    cameras.listen('points2', 'frame_status')
    process = processes.start('reconstruction_node', backend='sgbm', threads=1)
    cameras.wait_until_heard()
    first = 7400 + 250 * cameras.node.context.get_domain_id()
    ports = {address for address, port in udp_addresses(process) if first <= port < first + 250}
    assert ports == ({'127.0.0.1'} if loopback else {'0.0.0.0'})
    # Over it, too, pairs come and clouds go.
    assert cameras.answer(cameras.publish()).message == 'published'


def test_file_is_what_the_command_prints(capsys):
    assert main([]) == 0
    assert FILE.read_text() == capsys.readouterr().out


def test_form_of_the_document():
    """Structure of policy version 0.2.0, as `ros2 security` reads it."""
    root = ElementTree.fromstring(policy())
    assert root.tag == 'policy' and root.attrib == {'version': '0.2.0'}
    assert [child.tag for child in root] == ['enclaves']
    paths = [enclave.get('path') for enclave in root[0]]
    assert paths == [f'{ENCLAVE}/{node}' for node in POLICIES]
    for enclave in root[0]:
        assert [child.tag for child in enclave] == ['profiles']
        for profile in enclave[0]:
            assert set(profile.attrib) == {'ns', 'node'} and profile.get('ns').startswith('/')
            groups = [(group.tag, *group.attrib.items()) for group in profile]
            assert groups == [
                ('services', ('reply', 'ALLOW')),
                ('topics', ('subscribe', 'ALLOW')),
                ('topics', ('publish', 'ALLOW')),
            ]
            for group in profile:
                assert {entry.tag for entry in group} == {group.tag[:-1]}
                names = [entry.text for entry in group]
                assert names == sorted(set(names)) and all(names)
                assert not any('*' in name for name in names)


def test_namespace_and_names_on_the_wire(capsys):
    assert main(['--namespace', 'rover', '--remap', 'left/image_rect:=/cam/left']) == 0
    document = capsys.readouterr().out
    assert 'ns="/rover"' in document and '<topic>/cam/left</topic>' in document
    assert '<topic>/cam/left/compressed</topic>' in document
    assert '<topic>left/image_rect</topic>' not in document
    with pytest.raises(SystemExit):
        main(['--remap', 'left'])
