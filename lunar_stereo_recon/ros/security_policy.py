"""SROS 2 policies of the nodes: what each may publish, hear, serve and ask, and nothing else.

`python -m lunar_stereo_recon.ros.security_policy` prints them for a namespace and remappings;
config/sros2/policy.xml is what it prints without any.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
import functools
import sys
import xml.etree.ElementTree as ElementTree

VERSION = '0.2.0'
ENCLAVE = '/lunar_stereo_recon'
_RIG = ('left/image_rect', 'right/image_rect', 'left/camera_info', 'right/camera_info')
_RAW = ('left/image_raw', 'right/image_raw')
_TRANSPORTS = ('compressed', 'compressedDepth')
_RESULTS = (
    *('points2', 'confidence', 'confidence/image_mono8', 'disparity', 'depth/image'),
    *('depth/image/compressedDepth', 'depth/camera_info', 'depth/sigma', 'hazard'),
)
_RECORDED = tuple(topic for topic in _RESULTS if topic not in ('confidence/image_mono8', 'hazard'))
# What every node of rclpy opens: its log, its parameters, and the clock that it may follow.
_PARAMETERS = tuple(
    f'~/{name}'
    for name in (
        *('describe_parameters', 'get_parameter_types', 'get_parameters', 'list_parameters'),
        *('set_parameters', 'set_parameters_atomically', 'get_type_description'),
    )
)
_LIFECYCLE = tuple(
    f'~/{name}'
    for name in (
        *('change_state', 'get_state', 'get_available_states', 'get_available_transitions'),
        'get_transition_graph',
    )
)


@dataclass(frozen=True)
class NodePolicy:
    """What one node opens; names relative to the namespace, absolute, or '~/' for its own.

    Attributes:
        publishes, subscribes: Topics.
        serves: Services.
    """

    publishes: tuple[str, ...]
    subscribes: tuple[str, ...]
    serves: tuple[str, ...] = field(default=())


POLICIES = {
    'reconstruction_node': NodePolicy(
        # Rectified left images are published where raw ones come in.
        (*_RESULTS, 'left/image_rect', 'frame_status', '/diagnostics', '~/transition_event'),
        (
            *_RIG,
            *_RAW,
            *(f'{topic}/compressed' for topic in (*_RIG[:2], *_RAW)),
            *('imu', 'odom', 'pose', '/tf', '/tf_static'),
        ),
        ('~/enable', '~/save_cloud', '~/set_model', '~/doctor', *_LIFECYCLE),
    ),
    'terrain_node': NodePolicy(
        (
            *('terrain/cost', 'terrain/cells', 'terrain/grid_map', '/diagnostics'),
            '~/transition_event',
        ),
        ('points2', 'odom', 'pose', 'right/camera_info', '/tf', '/tf_static'),
        ('~/reset', *_LIFECYCLE),
    ),
    'replay_node': NodePolicy((*_RIG, '/clock'), ('frame_status',)),
    'recorder_node': NodePolicy(
        (), (*_RIG, *_RAW, *_RECORDED, 'frame_status', 'ground_truth/depth', 'ground_truth/pose')
    ),
    'simulator_node': NodePolicy(
        (*_RIG, *_RAW, 'ground_truth/depth', 'ground_truth/pose', 'odom', '/clock', '/tf'),
        ('cmd_vel',),
    ),
    'camera_info_relay': NodePolicy(
        _RIG[2:], tuple(f'{side}/camera_info_in' for side in ('left', 'right'))
    ),
}


def policy(namespace: str = '', remappings: Mapping[str, str] | None = None) -> str:
    """Return the policies of all nodes as an XML document.

    Args:
        namespace: Namespace of the nodes, such as '/rover'.
        remappings: Names of topics and services as the nodes know them, to those on the wire.
    """
    root = ElementTree.Element('policy', version=VERSION)
    enclaves = ElementTree.SubElement(root, 'enclaves')
    for node, own in POLICIES.items():
        enclave = ElementTree.SubElement(enclaves, 'enclave', path=f'{ENCLAVE}/{node}')
        profiles = ElementTree.SubElement(enclave, 'profiles')
        ns = f'/{namespace.strip("/")}'
        profile = ElementTree.SubElement(profiles, 'profile', ns=ns, node=node)
        publishes = ('/rosout', '/parameter_events', *own.publishes)
        subscribes = ('/clock', '/parameter_events', *own.subscribes)
        wire = functools.partial(_on_the_wire, remappings or {})
        _rules(profile, 'services', 'service', 'reply', map(wire, (*_PARAMETERS, *own.serves)))
        _rules(profile, 'topics', 'topic', 'subscribe', map(wire, subscribes))
        _rules(profile, 'topics', 'topic', 'publish', map(wire, publishes))
    ElementTree.indent(root, '  ')
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        + ElementTree.tostring(root, encoding='unicode')
        + '\n'
    )


def _on_the_wire(remappings: Mapping[str, str], name: str) -> str:
    """Return a name remapped; other forms of an image follow it, as in `transport_topic`."""
    image, _, transport = name.rpartition('/')
    if name not in remappings and image in remappings and transport in _TRANSPORTS:
        return f'{remappings[image]}/{transport}'
    return remappings.get(name, name)


def _rules(
    profile: ElementTree.Element, group: str, kind: str, action: str, allowed: Iterable[str]
) -> None:
    rules = ElementTree.SubElement(profile, group, {action: 'ALLOW'})
    for name in sorted(set(allowed)):
        ElementTree.SubElement(rules, kind).text = name


def main(argv: Sequence[str] | None = None) -> int:
    """Print the policies."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--namespace', default='', help='of the nodes, such as /rover')
    parser.add_argument(
        '--remap',
        action='append',
        default=[],
        metavar='NAME:=WIRE',
        help='name of a topic as the node knows it, and its name on the wire; may be repeated',
    )
    args = parser.parse_args(argv)
    pairs = [text.partition(':=') for text in args.remap]
    if not all(name and wire for name, _, wire in pairs):
        parser.error('--remap needs NAME:=WIRE, such as left/image_rect:=/cameras/left/image')
    sys.stdout.write(policy(args.namespace, {name: wire for name, _, wire in pairs}))
    return 0


if __name__ == '__main__':
    sys.exit(main())
