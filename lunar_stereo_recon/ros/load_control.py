"""Reduces the work under load: narrower networks, then fewer pairs; undone when load falls.

Acts where a time for a pair is wanted (`target_ms`). A busy or hot processor takes longer than it
did when the network's width was chosen; a node that insists would fall ever more behind and keep
the processor hot.
"""

from __future__ import annotations

from dataclasses import dataclass

from lunar_stereo_recon.network_width import NETWORK_WIDTHS

# The work is reduced by a step after this many pairs in a row over the target ...
SLOW_PAIRS = 5
# ... and raised by one after this many in a row that would take less than this share of the
# target with the step undone. The two are far apart, so that no load makes it alternate.
QUICK_PAIRS = 30
HEADROOM = 0.85
SHARES = (2, 4, 8)


@dataclass(frozen=True)
class Effort:
    """How much is done.

    Attributes:
        width_px: Width of the network; None where the matcher takes any size.
        one_in: One of this many pairs is reconstructed.
    """

    width_px: int | None
    one_in: int = 1

    def __str__(self) -> str:
        width = f'network width {self.width_px} px' if self.width_px else 'full width'
        return f'{width}, {"every pair" if self.one_in == 1 else f"one pair in {self.one_in}"}'


class LoadControl:
    """Chooses the effort from the time that pairs take; see the module.

    Told in one thread, and may be read in another.
    """

    def __init__(self, width_px: int | None) -> None:
        """Begin with all that is wanted.

        Args:
            width_px: Width of the network that was chosen for the target; None without one.
        """
        narrower = [w for w in NETWORK_WIDTHS if width_px is not None and w < width_px]
        widths = [width_px, *sorted(narrower, reverse=True)]
        self._efforts = [
            *(Effort(width) for width in widths),
            *(Effort(widths[-1], share) for share in SHARES),
        ]
        self._step = self._slow = self._quick = 0

    @property
    def effort(self) -> Effort:
        """Return the effort from now on."""
        return self._efforts[self._step]

    @property
    def reduced(self) -> bool:
        """Say whether less is done than was wanted."""
        return self._step > 0

    def note(self, pair_ms: float, inference_ms: float, target_ms: float) -> bool:
        """Learn what a pair took; return whether the effort has changed.

        Args:
            pair_ms: All of its work, milliseconds.
            inference_ms: The network's part of it; it grows with the network's pixels.
            target_ms: Wanted for a pair.
        """
        self._slow = self._slow + 1 if pair_ms > target_ms else 0
        above_ms = pair_ms + inference_ms * (self._growth() - 1.0)
        self._quick = self._quick + 1 if above_ms <= HEADROOM * target_ms else 0
        if self._slow >= SLOW_PAIRS and self._step + 1 < len(self._efforts):
            return self._go(self._step + 1)
        if self._quick >= QUICK_PAIRS and self._step > 0:
            return self._go(self._step - 1)
        return False

    def _growth(self) -> float:
        """Return how much more pixels the network has one step up."""
        above, now = self._efforts[max(self._step - 1, 0)].width_px, self.effort.width_px
        return (above / now) ** 2 if above and now else 1.0

    def _go(self, step: int) -> bool:
        self._step, self._slow, self._quick = step, 0, 0
        return True
