"""Rows that were scored, from their impression until nothing can change their label any more."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

import numpy as np
import numpy.typing as npt

from freshrank.examples import ExampleBatch
from freshrank.messages import Impression
from freshrank.replay.measures import Measures
from freshrank.settings import Settings
from freshrank.transport.base import IMPRESSIONS

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class _Scored:
    """Rows scored together, as `Measures.add` takes them; labels and weights still change."""

    scores: F32
    labels: F32
    weights: F32
    ts_ms: I64
    request_numbers: I64
    item_age_s: I64 | None
    requests: "list[_Request]"


@dataclass(frozen=True, slots=True)
class _Request:
    """The rows of one impression: `items` from `first_row` of `scored` on."""

    request_id: str
    offset: int
    user: str | None
    items: Sequence[str]
    scored: _Scored
    first_row: int


class ServedRows:
    """Gives each scored row its final label and hands it to the measures, in order of arrival.

    The joiner says which: a row it writes as positive is one, every other row of an impression it
    accepted is a negative in the end, written, sampled out or not. So the figures are those of the
    scores served, whatever `join.emit` does to the order of learning.

    Args:
        settings: Tasks and join.
        measures: Where rows go.
    """

    def __init__(self, settings: Settings, measures: Measures) -> None:
        self._measures = measures
        self._is_value = np.array([task.loss == "huber" for task in settings.tasks])
        self._has_negative = np.array([t.negative is not None for t in settings.tasks], np.float32)
        join = settings.join
        open_for = join.window + join.allowed_lateness + join.max_out_of_order
        self._open_ms = open_for // timedelta(milliseconds=1)
        self._waiting: deque[_Scored] = deque()
        self._by_id: dict[str, _Request] = {}
        self._by_offset: dict[int, _Request] = {}
        self.n_requests = 0

    def add(
        self,
        impressions: Sequence[Impression],
        offsets: Sequence[int],
        scores: F32,
        item_age_s: I64 | None,
    ) -> None:
        """Take in the rows of some impressions, one impression after the other.

        Args:
            impressions: With n items in all.
            offsets: Of each one's first record.
            scores: `float32[n, T]`.
            item_age_s: `int64[n]`; None where the model has no items.
        """
        n_items = np.fromiter((len(one.items) for one in impressions), np.int64, len(impressions))
        ts_ms = np.fromiter((one.ts_ms for one in impressions), np.int64, len(impressions))
        numbers = self.n_requests + np.arange(len(impressions))
        scored = _Scored(
            scores,
            np.zeros_like(scores),
            np.tile(self._has_negative, (len(scores), 1)),
            np.repeat(ts_ms, n_items),
            np.repeat(numbers, n_items),
            item_age_s,
            [],
        )
        first_row = 0
        for one, offset in zip(impressions, offsets, strict=True):
            request = _Request(one.request_id, offset, one.user, one.items, scored, first_row)
            first_row += len(one.items)
            scored.requests.append(request)
            self._by_offset[offset] = request
            self._by_id.setdefault(one.request_id, request)
        self.n_requests += len(impressions)
        self._waiting.append(scored)

    def user(self, request_id: str) -> str | None:
        """The user of a request that waits for its label."""
        request = self._by_id.get(request_id)
        return None if request is None else request.user

    def judge(self, batch: ExampleBatch) -> None:
        """Learn from a record of the joiner's which rows are positive, and which do not count."""
        for outcome in batch.info.outcomes:
            if outcome.topic == IMPRESSIONS and outcome.outcome in ("duplicate", "dead_letter"):
                self._leave_out(outcome.offset)
        is_told = (batch.weights > 0) & ((batch.labels > 0.5) | self._is_value)
        for row in np.flatnonzero(is_told.any(axis=1)).tolist():
            request = self._by_id.get(batch.request_ids[row])
            if request is not None:
                at = request.first_row + request.items.index(batch.items[row])
                tasks = is_told[row]
                request.scored.labels[at, tasks] = batch.labels[row, tasks]
                request.scored.weights[at, tasks] = 1.0

    def settle(self, newest_ms: int | None = None) -> None:
        """Measure the rows whose label is final at this event time; without one, all."""
        while self._waiting:
            scored = self._waiting[0]
            if newest_ms is not None and scored.ts_ms.max() + self._open_ms >= newest_ms:
                return
            self._waiting.popleft()
            for request in scored.requests:
                self._by_offset.pop(request.offset, None)
                if self._by_id.get(request.request_id) is request:
                    del self._by_id[request.request_id]
            self._measures.add(
                scored.scores,
                scored.labels,
                scored.weights,
                ts_ms=scored.ts_ms,
                request_numbers=scored.request_numbers,
                item_age_s=scored.item_age_s,
            )

    def _leave_out(self, offset: int) -> None:
        """The joiner did not take this impression: its rows get no label."""
        request = self._by_offset.pop(offset, None)
        if request is None:
            return
        last = request.first_row + len(request.items)
        request.scored.weights[request.first_row : last] = 0.0
