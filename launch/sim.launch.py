"""The built-in simulator with the reconstruction node: no Gazebo and no GPU needed."""

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue
from launch_ros.substitutions import FindPackageShare

PACKAGE = 'lunar_stereo_recon'
# Types of the simulator's arguments.
SIMULATOR = {
    'preset': str,
    'seed': int,
    'width': int,
    'height': int,
    'rate': float,
    'sun_elevation': float,
    'sun_azimuth': float,
    'speed': float,
    'turn_rate': float,
}


def generate_launch_description() -> LaunchDescription:
    """Return the arguments, the simulator node and the reconstruction of rover.launch.py."""
    arguments = [
        DeclareLaunchArgument(
            'preset',
            default_value='mare',
            description='Kind of ground: boulder_field, highland, mare, smooth, south_pole',
        ),
        DeclareLaunchArgument(
            'seed',
            default_value='0',
            description='Everything random follows from it',
        ),
        DeclareLaunchArgument(
            'width',
            default_value='640',
            description='Of the images, pixels',
        ),
        DeclareLaunchArgument(
            'height',
            default_value='480',
            description='Of the images, pixels',
        ),
        DeclareLaunchArgument(
            'rate',
            default_value='2.0',
            description='Stereo pairs per second of simulated time',
        ),
        DeclareLaunchArgument(
            'sun_elevation',
            default_value='0.0',
            description='Degrees above the horizon; 0 is typical of the preset',
        ),
        DeclareLaunchArgument(
            'sun_azimuth',
            default_value='115.0',
            description='Degrees counterclockwise from x of the map',
        ),
        DeclareLaunchArgument(
            'speed',
            default_value='0.3',
            description='Of the built-in drive until cmd_vel is published, m/s',
        ),
        DeclareLaunchArgument(
            'turn_rate',
            default_value='1.5',
            description='Of the built-in drive, degrees per second',
        ),
        DeclareLaunchArgument(
            'namespace', default_value='', description='Namespace of both nodes and their topics'
        ),
        DeclareLaunchArgument(
            'backend', default_value='onnx', description='Matcher: onnx, sgbm, sgbm_hh or bm'
        ),
        DeclareLaunchArgument(
            'model', default_value='', description='Model file or name; empty is flight'
        ),
    ]
    simulator = Node(
        package=PACKAGE,
        executable='simulator_node',
        name='simulator_node',
        namespace=LaunchConfiguration('namespace'),
        output='screen',
        parameters=[
            {
                name: ParameterValue(LaunchConfiguration(name), value_type=kind)
                for name, kind in SIMULATOR.items()
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
            'use_sim_time': 'true',
        }.items(),
    )
    return LaunchDescription([*arguments, simulator, reconstruction])
