"""OmniLRS: starts the reconstruction on a rover's stereo images. OmniLRS itself runs elsewhere."""

from launch import LaunchDescription

from lunar_stereo_recon.ros.launch_arguments import argument, included


def generate_launch_description() -> LaunchDescription:
    """Return rover.launch.py with this preset; its arguments are those of this file."""
    return LaunchDescription(
        [
            argument('camera_preset', 'Preset of the cameras, by name or path', 'omnilrs'),
            included('rover.launch.py'),
        ]
    )
