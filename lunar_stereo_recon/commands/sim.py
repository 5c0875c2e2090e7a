"""`lunar-stereo sim`: a rover on the simulated Moon, published to ROS, without Gazebo."""

from __future__ import annotations

import argparse
import dataclasses
import os
from pathlib import Path
import time
from typing import Any

from lunar_stereo_recon.errors import InputError
from lunar_stereo_recon.extras import require

POLL_S = 0.2


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the sub-command."""
    parser = subparsers.add_parser(
        'sim',
        help='a rover on the simulated Moon, as ROS topics',
        description='Start the simulator node on the ROS domain of this shell: stereo images, '
        'their truth, odometry and /clock; the rover follows cmd_vel. Ctrl-C ends it.',
    )
    parser.add_argument(
        '--preset', default='mare', help='kind of ground; `lunar-stereo gallery` shows them'
    )
    parser.add_argument('--seed', type=int, default=0, help='seed of everything random')
    parser.add_argument('--size', default='640x480', help='size of the images, WIDTHxHEIGHT')
    parser.add_argument(
        '--rate', type=float, default=2.0, help='stereo pairs per second of simulated time'
    )
    parser.add_argument(
        '--sun-elevation',
        type=float,
        default=0.0,
        help='elevation of the sun, degrees; 0 takes that of the preset',
    )
    parser.add_argument(
        '--rocks',
        default='heightfield',
        help='form of the rocks: heightfield, or mesh, with overhangs',
    )
    parser.add_argument('--device', default='cpu', help='device that renders: cpu or cuda')
    parser.add_argument(
        '--faults', type=Path, help='YAML file of camera faults (docs/simulation.md)'
    )
    parser.add_argument(
        '--frames', type=int, default=0, help='number of pairs after which it ends; 0 never ends'
    )
    parser.add_argument(
        '--reconstruct', action='store_true', help='start the reconstruction node too'
    )
    parser.add_argument(
        '--record',
        type=Path,
        metavar='BAG',
        help='record the drive with its truth to a new rosbag2 folder, for `evaluate`',
    )
    parser.add_argument('--logs', type=Path, default=Path('out/sim'), help='folder for the logs')
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the nodes until they end or are interrupted."""
    from lunar_stereo_recon.commands.demo import check_ros
    from lunar_stereo_recon.ros.node_processes import NodeProcesses

    check_ros()
    require('torch', 'numba')
    parameters, distorted = _parameters(args)
    if args.record and args.record.exists():
        raise InputError(f'--record {args.record} is there already; name a new folder')
    with NodeProcesses(os.environ, args.logs) as nodes:
        names = ['simulator_node']
        if args.record:
            from lunar_stereo_recon.ros.recorder_node import DRIVE

            names.append('recorder_node')
            nodes.start('recorder_node', {'bag': str(args.record), 'topics': list(DRIVE)})
        nodes.start('simulator_node', parameters, large_messages=True)
        if args.reconstruct:
            names.append('reconstruction_node')
            given = {'use_sim_time': True, 'rectify': distorted}
            nodes.start('reconstruction_node', given, large_messages=True)
        print(f'{" and ".join(names)} started; drive with cmd_vel, end with Ctrl-C')
        while (status := nodes.status('simulator_node')) is None:
            nodes.check_running(names[1:])
            _show(nodes.new_lines('simulator_node'))
            time.sleep(POLL_S)
        _show(nodes.new_lines('simulator_node'))
        if status != 0:
            raise nodes.failure('simulator_node', f'ended with status {status}')
        if args.record:
            if nodes.stop('recorder_node') != 0:
                raise nodes.failure('recorder_node', 'could not record')
            print(f'Map, hazards and errors of the drive: lunar-stereo evaluate {args.record}')
    return 0


def _show(lines: list[str]) -> None:
    """Print what a node has logged, without level, time and name."""
    for line in lines:
        print(line.rpartition(']: ')[2], flush=True)


def _parameters(args: argparse.Namespace) -> tuple[dict[str, Any], bool]:
    """Return the simulator's parameters, checked before any process starts.

    Beside them: whether its images are raw.

    Raises:
        InputError: One of them is not allowed; the text names the argument.
    """
    from lunar_stereo_recon.ros.parameters import check_value, SimulatorParameters
    from lunar_stereo_recon.simulation.camera_faults import read_camera_faults
    from lunar_stereo_recon.simulation.presets import site_preset

    site_preset(args.preset)
    distorted = bool(args.faults and read_camera_faults(args.faults).distortion)
    width, height = _size(args.size)
    options = {
        'seed': ('--seed', args.seed),
        'width': ('--size', width),
        'height': ('--size', height),
        'rate': ('--rate', args.rate),
        'sun_elevation': ('--sun-elevation', args.sun_elevation),
        'frames': ('--frames', args.frames),
        'rocks': ('--rocks', args.rocks),
        'device': ('--device', args.device),
    }
    for item in dataclasses.fields(SimulatorParameters):
        if item.name in options:
            option, value = options[item.name]
            check_value(item, value, option)
    parameters = {
        'preset': args.preset,
        **{name: value for name, (_, value) in options.items()},
        'faults': str(args.faults.resolve()) if args.faults else '',
    }
    return parameters, distorted


def _size(text: str) -> tuple[int, int]:
    width, cross, height = text.partition('x')
    if not (cross and width.isdigit() and height.isdigit()):
        raise InputError(f"--size is '{text}'; WIDTHxHEIGHT is needed, such as 640x480")
    return int(width), int(height)
