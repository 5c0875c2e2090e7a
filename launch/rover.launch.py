"""Starts the reconstruction node on a rover whose cameras publish rectified images."""

import os

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue
from launch_ros.substitutions import FindPackageShare

from lunar_stereo_recon.ros.node_processes import LARGE_MESSAGES_PROFILE, PROFILE_VARIABLE

PACKAGE = 'lunar_stereo_recon'


def generate_launch_description() -> LaunchDescription:
    """Return the arguments and the node; `ros2 launch --show-args` lists them."""
    default_parameters = PathJoinSubstitution(
        [FindPackageShare(PACKAGE), 'config', 'reconstruction.yaml']
    )
    arguments = [
        DeclareLaunchArgument(
            'namespace', default_value='', description='Namespace of the node and its topics'
        ),
        DeclareLaunchArgument(
            'left_namespace',
            default_value='left',
            description='Namespace of the left image_rect and camera_info',
        ),
        DeclareLaunchArgument(
            'right_namespace',
            default_value='right',
            description='Namespace of the right image_rect and camera_info',
        ),
        DeclareLaunchArgument(
            'params_file', default_value=default_parameters, description='Parameters, YAML'
        ),
        DeclareLaunchArgument(
            'approximate_sync',
            default_value='false',
            description='Pair images whose stamps differ a little; false wants equal stamps',
        ),
        DeclareLaunchArgument(
            'baseline',
            default_value='0.0',
            description='Distance between the cameras, metres; 0 takes it from the camera_info',
        ),
        DeclareLaunchArgument(
            'backend', default_value='onnx', description='Matcher: onnx, sgbm, sgbm_hh or bm'
        ),
        DeclareLaunchArgument(
            'model', default_value='', description='Model file; empty is the shipped student'
        ),
        DeclareLaunchArgument(
            'use_sim_time', default_value='false', description='Take the time from /clock'
        ),
        DeclareLaunchArgument(
            'autostart',
            default_value='true',
            description='Configure and activate at start; false waits for a lifecycle manager',
        ),
        DeclareLaunchArgument(
            'log_level', default_value='info', description='debug, info, warn or error'
        ),
    ]
    left, right = LaunchConfiguration('left_namespace'), LaunchConfiguration('right_namespace')
    node = Node(
        package=PACKAGE,
        executable='reconstruction_node',
        name='reconstruction_node',
        namespace=LaunchConfiguration('namespace'),
        output='screen',
        # Clouds fill more shared memory than Fast DDS reserves; a profile of the user's stays.
        additional_env={
            PROFILE_VARIABLE: os.environ.get(PROFILE_VARIABLE, str(LARGE_MESSAGES_PROFILE))
        },
        # Arguments come after the file, so that they win.
        parameters=[
            LaunchConfiguration('params_file'),
            {
                'backend': LaunchConfiguration('backend'),
                'model': ParameterValue(LaunchConfiguration('model'), value_type=str),
                'baseline': ParameterValue(LaunchConfiguration('baseline'), value_type=float),
                'approximate_sync': _flag('approximate_sync'),
                'autostart': _flag('autostart'),
                'use_sim_time': _flag('use_sim_time'),
            },
        ],
        remappings=[
            ('left/image_rect', [left, '/image_rect']),
            ('left/image_rect/compressed', [left, '/image_rect/compressed']),
            ('left/camera_info', [left, '/camera_info']),
            ('right/image_rect', [right, '/image_rect']),
            ('right/image_rect/compressed', [right, '/image_rect/compressed']),
            ('right/camera_info', [right, '/camera_info']),
        ],
        arguments=['--ros-args', '--log-level', LaunchConfiguration('log_level')],
    )
    return LaunchDescription([*arguments, node])


def _flag(name: str) -> ParameterValue:
    return ParameterValue(LaunchConfiguration(name), value_type=bool)
