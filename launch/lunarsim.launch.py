"""LunarSim: starts the reconstruction on its stereo images. LunarSim itself runs elsewhere."""

from launch import LaunchDescription

from lunar_stereo_recon.ros.launch_arguments import argument, included


def generate_launch_description() -> LaunchDescription:
    """Return rover.launch.py with this preset; its arguments are those of this file."""
    return LaunchDescription(
        [
            argument('camera_preset', 'Preset of the cameras, by name or path', 'lunarsim'),
            included('rover.launch.py'),
        ]
    )
