"""A stretch of a labelled table: what every model of a replay predicts and then learns."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from freshrank.examples import BatchInfo, ExampleBatch
from freshrank.feature_types import Encoded, SlotIds, TableValues

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Chunk:
    """n rows of whole requests, in event time; T tasks in configuration order.

    Whoever predicts a chunk may not use a request's labels for any row of that request, nor for
    an earlier one.

    Attributes:
        values: Raw values: users and shared values per request, the rest per row.
        labels: `float32[n, T]`; 0 or 1 of a log-loss task. NaN where the weight is 0.
        weights: `float32[n, T]`; 0 where the row says nothing of the task.
        request_numbers: `int64[n]`, counting the requests of the whole replay from 0.
        ts_ms: `int64[n]`, event time of the row's request.
    """

    values: TableValues
    labels: F32
    weights: F32
    request_numbers: I64
    ts_ms: I64

    @property
    def n_rows(self) -> int:
        """Rows in it."""
        return len(self.ts_ms)


def batches(
    chunk: Chunk, encoded: Encoded, n_max: int, span_ms: int | None = None
) -> Iterator[ExampleBatch]:
    """The chunk's rows in order, whole requests together.

    Args:
        chunk: The rows.
        encoded: What the model gets of them.
        n_max: Rows of a batch at most; a request of more rows is a batch of its own.
        span_ms: A batch holds requests of less than this much event time; None for any.
    """
    request_ids = list(map(str, chunk.request_numbers.tolist()))
    labels, weights = chunk.labels, chunk.weights
    ones, nans = np.ones_like(weights), np.full_like(weights, np.nan)
    is_first = np.zeros(chunk.n_rows, np.bool_)
    ends = np.cumsum(chunk.values.n_items)
    is_first[ends - chunk.values.n_items] = True
    nothing = np.zeros(chunk.n_rows, np.bool_)
    is_action = np.any(labels > 0, axis=1)
    info = BatchInfo(schema_hash="")
    begin = 0
    while begin < chunk.n_rows:
        n_fitting = int(np.searchsorted(ends, begin + n_max, side="right"))
        end = int(ends[n_fitting - 1]) if n_fitting else 0
        if end <= begin:  # not even one request fits
            end = int(ends[n_fitting])
        if span_ms is not None:
            late_ms = chunk.ts_ms[begin] + max(span_ms, 1)
            end = min(end, begin + int(np.searchsorted(chunk.ts_ms[begin:end], late_ms)))
        rows = slice(begin, end)
        yield ExampleBatch(
            info=info,
            request_ids=request_ids[rows],
            items=request_ids[rows],  # only their number is read
            ts_ms=chunk.ts_ms[rows],
            appended_at_ms=chunk.ts_ms[rows],
            is_action=is_action[rows],
            is_first=is_first[rows],
            is_reversal=nothing[rows],
            labels=labels[rows],
            weights=weights[rows],
            keep_rates=ones[rows],
            served=nans[rows],
            values=part_of(encoded, begin, end),
        )
        begin = end


def part_of(encoded: Encoded, begin: int, end: int) -> Encoded:
    """Rows `begin` to `end`."""
    slots = {}
    for name, column in encoded.slots.items():
        offsets = column.offsets[begin : end + 1]
        slots[name] = SlotIds(column.ids[offsets[0] : offsets[-1]], offsets - offsets[0])
    return Encoded(end - begin, slots, encoded.dense[begin:end])
