"""The built-in simulator with the reconstruction node: no Gazebo and no GPU needed."""

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue
from launch_ros.substitutions import FindPackageShare

PACKAGE = 'lunar_stereo_recon'
# Arguments of the simulator: type, default and what they are.
SIMULATOR = {
    'preset': (str, 'mare', 'Kind of ground: boulder_field, highland, mare, smooth, south_pole'),
    'seed': (int, '0', 'Everything random follows from it'),
    'width': (int, '640', 'Of the images, pixels'),
    'height': (int, '480', 'Of the images, pixels'),
    'rate': (float, '2.0', 'Stereo pairs per second of simulated time'),
    'sun_elevation': (float, '0.0', 'Degrees above the horizon; 0 is typical of the preset'),
    'sun_azimuth': (float, '115.0', 'Degrees counterclockwise from x of the map'),
    'speed': (float, '0.3', 'Of the built-in drive until cmd_vel is published, m/s'),
    'turn_rate': (float, '1.5', 'Of the built-in drive, degrees per second'),
}


def generate_launch_description() -> LaunchDescription:
    """Return the arguments, the simulator node and the reconstruction of rover.launch.py."""
    arguments = [
        DeclareLaunchArgument(name, default_value=default, description=text)
        for name, (_, default, text) in SIMULATOR.items()
    ]
    arguments += [
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
                for name, (kind, _, _) in SIMULATOR.items()
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
