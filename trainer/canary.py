"""Labelled rows on which a version is compared with the predictions made before it.

Whole requests are kept, chosen by a hash: of a request that was chosen every row is there, whenever
the joiner decides it, so the share of positives is that of the stream. A row counts once its window
is over, as the negatives of a request come after its positives; a reversal turns the row that it
takes back. What a version is compared with are the trainer's own predictions of each row: before it
was learned, of the first version published after its window and of the last one, and their mean.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final

import numpy as np
import numpy.typing as npt

from embedding_store import hash_strings
from freshrank.examples import BatchInfo, ExampleBatch
from trainer.rows import concatenate, select

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

# Scored at every publication: a few milliseconds.
ROWS_MAX: Final = 1_000
# Event time that a full set spans at least, in windows: rows that are older than what has just gone
# wrong must be the most.
_WINDOWS_MIN: Final = 4
_SPAN_MIN_MS: Final = 60_000
TIMES: Final = 4  # a row is scored: unseen, first published, last published, mean of published
MEAN: Final = 3
_SEED: Final = 20  # of the hash: the same requests after a restart, and in every process
_ALL: Final = 1 << 64  # every request; the fewest are one in 16 million
_FEWEST: Final = 1 << 40


class CanarySet:
    """The rows, at most 1,000 whose window is over.

    Args:
        window_ms: Event time from an impression until all its rows are decided.

    Attributes:
        rows: Kept rows by event time, those of open windows too; None before the first.
        scores: `float32[n, 4, T]`: their predictions before they were learned, of the first version
            published after their window, or the last one in doubt, of the last one published, and
            the mean from that first one on; NaN until there is one. The mean forgets in a window of
            event time.
    """

    def __init__(self, window_ms: int) -> None:
        self._window_ms = window_ms
        self._span_ms = max(_WINDOWS_MIN * window_ms, _SPAN_MIN_MS)
        self.clear()

    def clear(self) -> None:
        """Begin anew."""
        self.rows: ExampleBatch | None = None
        self.scores = np.empty((0, TIMES, 0), np.float32)
        self._newest_ms = self._settled_ms = 0
        self._below = _ALL  # requests are kept whose hash is
        self._waiting: list[tuple[ExampleBatch, F32]] = []
        self._n_waiting = 0

    def offer(self, batch: ExampleBatch, predictions: F32) -> None:
        """Take the rows of chosen requests.

        Args:
            batch: B rows, as they are learned.
            predictions: `float32[B, T]`, before they were.
        """
        self._newest_ms = max(self._newest_ms, int(batch.ts_ms.max()))
        chosen = np.flatnonzero(self._is_chosen(batch))
        if len(chosen):
            unseen = predictions[chosen]
            never = np.full_like(unseen, np.nan)
            scores = np.stack((unseen, *[never] * (TIMES - 1)), axis=1)
            self._waiting.append((select(batch, chosen), scores))
            self._n_waiting += len(chosen)
        if self._n_waiting > ROWS_MAX:
            self._merge()

    def _merge(self) -> None:
        """Bring in what was offered."""
        if self._waiting:
            old = [] if self.rows is None else [(self.rows, self.scores)]
            batches, scores = zip(*old, *self._waiting, strict=True)
            self._waiting, self._n_waiting = [], 0
            rows = concatenate(batches, BatchInfo(batches[-1].info.schema_hash))
            self._keep(*_turned(rows, np.concatenate(scores)))

    def decided(self) -> tuple[ExampleBatch, F32] | None:
        """Rows whose window is over, the first ones of `kept`, and their `scores`; None without."""
        self._merge()
        n = 0 if self.rows is None else self._n_decided(self.rows.ts_ms)
        if self.rows is None or n == 0:
            return None
        return select(self.rows, np.arange(n)), self.scores[:n]

    def settle(self, predictions: F32, *, anew: bool = False) -> None:
        """Those of a version that was published, for all rows that `kept` gave.

        Args:
            predictions: `float32[n, T]`. Kept as those of the last version, and, where the window
                is over, of the first one if there was none, and brought into the mean.
            anew: First one and mean begin with them.
        """
        n = 0 if self.rows is None else self._n_decided(self.rows.ts_ms)
        first, mean, own = self.scores[:n, 1], self.scores[:n, MEAN], predictions[:n]
        passed_ms = self._newest_ms - self._settled_ms
        share = -math.expm1(-passed_ms / max(self._window_ms, 1))
        mean += np.float32(share) * (own - mean)
        for since in (first, mean):
            begins = np.isnan(since) | anew
            since[begins] = own[begins]
        self.scores[:, 2] = predictions
        self._settled_ms = self._newest_ms

    def counts(self) -> dict[str, int]:
        """What `restore` takes beside the rows."""
        return {"newest_ms": self._newest_ms, "below": self._below}

    def kept(self) -> tuple[ExampleBatch | None, F32]:
        """All rows and their `scores`, those of open windows too."""
        self._merge()
        return self.rows, self.scores

    def restore(
        self, counts: Mapping[str, int], rows: ExampleBatch | None, scores: F32 | None
    ) -> None:
        """Go on from what `counts` and `kept` said."""
        self.clear()
        self._settled_ms = counts["newest_ms"]
        self._newest_ms, self._below = counts["newest_ms"], counts["below"]
        if rows is not None and scores is not None:
            self.rows, self.scores = rows, scores

    def remove(self, is_gone: Callable[[ExampleBatch], Bools]) -> None:
        """Drop the rows that this names, `bool[n]`."""
        rows, scores = self.kept()
        if rows is not None:
            kept = np.flatnonzero(~is_gone(rows))
            self.rows, self.scores = select(rows, kept) if len(kept) else None, scores[kept]

    def forget_undecided(self) -> None:
        """Drop the rows of open windows: what they say is not known to be right."""
        found = self.decided()
        self.rows, self.scores = (None, self.scores[:0]) if found is None else found

    def _is_chosen(self, rows: ExampleBatch) -> Bools:
        return np.asarray(hash_strings(rows.request_ids, _SEED) <= np.uint64(self._below - 1))

    def _n_decided(self, ts_ms: I64) -> int:
        return int(np.searchsorted(ts_ms, self._newest_ms - self._window_ms, side="right"))

    def _keep(self, rows: ExampleBatch, scores: F32) -> None:
        """The newest, with fewer requests where they would span too little."""
        order = np.argsort(rows.ts_ms, kind="stable")
        ts_ms = rows.ts_ms[order]
        n_open = len(ts_ms) - self._n_decided(ts_ms)
        if len(order) > ROWS_MAX + n_open or n_open > ROWS_MAX:
            span_ms = int(ts_ms[-1] - ts_ms[max(len(ts_ms) - n_open - ROWS_MAX, 0)])
            if span_ms < self._span_ms or n_open > ROWS_MAX:
                self._below = max(self._below // 2, _FEWEST)
                order = order[self._is_chosen(rows)[order]]
            elif span_ms > 4 * self._span_ms:
                self._below = min(2 * self._below, _ALL)
            order = order[-(ROWS_MAX + n_open) :]
        self.rows, self.scores = select(rows, order), scores[order]


def _turned(rows: ExampleBatch, scores: F32) -> tuple[ExampleBatch, F32]:
    """Rows without reversals; what one takes back has its label, and keeps its scores."""
    is_kept = ~rows.is_reversal
    if is_kept.all():
        return rows, scores
    labels = rows.labels.copy()
    at = {
        key: i for i, key in enumerate(zip(rows.request_ids, rows.items, strict=True)) if is_kept[i]
    }
    for i in np.flatnonzero(rows.is_reversal & (rows.weights > 0).any(axis=1)):
        place = at.get((rows.request_ids[i], rows.items[i]))
        if place is not None:
            tasks = rows.weights[i] > 0
            labels[place, tasks] = rows.labels[i, tasks]
    kept = np.flatnonzero(is_kept)
    return select(replace(rows, labels=labels), kept), scores[kept]
