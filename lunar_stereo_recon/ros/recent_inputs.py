"""The newest inputs of a node, kept for the doctor."""

from __future__ import annotations

from collections import deque
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lunar_stereo_recon.messages import stamp_ns
from lunar_stereo_recon.pairing import Side
from lunar_stereo_recon.ros.stereo_sync import StereoMessages

KEPT_STAMPS = 300
# A few scenes of a drive, not one of them several times.
KEPT_PAIRS = 4
PAIRS_APART_NS = 500_000_000


class RecentInputs:
    """The newest stamps of a rig's topics, and some of its newest pairs."""

    def __init__(self) -> None:
        self._times: dict[str, deque[tuple[int, int]]] = {}
        self.pairs: deque[StereoMessages] = deque(maxlen=KEPT_PAIRS)

    def note(self, side: Side, kind: str, message: Any) -> None:
        """Keep the stamp of a message.

        Args:
            side: Side of the rig.
            kind: 'image' or 'info'.
            message: With a header.
        """
        times = self._times.setdefault(f'{side}_{kind}', deque(maxlen=KEPT_STAMPS))
        times.append((stamp_ns(message), time.time_ns()))

    def note_pair(self, messages: StereoMessages) -> None:
        """Keep a pair, unless it shows what the last one does."""
        last_ns = self.pairs[-1].stamp_ns if self.pairs else None
        if last_ns is None or abs(messages.stamp_ns - last_ns) >= PAIRS_APART_NS:
            self.pairs.append(messages)

    def copy(self) -> RecentInputs:
        """Return what is kept now, for another thread."""
        copy = RecentInputs()
        copy._times = {name: times.copy() for name, times in self._times.items()}
        copy.pairs = self.pairs.copy()
        return copy

    def times_ns(self, name: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return stamps (N,) and times of arrival (N,) of one of the four topics, nanoseconds.

        Args:
            name: 'left_image', 'right_image', 'left_info', 'right_info'.
        """
        times = np.array(self._times.get(name, ()), np.int64).reshape(-1, 2)
        return times[:, 0], times[:, 1]
