"""Matchers behind one protocol; each is imported only when it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
import importlib.util
from pathlib import Path

from lunar_stereo_recon.backends.base import Backend
from lunar_stereo_recon.backends.model_seal import check_model_file
from lunar_stereo_recon.backends.self_test import check_answer
from lunar_stereo_recon.errors import ModelError, quoted
from lunar_stereo_recon.geometry.residual import Chooser

Loader = Callable[[Path, 'Sequence[str] | None', int], Backend]

WEIGHTS = Path(__file__).resolve().parent.parent / 'weights'
DEFAULT_MODEL = WEIGHTS / 'flight.onnx'
CHOICE_NETWORK = WEIGHTS / 'choice.onnx'
INT8_MODEL = WEIGHTS / 'flight_int8.onnx'
NO_OPENVINO = (
    "the backend openvino needs the package openvino: pip install 'lunar_stereo_recon[openvino]'"
)


def load_backend(
    name: str = 'onnx',
    model_path: str | Path | None = None,
    providers: Sequence[str] | None = None,
    threads: int = 0,
    key: str | Path | None = None,
) -> Backend:
    """Return a ready matcher, a student's file checked and tried on a pair with a known answer.

    Args:
        name: One of `BACKENDS`, or 'auto': the runtime that is fastest here.
        model_path: Model file, or the name of a shipped one: 'flight' (where None),
            'flight_int8'. Classical matchers have none and take no notice.
        providers: Execution providers in order of preference, for 'onnx'; CPU where None.
        threads: Threads that the matcher may use; 0 leaves it to the runtime.
        key: Public key that the model file must be signed for; see `model_seal`.

    Raises:
        ModelError: Unknown name, or the model file is missing, corrupted, not signed where a key
            is given, of another form, or fails its self-test.
    """
    if name not in KNOWN_BACKENDS:
        raise ModelError(f"unknown backend '{name}'; known are {', '.join(KNOWN_BACKENDS)}")
    path = model_file(model_path)
    if name not in STUDENT_BACKENDS:
        return BACKENDS[name](path, providers, threads)
    if name == AUTO:
        return _fastest(path, providers, threads, key)
    check_model_file(path, Path(key) if key else None)
    backend = BACKENDS[name](path, providers, threads)
    check_answer(backend, path)
    return backend


def load_chooser(threads: int = 0) -> Chooser:
    """Return the shipped network that chooses between a student's answer and matching's.

    Args:
        threads: Threads that it may use; 0 leaves it to the runtime.

    Raises:
        ModelError: The file is missing or corrupted.
    """
    from lunar_stereo_recon.backends.choice_network import shared_choice

    return shared_choice(CHOICE_NETWORK, threads)


def forget_choosers() -> None:
    """Let `load_chooser` read its file anew."""
    from lunar_stereo_recon.backends.choice_network import shared_choice

    shared_choice.cache_clear()


def _fastest(
    path: Path, providers: Sequence[str] | None, threads: int, key: str | Path | None
) -> Backend:
    """Return what runs a student's file fastest here; see `backends.fastest`.

    The shipped student's int8 file takes part beside its own.

    Raises:
        ModelError: The file cannot be used by onnxruntime.
    """
    from lunar_stereo_recon.backends.fastest import fastest

    loaders: dict[str, Callable[[], Backend]] = {
        'onnx': partial(load_backend, 'onnx', path, providers, threads, key)
    }
    if importlib.util.find_spec('openvino') is not None:
        loaders['openvino'] = partial(load_backend, 'openvino', path, None, threads, key)
    if path == DEFAULT_MODEL and INT8_MODEL.is_file():
        loaders['onnx int8'] = partial(load_backend, 'onnx', INT8_MODEL, providers, threads, key)
    return fastest(loaders)


def check_backend(name: str, model: str | Path | None = None) -> None:
    """Refuse what `load_backend` would refuse at once, before it is needed in another process.

    Raises:
        ModelError: Unknown name, a runtime that is not installed, or no such model file.
    """
    if name not in KNOWN_BACKENDS:
        raise ModelError(f"unknown backend '{name}'; known are {', '.join(KNOWN_BACKENDS)}")
    if name == 'openvino' and importlib.util.find_spec('openvino') is None:
        raise ModelError(NO_OPENVINO)
    path = model_file(model)
    if name in STUDENT_BACKENDS and not path.is_file():
        raise ModelError(f'no model file at {path}')


def model_file(model: str | Path | None) -> Path:
    """Return the file of a model: a path as it is, a shipped model by its name, or the default.

    Raises:
        ModelError: The text is too long for a path.
    """
    path = Path(model or DEFAULT_MODEL)
    shipped = WEIGHTS / f'{path}.onnx'
    try:
        return shipped if not path.suffix and shipped.is_file() and not path.exists() else path
    except OSError as error:
        raise ModelError(f'the model is {quoted(str(path))}: {error.strerror}') from error


def _load_onnx(model_path: Path, providers: Sequence[str] | None, threads: int) -> Backend:
    from lunar_stereo_recon.backends.onnx_backend import OnnxBackend

    return OnnxBackend(model_path, providers=providers, threads=threads)


def _load_openvino(model_path: Path, providers: Sequence[str] | None, threads: int) -> Backend:
    if providers:
        raise ModelError(
            f'providers {", ".join(providers)} belong to onnxruntime; the backend openvino has '
            'none'
        )
    try:
        from lunar_stereo_recon.backends.openvino_backend import OpenVinoBackend
    except ModuleNotFoundError as error:
        if error.name != 'openvino':
            raise
        raise ModelError(NO_OPENVINO) from error
    return OpenVinoBackend(model_path, threads)


def _load_classical(method: str) -> Loader:
    def load(model_path: Path, providers: Sequence[str] | None, threads: int) -> Backend:
        from lunar_stereo_recon.backends.sgbm_backend import ClassicalBackend

        return ClassicalBackend(method)

    return load


# The fastest of them.
AUTO = 'auto'
# What runs a student's file.
RUNTIMES = ('onnx', 'openvino')
STUDENT_BACKENDS = (*RUNTIMES, AUTO)
BACKENDS: dict[str, Loader] = {
    'onnx': _load_onnx,
    'openvino': _load_openvino,
    'sgbm': _load_classical('sgbm'),
    'sgbm_hh': _load_classical('sgbm_hh'),
    'bm': _load_classical('bm'),
    'bm_padded': _load_classical('bm_padded'),
}
KNOWN_BACKENDS = (*BACKENDS, AUTO)
