"""The embedding tables as the trainer uses them: ids -> pooled rows, and gradients back."""

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from embedding_store import Budget, Table
from freshrank.examples import ExampleBatch
from freshrank.features import Encoded, Slot

F32 = npt.NDArray[np.float32]
U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

ITEM_SLOT: Final = "item_id"

# Rows looked at per table and step for expiry: with steps of 512 examples one sweep of 10 M rows
# takes 2,500 steps, and costs a step some 10 microseconds.
SWEEP_ROWS_MAX: Final = 4_096


class SparseTables:
    """All tables behind the slots of one configuration.

    Args:
        slots: In model order.
        tables: By name, all of the same width.
        budgets: Of the tables that have one, by name.
    """

    def __init__(
        self, slots: Sequence[Slot], tables: Mapping[str, Table], budgets: Mapping[str, Budget]
    ) -> None:
        self._slots = list(slots)
        self._budgets = budgets
        self.tables = dict(tables)
        self.width = next(iter(self.tables.values())).width
        self._slots_of = {
            name: [(s, slot) for s, slot in enumerate(self._slots) if slot.table == name]
            for name in self.tables
        }
        self._rows = np.empty((0, len(self._slots), self.width), np.float32)  # kept for its memory
        self._item_table = next((s.table for s in self._slots if s.name == ITEM_SLOT), None)

    def vacate(self) -> Mapping[str, Budget]:
        """Drop the tables, as those of a checkpoint come instead; returns the budgets for them.

        Both at a time would not fit into a budget that either fits into.
        """
        self.tables.clear()
        return self._budgets

    def read(self, batch: ExampleBatch, now_s: int, *, counts: bool = True) -> F32:
        """Count occurrences, admit what reaches its threshold, and pool the rows of every slot.

        Args:
            batch: B rows.
            now_s: Event time, at least that of every earlier call.
            counts: False for rows that were read before, and are learned only now.

        Returns:
            `float32[B, S, W]`, until the next call.
        """
        if batch.n_rows > len(self._rows):
            self._rows = np.empty((batch.n_rows, *self._rows.shape[1:]), np.float32)
        rows = self._rows[: batch.n_rows]
        requests = request_numbers(batch.request_ids)
        is_counted = counted_rows(batch) & counts
        is_counted_once = is_counted & batch.is_first
        for name, table in self.tables.items():
            columns = [
                (
                    s,
                    batch.values.slots[slot.name].ids,
                    batch.values.slots[slot.name].offsets,
                    is_counted_once if slot.is_shared else is_counted,
                    slot.pooling,
                    0,
                )
                for s, slot in self._slots_of[name]
            ]
            table.read(columns, requests, now_s, rows)
        return rows

    def peek(self, values: Encoded) -> F32:
        """Pooled rows as they are, with nothing counted: `float32[B, S, W]`; absent ids are 0."""
        return pooled_rows(
            self._slots, values, lambda name, *bags: self.tables[name].lookup_pooled(*bags)
        )

    def learn(self, gradients: F32) -> None:
        """One optimizer step on every row of the last `read`.

        Args:
            gradients: `float32[B, S, W]` with respect to the rows read.
        """
        gradients = np.ascontiguousarray(gradients)
        for table in self.tables.values():
            table.learn(gradients)

    def expire(self, now_s: int) -> None:
        """Look at the next few rows of every table and drop those out of time."""
        for table in self.tables.values():
            table.expire(now_s, SWEEP_ROWS_MAX)

    def item_born_s(self, values: Encoded) -> I64:
        """When each row's item got its row, `int64[B]` in seconds; 0 where it has none."""
        born_s = np.zeros(values.n_rows, np.int64)
        if self._item_table is None:
            return born_s
        column = values.slots[ITEM_SLOT]
        has_item = np.flatnonzero(np.diff(column.offsets))
        ids = column.ids[column.offsets[has_item]]
        born_s[has_item] = self.tables[self._item_table].born_s(ids)
        return born_s


def pooled_rows(
    slots: Sequence[Slot], values: Encoded, lookup: Callable[[str, U64, I64, str], F32]
) -> F32:
    """One row per slot, as `lookup(table name, ids, offsets, pooling)` says: `float32[B, S, W]`."""
    columns = [(slot, values.slots[slot.name]) for slot in slots]
    return np.stack(
        [lookup(slot.table, own.ids, own.offsets, slot.pooling) for slot, own in columns], axis=1
    )


def request_numbers(request_ids: Sequence[str]) -> U64:
    """Equal numbers for equal requests: `uint64[n]`."""
    # Python keeps a string's hash; two requests of a batch share one with a chance of 2^-64.
    return np.fromiter(map(hash, request_ids), np.int64, len(request_ids)).view(np.uint64)


def counted_rows(batch: ExampleBatch) -> Bools:
    """Rows whose ids count as occurrences: positive weight in sum, and no reversal. `bool[n]`."""
    counted: Bools = (batch.weights.sum(axis=1) > 0) & ~batch.is_reversal
    return counted
