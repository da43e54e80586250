"""Removes from the joiner's database what time has passed, a bounded number of rows per commit.

What counts is decided by the times that stand in the rows, never by their presence: a row may stay
longer than it must.
"""

import random
import sqlite3
from typing import Final

# A part's place is its request's number shifted by the bits of `plain.PARTS_MAX`, plus its own.
_PART_BITS: Final = 16
_ROWS_MAX: Final = 8_192
# Event ids go a slice of their keys at a time, however many there are.
_SLICES: Final = 256

# Requests go in the order of their numbers, up to the first that is still needed: numbers follow
# event time but for what arrives out of order, and ranges need no index of the times.
_PURGEABLE: Final = """
SELECT number, due_at IS NULL AND purge_at > 0 AND purge_at <= ? FROM requests
WHERE number > ? ORDER BY number LIMIT ?
"""
_FORGETTABLE: Final = _PURGEABLE.replace("purge_at", "forget_at")


def places_of(number: int) -> tuple[int, int]:
    """The first and last place of a request's parts in the table `parts`."""
    return number << _PART_BITS, (number + 1 << _PART_BITS) - 1


def number_of(place: int) -> int:
    """The request whose part has this place."""
    return place >> _PART_BITS


class Sweeper:
    """Sweeps within the transactions of its database.

    Args:
        database: The open database.
    """

    def __init__(self, database: sqlite3.Connection) -> None:
        self._db = database
        self._purged = self._purging = -1  # requests up to this number have lost their state
        self._slice = random.randrange(_SLICES)

    def sweep(self, watermark_ms: int) -> None:
        """Remove what the watermark has passed."""
        self._purging = self._last(_PURGEABLE, watermark_ms, self._purged)
        if self._purging > self._purged:
            self._db.execute(
                "UPDATE requests SET status = NULL, extra = NULL WHERE number BETWEEN ? AND ?",
                (self._purged + 1, self._purging),
            )
            self._db.execute("DELETE FROM parts WHERE place <= ?", (places_of(self._purging)[1],))
        forgotten = self._last(_FORGETTABLE, watermark_ms, -1)
        self._db.execute("DELETE FROM requests WHERE number <= ?", (forgotten,))
        self._slice = (self._slice + 1) % _SLICES
        width = (1 << 64) // _SLICES
        first = self._slice * width - (1 << 63)
        self._db.execute(
            "DELETE FROM seen WHERE key BETWEEN ? AND ? AND expires_at <= ?",
            (first, first + width - 1, watermark_ms),
        )

    def committed(self) -> None:
        """What was swept is gone for good."""
        self._purged = self._purging

    def _last(self, sql: str, watermark_ms: int, after: int) -> int:
        """The last request behind `after` that can go with all before it; `after` without one."""
        for number, can_go in self._db.execute(sql, (watermark_ms, after, _ROWS_MAX)):
            if not can_go:
                break
            after = number
        return after
