"""The trainer's gauges, computed by its own thread and read by any."""

from typing import Final

from freshrank.clock import Clock
from trainer.evaluation import Evaluation
from trainer.guard import Guard
from trainer.learner import Learner
from trainer.state import TrainerState

# What comes into a table and leaves, and what room it has: `Table.statistics` has their meaning.
TABLE_COUNTS: Final = (
    *("rows", "bytes", "budget_bytes", "threshold"),
    *("admitted", "filtered", "expired", "evicted"),
)


class Gauges:
    """A snapshot of gauges, at most a second old while examples arrive.

    `<task>.<metric>` as in `Evaluation.report`; `auc` of the first log-loss task that has one, of
    served scores if there are any; `rows`, `pending` and `filtered` over all tables, and of each
    `tables.<table>.<count>` those of `TABLE_COUNTS`; `examples_per_second`, `steps`, `paused`,
    `held_back`, `epoch`, `seq`, `dense_version`.

    Args:
        clock: Its monotonic part.
        state: Totals.
        learner: Tables.
        evaluation: Metrics.
        guard: Says whether a version is held back.
    """

    def __init__(
        self,
        clock: Clock,
        state: TrainerState,
        learner: Learner,
        evaluation: Evaluation,
        guard: Guard,
    ) -> None:
        self._clock = clock
        self._state = state
        self._learner = learner
        self._evaluation = evaluation
        self._guard = guard
        self._at_s = clock.monotonic_s()
        self._rows_learned = state.counts["rows_learned"]
        self._values: dict[str, float] = {}
        self.refresh()

    def values(self) -> dict[str, float]:
        """The last snapshot."""
        return dict(self._values)

    def tick(self, *, is_idle: bool) -> None:
        """Refresh once a second, and when examples stop arriving or a command came."""
        is_behind = self._rows_learned != self._state.counts["rows_learned"]
        is_behind |= self._values["paused"] != self._state.is_paused
        if self._clock.monotonic_s() - self._at_s >= 1.0 or (is_idle and is_behind):
            self.refresh()

    def refresh(self) -> None:
        """Compute all gauges now."""
        state = self._state
        now_s = self._clock.monotonic_s()
        n_new = state.counts["rows_learned"] - self._rows_learned
        elapsed_s = now_s - self._at_s
        metrics = self._evaluation.report()
        tables = {name: t.statistics() for name, t in self._learner.sparse.tables.items()}
        values = {
            count: float(sum(table[count] for table in tables.values()))
            for count in ("rows", "pending", "filtered")
        }
        for name, table in tables.items():
            values |= {f"tables.{name}.{count}": float(table[count]) for count in TABLE_COUNTS}
        values["examples_per_second"] = n_new / elapsed_s if elapsed_s > 0 else 0.0
        values["steps"] = float(self._learner.adam.n_steps)
        values["paused"] = float(state.is_paused)
        values["held_back"] = float(bool(self._guard.reason))
        values["epoch"] = float(state.epoch)
        values["seq"] = float(state.seq)
        values["dense_version"] = float(state.dense_version)
        served = [v for name, v in metrics.items() if name.endswith(".auc")]
        own = [v for name, v in metrics.items() if name.endswith(".own_auc")]
        if served or own:
            values["auc"] = (served + own)[0]
        self._at_s, self._rows_learned = now_s, state.counts["rows_learned"]
        self._values = values | metrics
