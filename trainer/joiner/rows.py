"""Rows that leave -> records of `freshrank.examples`."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from freshrank import examples
from freshrank.examples import BatchInfo, ExampleBatch
from freshrank.frames import Outcome
from freshrank.transport.base import RECORD_BYTES_MAX
from trainer.joiner.arena import Arena
from trainer.joiner.rules import Rows

I64 = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]
Flags = npt.NDArray[np.bool_]

# First guess at what fits into a record (rows of 20 ids take about 400 bytes); a record that comes
# out too large is halved.
_ROWS_MAX: Final = 1_024
# One outcome takes about 110 bytes as JSON: these leave two thirds of a record to rows.
_OUTCOMES_MAX: Final = 1_500


@dataclass(frozen=True, slots=True)
class Position:
    """What a record of examples says of the joiner's progress."""

    offsets: dict[str, int]
    watermark_ms: int


@dataclass(frozen=True, slots=True)
class Leaving:
    """The rows of a round in columns; n rows, T tasks.

    Attributes:
        requests: Id of the request of each row.
        numbers: `int64[n]`, where its values stand in the arena.
        ts_ms: `int64[n]`, event time of its impression.
        appended_at_ms: `int64[n]`, of the action that decided it; -1 where the impression's counts.
        is_first: `bool[n]`.
        is_reversal: `bool[n]`.
        labels: `float32[n, T]`.
        weights: `float32[n, T]`.
    """

    requests: list[str]
    numbers: I64
    ts_ms: I64
    appended_at_ms: I64
    is_first: Flags
    is_reversal: Flags
    labels: F32
    weights: F32

    def __len__(self) -> int:
        return len(self.requests)

    def cut(self, start: int, end: int) -> int:
        """`end`, or one less where it would part a row from its reversal."""
        is_inside_pair = start < end < len(self) and self.weights[end].min() < 0.0
        return end - 1 if is_inside_pair else end


def in_columns(groups: Sequence[Rows], n_tasks: int) -> Leaving:
    """What leaves, row by row."""
    n_groups = len(groups)
    counts = np.array([len(one.rows) for one in groups], np.int64)
    n_rows = int(counts.sum())
    is_first = np.zeros(n_rows, np.bool_)
    is_first[np.cumsum(counts) - counts] = [one.is_first for one in groups]

    def flat(lists: list[list[Any]]) -> list[Any]:
        return list(chain.from_iterable(lists))

    def repeated(values: list[int] | list[int | bool]) -> I64:
        return np.repeat(np.array(values, np.int64), counts)

    def matrix(values: list[tuple[float, ...]]) -> F32:
        rows = np.array(values, np.float32).reshape(n_groups, n_tasks)
        return np.repeat(rows, counts, axis=0)

    return Leaving(
        requests=flat([[one.request.request_id] * len(one.rows) for one in groups]),
        numbers=np.array(flat([one.request.numbers(one.rows) for one in groups]), np.int64),
        ts_ms=repeated([one.request.time_ms for one in groups]),
        appended_at_ms=repeated(
            [-1 if one.appended_at_ms is None else one.appended_at_ms for one in groups]
        ),
        is_first=is_first,
        is_reversal=repeated([one.is_reversal for one in groups]).astype(np.bool_),
        labels=matrix([one.labels for one in groups]),
        weights=matrix([one.weights for one in groups]),
    )


class Packer:
    """Cuts rows and outcomes into records.

    Args:
        schema_hash: Goes into every record.
        arena: Where encoded rows stand.
        tasks: Task names.
        keep_rates: Per task, the share of negatives that is kept.
    """

    def __init__(
        self, schema_hash: str, arena: Arena, tasks: Sequence[str], keep_rates: Sequence[float]
    ) -> None:
        self._schema_hash = schema_hash
        self._arena = arena
        self._tasks = tasks
        self._keep_rates = np.array(keep_rates, np.float32)

    def pack(
        self,
        groups: Sequence[Rows],
        outcomes: Sequence[Outcome],
        before: Position,
        after: Position,
    ) -> list[bytes]:
        """At least one record; only the last says that `after` is reached.

        Args:
            groups: Rows that leave, in order.
            outcomes: Decisions to tell.
            before: Where the last record left off.
            after: Where this round ends.
        """
        rows = in_columns(groups, len(self._tasks))
        packed: list[bytes] = []
        start = 0
        while len(rows) - start > _ROWS_MAX:
            end = rows.cut(start, start + _ROWS_MAX)
            packed += self._records(rows, start, end, [], before)
            start = end
        # No outcome before its row: a receipt would call servable what no frame has learned.
        while len(outcomes) > _OUTCOMES_MAX:
            some, outcomes = outcomes[:_OUTCOMES_MAX], outcomes[_OUTCOMES_MAX:]
            packed += self._records(rows, start, len(rows), some, before)
            start = len(rows)
        return packed + self._records(rows, start, len(rows), outcomes, after, before)

    def _records(
        self,
        rows: Leaving,
        start: int,
        end: int,
        outcomes: Sequence[Outcome],
        position: Position,
        before: Position | None = None,
    ) -> list[bytes]:
        batch = self._batch(rows, slice(start, end), outcomes, position)
        record = examples.encode(batch, self._tasks)
        if len(record) < RECORD_BYTES_MAX:
            return [record]
        before = before or position
        middle = rows.cut(start, (start + end) // 2)
        # A row and its reversal fit, by the limits of the judge.
        assert start < middle < end  # noqa: S101 - or it would never end
        head = self._records(rows, start, middle, [], before)
        return head + self._records(rows, middle, end, outcomes, position, before)

    def _batch(
        self, rows: Leaving, some: slice, outcomes: Sequence[Outcome], position: Position
    ) -> ExampleBatch:
        shown = self._arena.take(rows.numbers[some])
        appended_at_ms = rows.appended_at_ms[some]
        is_action = appended_at_ms >= 0
        return ExampleBatch(
            info=BatchInfo(
                schema_hash=self._schema_hash,
                offsets=position.offsets,
                outcomes=list(outcomes),
                watermark_ms=position.watermark_ms,
            ),
            request_ids=rows.requests[some],
            items=shown.items,
            ts_ms=rows.ts_ms[some],
            appended_at_ms=np.where(is_action, appended_at_ms, shown.appended_at_ms),
            is_action=is_action,
            is_first=rows.is_first[some],
            is_reversal=rows.is_reversal[some],
            labels=rows.labels[some],
            weights=rows.weights[some],
            keep_rates=np.broadcast_to(self._keep_rates, rows.labels[some].shape),
            served=shown.served,
            values=shown.values,
        )
