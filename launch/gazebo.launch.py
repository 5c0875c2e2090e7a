"""Starts a lunar world in Gazebo Harmonic, a stereo rover in it, and the reconstruction.

Needs ros_gz (`sudo apt install ros-jazzy-ros-gz`). Without `world` the ground is made first, by
`lunar-stereo export-gazebo` (needs the extra [sim]), and kept for the next time.
"""

from pathlib import Path
import shlex

from launch import LaunchContext, LaunchDescription, LaunchDescriptionEntity
from launch.actions import (
    EmitEvent,
    ExecuteProcess,
    IncludeLaunchDescription,
    LogInfo,
    OpaqueFunction,
    RegisterEventHandler,
)
from launch.event_handlers import OnProcessExit
from launch.events import Shutdown
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import PathJoinSubstitution
from launch_ros.actions import Node
from launch_ros.substitutions import ExecutableInPackage, FindPackageShare

from lunar_stereo_recon.files.rigs import FrameTransform
from lunar_stereo_recon.ros.launch_actions import check_needs, static_transform
from lunar_stereo_recon.ros.launch_arguments import (
    argument,
    enclave_of,
    FLAG,
    flag,
    included,
    PACKAGE,
    value,
)
from lunar_stereo_recon.ros.node_processes import large_message_environment
from lunar_stereo_recon.simulation.gazebo_rover import read_rig, read_world, start_height

# Gazebo counts pixels from the corner of the image, ROS from the centre of the first pixel.
GAZEBO_PIXEL_OFFSET_PX = 0.5
GROUNDS = ('mare', 'highland', 'south_pole', 'boulder_field', 'smooth')
ROCKS = ('heightfield', 'mesh')
START = ('x', 'y', 'z', 'yaw')
GAZEBO_PACKAGES = ('ros_gz_sim', 'ros_gz_bridge', 'tf2_ros')


def generate_launch_description() -> LaunchDescription:
    """Return the arguments; the rest follows from their values."""
    share = FindPackageShare(PACKAGE)
    rover = PathJoinSubstitution([share, 'config', 'gazebo', 'lunar_rover', 'model.sdf'])
    bridge = PathJoinSubstitution([share, 'config', 'gz_bridge.yaml'])
    return LaunchDescription(
        [
            OpaqueFunction(function=check_needs, args=GAZEBO_PACKAGES),
            argument('world', 'Folder that lunar-stereo export-gazebo wrote; empty makes one'),
            argument('preset', 'Kind of ground to make', 'mare', GROUNDS),
            argument('seed', 'Seed of the ground to make', '1'),
            argument(
                'rocks',
                'Form of the rocks on the ground to make; mesh has overhangs',
                ROCKS[0],
                ROCKS,
            ),
            argument('rover', 'SDF of the rover; left_camera and right_camera are the rig', rover),
            argument('bridge_config', 'Topics between Gazebo and ROS, of ros_gz_bridge', bridge),
            argument('x', 'x of the start [m]; empty chooses level ground'),
            argument('y', 'y of the start [m]; empty chooses level ground'),
            argument('z', 'z of the start [m]; empty is on the ground'),
            argument('yaw', 'Heading at the start [rad]'),
            argument(
                'gui', 'Open the window of Gazebo; false runs the server alone', 'true', FLAG
            ),
            argument('namespace', 'Namespace of the nodes and their topics'),
            argument('fixed_frame', 'Frame to show results in', 'map'),
            # First, so that wrong arguments are reported before the world is made.
            included('rover.launch.py', use_sim_time='true'),
            OpaqueFunction(function=_with_world),
        ]
    )


def _with_world(context: LaunchContext) -> list[LaunchDescriptionEntity]:
    """Return everything to start, after the making of the world where none is given."""
    given = value(context, 'world')
    if given:
        return _simulation(context, Path(given).expanduser())
    preset, seed, rocks = (value(context, name) for name in ('preset', 'seed', 'rocks'))
    folder = Path.home() / '.ros' / PACKAGE / f'gazebo_{preset}_{seed}_{rocks}'
    export = ExecuteProcess(
        cmd=[
            *(ExecutableInPackage('lunar-stereo', PACKAGE), 'export-gazebo', '--reuse'),
            *('--preset', preset, '--seed', seed, '--rocks', rocks, '--out', str(folder)),
        ],
        output='screen',
    )

    def on_exit(event, context: LaunchContext) -> list[LaunchDescriptionEntity]:
        if event.returncode != 0:
            reason = f'lunar-stereo export-gazebo failed with status {event.returncode}'
            return [LogInfo(msg=reason), EmitEvent(event=Shutdown(reason=reason))]
        return _simulation(context, folder)

    return [
        LogInfo(msg=f'Making the ground in {folder}; the first time takes a minute or two'),
        RegisterEventHandler(OnProcessExit(target_action=export, on_exit=on_exit)),
        export,
    ]


def _simulation(context: LaunchContext, folder: Path) -> list[LaunchDescriptionEntity]:
    """Return Gazebo, the rover, the bridge, the relay and the frames."""
    description = read_world(folder)
    rover, namespace = value(context, 'rover'), value(context, 'namespace')
    rig = read_rig(Path(rover))
    flags = '-r' if flag(context, 'gui') else '-r -s --headless-rendering'
    gazebo = IncludeLaunchDescription(
        PythonLaunchDescriptionSource(
            PathJoinSubstitution([FindPackageShare('ros_gz_sim'), 'launch', 'gz_sim.launch.py'])
        ),
        launch_arguments={
            'gz_args': f'{flags} {shlex.quote(str(folder / description["world"]))}',
            'on_exit_shutdown': 'true',
        }.items(),
    )
    spawn = Node(
        package='ros_gz_sim',
        executable='create',
        output='screen',
        parameters=[
            {
                'world': description['name'],
                'file': rover,
                'name': 'lunar_rover',
                **_start(context, folder, description['spawn']),
            }
        ],
    )
    bridge = Node(
        package='ros_gz_bridge',
        executable='parameter_bridge',
        name='gz_bridge',
        namespace=namespace,
        output='screen',
        # It publishes the images.
        additional_env=large_message_environment(),
        parameters=[{'config_file': value(context, 'bridge_config'), 'use_sim_time': True}],
    )
    relay = Node(
        package=PACKAGE,
        executable='camera_info_relay',
        name='camera_info_relay',
        namespace=namespace,
        output='screen',
        arguments=['--ros-args', *enclave_of(context, 'camera_info_relay')],
        parameters=[
            {
                'baseline': rig.baseline_m,
                'pixel_offset': GAZEBO_PIXEL_OFFSET_PX,
                'use_sim_time': True,
            }
        ],
    )
    world_frame = FrameTransform('map', 'odom', (0.0, 0.0, 0.0), (0.0, 0.0, 0.0, 1.0))
    frames = [static_transform(f, use_sim_time=True) for f in (world_frame, rig.left, rig.right)]
    return [gazebo, spawn, bridge, relay, *frames]


def _start(context: LaunchContext, folder: Path, spawn: dict[str, float]) -> dict[str, float]:
    """Return the parameters of the rover's first pose: the arguments, else the world's place."""
    given = {name: float(value(context, name)) for name in START if value(context, name)}
    start = {**spawn, **given}
    if 'z' not in given and ('x' in given or 'y' in given):
        start['z'] = start_height(folder, start['x'], start['y'])
    return {'x': start['x'], 'y': start['y'], 'z': start['z'], 'Y': start['yaw']}
