"""The small network that chooses between the candidates of `geometry.residual`, in onnxruntime."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
import json
import logging
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lunar_stereo_recon.backends.model_seal import check_model_file, check_seal
from lunar_stereo_recon.backends.onnx_backend import LOAD_ERRORS, open_session, Session
from lunar_stereo_recon.errors import ModelError
from lunar_stereo_recon.geometry.residual import CANDIDATES, EVIDENCE

INPUT, OUTPUT = 'evidence', 'preferences'
# What the graph calls its open dimensions.
HEIGHT, WIDTH = 'height', 'width'
# It halves the size three times.
SIZE_MULTIPLE = 8
# What the metadata must say of the meaning of input and output.
EVIDENCE_KEY, CANDIDATES_KEY = 'evidence', 'candidates'
# The answer of the self-test, see `known_answer`.
ANSWER_KEY = 'self_test_answer'
TEST_HEIGHT, TEST_WIDTH = 96, 128
# Pixels whose answer is kept: what they see of the input ends 56 pixels below and right of them,
# so that the answer is the same for every input of at least the test's size.
_ROWS, _COLUMNS = slice(1, 40, 7), slice(2, 72, 7)
# Between runtimes and processors; a preference that is better by 0.15 decides.
TOLERANCE = 0.02

# Where evidence is not 0 to 1.
_RANGES = {
    'brightness': (-1.0, 1.0),
    'contrast': (-1.1, 2.5),
    'detail': (-3.0, 3.0),
    'prior_cost': (-0.5, 1.5),
    'found_cost': (-0.5, 1.5),
    'farther_cost': (-0.5, 1.5),
    'nearer_cost': (-0.5, 1.5),
    'found_step': (-3.5, 3.5),
    'farther_step': (-3.5, 0.0),
    'nearer_step': (0.0, 3.5),
}
_YES_OR_NO = ('answered', 'inside')

logger = logging.getLogger(__name__)


class ChoiceNetwork:
    """A `geometry.residual.Chooser`.

    Args:
        path: `.onnx` file that `python -m training choice` wrote.
        threads: Threads within an operation; 0 leaves it to onnxruntime.

    Raises:
        ModelError: The file is missing, corrupted, made for other evidence or candidates, or
            fails its self-test.
    """

    def __init__(self, path: Path, threads: int = 0) -> None:
        check_model_file(path)
        self._path, self._threads = path, threads
        # Kept: the file may be replaced before it is opened for another size.
        self._content = path.read_bytes()
        self._opened: tuple[tuple[int, int], Session] | None = None
        session = self._session(TEST_HEIGHT, TEST_WIDTH)
        metadata = session.get_modelmeta().custom_metadata_map
        for key, names in ((EVIDENCE_KEY, EVIDENCE), (CANDIDATES_KEY, CANDIDATES)):
            if metadata.get(key) != ' '.join(names):
                raise ModelError(
                    f"{path} is made for the {key} '{metadata.get(key, '')}'; "
                    f"'{' '.join(names)}' is needed"
                )
        self._expected = stored_answer(metadata, path)
        self.check_answer()

    @property
    def is_tested(self) -> bool:
        """Return whether the file holds a known answer."""
        return self._expected is not None

    def __call__(self, evidence: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return (5, H, W) float32: preferences, and the log of the expected error in pixels.

        Args:
            evidence: (K, H, W) float32.

        Raises:
            ModelError: The network fails.
        """
        height, width = evidence.shape[1:]
        below, beside = -height % SIZE_MULTIPLE, -width % SIZE_MULTIPLE
        if below or beside:
            evidence = np.pad(evidence, ((0, 0), (0, below), (0, beside)), mode='edge')
        session = self._session(height + below, width + beside)
        try:
            (preferences,) = session.run([OUTPUT], {INPUT: evidence[None]})
        except LOAD_ERRORS as error:
            raise ModelError(f'the choice network fails when run: {error}') from error
        return preferences[0, :, :height, :width]

    def check_answer(self) -> None:
        """Compare the answer to the self-test's input with the one in the file's metadata.

        The input has the size in use, for which alone the network is in memory. Images smaller
        than the self-test's have no known answer: theirs must only be finite.

        Raises:
            ModelError: It fails when run, or answers otherwise.
        """
        # Read once: others may share this network.
        opened = self._opened
        height, width = opened[0] if opened else (TEST_HEIGHT, TEST_WIDTH)
        answer = self(self_test_evidence(height, width))
        if not np.isfinite(answer).all():
            raise ModelError(f'{self._path} fails its self-test: its answer is not finite')
        if self._expected is None or height < TEST_HEIGHT or width < TEST_WIDTH:
            return
        error = float(np.abs(answer[:, _ROWS, _COLUMNS] - self._expected).max())
        if error > TOLERANCE:
            raise ModelError(
                f'{self._path} fails its self-test: it is {error:.3g} off the known answer, at '
                f'most {TOLERANCE} is allowed'
            )

    def known_answer(self) -> str:
        """Return the entry `ANSWER_KEY` for the metadata of the file: the answer as it is now."""
        answer = self(self_test_evidence(TEST_HEIGHT, TEST_WIDTH))[:, _ROWS, _COLUMNS]
        return json.dumps([round(float(value), 3) for value in answer.ravel()])

    def _session(self, height: int, width: int) -> Session:
        """Return the graph made ready for inputs of this size; the last one is kept.

        Raises:
            ModelError: What was read from the file has changed in memory.
        """
        # Read once: others may share this network.
        opened, size = self._opened, (height, width)
        if opened is None or opened[0] != size:
            check_seal(self._path, self._content)
            # With sizes known, onnxruntime adds within its convolutions.
            sizes = {HEIGHT: height, WIDTH: width}
            session = open_session(
                self._path, threads=self._threads, content=self._content, sizes=sizes
            )
            opened = size, session
            self._opened = opened
        return opened[1]


def self_test_evidence(height: int, width: int) -> NDArray[np.float32]:
    """Return (K, height, width) float32: waves of many lengths within what evidence may be.

    A larger one begins with all of a smaller one.
    """
    rows, columns = np.mgrid[0:height, 0:width].astype(np.float64)
    planes = np.empty((len(EVIDENCE), height, width), np.float32)
    for number, name in enumerate(EVIDENCE):
        low, high = _RANGES.get(name, (0.0, 1.0))
        # Long waves bend short ones, else every place would see the same.
        long = np.sin((rows * (3 + number % 5) + columns * (2 + number % 3)) / 37 + number)
        short = np.sin((rows * (5 + number % 4) - columns * (7 - number % 6)) / 9 + 4 * long)
        wave = 0.5 + 0.5 * short * np.sin(columns / (11 + number) + rows / (23 - number))
        planes[number] = low + (high - low) * wave
        if name in _YES_OR_NO:
            planes[number] = wave > 0.35
    return planes


def stored_answer(metadata: Mapping[str, str], path: Path) -> NDArray[np.float64] | None:
    """Return the known answer (5, rows, columns); None where there is none.

    Raises:
        ModelError: It is something else.
    """
    text = metadata.get(ANSWER_KEY)
    if not text:
        return None
    shape = (len(CANDIDATES) + 1, len(range(TEST_HEIGHT)[_ROWS]), len(range(TEST_WIDTH)[_COLUMNS]))
    try:
        values = np.array(json.loads(text), np.float64)
    except (OverflowError, RecursionError, TypeError, ValueError) as error:
        raise ModelError(f'{path} metadata {ANSWER_KEY} is not a list of numbers') from error
    if values.shape != (np.prod(shape),) or not np.isfinite(values).all():
        raise ModelError(
            f'{path} metadata {ANSWER_KEY} has shape {values.shape}; {np.prod(shape)} finite '
            'numbers are needed'
        )
    return values.reshape(shape)


@cache
def shared_choice(path: Path, threads: int) -> ChoiceNetwork:
    """Return the network of a file, loaded once: it serves any number of reconstructors."""
    network = ChoiceNetwork(path, threads)
    if not network.is_tested:
        logger.warning('%s has no %s: wrong answers would go unnoticed', path, ANSWER_KEY)
    return network
