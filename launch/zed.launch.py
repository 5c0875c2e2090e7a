"""Stereolabs ZED: starts the reconstruction on its images. The ZED wrapper runs elsewhere."""

from launch import LaunchDescription

from lunar_stereo_recon.ros.launch_arguments import argument, included


def generate_launch_description() -> LaunchDescription:
    """Return rover.launch.py with this preset; its arguments are those of this file."""
    return LaunchDescription(
        [
            argument(
                'camera_preset',
                'zed: topics of zed_ros2_wrapper 5.1 and newer; zed_5_0: those of older ones',
                'zed',
            ),
            included('rover.launch.py'),
        ]
    )
