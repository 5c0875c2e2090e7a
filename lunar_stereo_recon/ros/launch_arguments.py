"""What the launch files share: their arguments, each declared once, and how values are read.

An argument that is left out is '': the node then has what its parameters file, the preset or its
own default says. Arguments of a launch file are also those of the files it includes.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, List  # noqa: UP035

from launch import LaunchContext, SomeSubstitutionsType
from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.parameter_descriptions import ParameterValue
from launch_ros.substitutions import FindPackageShare
import yaml

from lunar_stereo_recon.errors import InputError
from lunar_stereo_recon.files.yaml_files import read_yaml
from lunar_stereo_recon.ros.camera_presets import CameraPreset, read_preset
from lunar_stereo_recon.ros.parameters import default_of, help_text

PACKAGE = 'lunar_stereo_recon'
# Entries of a preset that are arguments too.
_PRESET_ARGUMENTS = ('left_image', 'right_image', 'left_info', 'right_info', 'camera_namespace')
FLAG = ('true', 'false')
# launch knows the type of a list by the typing module's form alone.
_LISTS = {str: List[str], int: List[int], float: List[float]}  # noqa: UP006


def argument(
    name: str,
    description: str,
    default: SomeSubstitutionsType | None = '',
    choices: tuple[str, ...] = (),
) -> DeclareLaunchArgument:
    """Return a launch argument; without a default (None) it must be given."""
    return DeclareLaunchArgument(
        name, default_value=default, description=description, choices=list(choices) or None
    )


def parameter_arguments(kind: type, *names: str, prefix: str = '') -> list[DeclareLaunchArgument]:
    """Return arguments with the names and descriptions of a node's parameters.

    Args:
        kind: Dataclass of the parameters, from `parameters`.
        names: Parameters that become arguments; all of them where none is named.
        prefix: Before the parameters' names, where another node has parameters of these names.
    """
    return [
        argument(prefix + item.name, _described(item), choices=_choices(item))
        for item in _named(kind, names)
    ]


def given_parameters(
    context: LaunchContext, kind: type, *names: str, prefix: str = ''
) -> dict[str, ParameterValue]:
    """Return the parameters of a node, all or the named ones, whose arguments were given.

    Args:
        context: Context of the launch.
        kind, names, prefix: See `parameter_arguments`.
    """
    values = {}
    for item in _named(kind, names):
        if value(context, prefix + item.name):
            default = default_of(item)
            value_type = _LISTS[type(default[0])] if isinstance(default, list) else type(default)
            values[item.name] = ParameterValue(
                LaunchConfiguration(prefix + item.name), value_type=value_type
            )
    return values


def value(context: LaunchContext, name: str) -> str:
    """Return the value of an argument."""
    return LaunchConfiguration(name).perform(context)


def flag(context: LaunchContext, name: str) -> bool:
    """Return the value of an argument that is true or false; false where it is empty."""
    return value(context, name) == 'true'


def enclave_of(context: LaunchContext, node: str) -> list[str]:
    """Return what gives a node its enclave, below that of the argument `enclave` if given."""
    # Declared by rover.launch.py, which a launch file may include only after its own nodes.
    enclave = context.launch_configurations.get('enclave', '').rstrip('/')
    return ['--enclave', f'{enclave}/{node}'] if enclave else []


def cameras(context: LaunchContext) -> CameraPreset:
    """Return the preset that was asked for, with the topics that were given."""
    name = value(context, 'camera_preset')
    if not name:
        left, right = value(context, 'left_namespace'), value(context, 'right_namespace')
        preset = CameraPreset(
            left_image=f'{left}/image_rect',
            right_image=f'{right}/image_rect',
            left_raw=f'{left}/image_raw',
            right_raw=f'{right}/image_raw',
            left_info=f'{left}/camera_info',
            right_info=f'{right}/camera_info',
        )
    elif Path(name).suffix:
        preset = read_preset(Path(name).expanduser())
    else:
        preset = read_preset(shared_file(context, 'config', 'presets', f'{name}.yaml'))
    changes: dict[str, Any] = {
        item: text for item in _PRESET_ARGUMENTS if (text := value(context, item))
    }
    for side in ('left', 'right'):
        if f'{side}_image' in changes:
            same = dict.fromkeys((f'{side}_raw', f'{side}_compressed'), changes[f'{side}_image'])
            changes.update(same)
    return dataclasses.replace(preset, **changes)


def rectifies(context: LaunchContext, preset: CameraPreset) -> bool:
    """Say whether the node is told to rectify, by argument, parameters file or preset.

    Raises:
        InputError: The parameters file cannot be read.
    """
    return _told(context, 'rectify', preset.parameters.get('rectify', False))


def uses_sim_time(context: LaunchContext, preset: CameraPreset) -> bool:
    """Say whether the time comes from /clock, by argument, parameters file or preset.

    Raises:
        InputError: The parameters file cannot be read.
    """
    return _told(context, 'use_sim_time', preset.use_sim_time)


def params_files(context: LaunchContext) -> list[str]:
    """Return the path of the argument `params_file`, nothing where it is empty."""
    path = value(context, 'params_file')
    return [str(Path(path).expanduser())] if path else []


def shared_file(context: LaunchContext, *parts: str) -> Path:
    """Return the path of a file that the package installs below its share directory."""
    return Path(FindPackageShare(PACKAGE).perform(context)).joinpath(*parts)


def included(launch_file: str, **arguments: str) -> IncludeLaunchDescription:
    """Return another launch file of this package, with some of its arguments set."""
    path = PathJoinSubstitution([FindPackageShare(PACKAGE), 'launch', launch_file])
    return IncludeLaunchDescription(
        PythonLaunchDescriptionSource(path), launch_arguments=list(arguments.items())
    )


def _told(context: LaunchContext, name: str, otherwise: bool) -> bool:
    """Return a flag of the node by its argument, else by the parameters file, else `otherwise`."""
    if value(context, name):
        return flag(context, name)
    for path in params_files(context):
        in_file = _parameter_in_file(Path(path), name)
        if in_file is not None:
            return bool(in_file)
    return bool(otherwise)


def _parameter_in_file(path: Path, name: str) -> Any:
    """Return a parameter of the node in a ROS parameters file; None where it is not there."""
    try:
        document = read_yaml(path)
    except (OSError, yaml.YAMLError) as error:
        reason = ' '.join(str(error).split())
        raise InputError(f'cannot read the parameters file {path}: {reason}') from error
    found = None
    nodes = [('', document)]
    while nodes:
        key, entries = nodes.pop(0)
        if not isinstance(entries, dict):
            continue
        parameters = entries.get('ros__parameters')
        if isinstance(parameters, dict) and key.endswith(('reconstruction_node', '*')):
            found = parameters.get(name, found)
        nodes += entries.items()
    return found


def _named(kind: type, names: tuple[str, ...]) -> list[dataclasses.Field[Any]]:
    return [item for item in dataclasses.fields(kind) if not names or item.name in names]


def _described(item: dataclasses.Field[Any]) -> str:
    default = default_of(item)
    shown = ', '.join(map(str, default)) if isinstance(default, list) else str(default)
    shown = {'True': 'true', 'False': 'false'}.get(shown, shown)
    return f'{help_text(item)} Default of the node: {shown or "empty"}.'


def _choices(item: dataclasses.Field[Any]) -> tuple[str, ...]:
    default = default_of(item)
    if isinstance(default, bool):
        return ('', *FLAG)
    choices = item.metadata['choices']
    return ('', *choices) if choices and isinstance(default, str) else ()
