"""Pairs the items of two streams by their stamps; live topics and bags use the same rule.

Two items belong together when their stamps differ by at most a tolerance (0: exactly equal), and
no other item is nearer. A pair leaves as soon as no better partner can come. Each item that will
never have a partner is reported with a reason.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, Literal, TypeVar

Item = TypeVar('Item')
Side = Literal['left', 'right']
OTHER: dict[Side, Side] = {'left': 'right', 'right': 'left'}

# A stamp that goes back by more than this is a new start (bag loop, simulation reset), less is
# messages out of order.
RESTART_NS = 200_000_000


@dataclass(frozen=True)
class Unpaired:
    """Why an item was given up.

    Attributes:
        side: The stream it came from.
        reason: 'unmatched', 'queue_full', 'late', 'time_jump' or 'cleared'.
        stamp_ns: Its stamp.
        gap_ns: Distance to the nearest stamp of the other stream; None where that has none.
    """

    side: Side
    reason: str
    stamp_ns: int
    gap_ns: int | None = None


@dataclass
class _Stream(Generic[Item]):
    queue: deque[tuple[int, Item]] = field(default_factory=deque)
    newest_ns: int | None = None
    shortest_period_ns: int | None = None
    epoch: int = 0


class PairQueue(Generic[Item]):
    """Matches two streams of stamped items.

    For equal stamps and for a tolerance this gives the pairs of message_filters' C++
    TimeSynchronizer and ApproximateTime, without that one's wait for a later message where the
    stream's own period already rules a better partner out. Unlike those, a stamp that jumps back
    clears what was waiting.
    """

    def __init__(
        self,
        tolerance_ns: int = 0,
        queue_size: int = 10,
        on_unpaired: Callable[[Unpaired], None] | None = None,
        size_of: Callable[[Item], int] | None = None,
        max_size: int = 0,
    ) -> None:
        """Make an empty queue.

        Args:
            tolerance_ns: Largest difference of the stamps of a pair.
            queue_size: Items of one stream that may wait for a partner.
            on_unpaired: Called for each item that is given up.
            size_of: Bytes of an item, where what waits is limited by its size as well.
            max_size: Bytes of one stream that may wait.
        """
        self.tolerance_ns = tolerance_ns
        self.queue_size = queue_size
        self._on_unpaired = on_unpaired or (lambda unpaired: None)
        self._size_of, self._max_size = size_of or (lambda item: 0), max_size
        self._streams: dict[Side, _Stream[Item]] = {'left': _Stream(), 'right': _Stream()}
        self._last_pair_ns: dict[Side, int] = {}

    def add(self, side: Side, stamp_ns: int, item: Item) -> list[tuple[Item, Item]]:
        """Add an item and return the (left, right) pairs that it completes, oldest first."""
        stream = self._streams[side]
        if self._restarted(side, stamp_ns):
            self._restart(side, stamp_ns)
        elif self._from_before_restart(side, stamp_ns):
            self._give_up(side, stamp_ns, 'time_jump')
            return []
        if stamp_ns < self._last_pair_ns.get(side, stamp_ns):
            self._give_up(side, stamp_ns, 'late')
            return []
        self._learn_period(stream, stamp_ns)
        self._insert(stream, stamp_ns, item)
        pairs = self._match()
        while len(stream.queue) > self.queue_size or self._bytes(stream) > self._max_size:
            stamp, _ = stream.queue.popleft()
            self._give_up(side, stamp, 'queue_full')
        return pairs

    def _bytes(self, stream: _Stream[Item]) -> int:
        return sum(self._size_of(item) for _, item in stream.queue)

    def waiting(self, side: Side) -> int:
        """Return how many items of a stream wait for a partner."""
        return len(self._streams[side].queue)

    def clear(self) -> None:
        """Forget everything, as if nothing had ever come; what waited is given up."""
        for side in OTHER:
            for stamp, _ in self._streams[side].queue:
                self._give_up(side, stamp, 'cleared')
        self._streams = {'left': _Stream(), 'right': _Stream()}
        self._last_pair_ns = {}

    def finish(self) -> list[tuple[Item, Item]]:
        """Return the pairs that still waited for a possibly better partner; drop the rest."""
        pairs = self._match(final=True)
        for side in OTHER:
            for stamp, _ in self._streams[side].queue:
                self._give_up(side, stamp, 'unmatched')
            self._streams[side].queue.clear()
        return pairs

    def _restarted(self, side: Side, stamp_ns: int) -> bool:
        newest = self._streams[side].newest_ns
        return newest is not None and stamp_ns < newest - RESTART_NS

    def _restart(self, side: Side, stamp_ns: int) -> None:
        """Drop what is later than the new start; the other stream may not have restarted yet."""
        stream, other = self._streams[side], self._streams[OTHER[side]]
        stream.newest_ns, stream.shortest_period_ns = None, None
        stream.epoch += 1
        for name in OTHER:
            queue = self._streams[name].queue
            while queue and queue[-1][0] > stamp_ns + RESTART_NS:
                late_stamp, _ = queue.pop()
                self._give_up(name, late_stamp, 'time_jump')
        if other.newest_ns is None:
            other.epoch = stream.epoch
        self._last_pair_ns = {}

    def _from_before_restart(self, side: Side, stamp_ns: int) -> bool:
        """Say whether a stream that lags behind a restart still delivers from before it."""
        stream, other = self._streams[side], self._streams[OTHER[side]]
        if stream.epoch >= other.epoch or other.newest_ns is None:
            return False
        if stamp_ns > other.newest_ns + RESTART_NS:
            return True
        stream.epoch, stream.newest_ns, stream.shortest_period_ns = other.epoch, None, None
        return False

    @staticmethod
    def _learn_period(stream: _Stream[Item], stamp_ns: int) -> None:
        if stream.newest_ns is not None and stamp_ns > stream.newest_ns:
            period = stamp_ns - stream.newest_ns
            if stream.shortest_period_ns is None or period < stream.shortest_period_ns:
                stream.shortest_period_ns = period
        stream.newest_ns = max(stamp_ns, stream.newest_ns or stamp_ns)

    @staticmethod
    def _insert(stream: _Stream[Item], stamp_ns: int, item: Item) -> None:
        later = []
        while stream.queue and stream.queue[-1][0] > stamp_ns:
            later.append(stream.queue.pop())
        stream.queue.append((stamp_ns, item))
        stream.queue.extend(reversed(later))

    def _match(self, final: bool = False) -> list[tuple[Item, Item]]:
        left, right = self._streams['left'].queue, self._streams['right'].queue
        pairs = []
        while left and right:
            earlier: Side = 'left' if left[0][0] <= right[0][0] else 'right'
            gap = abs(left[0][0] - right[0][0])
            better = self._better_partner_follows(earlier, gap)
            if gap > self.tolerance_ns or better == 'here':
                stamp, _ = self._streams[earlier].queue.popleft()
                self._give_up(earlier, stamp, 'unmatched', gap)
            elif better == 'possible' and not final:
                break
            else:
                self._last_pair_ns = {'left': left[0][0], 'right': right[0][0]}
                pairs.append((left.popleft()[1], right.popleft()[1]))
        return pairs

    def _better_partner_follows(self, earlier: Side, gap: int) -> str:
        """Say if the later head has a nearer partner: 'here', 'possible' (to come) or 'no'."""
        if gap == 0:
            return 'no'
        stream = self._streams[earlier]
        first = stream.queue[0][0]
        if len(stream.queue) > 1:
            later_head = first + gap
            return 'here' if abs(stream.queue[1][0] - later_head) < gap else 'no'
        # The next item comes at least half a period later: 2 * gap away it cannot be nearer.
        period = stream.shortest_period_ns
        return 'no' if period is not None and period // 2 >= 2 * gap else 'possible'

    def _give_up(self, side: Side, stamp_ns: int, reason: str, gap_ns: int | None = None) -> None:
        if gap_ns is None:
            others = [stamp for stamp, _ in self._streams[OTHER[side]].queue]
            gap_ns = min((abs(stamp - stamp_ns) for stamp in others), default=None)
        self._on_unpaired(Unpaired(side, reason, stamp_ns, gap_ns))
