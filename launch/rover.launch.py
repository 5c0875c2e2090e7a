"""Starts the reconstruction node on a rover whose cameras publish stereo images.

With it, where asked for: static transforms of the rig, RViz, a bridge to Foxglove.
"""

import dataclasses
from pathlib import Path

from launch import LaunchContext, LaunchDescription, LaunchDescriptionEntity
from launch.actions import OpaqueFunction
from launch_ros.actions import Node

from lunar_stereo_recon.errors import InputError
from lunar_stereo_recon.files.rigs import FrameTransform, read_rig_frames
from lunar_stereo_recon.ros.launch_actions import (
    check_needs,
    RESPAWN_DELAY_S,
    static_transform,
    views,
)
from lunar_stereo_recon.ros.launch_arguments import (
    argument,
    cameras,
    enclave_of,
    FLAG,
    flag,
    given_parameters,
    PACKAGE,
    parameter_arguments,
    params_files,
    rectifies,
    uses_sim_time,
    value,
)
from lunar_stereo_recon.ros.node_processes import large_message_environment
from lunar_stereo_recon.ros.parameters import ReconstructionParameters, TerrainParameters

# What both nodes have means the same for both; the other parameters of the map have the prefix.
PREFIX = 'terrain_'
RECONSTRUCTION = {item.name for item in dataclasses.fields(ReconstructionParameters)}
TERRAIN = [item.name for item in dataclasses.fields(TerrainParameters)]
OWN = [name for name in TERRAIN if name not in {*RECONSTRUCTION, 'rig'}]
SHARED = [name for name in TERRAIN if name in RECONSTRUCTION]


def generate_launch_description() -> LaunchDescription:
    """Return the arguments and the nodes; `ros2 launch --show-args` lists the arguments."""
    return LaunchDescription(
        [
            argument('namespace', 'Namespace of the node and its topics'),
            argument(
                'camera_preset',
                'Cameras by name, a file in config/presets/ (lunarsim, omnilrs, isaac_sim, zed, '
                'zed_5_0), or the path of a preset of your own',
            ),
            argument('camera_namespace', "Namespace of the preset's topics, in place of its own"),
            argument(
                'left_namespace',
                'Namespace of the left topics, if there is no camera_preset',
                'left',
            ),
            argument(
                'right_namespace',
                'Namespace of the right topics, if there is no camera_preset',
                'right',
            ),
            argument(
                'left_image',
                'Topic of the left image, raw or compressed; relative to camera_namespace',
            ),
            argument('right_image', 'Topic of the right image, as left_image'),
            argument('left_info', 'Topic of the left camera_info, as left_image'),
            argument('right_info', 'Topic of the right camera_info, as left_image'),
            argument('imu', 'Topic of the Imu, if hazard_gravity is imu', 'imu'),
            argument(
                'params_file',
                'Parameters of the node, YAML; it comes after the preset and before arguments. '
                'config/reconstruction.yaml lists them all',
            ),
            argument(
                'rig',
                'YAML file of where the cameras are on the rover, like config/rig.yaml; their '
                'static transforms are published. Empty publishes none',
            ),
            argument('use_sim_time', 'Take the time from /clock', choices=('', *FLAG)),
            argument('rviz', 'Show images and clouds in RViz', 'false', FLAG),
            argument('rviz_config', 'RViz view; empty takes one of config/rviz/'),
            argument(
                'fixed_frame', 'Frame with z up to show results in; empty is the base of rig'
            ),
            argument(
                'optical_frame',
                'frame_id of the left images, to show results in if no fixed_frame is known',
            ),
            argument('foxglove', 'Start foxglove_bridge for Foxglove', 'false', FLAG),
            argument('foxglove_port', 'Port of foxglove_bridge', '8765'),
            argument(
                'foxglove_address',
                'Address that foxglove_bridge listens on; 0.0.0.0 lets the network in',
                '127.0.0.1',
            ),
            argument('respawn', 'Start the node again if it ends by itself', 'true', FLAG),
            argument('log_level', 'Log level of the node: debug, info, warn or error', 'info'),
            argument(
                'enclave',
                'SROS 2 enclave below which each node has its own, such as '
                '/lunar_stereo_recon; used if ROS_SECURITY_ENABLE is true',
            ),
            argument('terrain', 'Start the node that maps the ground around it', 'false', FLAG),
            argument(
                'terrain_pose',
                'Topic of the poses for that map: Odometry, or PoseStamped if '
                'terrain_pose_source is pose',
            ),
            *parameter_arguments(ReconstructionParameters),
            *parameter_arguments(TerrainParameters, *OWN, prefix=PREFIX),
            OpaqueFunction(function=check_needs),
            OpaqueFunction(function=_nodes),
        ]
    )


def _nodes(context: LaunchContext) -> list[LaunchDescriptionEntity]:
    """Return what the values of the arguments ask for."""
    preset = cameras(context)
    given = given_parameters(context, ReconstructionParameters)
    if value(context, 'rectify') == 'false':  # said, so the node need not guess
        given.setdefault('detect_raw', False)
    use_sim_time = given['use_sim_time'] = uses_sim_time(context, preset)
    remappings = preset.remappings(rectifies(context, preset))
    # What the map trusts the points with, unless somebody says otherwise.
    from_preset = {**({'sigma': True} if flag(context, 'terrain') else {}), **preset.parameters}
    node = Node(
        package=PACKAGE,
        executable='reconstruction_node',
        name='reconstruction_node',
        namespace=value(context, 'namespace'),
        output='screen',
        # Clouds fill more shared memory than Fast DDS reserves; a profile of the user's stays.
        additional_env=large_message_environment(),
        # The last one wins.
        parameters=[
            *([from_preset] if from_preset else []),
            *params_files(context),
            given,
        ],
        remappings=[*remappings, ('imu', value(context, 'imu'))],
        arguments=[
            *('--ros-args', '--log-level', value(context, 'log_level')),
            *enclave_of(context, 'reconstruction_node'),
        ],
        respawn=flag(context, 'respawn'),
        respawn_delay=RESPAWN_DELAY_S,
    )
    frames = _rig_frames(context)
    base_frame = frames[0].parent if frames else ''
    fixed_frame = value(context, 'fixed_frame') or base_frame
    optical_frame = value(context, 'optical_frame') or preset.optical_frame
    return [
        node,
        *([_terrain_node(context, use_sim_time)] if flag(context, 'terrain') else []),
        *(static_transform(frame, use_sim_time) for frame in frames),
        *views(context, fixed_frame, optical_frame, use_sim_time, remappings),
    ]


def _terrain_node(context: LaunchContext, use_sim_time: bool) -> Node:
    if value(context, 'cloud_frame'):
        raise InputError(
            f'terrain:=true maps clouds in the optical frame; leave cloud_frame empty '
            f'(it is {value(context, "cloud_frame")})'
        )
    given = {
        'use_sim_time': use_sim_time,
        **given_parameters(context, TerrainParameters, 'rig'),
        **given_parameters(context, TerrainParameters, *SHARED),
        **given_parameters(context, TerrainParameters, *OWN, prefix=PREFIX),
    }
    pose = value(context, 'terrain_pose')
    return Node(
        package=PACKAGE,
        executable='terrain_node',
        name='terrain_node',
        namespace=value(context, 'namespace'),
        output='screen',
        additional_env=large_message_environment(),
        parameters=[*params_files(context), given],
        remappings=[
            ('right/camera_info', _right_info(context)),
            *([('odom', pose), ('pose', pose)] if pose else []),
        ],
        arguments=[
            *('--ros-args', '--log-level', value(context, 'log_level')),
            *enclave_of(context, 'terrain_node'),
        ],
        respawn=flag(context, 'respawn'),
        respawn_delay=RESPAWN_DELAY_S,
    )


def _right_info(context: LaunchContext) -> str:
    """Return the topic of the right camera_info, as the reconstruction has it."""
    preset = cameras(context)
    names = dict(preset.remappings(rectifies(context, preset)))
    return names.get('right/camera_info', 'right/camera_info')


def _rig_frames(context: LaunchContext) -> list[FrameTransform]:
    """Return the frames of the argument `rig`, none where it is empty."""
    path = value(context, 'rig')
    if not path:
        return []
    rig = read_rig_frames(Path(path).expanduser())
    return [rig.left, rig.right]
