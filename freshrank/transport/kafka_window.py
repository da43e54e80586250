"""The records of one partition that were fetched ahead of their readers."""

import threading
from bisect import bisect_left
from collections.abc import Sequence
from typing import Final

from freshrank.transport.base import Record

# Of one partition: eight of the largest records, or some 20,000 small ones.
WINDOW_BYTES_MAX: Final = 4 << 20
_RECORD_OVERHEAD_BYTES: Final = 200
_AHEAD_MAX: Final = 64


class Window:
    """Consecutive records, from the offset that was asked for up to where the consumer is.

    What was read stays until its room is needed, so that reading the last record again costs
    nothing. Between `start` and `next` nothing is missing but what no reader may see: records of
    aborted transactions and the marks at a transaction's end.

    Attributes:
        wanted: Offset the consumer is to seek; None when it is there.
        seeking: Held by who made it seek, until it is served: two readers far apart take turns.
    """

    def __init__(self) -> None:
        self.seeking = threading.Lock()
        self.wanted: int | None = None
        self.start = -1
        self.next = -1
        self._records: list[Record] = []
        self._n_bytes = 0

    def seek(self, offset: int) -> None:
        """Begin anew at `offset`."""
        self.wanted = self.start = self.next = offset
        self._records = []
        self._n_bytes = 0

    def lose(self) -> None:
        """What was to be read next is not in the log: nothing is here until somebody seeks."""
        self.wanted = None
        self.start = self.next = -1
        self._records = []
        self._n_bytes = 0

    def extend(self, records: Sequence[Record], position: int) -> bool:
        """Add what was fetched; the consumer is at `position` now. False if that is no news."""
        is_news = bool(records) or position != self.next
        self._records += records
        self._n_bytes += sum(map(_size, records))
        self.next = position
        return is_news

    def serves(self, offset: int, end: int) -> bool:
        """Whether everything from `offset` on is here, or soon will be; `end` is known to exist.

        Who has appended records need not read them, and may be a little ahead of the consumer,
        which gets there by itself.
        """
        reach = max(self.next, min(end, self.next + _AHEAD_MAX))
        return 0 <= self.start <= offset <= reach

    def has_after(self, offset: int) -> bool:
        """Whether a record at or behind `offset` is here."""
        return bool(self._records) and self._records[-1].offset >= offset

    def take(self, offset: int, n_max: int, bytes_max: int) -> list[Record]:
        """Records from `offset` on, at most `n_max` and about `bytes_max` but at least one."""
        first = bisect_left(self._records, offset, key=_offset)
        taken: list[Record] = []
        n_bytes = 0
        for record in self._records[first : first + n_max]:
            taken.append(record)
            n_bytes += len(record.value)
            if n_bytes >= bytes_max:
                break
        if 2 * self._n_bytes > WINDOW_BYTES_MAX:
            self._forget(first)
        return taken

    def _forget(self, n_records: int) -> None:
        if n_records:
            self._n_bytes -= sum(map(_size, self._records[:n_records]))
            self.start = self._records[n_records - 1].offset + 1
            del self._records[:n_records]

    @property
    def is_full(self) -> bool:
        """No more is fetched until something was read."""
        return self._n_bytes >= WINDOW_BYTES_MAX


def _offset(record: Record) -> int:
    return record.offset


def _size(record: Record) -> int:
    return len(record.key) + len(record.value) + _RECORD_OVERHEAD_BYTES
