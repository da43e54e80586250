"""The replay of a table: every model predicts a request and then learns it, in event time."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

import numpy as np
import numpy.typing as npt

from freshrank.errors import DataError
from freshrank.examples import ExampleBatch
from freshrank.feature_types import Encoded, TableValues
from freshrank.features import FeatureEncoder
from freshrank.replay.baselines.base import Baseline
from freshrank.replay.chunks import Chunk, batches, part_of
from freshrank.replay.measures import Figures, Measures, progressive_auc
from freshrank.replay.pace import Pace, Schedule
from freshrank.replay.report import ModelRow, Report, table_counts
from freshrank.settings import Settings
from freshrank.units import duration_text
from trainer.frozen import FrozenModel
from trainer.learner import Learner

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]

# Rows of the progress bar's AUC: as many as the trainer's window.
_RECENT_ROWS: Final = 20_000
_MILLISECOND: Final = timedelta(milliseconds=1)
OURS: Final = "freshrank"


@dataclass(frozen=True, slots=True)
class Reached:
    """How far a replay has come: n examples up to an event time, and the AUC of the last ones."""

    n_examples: int
    ts_ms: int
    auc: float | None


class _Stale:
    """Our model as a service would have it that synchronises every so often.

    It synchronises at the multiples of its period after the first row of the stream, and then has
    what was learned up to there. A batch is learned at once: one that such a time falls into comes
    after it, and its rows from that time on are the first to be scored anew.
    """

    def __init__(
        self, learner: Learner, encoder: FeatureEncoder, every: timedelta, dtype: str
    ) -> None:
        self._model = FrozenModel(learner, encoder, dtype)
        self._syncs = Schedule(every)

    def predict(self, batch: ExampleBatch) -> F32:
        """`float32[B, T]`; to be asked before the batch is learned."""
        if self._syncs.next_ms is None:
            self._syncs.is_due(int(batch.ts_ms[0]))
        n_before = int(np.searchsorted(batch.ts_ms, self._syncs.next_ms or 0))
        parts = []
        if n_before:
            parts.append(self._model.predict(part_of(batch.values, 0, n_before)))
        if self._syncs.is_due(int(batch.ts_ms[-1])):
            self._model.refresh()
            parts.append(self._model.predict(part_of(batch.values, n_before, batch.n_rows)))
        return np.concatenate(parts)


class Online:
    """Our model learning step by step, and stale copies of it.

    Args:
        settings: The whole configuration; `trainer.seed` is this run's.
        encoder: Slots and tables.
        sync_every: A stale copy for each.

    Attributes:
        learner: Its parameters.
        learn_s: Seconds spent on scoring and learning, less those on stale copies.
        skipped_steps: Steps that were not applied.
    """

    def __init__(
        self, settings: Settings, encoder: FeatureEncoder, sync_every: Sequence[timedelta] = ()
    ) -> None:
        self.learner = Learner(settings, encoder)
        self.learn_s = 0.0
        self.skipped_steps = 0
        self._batch_max = settings.trainer.batch_max
        # Adaptive batches take what is there. What came since parameters were last published is
        # scored with the same ones whatever is learned in between: so it is learned at once.
        is_fixed = settings.trainer.batching == "fixed"
        self._span_ms = None if is_fixed else settings.sync.sparse_every // _MILLISECOND
        dtype = settings.serving.dtype
        self._stale = [_Stale(self.learner, encoder, every, dtype) for every in sync_every]

    def predict_then_learn(
        self, chunk: Chunk, encoded: Encoded, pace: Pace | None = None
    ) -> tuple[list[F32], I64]:
        """All rows of a request are scored before any is learned: batches hold whole requests.

        Returns:
            `float32[n, T]` of the learner and of each stale copy, and `int64[n]`, the age of the
            rows' items in seconds.
        """
        scores: list[list[F32]] = [[] for _ in range(1 + len(self._stale))]
        ages: list[I64] = []
        for batch in batches(chunk, encoded, self._batch_max, self._span_ms):
            if pace is not None:
                pace.wait(int(batch.ts_ms[0]))
            for stale, found in zip(self._stale, scores[1:], strict=True):
                found.append(stale.predict(batch))
            began_s = time.perf_counter()
            step = self.learner.learn(batch)
            self.learn_s += time.perf_counter() - began_s
            self.skipped_steps += not step.is_applied
            scores[0].append(step.predictions)
            ages.append(step.item_age_s)
        return [np.concatenate(parts) for parts in scores], np.concatenate(ages)


class TableReplay:
    """Runs all models over the same chunks.

    Args:
        settings: The whole configuration.
        encoder: Its features.
        encode: Chunks' values -> model input; live features from earlier requests.
        seeds: One run of our model each.
        sync_every: Stale copies of each run.
        baselines: Other models, by name.
    """

    def __init__(
        self,
        settings: Settings,
        encoder: FeatureEncoder,
        encode: Callable[[TableValues], Encoded],
        *,
        seeds: Sequence[int],
        sync_every: Sequence[timedelta] = (),
        baselines: Sequence[Baseline] = (),
    ) -> None:
        self._encode = encode
        self._runs = [Online(seeded(settings, seed), encoder, sync_every) for seed in seeds]
        self._baselines = list(baselines)
        tasks = [task.name for task in settings.tasks]
        losses = self._losses = [task.loss for task in settings.tasks]
        self._every = [None, *sync_every]
        self._measures = [[Measures(tasks, losses) for _ in self._every] for _ in seeds]
        self._baseline_measures = [Measures(tasks[:1], losses[:1]) for _ in baselines]
        self._baseline_s = [0.0 for _ in baselines]
        self._recent = np.empty((3, 0), np.float32)
        self._has_items = any(feature.name == "item_id" for feature in settings.features)

    def run(
        self,
        chunks: Iterator[Chunk],
        report: Report,
        *,
        pace: Pace | None = None,
        on_progress: Callable[[Reached], None] | None = None,
    ) -> DataError | None:
        """Replay the chunks and fill in the report.

        Returns:
            What ended the source early; what came before it is in the report.
        """
        began_s = time.perf_counter()
        read_s = 0.0
        broken = None
        while True:
            at_s = time.perf_counter()
            try:
                chunk = next(chunks, None)
                if chunk is None:
                    break
                encoded = self._encode(chunk.values)
                read_s += time.perf_counter() - at_s
                self._take(chunk, encoded, pace, on_progress, report)
            except DataError as error:
                broken = error
                break
            except KeyboardInterrupt:
                broken = DataError(
                    "it was interrupted: what came before stands in the report", code="interrupted"
                )
                break
        report.stopped = None if broken is None else str(broken)
        report.wall_s = time.perf_counter() - began_s
        report.models += self._rows(report.examples, read_s)
        report.tables = table_counts(self._runs[0].learner.sparse.tables)
        report.skipped_steps = sum(run.skipped_steps for run in self._runs)
        return broken

    def _take(
        self,
        chunk: Chunk,
        encoded: Encoded,
        pace: Pace | None,
        on_progress: Callable[[Reached], None] | None,
        report: Report,
    ) -> None:
        found: list[tuple[Measures, F32, I64]] = []
        for run, measures in zip(self._runs, self._measures, strict=True):
            scores, age_s = run.predict_then_learn(chunk, encoded, pace)
            pace = None  # the first run has waited
            found += [(one, own, age_s) for one, own in zip(measures, scores, strict=True)]
        for n, baseline in enumerate(self._baselines):
            at_s = time.perf_counter()
            predicted = baseline.predict_then_learn(chunk, encoded)
            self._baseline_s[n] += time.perf_counter() - at_s
            found.append((self._baseline_measures[n], predicted[:, None], found[0][2]))
        for measure, own, age_s in found:  # all or, where it is interrupted, none
            _add(measure, own, chunk, age_s if self._has_items else None)
        report.examples += chunk.n_rows
        report.requests += len(chunk.values.n_items)
        if on_progress is not None:
            auc = self._auc(found[0][1], chunk)
            on_progress(Reached(report.examples, int(chunk.ts_ms[-1]), auc))

    def _auc(self, scores: F32, chunk: Chunk) -> float | None:
        """Of the last rows of the first task that has one."""
        if "logloss" not in self._losses:
            return None
        t = self._losses.index("logloss")
        columns = np.stack([scores[:, t], chunk.labels[:, t], chunk.weights[:, t]])
        self._recent = np.concatenate([self._recent, columns], axis=1)[:, -_RECENT_ROWS:]
        return progressive_auc(*self._recent)

    def _rows(self, n_examples: int, read_s: float) -> Iterator[ModelRow]:
        """Our model, its stale copies, and the baselines; speeds include reading and encoding."""
        for n, every in enumerate(self._every):
            figures = [measures[n].figures() for measures in self._measures]
            speed = n_examples / max(read_s + self._runs[0].learn_s, 1e-9)
            yield our_row(every, figures, speed)
        for baseline, measures, took_s in zip(
            self._baselines, self._baseline_measures, self._baseline_s, strict=True
        ):
            speed = n_examples / max(read_s + took_s, 1e-9)
            yield ModelRow(baseline.name, [measures.figures()], examples_per_second=speed)


def our_row(
    every: timedelta | None, runs: Sequence[Mapping[str, Figures]], speed: float
) -> ModelRow:
    """The row of our model, or of it with parameters as old as `every`."""
    if every is None:
        return ModelRow(OURS, runs, examples_per_second=speed)
    name = f"{OURS} every {duration_text(every)}"
    return ModelRow(name, runs, sync_every_s=every.total_seconds())


def _add(measures: Measures, scores: F32, chunk: Chunk, age_s: I64 | None) -> None:
    tasks = slice(scores.shape[1])  # a baseline predicts the first one
    measures.add(
        scores,
        chunk.labels[:, tasks],
        chunk.weights[:, tasks],
        ts_ms=chunk.ts_ms,
        request_numbers=chunk.request_numbers,
        item_age_s=age_s,
    )


def seeded(settings: Settings, seed: int) -> Settings:
    """The configuration with another seed."""
    trainer = settings.trainer.model_copy(update={"seed": seed})
    return settings.model_copy(update={"trainer": trainer})
