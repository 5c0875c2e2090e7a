"""`lunar-stereo sim`: a rover on the simulated Moon, published to ROS, without Gazebo."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
import time

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
    parser.add_argument('--preset', default='mare', help="see 'lunar-stereo gallery'")
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--size', default='640x480', help='of the images, WIDTHxHEIGHT')
    parser.add_argument('--rate', type=float, default=2.0, help='pairs per simulated second')
    parser.add_argument(
        '--sun-elevation', type=float, default=0.0, help="degrees; 0 is the preset's"
    )
    parser.add_argument(
        '--rocks', default='heightfield', help='heightfield, or mesh: with overhangs'
    )
    parser.add_argument('--device', default='cpu', help='what renders: cpu or cuda')
    parser.add_argument(
        '--faults', type=Path, help='YAML: what the cameras do wrong (docs/simulation.md)'
    )
    parser.add_argument('--frames', type=int, default=0, help='end after so many; 0 is never')
    parser.add_argument(
        '--reconstruct', action='store_true', help='start the reconstruction node too'
    )
    parser.add_argument('--logs', type=Path, default=Path('out/sim'), help='folder of the logs')
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the nodes until they end or are interrupted."""
    from lunar_stereo_recon.commands.demo import check_ros
    from lunar_stereo_recon.ros.node_processes import NodeProcesses

    check_ros()
    require('torch', 'numba')
    width, height = _size(args.size)
    with NodeProcesses(os.environ, args.logs) as nodes:
        names = ['simulator_node']
        nodes.start(
            'simulator_node',
            {
                'preset': args.preset,
                'seed': args.seed,
                'width': width,
                'height': height,
                'rate': args.rate,
                'sun_elevation': args.sun_elevation,
                'frames': args.frames,
                'rocks': args.rocks,
                'device': args.device,
                'faults': str(args.faults.resolve()) if args.faults else '',
            },
            large_messages=True,
        )
        if args.reconstruct:
            names.append('reconstruction_node')
            nodes.start('reconstruction_node', {'use_sim_time': True}, large_messages=True)
        print(f'{" and ".join(names)} started; drive with cmd_vel, end with Ctrl-C')
        while (status := nodes.status('simulator_node')) is None:
            nodes.check_running(names[1:])
            _show(nodes.new_lines('simulator_node'))
            time.sleep(POLL_S)
        _show(nodes.new_lines('simulator_node'))
        if status != 0:
            raise nodes.failure('simulator_node', f'ended with status {status}')
    return 0


def _show(lines: list[str]) -> None:
    """Print what a node has logged, without level, time and name."""
    for line in lines:
        print(line.rpartition(']: ')[2], flush=True)


def _size(text: str) -> tuple[int, int]:
    width, cross, height = text.partition('x')
    if not (cross and width.isdigit() and height.isdigit()):
        raise InputError(f"--size is '{text}'; WIDTHxHEIGHT is needed, such as 640x480")
    return int(width), int(height)
