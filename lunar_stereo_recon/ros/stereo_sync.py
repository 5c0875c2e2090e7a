"""Left and right images with their camera_infos become synchronized sets; every drop is counted.

Plain Python: the node feeds it messages. The matching rule is in `lunar_stereo_recon.pairing`.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from lunar_stereo_recon.limits import MAX_WAITING_BYTES
from lunar_stereo_recon.messages import stamp_ns, StereoTopics
from lunar_stereo_recon.pairing import OTHER, PairQueue, RESTART_NS, Side, Unpaired

# How the reasons of `pairing.Unpaired` read in logs and diagnostics.
DROP_REASONS = {
    'unmatched': 'no partner with a matching stamp',
    'queue_full': 'waited in vain for a partner',
    'late': 'came after a newer pair',
    'time_jump': 'stamps jumped back',
    'cleared': 'the node stopped receiving',
    'no_camera_info': 'no camera_info yet',
}
MIN_INFOS_KEPT = 10
# Given-up images whose stamps are kept, so that a pair given up in two halves is told once.
STAMPS_KEPT = 100

OnUnpaired = Callable[[int, str], None]


@dataclass(frozen=True)
class StereoMessages:
    """One synchronized set of messages."""

    left: Any
    right: Any
    left_info: Any
    right_info: Any

    @property
    def stamp_ns(self) -> int:
        """Return the left image's stamp, nanoseconds."""
        return stamp_ns(self.left)


@dataclass
class SyncStatistics:
    """What came and what became of it.

    Attributes:
        images, infos: Messages received by side; an info from a file counts as one.
        pairs: Sets given out.
        drops: Images given up, by side and reason: 'left unmatched'.
        last_gap_ns: Stamp difference to the nearest image of the other side, at the last image
            that was given up; None before or where the other side had none.
        repeated: Images with the stamp of the one before, by side.
        backward: Images that are older than the one before, by side, new starts apart.
        step_back_ns: How much older the last of those was.
    """

    images: Counter[str] = field(default_factory=Counter)
    infos: Counter[str] = field(default_factory=Counter)
    pairs: int = 0
    drops: Counter[str] = field(default_factory=Counter)
    last_gap_ns: int | None = None
    repeated: Counter[str] = field(default_factory=Counter)
    backward: Counter[str] = field(default_factory=Counter)
    step_back_ns: int = 0


class StereoSynchronizer:
    """Collects the four streams of a rig.

    Images are matched by stamp. A pair takes the camera_infos with its own stamps where the driver
    publishes them with each image; elsewhere (simulators, latched infos) the newest ones serve.
    A side whose info is settled needs none: it comes from a file, or its first one is kept.
    """

    def __init__(
        self,
        tolerance_ns: int = 0,
        queue_size: int = 5,
        settled_infos: Mapping[Side, Any] | None = None,
        keep_first_infos: bool = False,
        on_unpaired: OnUnpaired | None = None,
    ) -> None:
        """Make an empty synchronizer.

        Args:
            tolerance_ns: See `pairing.PairQueue`.
            queue_size: See there.
            settled_infos: Infos by side that hold for all images; none are expected to come.
            keep_first_infos: The first info of a side serves all its images.
            on_unpaired: Called with a stamp (nanoseconds) of which images came and no set will
                leave, and with the reason; once for each stamp.
        """
        self.statistics = SyncStatistics()
        self.settled_infos: dict[Side, Any] = dict(settled_infos or {})
        self._keep_first_infos = keep_first_infos
        self.statistics.infos.update(list(self.settled_infos))
        self._queue: PairQueue[Any] = PairQueue(
            tolerance_ns,
            queue_size,
            self._count_drop,
            lambda message: len(message.data),
            MAX_WAITING_BYTES,
        )
        # Infos are small and overtake their images; a few are kept until those are here.
        self._infos: dict[Side, deque[Any]] = {
            side: deque(maxlen=max(queue_size, MIN_INFOS_KEPT)) for side in OTHER
        }
        self._info_with_each_image: dict[Side, bool] = {'left': False, 'right': False}
        # No info came since the images' stamps jumped back: those that are here are of before.
        self._infos_are_old: dict[Side, bool] = {'left': False, 'right': False}
        self._last_image_ns: dict[Side, int] = {}
        self._last_pair_ns: dict[Side, int] = {}
        self._waiting: tuple[Any, Any] | None = None
        self._on_unpaired = on_unpaired or (lambda stamp_ns, reason: None)
        self._told: deque[int] = deque(maxlen=STAMPS_KEPT)
        self._images_at_settle = 0

    def add_image(self, side: Side, message: Any) -> list[StereoMessages]:
        """Add an image and return the sets that it completes, oldest first."""
        self.statistics.images[side] += 1
        stamp = stamp_ns(message)
        self._watch_stamps(side, stamp)
        self._last_image_ns[side] = stamp
        complete = []
        for pair in self._queue.add(side, stamp, message):
            # A camera_info that has not come by now is lost: the newest one has to do.
            complete += self._complete(wait_for_own_infos=False)
            self._give_up_waiting('no_camera_info')
            self._waiting = pair
            complete += self._complete()
        return complete

    def add_info(self, side: Side, message: Any) -> list[StereoMessages]:
        """Add a camera_info and return the set that it completes, if it was the missing one."""
        self.statistics.infos[side] += 1
        if self._keep_first_infos:
            self.settled_infos.setdefault(side, message)
        self._infos[side].append(message)
        self._infos_are_old[side] = False
        if stamp_ns(message) == self._last_pair_ns.get(side):
            # It came after its pair had left with another one: the next pair shall wait.
            self._info_with_each_image[side] = True
        return self._complete()

    def clear(self) -> None:
        """Forget waiting images and infos, but not settled ones; the statistics stay."""
        self._queue.clear()
        self._give_up_waiting('cleared')
        for infos in self._infos.values():
            infos.clear()
        self._last_image_ns, self._last_pair_ns = {}, {}

    def settle(self) -> list[StereoMessages]:
        """Return what still waits and can be used; give up the rest if nothing has come lately.

        Called every few seconds. Images that wait since the last call have waited in vain when no
        other has come since then.
        """
        images = self.statistics.images.total()
        if images != self._images_at_settle:
            self._images_at_settle = images
            return []
        complete = []
        for pair in [None, *self._queue.finish()]:
            if pair is not None:
                self._waiting = pair
            complete += self._complete(wait_for_own_infos=False)
            self._give_up_waiting('no_camera_info')
        return complete

    def _watch_stamps(self, side: Side, stamp: int) -> None:
        """Notice stamps that stand still or go back."""
        step_ns = stamp - self._last_image_ns.get(side, stamp - 1)
        if step_ns < -RESTART_NS:
            self._infos_are_old[side] = not self._own_info(side, stamp)
            self._told.clear()  # the stamps of before may come again
        elif step_ns < 0:
            self.statistics.backward[side] += 1
            self.statistics.step_back_ns = -step_ns
        elif step_ns == 0:
            self.statistics.repeated[side] += 1

    def _give_up_waiting(self, reason: str) -> None:
        """Give up the pair that waits for its camera_infos, if there is one."""
        if self._waiting is not None:
            self.statistics.drops[f'pair {reason}'] += 1
            self._on_unpaired(stamp_ns(self._waiting[0]), f'unpaired: {DROP_REASONS[reason]}')
            self._waiting = None

    def _complete(self, wait_for_own_infos: bool = True) -> list[StereoMessages]:
        """Return the waiting pair with its infos once they are there."""
        if self._waiting is None:
            return []
        images = dict(zip(OTHER, self._waiting, strict=True))
        unsettled = [side for side in OTHER if side not in self.settled_infos]
        if not all(self._infos[side] for side in unsettled):
            return []
        own = {side: self._own_info(side, stamp_ns(images[side])) for side in unsettled}
        if wait_for_own_infos and any(self._will_come(side, images, own) for side in unsettled):
            return []
        for side in unsettled:
            self._info_with_each_image[side] = own[side] is not None
        self._waiting = None
        self._last_pair_ns = {side: stamp_ns(image) for side, image in images.items()}
        self.statistics.pairs += 1
        infos = {
            **self.settled_infos,
            **{side: own[side] or self._infos[side][-1] for side in unsettled},
        }
        return [StereoMessages(images['left'], images['right'], infos['left'], infos['right'])]

    def _own_info(self, side: Side, image_stamp_ns: int) -> Any:
        infos = reversed(self._infos[side])
        return next((info for info in infos if stamp_ns(info) == image_stamp_ns), None)

    def _will_come(self, side: Side, images: dict[Side, Any], own: dict[Side, Any]) -> bool:
        """Say whether a camera_info with the image's stamp is still to be expected.

        Topics overtake one another: the infos of later images may be here before the image.
        """
        if own[side] is not None or not self._info_with_each_image[side]:
            return False
        newest_ns = stamp_ns(self._infos[side][-1])
        return self._infos_are_old[side] or newest_ns < stamp_ns(images[side])

    def _count_drop(self, unpaired: Unpaired) -> None:
        self.statistics.drops[f'{unpaired.side} {unpaired.reason}'] += 1
        if unpaired.gap_ns is not None:
            self.statistics.last_gap_ns = unpaired.gap_ns
        # An image of the right alone has the stamp of a pair only where stamps must be equal.
        if unpaired.side == 'right' and self._queue.tolerance_ns > 0:
            return
        if unpaired.stamp_ns not in self._told:
            self._told.append(unpaired.stamp_ns)
            text = f'unpaired: {unpaired.side} image: {DROP_REASONS[unpaired.reason]}'
            self._on_unpaired(unpaired.stamp_ns, text)


def explain_no_pairs(
    before: SyncStatistics,
    now: SyncStatistics,
    topics: StereoTopics,
    tolerance_ns: int,
    publishers: Mapping[str, int] | None = None,
    conflicts: Mapping[str, str] | None = None,
) -> str:
    """Return why no pair came out between two states of the statistics, and what to do.

    Args:
        before: Statistics at the beginning of the silent time.
        now: Statistics now.
        topics: Resolved topic names.
        tolerance_ns: Tolerance in use.
        publishers: Number of publishers by topic, where known.
        conflicts: QoS policy in which a topic's publisher offers too little, where one does.
    """
    publishers, conflicts = publishers or {}, conflicts or {}
    images = {side: now.images[side] - before.images[side] for side in OTHER}
    infos = {side: now.infos[side] for side in OTHER}
    image_topics = {'left': topics.left_image, 'right': topics.right_image}
    info_topics = {'left': topics.left_info, 'right': topics.right_info}
    counts = f'left {images["left"]} images, right {images["right"]}'
    silent = [image_topics[side] for side in OTHER if images[side] == 0]
    if silent:
        return f'{counts}: {_is_it_published(silent, publishers, conflicts)}'
    missing = [info_topics[side] for side in OTHER if infos[side] == 0]
    if missing:
        question = _is_it_published(missing, publishers, conflicts)
        return f'{counts}, but no camera_info: {question}'
    if now.last_gap_ns is not None:
        gap_ms, tolerance_ms = now.last_gap_ns * 1e-6, tolerance_ns * 1e-6
        return (
            f'{counts}: left and right stamps differ by {gap_ms:.3g} ms, {tolerance_ms:.3g} ms '
            'allowed: set approximate_sync and approximate_sync_tolerance_seconds, or '
            'synchronize the cameras'
        )
    return f'{counts}: the stamps of left and right never match; do both cameras use one clock?'


def _is_it_published(
    silent: list[str], publishers: Mapping[str, int], conflicts: Mapping[str, str]
) -> str:
    """Return the question to ask about topics from which nothing comes."""
    verb = 'is' if len(silent) == 1 else 'are'
    question = f'{verb} {" and ".join(silent)} published?'
    unfit = [topic for topic in silent if conflicts.get(topic)]
    if unfit:
        return (
            f'{question} {unfit[0]} has a publisher whose QoS does not fit '
            f'({conflicts[unfit[0]]}): set input_reliability to auto, or change the publisher'
        )
    mute = [topic for topic in silent if publishers.get(topic, 0) > 0]
    if not mute:
        return question
    has, does, its = (
        ('has a publisher', 'does it', 'its')
        if len(mute) == 1
        else ('have publishers', 'do they', 'their')
    )
    return (
        f'{question} {" and ".join(mute)} {has}, but nothing arrives: {does} publish, and does '
        f'{its} QoS fit (`ros2 topic info --verbose`)?'
    )
