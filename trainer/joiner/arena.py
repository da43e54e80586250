"""Encoded rows by number: an impression is encoded once, when it is read, and kept here."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Final, cast

import numpy as np
import numpy.typing as npt

from freshrank.features import Encoded, FeatureEncoder, RequestValues, SlotIds
from freshrank.messages import Impression
from trainer.rows import select_ids

I64 = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]

_CAPACITY_MIN: Final = 1_024


@dataclass(frozen=True, slots=True)
class ArenaRows:
    """n rows of impressions; T tasks.

    Attributes:
        items: Item of each.
        appended_at_ms: `int64[n]`, when its impression entered the log.
        served: `float32[n, T]`, the prediction served; NaN where none was.
        values: Ids and dense values.
    """

    items: list[str]
    appended_at_ms: I64
    served: F32
    values: Encoded


class Arena:
    """A growing run of impressions' rows, numbered from 0; `trim` drops the oldest.

    Args:
        encoder: The feature encoder.
        tasks: Task names.

    Attributes:
        start: Number of the oldest row that is kept.
        end: Number the next row will get.
    """

    def __init__(self, encoder: FeatureEncoder, tasks: Sequence[str]) -> None:
        self.start = 0
        self.end = 0
        self._encoder = encoder
        self._tasks = tasks
        self._bags = {slot.name: _Bags() for slot in encoder.slots}
        self._dense = np.empty((_CAPACITY_MIN, len(encoder.dense_names)), np.float32)
        self._served = np.empty((_CAPACITY_MIN, len(tasks)), np.float32)
        self._appended_at_ms = np.empty(_CAPACITY_MIN, np.int64)
        self._items: npt.NDArray[np.object_] = np.empty(_CAPACITY_MIN, np.object_)

    def encode(self, impressions: Sequence[Impression], appended_at_ms: Sequence[int]) -> int:
        """Add the rows of impressions; returns the number of the first.

        Args:
            impressions: At least one; served predictions are one per item.
            appended_at_ms: When each entered the log.

        Raises:
            DataError: a value does not fit its feature; nothing was added.
        """
        # An impression has the four attributes that the encoder reads.
        encoded = self._encoder.encode(cast(Sequence[RequestValues], impressions))
        first, used, n_rows = self.end, self.end - self.start, encoded.n_rows
        rows = slice(used, used + n_rows)
        for slot, bags in self._bags.items():
            bags.append(encoded.slots[slot])
        self._dense = _room(self._dense, rows.stop)
        self._dense[rows] = encoded.dense
        self._served = _room(self._served, rows.stop)
        for t, task in enumerate(self._tasks):
            self._served[rows, t] = _predictions(impressions, task)
        n_items = [len(impression.items) for impression in impressions]
        self._appended_at_ms = _room(self._appended_at_ms, rows.stop)
        self._appended_at_ms[rows] = np.repeat(appended_at_ms, n_items)
        self._items = _room(self._items, rows.stop)
        self._items[rows] = list(chain.from_iterable(one.items for one in impressions))
        self.end += n_rows
        return first

    def take(self, rows: I64) -> ArenaRows:
        """The rows of these numbers, in this order; each lies in [start, end)."""
        places = rows - self.start
        return ArenaRows(
            items=self._items[places].tolist(),
            appended_at_ms=self._appended_at_ms[places],
            served=self._served[places],
            values=Encoded(len(rows), self.ids(rows, list(self._bags)), self._dense[places]),
        )

    def appended_at_ms(self, row: int) -> int:
        """When the impression of the row of this number entered the log."""
        return int(self._appended_at_ms[row - self.start])

    def ids(self, rows: I64, slots: Sequence[str]) -> dict[str, SlotIds]:
        """The ids that rows of these numbers have in some slots."""
        places = rows - self.start
        return {slot: self._bags[slot].take(places) for slot in slots}

    def trim(self, start: int) -> None:
        """Drop the rows before `start`."""
        rows = slice(start - self.start, self.end - self.start)
        for bags in self._bags.values():
            bags.drop(rows.start)
        self._dense = self._dense[rows].copy()
        self._served = self._served[rows].copy()
        self._appended_at_ms = self._appended_at_ms[rows].copy()
        self._items = self._items[rows].copy()
        self.start = start


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


def _predictions(impressions: Sequence[Impression], task: str) -> list[float]:
    """The prediction served for every item; NaN where none was."""
    nothing = float("nan")
    return [
        prediction
        for one in impressions
        for prediction in one.served.get(task) or [nothing] * len(one.items)
    ]


def _room(array: npt.NDArray[Any], n_rows: int) -> npt.NDArray[Any]:
    """The array, or a copy at least twice as long when it has no room for `n_rows`."""
    if n_rows <= len(array):
        return array
    longer = np.empty((max(n_rows, 2 * len(array)), *array.shape[1:]), array.dtype)
    longer[: len(array)] = array
    return longer
