"""What the launch files start beside the nodes of this package: static transforms and views.

`check_needs` comes first in every launch file and reports what is missing before anything starts.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ament_index_python.packages import get_packages_with_prefixes
from launch import LaunchContext, LaunchDescriptionEntity
from launch.actions import LogInfo
from launch_ros.actions import Node

from lunar_stereo_recon.errors import InputError
from lunar_stereo_recon.files.rigs import FrameTransform, read_rig_frames
from lunar_stereo_recon.ros.launch_arguments import flag, shared_file, value
from lunar_stereo_recon.ros.node_processes import large_message_environment

# Argument that is true: package that it needs.
VIEWERS = {'rviz': 'rviz2', 'foxglove': 'foxglove_bridge'}
RESPAWN_DELAY_S = 2.0


def check_needs(context: LaunchContext, *packages: str) -> list[LaunchDescriptionEntity]:
    """Refuse arguments whose package or file is missing; nothing is started by it.

    Args:
        context: Context of the launch; it may lack arguments of files that are included later.
        packages: What the launch file needs whatever its arguments are.

    Raises:
        InputError: A package is not installed, or the rig file cannot be used.
    """
    given, installed = context.launch_configurations, get_packages_with_prefixes()
    needed = [('this launch file', package) for package in packages]
    needed += [
        (f'{name}:=true', item) for name, item in VIEWERS.items() if given.get(name) == 'true'
    ]
    if given.get('rig'):
        read_rig_frames(Path(given['rig']).expanduser())
        needed.append((f'rig:={given["rig"]}', 'tf2_ros'))
    for user, package in needed:
        if package not in installed:
            raise InputError(
                f'{user} needs the package {package}, which is not installed: '
                f'apt install ros-<distro>-{package.replace("_", "-")}'
            )
    return []


def static_transform(frame: FrameTransform, use_sim_time: bool) -> Node:
    """Return a publisher of one static transform."""
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
            *(text for name, number in numbers for text in (name, f'{number:.9f}')),
            *('--frame-id', frame.parent, '--child-frame-id', frame.child),
        ],
        parameters=[{'use_sim_time': use_sim_time}],
        # Without it nothing can be placed on the rover any more.
        respawn=True,
        respawn_delay=RESPAWN_DELAY_S,
    )


def views(
    context: LaunchContext,
    fixed_frame: str,
    optical_frame: str,
    use_sim_time: bool,
    remappings: Sequence[tuple[str, str]],
) -> list[LaunchDescriptionEntity]:
    """Return what the arguments `rviz` and `foxglove` ask for.

    Args:
        context: With the arguments of rover.launch.py.
        fixed_frame: Frame with z up to show the results in; empty where none is known.
        optical_frame: Frame to show them in then; empty leaves it to the view.
        use_sim_time: Whether the time comes from /clock.
        remappings: Remappings of the inputs, so that RViz shows the images that the node takes.
    """
    actions: list[LaunchDescriptionEntity] = []
    if flag(context, 'rviz'):
        name = 'reconstruction.rviz' if fixed_frame else 'optical.rviz'
        shipped = shared_file(context, 'config', 'rviz', name)
        view = value(context, 'rviz_config') or str(shipped)
        frame = fixed_frame or optical_frame
        actions.append(
            Node(
                package='rviz2',
                executable='rviz2',
                name='rviz2',
                # The topics in the views are relative: they follow this namespace.
                namespace=value(context, 'namespace'),
                arguments=['-d', view, *(['-f', frame] if frame else [])],
                additional_env=large_message_environment(),
                parameters=[{'use_sim_time': use_sim_time}],
                remappings=remappings,
            )
        )
    if flag(context, 'foxglove'):
        port = value(context, 'foxglove_port')
        layout = shared_file(context, 'config', 'foxglove', 'reconstruction.json')
        actions += [
            Node(
                package='foxglove_bridge',
                executable='foxglove_bridge',
                name='foxglove_bridge',
                additional_env=large_message_environment(),
                respawn=True,
                respawn_delay=RESPAWN_DELAY_S,
                parameters=[
                    {
                        'port': int(port),
                        'address': value(context, 'foxglove_address'),
                        'use_sim_time': use_sim_time,
                    }
                ],
            ),
            LogInfo(msg=f'Foxglove: open ws://localhost:{port} and import {layout}'),
        ]
    return actions
