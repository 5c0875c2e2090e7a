"""Plays a recording to the reconstruction, under the topic names that it was recorded with.

`ros2 bag play` plays it where it is installed, otherwise this package's replay_node.
"""

from collections.abc import Container, Mapping
import dataclasses
import itertools
from pathlib import Path
import shutil

from ament_index_python.packages import get_packages_with_prefixes
from launch import LaunchContext, LaunchDescription, LaunchDescriptionEntity
from launch.actions import (
    EmitEvent,
    ExecuteProcess,
    LogInfo,
    OpaqueFunction,
    RegisterEventHandler,
    SetLaunchConfiguration,
)
from launch.event_handlers import OnProcessExit
from launch.events import Shutdown
from launch_ros.actions import Node

from lunar_stereo_recon.bags.reader import bag_topics, StereoBagReader
from lunar_stereo_recon.errors import InputError
from lunar_stereo_recon.messages import StereoTopics
from lunar_stereo_recon.ros.camera_presets import COMPRESSED
from lunar_stereo_recon.ros.launch_arguments import (
    argument,
    cameras,
    enclave_of,
    FLAG,
    flag,
    given_parameters,
    included,
    PACKAGE,
    parameter_arguments,
    value,
)
from lunar_stereo_recon.ros.node_processes import large_message_environment
from lunar_stereo_recon.ros.parameters import ReplayParameters
from lunar_stereo_recon.ros.result_outputs import OUTPUT_TOPICS, RECTIFIED_TOPICS

PLAYERS = ('auto', 'rosbag2', 'replay_node')
REPLAY = ('rate', 'loop', 'start_offset', 'flow_control', 'wait_for_subscribers')
TOPICS = tuple(item.name for item in dataclasses.fields(StereoTopics))
IMAGE_NAMES = ('image_rect', 'image_raw')
COMPRESSED_IMAGE = 'sensor_msgs/msg/CompressedImage'
CLOCK_RATE_HZ = 100


@dataclasses.dataclass(frozen=True)
class Recording:
    """What is played: the bag, the topics of its rig, and types by name of all its topics."""

    bag: str
    rig: StereoTopics
    topics: Mapping[str, str]


def generate_launch_description() -> LaunchDescription:
    """Return the arguments; the rest follows from what is in the bag."""
    found: list[Recording] = []
    return LaunchDescription(
        [
            argument('bag', 'Recording: a rosbag2 folder, .mcap or .db3', None),
            argument(
                'player',
                'Program that plays the recording; auto is rosbag2 if it is installed',
                'auto',
                PLAYERS,
            ),
            *parameter_arguments(ReplayParameters, *REPLAY[:-1]),
            argument(
                'wait_for_subscribers',
                'Time that replay_node waits for a subscriber of a result [s]; 0 does not wait',
                '30.0',
            ),
            argument('delay', 'Time that rosbag2 waits for the node before it plays [s]', '5.0'),
            argument('qos_overrides', 'YAML for --qos-profile-overrides-path of rosbag2'),
            argument('exit_at_end', 'End the launch when the recording ends', 'true', FLAG),
            *(argument(name, 'Topic in the bag; empty finds it') for name in TOPICS),
            argument('camera_preset', 'Preset with the topics, instead of finding them'),
            argument('camera_namespace', "Namespace of the preset's topics, in place of its own"),
            argument('namespace', 'Namespace of the node and its topics, not of the recording'),
            OpaqueFunction(function=_look_into, args=[found]),
            # Before the player, so that wrong arguments are reported before anything starts.
            included('rover.launch.py', use_sim_time='true'),
            OpaqueFunction(function=_play, args=[found]),
        ]
    )


def _look_into(
    context: LaunchContext, recordings: list[Recording]
) -> list[LaunchDescriptionEntity]:
    """Return arguments of rover.launch.py that follow from the bag; add the recording."""
    bag = str(Path(value(context, 'bag')).expanduser())
    recorded = bag_topics(bag)
    with StereoBagReader(bag, _named_topics(context, recorded)) as reader:
        rig = reader.topics
        connection, _, raw = next(reader.raw_messages([rig.left_image]))
        frame = reader.deserialize(raw, connection.msgtype).header.frame_id
        pose_topic = reader.pose_topic
        raw_images = bool(rig.left_info and rig.right_info) and any(
            first.looks_raw for first in itertools.islice(reader.frames(), 1)
        )
    actions: list[LaunchDescriptionEntity] = []
    found = {**dataclasses.asdict(rig), 'optical_frame': frame}
    # Arguments of rover.launch.py, which are not there yet where nobody gave them.
    given = context.launch_configurations
    if pose_topic and not (given.get('terrain_pose') or given.get('terrain_pose_source')):
        found |= {'terrain_pose': pose_topic, 'terrain_pose_source': 'pose'}
    if recorded[rig.left_image] == COMPRESSED_IMAGE:
        found['input_transport'] = 'compressed'
    if raw_images and not given.get('rectify'):
        found['rectify'] = 'true'
        said = (
            f'{rig.left_image} has raw images (D is not 0): rectify:=true; rectify:=false if not'
        )
        actions.append(LogInfo(msg=said))
    recordings.append(Recording(bag, rig, recorded))
    return [*actions, *(SetLaunchConfiguration(*item) for item in found.items())]


def _play(context: LaunchContext, recordings: list[Recording]) -> list[LaunchDescriptionEntity]:
    """Return the player, and what ends everything with it."""
    [recording] = recordings
    player = _player(context, recording.bag, recording.rig, recording.topics)
    if not flag(context, 'exit_at_end'):
        return [player]
    end = EmitEvent(event=Shutdown(reason='the recording is over'))
    return [player, RegisterEventHandler(OnProcessExit(target_action=player, on_exit=[end]))]


def _named_topics(context: LaunchContext, recorded: Container[str]) -> StereoTopics | None:
    """Return the topics that arguments or a preset name; None leaves them to be found."""
    given = [value(context, name) for name in TOPICS]
    if not value(context, 'camera_preset'):
        if any(given) and not all(given[:2]):
            raise InputError(f'{", ".join(TOPICS)} are {given}; give both images or none')
        return StereoTopics(*given) if any(given) else None
    preset = cameras(context)
    names = {**dict(preset.remappings(False)), **dict(preset.remappings(True))}
    images = []
    for side in ('left', 'right'):
        inputs = [f'{side}/{name}{end}' for end in ('', COMPRESSED) for name in IMAGE_NAMES]
        topics = [names[name] for name in inputs]
        images.append(next((topic for topic in topics if topic in recorded), topics[0]))
    infos = [names.get(f'{side}/camera_info', '') for side in ('left', 'right')]
    return StereoTopics(*images, *infos)


def _player(
    context: LaunchContext, bag: str, rig: StereoTopics, recorded: Mapping[str, str]
) -> ExecuteProcess:
    """Return the process that plays what the node does not publish itself."""
    namespace = value(context, 'namespace')
    prefix = f'/{namespace.strip("/")}'.rstrip('/')
    outputs = (*OUTPUT_TOPICS, *RECTIFIED_TOPICS, 'frame_status')
    results = {f'{prefix}/{name}' for name in outputs} - set(dataclasses.astuple(rig))
    played = sorted(recorded.keys() - results - {'/clock'})
    player = value(context, 'player')
    if player == 'auto':
        paced = flag(context, 'flow_control') or float(value(context, 'rate') or 1) == 0
        player = 'replay_node' if paced or not _rosbag2_is_installed() else 'rosbag2'
    if player == 'replay_node':
        given = given_parameters(context, ReplayParameters, *REPLAY)
        return Node(
            package=PACKAGE,
            executable='replay_node',
            name='replay_node',
            namespace=namespace,
            output='screen',
            arguments=['--ros-args', *enclave_of(context, 'replay_node')],
            additional_env=large_message_environment(),
            parameters=[
                {
                    **{'bag': bag, 'topics': played, 'clock': True},
                    **dataclasses.asdict(rig),
                    **given,
                }
            ],
        )
    overrides = value(context, 'qos_overrides')
    return ExecuteProcess(
        cmd=[
            *('ros2', 'bag', 'play', bag, '--clock', str(CLOCK_RATE_HZ)),
            *('--rate', value(context, 'rate') or '1.0'),
            # ros2 bag play refuses a delay of 0.
            *(['--delay', value(context, 'delay')] if float(value(context, 'delay')) > 0 else []),
            *('--start-offset', value(context, 'start_offset') or '0.0'),
            *(['--loop'] if flag(context, 'loop') else []),
            *(['--qos-profile-overrides-path', overrides] if overrides else []),
            # Without a terminal there are no keys to press.
            '--disable-keyboard-controls',
            *(['--topics', *played] if len(played) < len(recorded) else []),
        ],
        output='screen',
        additional_env=large_message_environment(),
    )


def _rosbag2_is_installed() -> bool:
    return shutil.which('ros2') is not None and 'ros2bag' in get_packages_with_prefixes()
