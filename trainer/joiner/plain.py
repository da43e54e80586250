"""Whether records are all in order, told for many at once; `judge` says of each what is wrong.

Every rule stands twice: here it takes a fifth of the time, and what is not in order here is looked
at there, so this may refuse too much but never too little.
"""

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import chain
from operator import sub
from typing import Final

import numpy as np

from freshrank.errors import DataError
from freshrank.features import FeatureEncoder
from freshrank.messages import Action, Impression, Message, Tick
from freshrank.transport.base import IMPRESSIONS
from trainer.rows import TIME_MS_MAX

# docs/semantics.md, records and time: further ahead of its ingest an event's clock is wrong.
AHEAD_MS_MAX: Final = 5 * 60 * 1_000
# Two rows of one item must fit into a record; canonical ids have at most 256 characters.
ID_LENGTH_MAX: Final = 512
PARTS_MAX: Final = 65_536
VALUE_MAX: Final = float(np.finfo(np.float32).max)
# Users and items come again and again: those seen lately are 10 MB.
_KNOWN_MAX: Final = 65_536


class PlainCheck:
    """Finds records that need no closer look.

    Args:
        encoder: Checks users, and items that are no feature.
        events: Those that an action may have.
        encodes_items: Encoding an impression checks its items.
    """

    def __init__(
        self, encoder: FeatureEncoder, events: frozenset[str], *, encodes_items: bool
    ) -> None:
        self._canonical_user = lru_cache(_KNOWN_MAX)(encoder.canonical_user)
        self._canonical_item: Callable[[str], str] | None = (
            None if encodes_items else lru_cache(_KNOWN_MAX)(encoder.canonical_item)
        )
        self._events = events

    def __call__(self, topic: str, messages: Sequence[Message]) -> bool:
        """True when every message is in order, for a record of this topic.

        Args:
            topic: Of all of them.
            messages: At least one.
        """
        ts_ms, received_at_ms = [m.ts_ms for m in messages], [m.received_at_ms for m in messages]
        if (
            min(*ts_ms, *received_at_ms) < 0
            or max(*ts_ms, *received_at_ms) > TIME_MS_MAX
            or max(map(sub, ts_ms, received_at_ms)) > AHEAD_MS_MAX
        ):
            return False
        news = [m for m in messages if type(m) is not Tick]
        shown = [m for m in news if type(m) is Impression]
        acted = [m for m in news if type(m) is Action]
        if len(shown if topic == IMPRESSIONS else acted) < len(news):
            return False
        try:
            return self._are_shown(shown) and self._are_acted(acted)
        except DataError:
            return False

    def _are_shown(self, shown: Sequence[Impression]) -> bool:
        items = list(chain.from_iterable([one.items for one in shown]))
        self._check_users(shown)
        if self._canonical_item is not None:
            for item in items:
                self._canonical_item(item)
        return (
            _are_ids(items)
            and _are_ids([one.request_id for one in shown])
            and _are_ids([one.event_id for one in shown])
            and all([0 <= one.part < one.parts <= PARTS_MAX for one in shown])
            and all([len(one.items) == len(task) for one in shown for task in one.served.values()])
        )

    def _are_acted(self, acted: Sequence[Action]) -> bool:
        values = [one.value for one in acted]
        self._check_users(acted)
        return (
            _are_ids([one.item for one in acted])
            and _are_ids([one.request_id for one in acted])
            and _are_ids([one.event_id for one in acted])
            and self._events.issuperset([one.event for one in acted])
            and all(map(math.isfinite, values))
            and max(map(abs, values), default=0.0) <= VALUE_MAX
        )

    def _check_users(self, some: Sequence[Impression | Action]) -> None:
        for one in some:  # a canonical user is an id of the right length
            if one.user is not None:
                self._canonical_user(one.user)


def _are_ids(ids: Sequence[str]) -> bool:
    lengths = list(map(len, ids))
    return 0 < min(lengths, default=1) <= max(lengths, default=1) <= ID_LENGTH_MAX
