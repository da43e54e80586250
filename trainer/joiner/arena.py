"""Encoded rows by number: an impression is encoded once, when it is read, and kept here."""

from typing import Final, TypeVar

import numpy as np
import numpy.typing as npt

from freshrank.features import Encoded, SlotIds
from trainer.rows import select_ids

I64 = npt.NDArray[np.int64]

Number = TypeVar("Number", bound=np.generic)

_CAPACITY_MIN: Final = 1_024


class Arena:
    """A growing run of encoded rows, numbered from 0; `trim` drops the oldest.

    Args:
        slots: Names of the slots.
        n_dense: Number of dense values per row.

    Attributes:
        start: Number of the oldest row that is kept.
        end: Number the next row will get.

    Example:
        >>> arena = Arena(["item_id"], 0)
        >>> ids = SlotIds(np.array([7, 8, 9], np.uint64), np.array([0, 1, 3]))
        >>> arena.append(Encoded(2, {"item_id": ids}, np.empty((2, 0), np.float32)))
        0
        >>> arena.take(np.array([1, 0])).slots["item_id"].ids.tolist()
        [8, 9, 7]
    """

    def __init__(self, slots: list[str], n_dense: int) -> None:
        self.start = 0
        self.end = 0
        self._bags = {slot: _Bags() for slot in slots}
        self._dense = np.empty((_CAPACITY_MIN, n_dense), np.float32)

    def append(self, rows: Encoded) -> int:
        """Add rows; returns the number of the first."""
        first = self.end
        used = self.end - self.start
        for slot, bags in self._bags.items():
            bags.append(rows.slots[slot])
        self._dense = _room(self._dense, used + rows.n_rows)
        self._dense[used : used + rows.n_rows] = rows.dense
        self.end += rows.n_rows
        return first

    def take(self, rows: I64) -> Encoded:
        """The rows of these numbers, in this order; each lies in [start, end)."""
        places = rows - self.start
        slots = {slot: bags.take(places) for slot, bags in self._bags.items()}
        return Encoded(len(rows), slots, self._dense[places])

    def trim(self, n_max: int) -> None:
        """Keep the newest `n_max` rows, or up to twice as many: so a row is moved once at most."""
        n_rows = self.end - self.start
        if n_rows <= 2 * n_max:
            return
        n_dropped = n_rows - n_max
        for bags in self._bags.values():
            bags.drop(n_dropped)
        self._dense = self._dense[n_dropped:n_rows].copy()
        self.start += n_dropped


class _Bags:
    """Ids of one slot."""

    def __init__(self) -> None:
        self._n_rows = 0
        self._ids = np.empty(_CAPACITY_MIN, np.uint64)
        self._offsets = np.zeros(_CAPACITY_MIN, np.int64)

    def append(self, column: SlotIds) -> None:
        n_rows = len(column.offsets) - 1
        used = int(self._offsets[self._n_rows])
        self._ids = _room(self._ids, used + len(column.ids))
        self._ids[used : used + len(column.ids)] = column.ids
        self._offsets = _room(self._offsets, self._n_rows + n_rows + 1)
        self._offsets[self._n_rows + 1 : self._n_rows + n_rows + 1] = column.offsets[1:] + used
        self._n_rows += n_rows

    def take(self, places: I64) -> SlotIds:
        return select_ids(SlotIds(self._ids, self._offsets), places)

    def drop(self, n_rows: int) -> None:
        first = int(self._offsets[n_rows])
        used = int(self._offsets[self._n_rows])
        self._ids = self._ids[first:used].copy()
        self._offsets = self._offsets[n_rows : self._n_rows + 1] - first
        self._n_rows -= n_rows


def _room(array: npt.NDArray[Number], n_rows: int) -> npt.NDArray[Number]:
    """The array, or a copy at least twice as long when it has no room for `n_rows`."""
    if n_rows <= len(array):
        return array
    longer = np.empty((max(n_rows, 2 * len(array)), *array.shape[1:]), array.dtype)
    longer[: len(array)] = array
    return longer
