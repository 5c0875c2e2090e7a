"""`lunar-stereo info`: what a model file is, and what this machine can run it on."""

from __future__ import annotations

import argparse
import importlib.metadata
from pathlib import Path


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the sub-command."""
    parser = subparsers.add_parser('info', help='describe a model and this machine')
    parser.add_argument('--model', type=Path, help='model file (default: the shipped student)')
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print versions, execution providers and the model's metadata."""
    import os
    import platform

    import cv2
    import numpy
    import onnxruntime

    from lunar_stereo_recon import __version__
    from lunar_stereo_recon.backends import load_backend, model_file

    path = model_file(args.model)
    lines = {
        'lunar_stereo_recon': __version__,
        'python': platform.python_version(),
        'numpy': numpy.__version__,
        'opencv': cv2.__version__,
        'onnxruntime': onnxruntime.__version__,
        'openvino': _installed('openvino'),
        'cpu cores': str(os.cpu_count()),
        'providers': ', '.join(onnxruntime.get_available_providers()),
        'model': f'{path} ({path.stat().st_size / 1e6:.2f} MB)' if path.is_file() else str(path),
    }
    for key, value in lines.items():
        print(f'{key:20s} {value}')
    backend = load_backend('onnx', path)
    print(f'{"runs on":20s} {backend.provider}')
    print(f'{"search range":20s} 0..{backend.max_disparity_px:g} px')
    for key, value in sorted(backend.metadata.items()):
        print(f'{key:20s} {value}')
    return 0


def _installed(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return f'not installed (extra [{distribution}])'
