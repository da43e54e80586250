"""Progressive metrics: how good were the scores given before an example was learned?

**served** metrics use the score that the service gave, stored in the example. **own** metrics use
the trainer's score of rows that carry none (a replay, a client's own impressions), taken before the
batch is learned. They are reported apart (`click.auc`, `click.own_auc`): two rows of a request may
be learned in two batches, so an own score may know its request's other rows, and only a replay that
scores whole requests first may quote it as AUC.

Rows of positive weight count. A reversal takes back the negative that counted before: both of its
rows carry the score that was served, so its row of weight -1 cancels that negative exactly, and the
pair's own scores, given after the negative was learned, do not count at all. Where negatives were
sampled at rate r, a kept one stands for 1 / r: log loss and calibration weigh it so, and AUC too,
which it does not change.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from freshrank.examples import ExampleBatch
from trainer.losses import HUBER_DELTA, Loss

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

# A report sorts the window: 20,000 rows take 2 ms, and give AUC a standard error near 0.005 at a
# click rate of 10 % (Hanley & McNeil 1982).
WINDOW_ROWS: Final = 20_000
AGE_BOUNDS_S: Final = (60, 600, 3_600)
AGE_NAMES: Final = ("age_1m", "age_10m", "age_1h", "age_older")
# Log loss of a score of exactly 0 or 1 that was wrong: 16 instead of infinity.
_PROBABILITY_MIN: Final = 1e-7
_COLUMNS: Final = ("score", "label", "weight", "age")


class Window:
    """The last rows of one task: a ring.

    Args:
        n_max: Rows kept.
    """

    def __init__(self, n_max: int) -> None:
        self._ring = np.zeros((n_max, len(_COLUMNS)), np.float32)
        self._next = 0
        self._n = 0

    def add(self, columns: F32) -> None:
        """Append `float32[k, 4]`: score, label, weight, age class."""
        n_max = len(self._ring)
        columns = columns[-n_max:]
        at = (self._next + np.arange(len(columns))) % n_max
        self._ring[at] = columns
        self._next = (self._next + len(columns)) % n_max
        self._n = min(self._n + len(columns), n_max)

    def rows(self) -> F32:
        """The rows kept, oldest first: `float32[k, 4]`."""
        first = self._next if self._n == len(self._ring) else 0
        return np.concatenate([self._ring[first : self._n], self._ring[:first]])


class Evaluation:
    """Windows of all tasks.

    Args:
        tasks: Names.
        losses: Kind of each.
        window_rows: Rows per window.
    """

    def __init__(
        self, tasks: Sequence[str], losses: Sequence[Loss], *, window_rows: int = WINDOW_ROWS
    ) -> None:
        self._tasks = list(tasks)
        self._losses = list(losses)
        self._windows = {
            f"{task}.{source}": Window(window_rows)
            for task in tasks
            for source in ("served", "own")
        }

    def add(self, batch: ExampleBatch, own: F32, item_age_s: I64) -> None:
        """Take in a batch.

        Args:
            batch: B rows.
            own: `float32[B, T]`, the trainer's predictions before it learned them.
            item_age_s: `int64[B]`, event time since the item got its row.
        """
        age = np.searchsorted(AGE_BOUNDS_S, item_age_s, side="right")
        for t, (task, kind) in enumerate(zip(self._tasks, self._losses, strict=True)):
            counts = batch.weights[:, t] != 0
            score = batch.served[:, t]
            with np.errstate(invalid="ignore"):
                is_served = np.isfinite(score)
                if kind == "logloss":
                    is_served &= (score >= 0) & (score <= 1)
            label = batch.labels[:, t]
            is_sampled = (label == 0) if kind == "logloss" else np.zeros(len(label), np.bool_)
            rate = np.where(is_sampled & counts, batch.keep_rates[:, t], 1)
            for source, values, chosen in (
                ("served", score, counts & is_served),
                ("own", own[:, t], counts & ~is_served & ~batch.is_reversal),
            ):
                if not chosen.any():
                    continue
                columns = np.empty((len(label), len(_COLUMNS)), np.float32)
                columns[:, 0], columns[:, 1], columns[:, 3] = values, label, age
                np.divide(batch.weights[:, t], rate, out=columns[:, 2])
                self._windows[f"{task}.{source}"].add(columns[chosen])

    def report(self) -> dict[str, float]:
        """Metrics by name: `<task>.<metric>`, `own_` before those of the trainer's own scores.

        For log loss `auc`, `logloss`, `calibration` (predicted / observed) and
        `calibration_age_1m`, `…_10m`, `…_1h`, `…_older`; for Huber `huber` and `calibration`. What
        is not defined yet (one class only, nothing observed) is left out.
        """
        found: dict[str, float] = {}
        for task, kind in zip(self._tasks, self._losses, strict=True):
            for source, prefix in (("served", ""), ("own", "own_")):
                rows = self._windows[f"{task}.{source}"].rows()
                measured = metrics(rows, kind) if len(rows) else {}
                found |= {f"{task}.{prefix}{name}": value for name, value in measured.items()}
        return {name: value for name, value in found.items() if np.isfinite(value)}

    def state(self) -> dict[str, F32]:
        """What a checkpoint keeps."""
        return {name: window.rows() for name, window in self._windows.items()}

    def restore(self, state: dict[str, F32]) -> None:
        """Take over what a checkpoint kept."""
        for name, rows in state.items():
            self._windows[name].add(rows)


def metrics(rows: F32, kind: Loss) -> dict[str, float]:
    """Metrics of at least one row by name, as in `Evaluation.report`; NaN where not defined.

    Args:
        rows: `float32[k, 4]`: score, label, weight, age class.
        kind: Of the task.
    """
    score, label, weight, age = rows.astype(np.float64).T
    if weight.sum() <= 0:  # a short window may hold a reversal and not its negative
        return {}
    measured = {"calibration": _ratio(score, label, weight)}
    if kind == "huber":
        error = np.abs(score - label)
        small = np.minimum(error, HUBER_DELTA)
        loss = small * (error - 0.5 * small)
        return measured | {"huber": float(np.average(loss, weights=weight))}
    probability = np.clip(score, _PROBABILITY_MIN, 1 - _PROBABILITY_MIN)
    entropy = -(label * np.log(probability) + (1 - label) * np.log1p(-probability))
    measured["logloss"] = float(np.average(entropy, weights=weight))
    measured["auc"] = auc(score, label > 0.5, weight)
    for n, name in enumerate(AGE_NAMES):
        chosen = age == n
        measured[f"calibration_{name}"] = _ratio(score[chosen], label[chosen], weight[chosen])
    return measured


def _ratio(
    score: npt.NDArray[np.float64], label: npt.NDArray[np.float64], weight: npt.NDArray[np.float64]
) -> float:
    # No `@`: from 10,000 numbers on BLAS shares it out to threads, which then spin for 30 ms.
    observed = float((label * weight).sum())
    return float((score * weight).sum()) / observed if observed > 0 else float("nan")


def auc(
    score: npt.NDArray[np.float64], is_positive: Bools, weight: npt.NDArray[np.float64]
) -> float:
    """The weighted chance that a positive row scores above a negative one; ties count half. Exact.

    Args:
        score: `float64[n]`.
        is_positive: `bool[n]`.
        weight: `float64[n]`; a negative one takes an earlier row of the same score back.

    Returns:
        From 0 to 1; NaN with one class only.

    Example:
        >>> s, w = np.array([0.1, 0.4, 0.4, 0.9]), np.ones(4)
        >>> auc(s, np.array([False, True, False, True]), w)
        0.875
    """
    order = np.argsort(score)
    score, is_positive, weight = score[order], is_positive[order], weight[order]
    positive = np.where(is_positive, weight, 0.0)
    negative = weight - positive
    starts = np.flatnonzero(np.concatenate([[True], score[1:] != score[:-1]]))  # of equal scores
    positive, negative = np.add.reduceat(positive, starts), np.add.reduceat(negative, starts)
    below = np.cumsum(negative) - negative
    pairs = positive.sum() * negative.sum()
    return float((positive * (below + 0.5 * negative)).sum() / pairs) if pairs > 0 else float("nan")
