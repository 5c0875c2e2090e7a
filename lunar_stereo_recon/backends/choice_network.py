"""The small network that chooses between the candidates of `geometry.residual`, in onnxruntime."""

from __future__ import annotations

from functools import cache
import logging
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from lunar_stereo_recon.backends.choice_self_test import (
    answer_entry,
    ANSWER_KEY,
    check_answer,
    self_test_evidence,
    stored_answer,
    TEST_HEIGHT,
    TEST_WIDTH,
)
from lunar_stereo_recon.backends.model_seal import check_model_file, check_seal
from lunar_stereo_recon.backends.onnx_backend import LOAD_ERRORS, open_session, Session
from lunar_stereo_recon.errors import ModelError
from lunar_stereo_recon.geometry.bands import Band, over_bands
from lunar_stereo_recon.geometry.residual import CANDIDATES, EVIDENCE

INPUT, OUTPUT = 'evidence', 'preferences'
# What the graph calls its open dimensions.
HEIGHT, WIDTH = 'height', 'width'
# It halves the size three times.
SIZE_MULTIPLE = 8
# It answers for cells of so many pixels down and across, which stand as channels: OpenCV puts them
# in their places in a tenth of the time that DepthToSpace takes in onnxruntime.
CELL_PX = 2
# A preference for each candidate, and the log of the expected error.
OUTPUTS = len(CANDIDATES) + 1
# What the metadata must say of the meaning of input and output.
EVIDENCE_KEY, CANDIDATES_KEY = 'evidence', 'candidates'

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
        answer = preferences[0]
        if len(answer) > OUTPUTS:  # files of before have the pixels in their places
            answer = pixels_of_cells(answer)
        return answer[:, :height, :width]

    def check_answer(self) -> None:
        """Compare the answer to the self-test's input with the one in the file's metadata.

        The input has the size in use, for which alone the network is in memory.

        Raises:
            ModelError: It fails when run, or answers otherwise.
        """
        # Read once: others may share this network.
        opened = self._opened
        size = opened[0] if opened else (TEST_HEIGHT, TEST_WIDTH)
        answer = self(self_test_evidence(*size))
        check_answer(answer, self._expected, self._path)

    def known_answer(self) -> str:
        """Return the answer as it is now, for the metadata of the file."""
        size = TEST_HEIGHT, TEST_WIDTH
        return answer_entry(self(self_test_evidence(*size)))

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


def pixels_of_cells(cells: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return (K, 2 h, 2 w) float32 of (4 K, h, w), each cell's four pixels row by row.

    What torch calls a pixel shuffle.
    """
    count, (height, width) = len(cells) // CELL_PX**2, cells.shape[1:]
    pixels = np.empty((count, CELL_PX * height, CELL_PX * width), np.float32)
    places = pixels.reshape(count, height, CELL_PX, width, CELL_PX)

    def place(band: Band) -> None:
        for plane, four in zip(
            places, cells.reshape(count, CELL_PX**2, height, width), strict=True
        ):
            for row in range(CELL_PX):
                across = four[CELL_PX * row : CELL_PX * (row + 1), band.rows]
                cv2.merge(list(across), dst=plane[band.rows, row])

    over_bands(height, 0, place)
    return pixels


@cache
def shared_choice(path: Path, threads: int) -> ChoiceNetwork:
    """Return the network of a file, loaded once: it serves any number of reconstructors."""
    network = ChoiceNetwork(path, threads)
    if not network.is_tested:
        logger.warning('%s has no %s: wrong answers would go unnoticed', path, ANSWER_KEY)
    return network
