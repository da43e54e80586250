"""From rounds of the joiner to feature state: applied once, whatever dies when."""

import logging
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from freshrank.errors import TransportError
from freshrank.feature_state import FeatureState
from freshrank.feature_updates import FeatureUpdates, Forgotten
from freshrank.live import LiveFeatures
from trainer.joiner.arena import Arena
from trainer.joiner.requests import Acted
from trainer.joiner.state import State

logger = logging.getLogger(__name__)

# While feature state is away joining goes on for so many rounds, 50 MB of large ones: half a minute
# or more, in which a Redis is started again. Then it waits, as the database must not fill the disk.
UNTOLD_MAX: Final = 256


class Features:
    """Tells feature state what each round changed.

    A round stands in the joiner's database until feature state has saved it: what a restart finds
    there is told again, and feature state leaves out what it has.

    Args:
        live: Live features of the configuration.
        arena: Where encoded rows stand.
        state: The joiner's database.
        target: Feature state; told what it lacks.
    """

    def __init__(
        self, live: LiveFeatures, arena: Arena, state: State, target: FeatureState
    ) -> None:
        self._live = live
        self._arena = arena
        self._state = state
        self._target = target
        self._kept: deque[tuple[int, Mapping[str, int]]] = deque()  # told, but not saved there
        self._untold: deque[tuple[int, FeatureUpdates]] = deque()
        self._next = 0
        self._is_away = False

    def restore(self) -> None:
        """Tell again what the database has; to be called at the start, and after a failed round."""
        self._kept.clear()
        self._untold.clear()
        for number, value in self._state.feature_updates():
            self.apply(number, FeatureUpdates.from_bytes(value))

    def updates(
        self,
        shown: Sequence[tuple[int, int]],
        acted: Sequence[Acted],
        forgotten: Sequence[Forgotten],
        marks: Mapping[str, int],
    ) -> tuple[int, FeatureUpdates] | None:
        """The round's number and what it changes; None when it changes nothing.

        Args:
            shown: Number in the arena and event time of items that became live.
            acted: Matched actions that feature state wants.
            forgotten: Ids that it is to forget first.
            marks: `topic:partition` -> offset through which the joiner has decided with it.
        """
        parts = [FeatureUpdates(forgotten=list(forgotten))] if forgotten else []
        if shown:
            numbers, ts_ms = np.array(shown, np.int64).T
            slots = self._arena.ids(numbers, self._live.key_slots)
            parts.append(self._live.updates_of_impressions(slots, ts_ms))
        if acted:
            numbers = np.array([one.number for one in acted], np.int64)
            parts.append(
                self._live.updates_of_actions(
                    self._arena.ids(numbers, self._live.key_slots),
                    [one.action.event for one in acted],
                    np.array([one.action.time_ms for one in acted], np.int64),
                    [one.action.event_id for one in acted],
                    [one.user for one in acted],
                    [one.action.item for one in acted],
                )
            )
        return (self._next, FeatureUpdates.together(parts, marks)) if parts else None

    def apply(self, number: int, updates: FeatureUpdates) -> None:
        """Tell feature state of a round that is committed; see `tell`."""
        self._untold.append((number, updates))
        self._next = number + 1
        self.tell()

    def tell(self) -> None:
        """Tell what it has missed, in order, as far as it can be reached.

        Raises:
            TransportError: it cannot be reached, and has missed as much as may wait.
        """
        try:
            while self._untold:
                number, updates = self._untold[0]
                self._target.apply(updates)
                self._untold.popleft()
                self._kept.append((number, updates.marks))
        except TransportError as error:
            if len(self._untold) >= UNTOLD_MAX:
                raise
            if not self._is_away:  # a line per change, not per try
                logger.warning("feature_state=away joining=goes-on error=%s", error)
            self._is_away = True
            return
        if self._is_away:
            logger.warning("feature_state=back")
            self._is_away = False
        saved = self._target.saved
        while self._kept and _is_reached(self._kept[0][1], saved):
            self._state.features_saved(self._kept.popleft()[0])


def _is_reached(marks: Mapping[str, int], saved: Mapping[str, int]) -> bool:
    return all(saved.get(log, -1) >= offset for log, offset in marks.items())
