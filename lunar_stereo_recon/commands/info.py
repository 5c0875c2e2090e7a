"""`lunar-stereo info`: what a model file is, and what this machine can run it on."""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
from pathlib import Path
import textwrap
from typing import Any

LINE_WIDTH, NAME_WIDTH = 100, 24
# Entries of a model; too long to read here.
ONLY_JSON = ('recipe', 'config', 'confidence_calibration', 'float32_nodes', 'self_test_px')
PLAIN_NAMES = ('lunar_stereo_recon',)


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the sub-command."""
    parser = subparsers.add_parser('info', help='describe a model and this machine')
    parser.add_argument('--model', type=Path, help='model file (default: the shipped student)')
    parser.add_argument(
        '--backend',
        default='onnx',
        choices=('onnx', 'openvino', 'auto'),
        help="runtime that is tried; 'auto' times each of them and names the fastest "
        '(default: onnx)',
    )
    parser.add_argument('--json', action='store_true', help='print everything as JSON')
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print versions, execution providers and the model's metadata."""
    import platform

    import cv2
    import numpy
    import onnxruntime

    from lunar_stereo_recon import __version__
    from lunar_stereo_recon.backends import load_backend, model_file
    from lunar_stereo_recon.evaluation.machine import describe_machine

    path = model_file(args.model)
    backend = load_backend(args.backend, path)
    machine = describe_machine()
    machine.pop('python')  # among the software
    described = {
        'software': {
            'lunar_stereo_recon': __version__,
            'Python': platform.python_version(),
            'NumPy': numpy.__version__,
            'OpenCV': cv2.__version__,
            'onnxruntime': onnxruntime.__version__,
            'OpenVINO': _installed('openvino'),
            'rclpy': _ros_version(),
        },
        'machine': {
            **machine,
            'providers': onnxruntime.get_available_providers(),
        },
        'model': {
            'file': str(path),
            'megabytes': round(path.stat().st_size / 1e6, 2),
            'runs_on': backend.provider,
            **({'chosen': backend.choice} if backend.choice else {}),
            'max_disparity_px': backend.max_disparity_px,
            'network_width_px': backend.max_width_px,
            **{name: _value(text) for name, text in sorted(backend.metadata.items())},
        },
    }
    print(json.dumps(described, indent=2) if args.json else as_text(described))
    return 0


def as_text(described: dict[str, dict[str, Any]]) -> str:
    """Return the description for people: a heading for each part, and what fits a few lines."""
    lines: list[str] = []
    for heading, entries in described.items():
        lines += ['', heading] if lines else [heading]
        for name, value in entries.items():
            if name not in ONLY_JSON:
                lines += _lines(name, value, '  ')
    return '\n'.join([*lines, '', 'Recipe and configuration of the model: --json'])


def _lines(name: str, value: Any, indent: str) -> list[str]:
    label = name if name in PLAIN_NAMES else name.replace('_', ' ')
    head = f'{indent}{label:{NAME_WIDTH}s} '
    return textwrap.wrap(
        _short(value) or '-',
        LINE_WIDTH,
        initial_indent=head,
        subsequent_indent=' ' * len(head),
        break_on_hyphens=False,
    )


def _short(value: Any) -> str:
    if value is None:
        return 'not installed'
    if isinstance(value, float):
        return f'{value:.4g}'
    if isinstance(value, dict):
        return ', '.join(f'{name} {_short(entry)}' for name, entry in value.items())
    if isinstance(value, list):
        return ', '.join(map(_short, value))
    return str(value)


def _value(text: str) -> Any:
    """Return what a model's metadata hold as JSON; other texts as they are."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _installed(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _ros_version() -> str | None:
    """Return the version of rclpy, which wheels and ROS installations name differently."""
    if importlib.util.find_spec('rclpy') is None:
        return None
    distribution = os.environ.get('ROS_DISTRO', '')
    found = _installed('rclpy') or _installed(f'ros-{distribution or "jazzy"}-rclpy')
    return ' '.join(filter(None, (found or 'installed', distribution)))
