"""Parts of example batches: some rows of one, or several in a row."""

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from freshrank.examples import BatchInfo, ExampleBatch
from freshrank.features import Encoded, SlotIds

I64 = npt.NDArray[np.int64]

# The store keeps event time as uint32 seconds (until 2106); beyond, a time is a mistake of unit.
TIME_MS_MAX: Final = (1 << 32) * 1_000 - 1
# The arrays of a batch, one row or entry per example.
_COLUMNS: Final = [
    field.name
    for field in fields(ExampleBatch)
    if field.name not in ("info", "request_ids", "items", "values")
]


def select(batch: ExampleBatch, rows: I64) -> ExampleBatch:
    """The given rows, in the given order.

    Args:
        batch: n rows.
        rows: `int64[k]`, each in [0, n).
    """
    k = len(rows)
    if k == batch.n_rows and np.array_equal(rows, np.arange(k)):
        return batch
    slots = {name: select_ids(column, rows) for name, column in batch.values.slots.items()}
    columns: dict[str, Any] = {name: getattr(batch, name)[rows] for name in _COLUMNS}
    return replace(
        batch,
        request_ids=[batch.request_ids[i] for i in rows],
        items=[batch.items[i] for i in rows],
        values=Encoded(k, slots, batch.values.dense[rows]),
        **columns,
    )


def select_ids(column: SlotIds, rows: I64) -> SlotIds:
    """The ids of the given rows, in the given order."""
    begins = column.offsets[rows]
    lengths = column.offsets[rows + 1] - begins
    offsets = np.zeros(len(rows) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    if offsets[-1] == len(rows) and (lengths == 1).all():
        return SlotIds(column.ids[begins], offsets)
    positions = np.repeat(begins - offsets[:-1], lengths) + np.arange(offsets[-1])
    return SlotIds(column.ids[positions], offsets)


def concatenate(batches: Sequence[ExampleBatch], info: BatchInfo) -> ExampleBatch:
    """The rows of at least one batch of the same slots and tasks, one after the other."""
    if len(batches) == 1:
        return replace(batches[0], info=info)
    slots = {
        name: _concatenate_ids([batch.values.slots[name] for batch in batches])
        for name in batches[0].values.slots
    }
    columns: dict[str, Any] = {
        name: np.concatenate([getattr(batch, name) for batch in batches]) for name in _COLUMNS
    }
    return ExampleBatch(
        info=info,
        request_ids=[request for batch in batches for request in batch.request_ids],
        items=[item for batch in batches for item in batch.items],
        values=Encoded(
            n_rows=sum(batch.n_rows for batch in batches),
            slots=slots,
            dense=np.concatenate([batch.values.dense for batch in batches]),
        ),
        **columns,
    )


def _concatenate_ids(columns: Sequence[SlotIds]) -> SlotIds:
    shifts = np.cumsum([0] + [len(column.ids) for column in columns])
    offsets = [columns[0].offsets[:1]]
    offsets += [
        column.offsets[1:] + shift for column, shift in zip(columns, shifts[:-1], strict=True)
    ]
    return SlotIds(np.concatenate([column.ids for column in columns]), np.concatenate(offsets))
