"""Rows that leave -> records of `freshrank.examples`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from freshrank import examples, messages
from freshrank.errors import DataError, SchemaError
from freshrank.examples import BatchInfo, ExampleBatch
from freshrank.features import FeatureEncoder
from freshrank.frames import Outcome
from freshrank.transport.base import RECORD_BYTES_MAX
from trainer.joiner.arena import Arena
from trainer.joiner.judge import values_of
from trainer.joiner.rules import Row
from trainer.joiner.state import State

I64 = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]

# Encoded rows kept: 2^18 rows of 20 ids are 80 MB. Older ones are encoded again from their record.
ARENA_ROWS_MAX: Final = 1 << 18
# First guess at what fits into a record (rows of 20 ids take about 400 bytes); a record that comes
# out too large is halved.
_ROWS_MAX: Final = 1_024
# One outcome takes about 110 bytes as JSON: these leave two thirds of a record to rows.
_OUTCOMES_MAX: Final = 1_500


class EncodedParts:
    """Finds the encoded rows of impression records, or encodes them again.

    Args:
        encoder: The feature encoder.
        arena: Where encoded rows stand.
        state: Where the records stand.
    """

    def __init__(self, encoder: FeatureEncoder, arena: Arena, state: State) -> None:
        self._encoder = encoder
        self._arena = arena
        self._state = state
        self._first_rows: dict[tuple[str, int], int] = {}

    def put(self, request_id: str, part: int, first_row: int) -> None:
        """Note where the rows of a part stand."""
        self._first_rows[request_id, part] = first_row

    def numbers(self, rows: Sequence[Row], new: Mapping[tuple[str, int], bytes]) -> I64:
        """Arena number of each row.

        Args:
            rows: Rows that leave.
            new: Records of parts that are not in the database yet.

        Raises:
            SchemaError: a stored record does not fit the features configured now.
        """
        places = [(row.request.request_id, *row.request.items[row.row]) for row in rows]
        needed = dict.fromkeys((request_id, part) for request_id, part, _ in places)
        self._encode([key for key in needed if not self._is_here(key)], new)
        return np.fromiter(
            (self._first_rows[request_id, part] + i for request_id, part, i in places),
            np.int64,
            len(places),
        )

    def trim(self) -> None:
        """Drop what exceeds `ARENA_ROWS_MAX`."""
        self._arena.trim(ARENA_ROWS_MAX)
        start = self._arena.start
        while self._first_rows:
            key = next(iter(self._first_rows))
            if self._first_rows[key] >= start:
                return
            del self._first_rows[key]

    def _is_here(self, key: tuple[str, int]) -> bool:
        return self._first_rows.get(key, -1) >= self._arena.start

    def _encode(
        self, keys: Sequence[tuple[str, int]], new: Mapping[tuple[str, int], bytes]
    ) -> None:
        if not keys:
            return
        records = {key: new[key] for key in keys if key in new}
        records |= self._state.parts(key for key in keys if key not in new)
        requests = [values_of(messages.decode(records[key])) for key in keys]
        try:
            row = self._arena.append(self._encoder.encode(requests))
        except DataError as error:
            raise SchemaError(
                f"an impression accepted earlier does not fit today's features: {error}; "
                "start with the earlier features until the windows are closed",
                code="joiner-state",
            ) from error
        for key, request in zip(keys, requests, strict=True):
            self._first_rows.pop(key, None)
            self._first_rows[key] = row
            row += len(request.items)


@dataclass(frozen=True, slots=True)
class Position:
    """What a record of examples says of the joiner's progress."""

    offsets: dict[str, int]
    watermark_ms: int


class Packer:
    """Cuts rows and outcomes into records.

    Args:
        encoder: Its schema hash goes into every record.
        arena: Where encoded rows stand.
        tasks: Task names.
        keep_rates: Per task, the share of negatives that is kept.
    """

    def __init__(
        self,
        encoder: FeatureEncoder,
        arena: Arena,
        tasks: Sequence[str],
        keep_rates: Sequence[float],
    ) -> None:
        self._schema_hash = encoder.schema_hash
        self._arena = arena
        self._tasks = tasks
        self._keep_rates = np.array(keep_rates, np.float32)
        self._no_prediction = (float("nan"),) * len(tasks)

    def pack(
        self,
        rows: Sequence[Row],
        numbers: I64,
        outcomes: Sequence[Outcome],
        before: Position,
        after: Position,
    ) -> list[bytes]:
        """At least one record; only the last says that `after` is reached.

        Args:
            rows: Rows that leave.
            numbers: Where their values stand in the arena.
            outcomes: Decisions to tell.
            before: Where the last record left off.
            after: Where this round ends.
        """
        packed: list[bytes] = []
        start = 0
        while len(rows) - start > _ROWS_MAX:
            end = _cut(rows, start, start + _ROWS_MAX)
            packed += self._records(rows[start:end], numbers[start:end], [], before)
            start = end
        # No outcome before its row: a receipt would call servable what no frame has learned.
        while len(outcomes) > _OUTCOMES_MAX:
            some, outcomes = outcomes[:_OUTCOMES_MAX], outcomes[_OUTCOMES_MAX:]
            packed += self._records(rows[start:], numbers[start:], some, before)
            start = len(rows)
        return packed + self._records(rows[start:], numbers[start:], outcomes, after, before)

    def _records(
        self,
        rows: Sequence[Row],
        numbers: I64,
        outcomes: Sequence[Outcome],
        position: Position,
        before: Position | None = None,
    ) -> list[bytes]:
        batch = self._batch(rows, numbers, outcomes, position)
        record = examples.encode(batch, self._tasks)
        if len(record) < RECORD_BYTES_MAX:
            return [record]
        before = before or position
        middle = _cut(rows, 0, len(rows) // 2)
        # A row and its reversal fit, by the limits of the judge.
        assert 0 < middle < len(rows)  # noqa: S101 - or it would never end
        head = self._records(rows[:middle], numbers[:middle], [], before)
        return head + self._records(rows[middle:], numbers[middle:], outcomes, position, before)

    def _batch(
        self,
        rows: Sequence[Row],
        numbers: I64,
        outcomes: Sequence[Outcome],
        position: Position,
    ) -> ExampleBatch:
        n_rows = len(rows)
        return ExampleBatch(
            info=BatchInfo(
                schema_hash=self._schema_hash,
                offsets=position.offsets,
                outcomes=list(outcomes),
                watermark_ms=position.watermark_ms,
            ),
            request_ids=[row.request.request_id for row in rows],
            items=[row.request.item_of(row.row) for row in rows],
            ts_ms=np.fromiter((row.request.time_ms for row in rows), np.int64, n_rows),
            appended_at_ms=np.fromiter((row.appended_at_ms for row in rows), np.int64, n_rows),
            is_action=np.fromiter((row.is_action for row in rows), np.bool_, n_rows),
            is_first=np.fromiter((row.is_first for row in rows), np.bool_, n_rows),
            is_reversal=np.fromiter((row.is_reversal for row in rows), np.bool_, n_rows),
            labels=self._matrix([row.labels for row in rows]),
            weights=self._matrix([row.weights for row in rows]),
            keep_rates=np.broadcast_to(self._keep_rates, (n_rows, len(self._tasks))),
            served=self._matrix([self._served(row) for row in rows]),
            values=self._arena.take(numbers),
        )

    def _served(self, row: Row) -> tuple[float, ...]:
        part, i = row.request.items[row.row]
        served = row.request.parts[part].served
        return served[i] if served else self._no_prediction

    def _matrix(self, rows: Sequence[tuple[float, ...]]) -> F32:
        return np.array(rows, np.float32).reshape(len(rows), len(self._tasks))


def _cut(rows: Sequence[Row], start: int, end: int) -> int:
    """`end`, or one less where it would part a row from its reversal."""
    is_inside_pair = start < end < len(rows) and min(rows[end].weights) < 0.0
    return end - 1 if is_inside_pair else end
