"""Parts of example batches: some rows of one, or several in a row."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from freshrank.examples import BatchInfo, ExampleBatch
from freshrank.features import Encoded, SlotIds

I64 = npt.NDArray[np.int64]


def select(batch: ExampleBatch, rows: I64) -> ExampleBatch:
    """The given rows, in the given order.

    Args:
        batch: n rows.
        rows: `int64[k]`, each in [0, n).
    """
    k = len(rows)
    if k == batch.n_rows and np.array_equal(rows, np.arange(k)):
        return batch
    values = Encoded(
        n_rows=k,
        slots={name: _select_ids(column, rows) for name, column in batch.values.slots.items()},
        dense=batch.values.dense[rows],
    )
    return replace(
        batch,
        request_ids=[batch.request_ids[i] for i in rows],
        items=[batch.items[i] for i in rows],
        ts_ms=batch.ts_ms[rows],
        appended_at_ms=batch.appended_at_ms[rows],
        is_action=batch.is_action[rows],
        is_first=batch.is_first[rows],
        is_reversal=batch.is_reversal[rows],
        labels=batch.labels[rows],
        weights=batch.weights[rows],
        keep_rates=batch.keep_rates[rows],
        served=batch.served[rows],
        values=values,
    )


def _select_ids(column: SlotIds, rows: I64) -> SlotIds:
    lengths = np.diff(column.offsets)[rows]
    offsets = np.zeros(len(rows) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    positions = np.repeat(column.offsets[rows] - offsets[:-1], lengths) + np.arange(offsets[-1])
    return SlotIds(column.ids[positions], offsets)


def concatenate(batches: Sequence[ExampleBatch], info: BatchInfo) -> ExampleBatch:
    """The rows of at least one batch of the same slots and tasks, one after the other."""
    if len(batches) == 1:
        return replace(batches[0], info=info)
    slots = {
        name: _concatenate_ids([batch.values.slots[name] for batch in batches])
        for name in batches[0].values.slots
    }
    return ExampleBatch(
        info=info,
        request_ids=[request for batch in batches for request in batch.request_ids],
        items=[item for batch in batches for item in batch.items],
        ts_ms=np.concatenate([batch.ts_ms for batch in batches]),
        appended_at_ms=np.concatenate([batch.appended_at_ms for batch in batches]),
        is_action=np.concatenate([batch.is_action for batch in batches]),
        is_first=np.concatenate([batch.is_first for batch in batches]),
        is_reversal=np.concatenate([batch.is_reversal for batch in batches]),
        labels=np.concatenate([batch.labels for batch in batches]),
        weights=np.concatenate([batch.weights for batch in batches]),
        keep_rates=np.concatenate([batch.keep_rates for batch in batches]),
        served=np.concatenate([batch.served for batch in batches]),
        values=Encoded(
            n_rows=sum(batch.n_rows for batch in batches),
            slots=slots,
            dense=np.concatenate([batch.values.dense for batch in batches]),
        ),
    )


def _concatenate_ids(columns: Sequence[SlotIds]) -> SlotIds:
    shifts = np.cumsum([0] + [len(column.ids) for column in columns])
    offsets = [columns[0].offsets[:1]]
    offsets += [
        column.offsets[1:] + shift for column, shift in zip(columns, shifts[:-1], strict=True)
    ]
    return SlotIds(np.concatenate([column.ids for column in columns]), np.concatenate(offsets))
