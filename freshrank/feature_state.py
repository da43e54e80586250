"""Feature state: what users did lately, written by the joiner and read by the service.

Updates commute: a user's items are a set ordered by (ts, event_id) of which the last `n_max` are
kept, so partitions may arrive in any order and an update may arrive twice.
"""

import threading
from bisect import insort
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True, order=True)
class Did:
    """One action of a user.

    Attributes:
        ts_ms: Event time.
        event_id: Identity of the action.
        item: Canonical item id.
    """

    ts_ms: int
    event_id: str
    item: str


class FeatureState(Protocol):
    """Where the joiner writes and the service reads."""

    def update(self, event: str, user: str, did: Sequence[Did]) -> None:
        """Merge actions of one user."""

    def recent(self, event: str, user: str, *, before_ms: int, n_max: int) -> list[str]:
        """The user's last items of `event` with event time before `before_ms`, newest first."""


class LocalFeatureState:
    """In process, safe for threads.

    Args:
        n_max: Actions kept per user and event; the largest `max_len` of any `recent` feature.

    Example:
        >>> state = LocalFeatureState(n_max=2)
        >>> state.update("click", "u1", [Did(10, "a", "i1"), Did(30, "c", "i3")])
        >>> state.update("click", "u1", [Did(20, "b", "i2")])
        >>> state.recent("click", "u1", before_ms=30, n_max=5)
        ['i2']
        >>> state.recent("click", "u1", before_ms=31, n_max=5)
        ['i3', 'i2']
    """

    def __init__(self, *, n_max: int) -> None:
        self._n_max = n_max
        self._lock = threading.Lock()
        self._did: dict[tuple[str, str], list[Did]] = {}

    def update(self, event: str, user: str, did: Sequence[Did]) -> None:
        """Merge actions of one user."""
        with self._lock:
            kept = self._did.setdefault((event, user), [])
            for one in did:
                if one not in kept:
                    insort(kept, one)
            del kept[: -self._n_max]

    def recent(self, event: str, user: str, *, before_ms: int, n_max: int) -> list[str]:
        """The user's last items of `event` with event time before `before_ms`, newest first."""
        with self._lock:
            kept = list(self._did.get((event, user), ()))
        items = [one.item for one in reversed(kept) if one.ts_ms < before_ms]
        return items[:n_max]
