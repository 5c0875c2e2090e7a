"""Starts a lunar world in Gazebo Harmonic, a stereo rover in it, and the reconstruction.

Needs ros_gz (`sudo apt install ros-jazzy-ros-gz`). Without `world` the ground is made first, by
`lunar-stereo export-gazebo` (needs the extra [sim]), and kept for the next time.
"""

from pathlib import Path
import shlex

from launch import LaunchContext, LaunchDescription, LaunchDescriptionEntity
from launch.actions import (
    DeclareLaunchArgument,
    EmitEvent,
    ExecuteProcess,
    IncludeLaunchDescription,
    LogInfo,
    OpaqueFunction,
    RegisterEventHandler,
)
from launch.conditions import IfCondition
from launch.event_handlers import OnProcessExit
from launch.events import Shutdown
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.actions import Node
from launch_ros.substitutions import ExecutableInPackage, FindPackageShare

from lunar_stereo_recon.simulation.gazebo_rover import (
    FrameTransform,
    read_rig,
    read_world,
    start_height,
)

PACKAGE = 'lunar_stereo_recon'
# Gazebo counts pixels from the corner of the image, ROS from the centre of the first pixel.
GAZEBO_PIXEL_OFFSET_PX = 0.5
START = ('x', 'y', 'z', 'yaw')


def generate_launch_description() -> LaunchDescription:
    """Return the arguments; the rest follows from their values."""
    share = FindPackageShare(PACKAGE)
    arguments = [
        DeclareLaunchArgument(
            'world',
            default_value='',
            description='Folder that lunar-stereo export-gazebo wrote; empty makes one',
        ),
        DeclareLaunchArgument(
            'preset',
            default_value='mare',
            description='Ground to make: mare, highland, south_pole, boulder_field or smooth',
        ),
        DeclareLaunchArgument('seed', default_value='1', description='Seed of the ground to make'),
        DeclareLaunchArgument(
            'rover',
            default_value=PathJoinSubstitution(
                [share, 'config', 'gazebo', 'lunar_rover', 'model.sdf']
            ),
            description='SDF of the rover; its sensors left_camera and right_camera are the rig',
        ),
        DeclareLaunchArgument(
            'bridge_config',
            default_value=PathJoinSubstitution([share, 'config', 'gz_bridge.yaml']),
            description='Topics between Gazebo and ROS, YAML of ros_gz_bridge',
        ),
        DeclareLaunchArgument('x', default_value='', description='Start, m; empty: level ground'),
        DeclareLaunchArgument('y', default_value='', description='Start, m; empty: level ground'),
        DeclareLaunchArgument('z', default_value='', description='Start, m; empty: on the ground'),
        DeclareLaunchArgument('yaw', default_value='', description='Heading at the start, rad'),
        DeclareLaunchArgument(
            'gui',
            default_value='true',
            description='false runs the server alone, without a window',
        ),
        DeclareLaunchArgument(
            'namespace', default_value='', description='Namespace of the nodes and their topics'
        ),
        DeclareLaunchArgument(
            'backend', default_value='onnx', description='Matcher: onnx, sgbm, sgbm_hh or bm'
        ),
        DeclareLaunchArgument(
            'model', default_value='', description='Model file; empty is the shipped student'
        ),
        DeclareLaunchArgument(
            'rviz', default_value='false', description='Show images and cloud in RViz'
        ),
    ]
    return LaunchDescription([*arguments, OpaqueFunction(function=_with_world)])


def _with_world(context: LaunchContext) -> list[LaunchDescriptionEntity]:
    """Return everything to start, after the making of the world where none is given."""
    given = _value(context, 'world')
    if given:
        return _simulation(context, Path(given))
    preset, seed = _value(context, 'preset'), _value(context, 'seed')
    folder = Path.home() / '.ros' / PACKAGE / f'gazebo_{preset}_{seed}'
    export = ExecuteProcess(
        cmd=[
            *(ExecutableInPackage('lunar-stereo', PACKAGE), 'export-gazebo', '--reuse'),
            *('--preset', preset, '--seed', seed, '--out', str(folder)),
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
    """Return Gazebo, the rover, the bridge, the frames and the reconstruction."""
    description = read_world(folder)
    rover, namespace = _value(context, 'rover'), _value(context, 'namespace')
    rig = read_rig(Path(rover))
    flags = '-r' if _value(context, 'gui').lower() == 'true' else '-r -s --headless-rendering'
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
        parameters=[{'config_file': _value(context, 'bridge_config'), 'use_sim_time': True}],
    )
    relay = Node(
        package=PACKAGE,
        executable='camera_info_relay',
        name='camera_info_relay',
        namespace=namespace,
        output='screen',
        parameters=[
            {
                'baseline': rig.baseline_m,
                'pixel_offset': GAZEBO_PIXEL_OFFSET_PX,
                'use_sim_time': True,
            }
        ],
    )
    world_frame = FrameTransform('map', 'odom', (0.0, 0.0, 0.0), (0.0, 0.0, 0.0, 1.0))
    frames = [_static_transform(frame) for frame in (world_frame, rig.left, rig.right)]
    reconstruction = IncludeLaunchDescription(
        PythonLaunchDescriptionSource(
            PathJoinSubstitution([FindPackageShare(PACKAGE), 'launch', 'rover.launch.py'])
        ),
        launch_arguments={
            'namespace': namespace,
            'backend': _value(context, 'backend'),
            'model': _value(context, 'model'),
            'use_sim_time': 'true',
        }.items(),
    )
    rviz = Node(
        package='rviz2',
        executable='rviz2',
        name='rviz',
        namespace=namespace,
        arguments=_rviz_arguments(context),
        parameters=[{'use_sim_time': True}],
        condition=IfCondition(LaunchConfiguration('rviz')),
    )
    return [gazebo, spawn, bridge, relay, *frames, reconstruction, rviz]


def _value(context: LaunchContext, name: str) -> str:
    return LaunchConfiguration(name).perform(context)


def _start(context: LaunchContext, folder: Path, spawn: dict[str, float]) -> dict[str, float]:
    """Return the parameters of the rover's first pose: the arguments, else the world's place."""
    given = {name: float(_value(context, name)) for name in START if _value(context, name)}
    start = {**spawn, **given}
    if 'z' not in given and ('x' in given or 'y' in given):
        start['z'] = start_height(folder, start['x'], start['y'])
    return {'x': start['x'], 'y': start['y'], 'z': start['z'], 'Y': start['yaw']}


def _static_transform(frame: FrameTransform) -> Node:
    numbers = zip(
        ('--x', '--y', '--z', '--qx', '--qy', '--qz', '--qw'),
        (*frame.xyz_m, *frame.xyzw),
        strict=True,
    )
    return Node(
        package='tf2_ros',
        executable='static_transform_publisher',
        name=f'{frame.child}_static_transform',
        arguments=[
            *(text for flag, number in numbers for text in (flag, f'{number:.9f}')),
            *('--frame-id', frame.parent, '--child-frame-id', frame.child),
        ],
        parameters=[{'use_sim_time': True}],
    )


def _rviz_arguments(context: LaunchContext) -> list[str]:
    """Return the arguments of RViz: the shipped view where there is one."""
    share = Path(FindPackageShare(PACKAGE).perform(context))
    view = share / 'config' / 'reconstruction.rviz'
    return ['-d', str(view)] if view.is_file() else []
