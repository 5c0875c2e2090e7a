"""Matchers behind one protocol; each is imported only when it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from lunar_stereo_recon.backends.base import Backend
from lunar_stereo_recon.errors import ModelError

Loader = Callable[[Path, 'Sequence[str] | None', int], Backend]

WEIGHTS = Path(__file__).resolve().parent.parent / 'weights'
DEFAULT_MODEL = WEIGHTS / 'flight.onnx'


def load_backend(
    name: str = 'onnx',
    model_path: str | Path | None = None,
    providers: Sequence[str] | None = None,
    threads: int = 0,
) -> Backend:
    """Return a ready matcher.

    Args:
        name: One of `BACKENDS`.
        model_path: Model file, or the name of a shipped one: 'flight' (where None),
            'flight_int8'. Classical matchers have none and take no notice.
        providers: Execution providers in order of preference, for 'onnx'; CPU where None.
        threads: Threads that the matcher may use; 0 leaves it to the runtime.

    Raises:
        ModelError: Unknown name, or the model file is missing, corrupted or of another form.
    """
    if name not in BACKENDS:
        raise ModelError(f"unknown backend '{name}'; known are {', '.join(BACKENDS)}")
    return BACKENDS[name](model_file(model_path), providers, threads)


def model_file(model: str | Path | None) -> Path:
    """Return the file of a model: a path as it is, a shipped model by its name, or the default."""
    path = Path(model or DEFAULT_MODEL)
    shipped = WEIGHTS / f'{path}.onnx'
    return shipped if not path.suffix and shipped.is_file() and not path.exists() else path


def _load_onnx(model_path: Path, providers: Sequence[str] | None, threads: int) -> Backend:
    from lunar_stereo_recon.backends.onnx_backend import OnnxBackend

    return OnnxBackend(model_path, providers=providers, threads=threads)


def _load_openvino(model_path: Path, providers: Sequence[str] | None, threads: int) -> Backend:
    if providers:
        raise ModelError(
            f'providers {", ".join(providers)} are of onnxruntime; the backend openvino has none'
        )
    try:
        from lunar_stereo_recon.backends.openvino_backend import OpenVinoBackend
    except ModuleNotFoundError as error:
        if error.name != 'openvino':
            raise
        raise ModelError(
            'the backend openvino needs the package openvino: '
            "pip install 'lunar_stereo_recon[openvino]'"
        ) from error
    return OpenVinoBackend(model_path, threads)


def _load_classical(method: str) -> Loader:
    def load(model_path: Path, providers: Sequence[str] | None, threads: int) -> Backend:
        from lunar_stereo_recon.backends.sgbm_backend import ClassicalBackend

        return ClassicalBackend(method)

    return load


# What runs a student's file.
STUDENT_BACKENDS = ('onnx', 'openvino')
BACKENDS: dict[str, Loader] = {
    'onnx': _load_onnx,
    'openvino': _load_openvino,
    'sgbm': _load_classical('sgbm'),
    'sgbm_hh': _load_classical('sgbm_hh'),
    'bm': _load_classical('bm'),
    'bm_padded': _load_classical('bm_padded'),
}
