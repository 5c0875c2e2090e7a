"""Starts the built-in simulator with the reconstruction: no Gazebo and no GPU needed."""

import dataclasses
from pathlib import Path

from launch import LaunchContext, LaunchDescription, LaunchDescriptionEntity
from launch.actions import EmitEvent, LogInfo, OpaqueFunction, SetLaunchConfiguration
from launch.events import Shutdown
from launch_ros.actions import Node

from lunar_stereo_recon.ros.launch_arguments import (
    argument,
    enclave_of,
    given_parameters,
    included,
    PACKAGE,
    parameter_arguments,
    value,
)
from lunar_stereo_recon.ros.node_processes import large_message_environment
from lunar_stereo_recon.ros.parameters import ReconstructionParameters, SimulatorParameters
from lunar_stereo_recon.ros.recorder_node import DRIVE
from lunar_stereo_recon.simulation.camera_faults import read_camera_faults

# A name that both nodes have means the reconstruction's; the simulator's has the prefix.
PREFIX = 'sim_'
RECONSTRUCTION = {item.name for item in dataclasses.fields(ReconstructionParameters)}
SIMULATOR = [item.name for item in dataclasses.fields(SimulatorParameters)]
OWN = [name for name in SIMULATOR if name not in RECONSTRUCTION]
SHARED = [name for name in SIMULATOR if name in RECONSTRUCTION]


def generate_launch_description() -> LaunchDescription:
    """Return the arguments, the simulator and the reconstruction of rover.launch.py."""
    return LaunchDescription(
        [
            *parameter_arguments(SimulatorParameters, *OWN),
            *parameter_arguments(SimulatorParameters, *SHARED, prefix=PREFIX),
            argument('namespace', 'Namespace of the nodes and their topics'),
            argument('fixed_frame', 'Frame to show results in', 'map'),
            argument('hazard_frame', 'Frame of the hazard grid, z up', 'map'),
            argument('terrain_pose', 'Topic of the poses for the map', 'ground_truth/pose'),
            argument('terrain_pose_source', 'Kind of those poses', 'pose'),
            argument('record', 'New rosbag2 folder for the drive, its truth included'),
            OpaqueFunction(function=_rectification),
            # First, so that wrong arguments are reported before the simulator starts.
            included('rover.launch.py', use_sim_time='true'),
            OpaqueFunction(function=_simulator),
        ]
    )


def _rectification(context: LaunchContext) -> list[LaunchDescriptionEntity]:
    """Have the node rectify the images of cameras that distort, unless it is told."""
    faults = value(context, 'faults')
    if context.launch_configurations.get('rectify') or not faults:
        return []
    if not read_camera_faults(Path(faults)).distortion:
        return []
    return [SetLaunchConfiguration('rectify', 'true')]


def _simulator(context: LaunchContext) -> list[LaunchDescriptionEntity]:
    given = {
        **given_parameters(context, SimulatorParameters, *OWN),
        **given_parameters(context, SimulatorParameters, *SHARED, prefix=PREFIX),
    }
    return [
        *_recorder(context),
        Node(
            package=PACKAGE,
            executable='simulator_node',
            name='simulator_node',
            namespace=value(context, 'namespace'),
            output='screen',
            arguments=['--ros-args', *enclave_of(context, 'simulator_node')],
            parameters=[given] if given else [],
            additional_env=large_message_environment(),
            on_exit=[
                LogInfo(msg='The simulator has ended, and so does the launch'),
                EmitEvent(event=Shutdown(reason='the simulator has ended')),
            ],
        ),
    ]


def _recorder(context: LaunchContext) -> list[LaunchDescriptionEntity]:
    """Return the node that records the drive, where that is wanted."""
    bag = value(context, 'record')
    if not bag:
        return []
    return [
        Node(
            package=PACKAGE,
            executable='recorder_node',
            name='recorder_node',
            namespace=value(context, 'namespace'),
            output='screen',
            arguments=['--ros-args', *enclave_of(context, 'recorder_node')],
            parameters=[{'bag': bag, 'topics': list(DRIVE)}],
            on_exit=[LogInfo(msg=f'Map and hazards of the drive: lunar-stereo evaluate {bag}')],
        )
    ]
