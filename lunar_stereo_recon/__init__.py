"""Metric point clouds and calibrated confidence from a lunar rover's stereo camera.

The names below are the public face. Each is imported when it is first used, so that a program
loads only what it needs.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

__version__ = '0.1.0'

__all__ = [
    'load_backend',
    'pair_from_files',
    'ReconError',
    'ReconstructionOptions',
    'StereoCalibration',
    'StereoReconstructor',
]

if TYPE_CHECKING:
    from lunar_stereo_recon.backends import load_backend
    from lunar_stereo_recon.datatypes import StereoCalibration
    from lunar_stereo_recon.errors import ReconError
    from lunar_stereo_recon.files.images import pair_from_files
    from lunar_stereo_recon.pipeline import ReconstructionOptions, StereoReconstructor

_MODULES = {
    'load_backend': 'backends',
    'pair_from_files': 'files.images',
    'ReconError': 'errors',
    'ReconstructionOptions': 'pipeline',
    'StereoCalibration': 'datatypes',
    'StereoReconstructor': 'pipeline',
}


def __getattr__(name: str) -> object:
    """Import a public name from its module; Python calls this where the name is not set yet."""
    if name not in _MODULES:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    value = getattr(importlib.import_module(f'{__name__}.{_MODULES[name]}'), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
