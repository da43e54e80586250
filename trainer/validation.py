"""Which rows of a record cannot be learned, and why. A pure function of the record.

A bad row goes to the dead letter and the rest of its record is learned. The bounds exist so that no
single row can make a step non-finite: such a step costs its whole batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from freshrank.examples import ExampleBatch
from trainer.losses import Loss
from trainer.rows import TIME_MS_MAX

Bools = npt.NDArray[np.bool_]

# float32 overflows at 3e38. A squared gradient is at most about (weight * label * dense)^2; with
# the dense net's clipping after a norm (a sum of squares): (1e6 * 1e12)^2 = 1e36.
LABEL_MAX: Final = 1e6
WEIGHT_MAX: Final = 1e6
DENSE_MAX: Final = 1e12


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a record's rows are worth.

    Attributes:
        good: `int64[g]`, rows that can be learned, ascending.
        bad: Row -> reason, a slug.
        is_pair_first: `bool[n]`, first row of a reversal pair: the next row belongs to it.
    """

    good: npt.NDArray[np.int64]
    bad: dict[int, str]
    is_pair_first: Bools


def check_rows(batch: ExampleBatch, losses: Sequence[Loss]) -> Verdict:
    """Judge every row; a reversal pair is judged as one."""
    bad: dict[int, str] = {}
    for reason, is_bad in _rules(batch, losses):
        for row in np.flatnonzero(is_bad):
            bad.setdefault(int(row), reason)
    is_pair_first = _pairs(batch, bad)
    is_good = np.ones(batch.n_rows, np.bool_)
    is_good[list(bad)] = False
    return Verdict(np.flatnonzero(is_good), bad, is_pair_first & is_good)


def _rules(batch: ExampleBatch, losses: Sequence[Loss]) -> list[tuple[str, Bools]]:
    weights, labels, keep = batch.weights, batch.labels, batch.keep_rates
    counts = weights != 0  # where the weight is 0 the row says nothing of the task
    is_logloss = np.array([kind == "logloss" for kind in losses])
    with np.errstate(invalid="ignore"):  # comparisons with NaN are False, which is what is meant
        label_fits = np.where(
            is_logloss, (labels >= 0) & (labels <= 1), np.abs(labels) <= LABEL_MAX
        )
        weight_fits = np.abs(weights) <= WEIGHT_MAX
        keep_fits = (keep > 0) & (keep <= 1)
        dense_fits = np.abs(batch.values.dense) <= DENSE_MAX
        is_negative = (weights < 0).any(axis=1) & ~batch.is_reversal
    return [
        ("bad-weight", ~weight_fits.all(axis=1)),
        ("bad-label", (counts & ~label_fits).any(axis=1)),
        ("bad-keep-rate", (counts & ~keep_fits).any(axis=1)),
        ("bad-dense", ~dense_fits.all(axis=1)),
        ("bad-time", (batch.ts_ms < 0) | (batch.ts_ms > TIME_MS_MAX)),
        ("negative-weight", is_negative),
    ]


def _pairs(batch: ExampleBatch, bad: dict[int, str]) -> Bools:
    """Mark the first rows of reversal pairs; add rows without a partner to `bad`."""
    is_first = np.zeros(batch.n_rows, np.bool_)
    rows = [int(row) for row in np.flatnonzero(batch.is_reversal)]
    at = 0
    while at < len(rows):
        first = rows[at]
        second = first + 1
        if at + 1 < len(rows) and rows[at + 1] == second and _is_pair(batch, first):
            is_first[first] = True
            if first in bad or second in bad:
                reason = bad.get(first) or bad[second]
                bad[first] = bad[second] = reason
            at += 2
        else:
            bad.setdefault(first, "unpaired-reversal")
            at += 1
    return is_first


def _is_pair(batch: ExampleBatch, first: int) -> bool:
    second = first + 1
    return (
        batch.request_ids[first] == batch.request_ids[second]
        and batch.items[first] == batch.items[second]
        and bool(np.all(batch.weights[first] == -batch.weights[second]))
        and bool(np.all(batch.weights[first] >= 0))
    )
