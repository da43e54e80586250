"""How well a model predicted a whole replay: exact figures over all of its rows.

Unlike `trainer.evaluation`, which looks at a window of a stream that never ends, this keeps every
row: some 40 bytes per row and model.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from trainer.evaluation import AGE_BOUNDS_S, AGE_NAMES, auc, metrics
from trainer.losses import Loss

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]

Figures = dict[str, Any]

HOUR_MS: Final = 3_600_000
# What a stretch of hours must hold: with 500 rows an AUC near .75 has a standard error of .02 where
# half of them are positives, and of .06 where 20 are (Hanley & McNeil 1982). Fewer tell noise.
STRETCH_ROWS_MIN: Final = 500
STRETCH_CLASS_MIN: Final = 20
# A page of more points would take minutes to open.
STRETCHES_MAX: Final = 1_000
# Age class of rows whose item's age nobody knows; such rows stand in no age band.
_AGE_UNKNOWN: Final = len(AGE_NAMES)


class Measures:
    """The rows a model predicted, in the order of the replay.

    Args:
        tasks: Names.
        losses: Kind of each.

    Example:
        >>> measures = Measures(["click"], ["logloss"])
        >>> column = lambda *values: np.array(values, np.float32)[:, None]
        >>> measures.add(
        ...     column(0.9, 0.2, 0.4), column(1, 0, 1), column(1, 1, 1),
        ...     ts_ms=np.zeros(3, np.int64), request_numbers=np.array([0, 0, 1]),
        ... )
        >>> measures.figures()["click"]["auc_all"]
        1.0
    """

    def __init__(self, tasks: Sequence[str], losses: Sequence[Loss]) -> None:
        self._tasks = list(tasks)
        self._losses = list(losses)
        self._parts: list[tuple[F32, F32, F32, I64, I64, npt.NDArray[np.int8]]] = []
        self.n_rows = 0

    def add(
        self,
        scores: F32,
        labels: F32,
        weights: F32,
        *,
        ts_ms: I64,
        request_numbers: I64,
        item_age_s: I64 | None = None,
    ) -> None:
        """Take in n rows. The arrays are kept, not copied: leave them unchanged.

        Args:
            scores: `float32[n, T]`, given before a row of the same request was learned:
                probabilities of log-loss tasks, values of Huber tasks.
            labels: `float32[n, T]`.
            weights: `float32[n, T]`; 0 where the row says nothing of the task.
            ts_ms: `int64[n]`, event time.
            request_numbers: `int64[n]`, equal for the rows of a request.
            item_age_s: `int64[n]`, event time since the model first saw the row's item; none where
                the model does not know.
        """
        age = np.full(len(scores), _AGE_UNKNOWN, np.int8)
        if item_age_s is not None:
            age = np.searchsorted(AGE_BOUNDS_S, item_age_s, side="right").astype(np.int8)
        self._parts.append((scores, labels, weights, ts_ms, request_numbers, age))
        self.n_rows += len(scores)

    def figures(self) -> dict[str, Figures]:
        """Per task, the figures below; what is not defined (one class only) is None.

        Log loss: `examples`, `positives` of them, `auc_all`, `auc_second_half` (rows n/2 to n),
        `request_auc` (mean over the requests that have both classes), `mrr` (mean over the same of
        1 / rank of the best positive; equal scores share their mean rank), `logloss`, `calibration`
        (predicted / observed), `calibration_by_age`, `by_hour` and `over_time`. Huber: `examples`,
        `huber`, `mean_error` (absolute), `calibration`, `by_hour` and `over_time`.

        `calibration_by_age` has `examples` and `calibration` per class of the item's age: `age_1m`
        (below 1 min), `age_10m`, `age_1h` and `age_older`. `by_hour` lists `ts_ms` (where the hour
        begins), `end_ms`, `examples` and the hour's `positives`, `auc`, `logloss` and `calibration`
        (or `huber` and `calibration`). `over_time` lists the same of stretches: neighbouring hours
        joined until they hold `STRETCH_ROWS_MIN` rows, 1 / `STRETCHES_MAX` of all rows and, of log
        loss, `STRETCH_CLASS_MIN` of each class; what is left at the end belongs to the last.
        """
        if not self._parts:
            return {task: {"examples": 0} for task in self._tasks}
        scores, labels, weights, ts_ms, requests, age = (
            np.concatenate(column) for column in zip(*self._parts, strict=True)
        )
        found = {}
        for t, (task, kind) in enumerate(zip(self._tasks, self._losses, strict=True)):
            rows = np.flatnonzero(weights[:, t] > 0)
            columns = np.stack(
                [scores[rows, t], labels[rows, t], weights[rows, t], age[rows]], axis=1
            ).astype(np.float32)
            found[task] = _figures(columns, requests[rows], ts_ms[rows], kind)
        return found


def _figures(columns: F32, requests: I64, ts_ms: I64, kind: Loss) -> Figures:
    found = _counts(columns, kind)
    if not len(columns):
        return found
    overall = metrics(columns, kind)
    if kind == "huber":
        names: tuple[str, ...] = ("huber", "calibration")
        score, label, weight, _ = columns.astype(np.float64).T
        found["mean_error"] = float(np.average(np.abs(score - label), weights=weight))
    else:
        names = ("auc", "logloss", "calibration")
        found["auc_all"] = _defined(overall["auc"])
        found["auc_second_half"] = _defined(metrics(columns[len(columns) // 2 :], kind)["auc"])
        found["request_auc"], found["mrr"] = by_request(
            columns[:, 0], columns[:, 1] > 0.5, requests
        )
        counts = np.bincount(columns[:, 3].astype(np.int64), minlength=len(AGE_NAMES))
        found["calibration_by_age"] = {
            name: {
                "examples": int(counts[n]),
                "calibration": _defined(overall[f"calibration_{name}"]),
            }
            for n, name in enumerate(AGE_NAMES)
        }
    found |= {name: _defined(overall[name]) for name in names if name != "auc"}
    return found | _hourly(columns, ts_ms, kind, names)


def _hourly(columns: F32, ts_ms: I64, kind: Loss, names: Sequence[str]) -> Figures:
    """`by_hour` and `over_time`."""
    hours = ts_ms // HOUR_MS
    order = np.argsort(hours, kind="stable")
    columns, hours = columns[order], hours[order]
    begins = np.unique(hours, return_index=True)[1]

    def measured(begins: I64) -> list[Figures]:
        found = []
        for first, end in pairwise([*begins, len(hours)]):
            figures = metrics(columns[first:end], kind)
            found.append(
                {"ts_ms": int(hours[first]) * HOUR_MS, "end_ms": int(hours[end - 1] + 1) * HOUR_MS}
                | _counts(columns[first:end], kind)
                | {name: _defined(figures[name]) for name in names}
            )
        return found

    return {
        "by_hour": measured(begins),
        "over_time": measured(begins[_joined(columns, begins, kind)]),
    }


def _counts(columns: F32, kind: Loss) -> Figures:
    found = {"examples": len(columns)}
    if kind == "logloss":
        found["positives"] = int(np.count_nonzero(columns[:, 1] > 0.5))
    return found


def _joined(columns: F32, begins: I64, kind: Loss) -> list[int]:
    """Which of the hours that begin at these rows begin a stretch."""
    rows_min = max(STRETCH_ROWS_MIN, len(columns) / STRETCHES_MAX)
    class_min = STRETCH_CLASS_MIN if kind == "logloss" else 0
    n_rows = np.diff([*begins, len(columns)])
    n_positive = np.add.reduceat((columns[:, 1] > 0.5).astype(np.int64), begins)
    chosen = [0]
    rows = positive = 0
    for hour in range(len(begins)):
        rows, positive = rows + n_rows[hour], positive + n_positive[hour]
        if rows >= rows_min and min(positive, rows - positive) >= class_min:
            chosen.append(hour + 1)
            rows = positive = 0
    return chosen[:-1] or [0]


def by_request(
    score: F32, is_positive: npt.NDArray[np.bool_], requests: I64
) -> tuple[float | None, float | None]:
    """Mean AUC and mean reciprocal rank over the requests with both classes; None without any.

    Args:
        score: `float32[n]`.
        is_positive: `bool[n]`.
        requests: `int64[n]`, equal for the rows of a request.
    """
    order = np.lexsort((score, requests))
    score, is_positive, requests = score[order], is_positive[order], requests[order]
    is_new = np.concatenate([[True], requests[1:] != requests[:-1]])
    begins = np.flatnonzero(is_new)  # of requests
    ties = np.flatnonzero(is_new | np.concatenate([[True], score[1:] != score[:-1]]))
    of_tie = np.cumsum(is_new)[ties] - 1  # the request of each group of equal scores
    n_rows = np.diff(np.append(begins, len(score)))
    n_positive = np.add.reduceat(is_positive.astype(np.int64), begins)
    has_both = (n_positive > 0) & (n_positive < n_rows)
    if not has_both.any():
        return None, None
    tie_rows = np.diff(np.append(ties, len(score)))
    tie_positive = np.add.reduceat(is_positive.astype(np.int64), ties)
    tie_negative = tie_rows - tie_positive
    n_negative = n_rows - n_positive
    before = np.concatenate([[0], np.cumsum(n_negative)])[of_tie]
    below = np.cumsum(tie_negative) - tie_negative - before
    pairs = np.bincount(of_tie, tie_positive * (below + 0.5 * tie_negative))
    request_auc = (pairs / np.maximum(n_positive * n_negative, 1))[has_both].mean()
    # Ties ascend, so the last one with a positive is the best: its rows share ranks above + 1 ...
    above = (begins + n_rows)[of_tie] - ties - tie_rows
    rank = above + 0.5 * (tie_rows + 1)
    best = np.full(len(begins), np.inf)
    np.minimum.at(best, of_tie[tie_positive > 0], rank[tie_positive > 0])
    return float(request_auc), float((1 / best[has_both]).mean())


def progressive_auc(scores: F32, labels: F32, weights: F32) -> float | None:
    """AUC of some rows of one log-loss task, for a progress bar: `float32[n]` each."""
    rows = weights > 0
    columns = [column[rows].astype(np.float64) for column in (scores, labels, weights)]
    return _defined(auc(columns[0], columns[1] > 0.5, columns[2])) if rows.any() else None


def _defined(value: float) -> float | None:
    return value if np.isfinite(value) else None
