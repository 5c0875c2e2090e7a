"""Replays a recording through the reconstruction node; ends when the recording does."""

from launch import LaunchDescription
from launch.actions import (
    DeclareLaunchArgument,
    EmitEvent,
    IncludeLaunchDescription,
    RegisterEventHandler,
)
from launch.event_handlers import OnProcessExit
from launch.events import Shutdown
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue
from launch_ros.substitutions import FindPackageShare

PACKAGE = 'lunar_stereo_recon'


def generate_launch_description() -> LaunchDescription:
    """Return the arguments, the replay node and the reconstruction of rover.launch.py."""
    arguments = [
        DeclareLaunchArgument('bag', description='rosbag2 directory, .mcap or .db3'),
        DeclareLaunchArgument(
            'rate',
            default_value='1.0',
            description='Speed relative to the recording; 0 is as fast as frames are answered',
        ),
        DeclareLaunchArgument(
            'flow_control',
            default_value='false',
            description='Wait for each frame to be answered, so that none is dropped',
        ),
        DeclareLaunchArgument(
            'loop', default_value='false', description='Start again at the end, without an end'
        ),
        DeclareLaunchArgument(
            'start_offset', default_value='0.0', description='Seconds to skip at the beginning'
        ),
        DeclareLaunchArgument(
            'wait_for_subscribers',
            default_value='30.0',
            description='Seconds to wait for somebody to listen to a result; 0 starts at once',
        ),
        DeclareLaunchArgument(
            'namespace', default_value='', description='Namespace of both nodes and their topics'
        ),
        DeclareLaunchArgument(
            'backend', default_value='onnx', description='Matcher: onnx, sgbm, sgbm_hh or bm'
        ),
        DeclareLaunchArgument(
            'model', default_value='', description='Model file; empty is the shipped student'
        ),
        DeclareLaunchArgument(
            'baseline',
            default_value='0.0',
            description='Distance between the cameras, metres; 0 takes it from the recording',
        ),
    ]
    replay = Node(
        package=PACKAGE,
        executable='replay_node',
        name='replay_node',
        namespace=LaunchConfiguration('namespace'),
        output='screen',
        parameters=[
            {
                'bag': ParameterValue(LaunchConfiguration('bag'), value_type=str),
                'rate': ParameterValue(LaunchConfiguration('rate'), value_type=float),
                'loop': ParameterValue(LaunchConfiguration('loop'), value_type=bool),
                'flow_control': ParameterValue(
                    LaunchConfiguration('flow_control'), value_type=bool
                ),
                'start_offset': ParameterValue(
                    LaunchConfiguration('start_offset'), value_type=float
                ),
                'wait_for_subscribers': ParameterValue(
                    LaunchConfiguration('wait_for_subscribers'), value_type=float
                ),
                'clock': True,
                'rename_rig': True,
            }
        ],
    )
    reconstruction = IncludeLaunchDescription(
        PythonLaunchDescriptionSource(
            PathJoinSubstitution([FindPackageShare(PACKAGE), 'launch', 'rover.launch.py'])
        ),
        launch_arguments={
            'namespace': LaunchConfiguration('namespace'),
            'backend': LaunchConfiguration('backend'),
            'model': LaunchConfiguration('model'),
            'baseline': LaunchConfiguration('baseline'),
            'use_sim_time': 'true',
        }.items(),
    )
    end = RegisterEventHandler(
        OnProcessExit(
            target_action=replay,
            on_exit=[EmitEvent(event=Shutdown(reason='the recording is over'))],
        )
    )
    return LaunchDescription([*arguments, reconstruction, replay, end])
