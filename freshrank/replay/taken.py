"""Rows of an archive as they were predicted, with the labels they ended up with.

A late positive stands in an archive as a negative and, later, a reversal pair. Metrics want neither
three rows nor a label that was taken back: the pair's positive replaces the negative, which keeps
the score it was given before anybody knew.
"""

import numpy as np
import numpy.typing as npt

from freshrank.examples import ExampleBatch
from freshrank.replay.measures import Measures
from trainer.learner import Step
from trainer.losses import Loss

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]


class Taken:
    """Keeps every row learned: some 100 bytes each.

    Args:
        tasks: Names.
        losses: Kind of each.
    """

    def __init__(self, tasks: list[str], losses: list[Loss]) -> None:
        self._tasks = tasks
        self._losses = losses
        self._numbers: dict[str, int] = {}
        self._batches: list[tuple[F32, F32, F32, F32, I64, I64]] = []
        self._places: list[tuple[int, str]] = []
        self._pairs: list[int] = []

    @property
    def n_requests(self) -> int:
        """Requests seen."""
        return len(self._numbers)

    def add(self, batch: ExampleBatch, step: Step) -> None:
        """Take in a batch and what was predicted of it."""
        self._pairs += (np.flatnonzero(batch.is_reversal) + len(self._places)).tolist()
        numbers = [self._numbers.setdefault(r, len(self._numbers)) for r in batch.request_ids]
        self._places += zip(numbers, batch.items, strict=True)
        # A kept negative stands for 1 / r of them.
        is_sampled = (batch.labels == 0) & (np.array(self._losses) == "logloss")
        weights = np.where(is_sampled & (batch.weights > 0), 1 / batch.keep_rates, 1)
        self._batches.append(
            (
                step.predictions,
                batch.served,
                batch.labels,
                (batch.weights * weights).astype(np.float32),
                batch.ts_ms,
                step.item_age_s,
            )
        )

    def measures(self) -> tuple[Measures, Measures]:
        """Of the replay's own scores, and of those that were served where there were any."""
        own_measures = Measures(self._tasks, self._losses)
        served_measures = Measures(self._tasks, self._losses)
        if self._batches:
            columns = zip(*self._batches, strict=True)
            own, served, labels, weights, ts_ms, age_s = map(np.concatenate, columns)
            self._undo(labels, weights)
            numbers = np.array([number for number, _ in self._places], np.int64)
            with np.errstate(invalid="ignore"):
                in_range = (served >= 0) & (served <= 1) | (np.array(self._losses) != "logloss")
            is_served = np.isfinite(served) & in_range
            for measures, scores, counts in (
                (own_measures, own, weights),
                (served_measures, served, np.where(is_served, weights, np.float32(0))),
            ):
                measures.add(
                    scores, labels, counts, ts_ms=ts_ms, request_numbers=numbers, item_age_s=age_s
                )
        return own_measures, served_measures

    def _undo(self, labels: F32, weights: F32) -> None:
        """Put every pair's positive in the place of the negative it takes back."""
        if not self._pairs:
            return
        reversed_items = {self._places[row] for row in self._pairs}
        last: dict[tuple[tuple[int, str], int], int] = {}
        is_pair = np.zeros(len(labels), np.bool_)
        is_pair[self._pairs] = True
        for row, place in enumerate(self._places):
            if place not in reversed_items:
                continue
            for task in np.flatnonzero(weights[row] > 0).tolist():
                if not is_pair[row]:
                    last[place, task] = row
                elif (before := last.get((place, task))) is not None:
                    labels[before, task] = labels[row, task]
                    weights[before, task] = weights[row, task]
                    weights[row, task] = 0
