"""Names the extra of this package that installs a missing library."""

from __future__ import annotations

import importlib.util

from lunar_stereo_recon.errors import ReconError

# Import name of a library: extra of setup.py.
_EXTRAS = {
    'embreex': 'sim',
    'erfa': 'sim',
    'numba': 'sim',
    'OpenEXR': 'sim',
    'torch': 'sim',
    'laspy': 'map',
    'lazrs': 'map',
    'rasterio': 'map',
    'plotly': 'report',
    'rerun': 'viewer',
    'matplotlib': 'train',
    'omegaconf': 'train',
    'onnx': 'train',
    'onnxscript': 'train',
    'safetensors': 'train',
    'scipy': 'train',
    'tensorboard': 'train',
    'pyarrow': 'batch',
    'ray': 'batch',
    'rclpy': 'ros',
}


def missing_extra(error: ModuleNotFoundError, extra: str = '') -> str:
    """Return what to install where a library of an extra is missing; '' where it is another one.

    Args:
        error: As it was raised by the import.
        extra: The extra that the command needs as a whole; empty takes the library's own.
    """
    library = (error.name or '').partition('.')[0]
    if library not in _EXTRAS:
        return ''
    extra = extra or _EXTRAS[library]
    return (
        f'{library} is not installed; it comes with the extra [{extra}]: in the source folder, '
        f"pip install '.[{extra}]'"
    )


def require(*libraries: str) -> None:
    """Refuse to begin what would fail later for want of a library.

    Raises:
        ReconError: One is not installed; it says what brings it.
    """
    for library in libraries:
        if importlib.util.find_spec(library) is None:
            raise ReconError(missing_extra(ModuleNotFoundError(name=library)))
