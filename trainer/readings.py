"""What a trainer says of itself in metrics: read from totals and gauges that it keeps anyway."""

from collections.abc import Mapping
from typing import Final

from freshrank.features import FeatureEncoder
from freshrank.metrics import Reading
from freshrank.settings import Settings
from freshrank.verdicts import REASONS
from trainer.checkpoint_store import CheckpointStore

# Name of the metric -> of the gauge, task by task: of predictions served, and of the trainer's own.
_QUALITY: Final = {
    "trainer_progressive_auc": "auc",
    "trainer_logloss": "logloss",
    "trainer_calibration_ratio": "calibration",
}
_SOURCES: Final = {"served": "", "own": "own_"}
_GAUGES: Final = {
    "trainer_paused": "paused",
    "trainer_sync_seq": "seq",
    "sync_held_back": "held_back",
}
# (name of the metric, label and its value) -> name of the total.
_TOTALS: Final = {
    ("trainer_examples", "", ""): "examples_learned",
    ("trainer_publications", "result", "published"): "frames_published",
    ("trainer_publications", "result", "failed"): "publish_failures",
    ("trainer_rollbacks", "", ""): "rollbacks",
    ("checkpoints", "result", "saved"): "checkpoints",
    ("checkpoints", "result", "failed"): "checkpoint_failures",
    ("checkpoints", "result", "damaged"): "checkpoints_refused",
    **{("sync_refused", "reason", one): f"publications_refused:{one}" for one in REASONS},
}
_TABLE: Final = {
    ("store_rows", "side", "training"): "rows",
    ("store_bytes", "side", "training"): "bytes",
    ("store_admissions", "outcome", "admitted"): "admitted",
    ("store_admissions", "outcome", "filtered"): "filtered",
    ("store_evictions", "reason", "expired"): "expired",
    ("store_evictions", "reason", "capacity"): "evicted",
}


class TrainerReadings:
    """Metrics of the trainers of one data directory; none is made or held for it.

    Args:
        settings: The configuration.
        encoder: For the same configuration.
    """

    def __init__(self, settings: Settings, encoder: FeatureEncoder) -> None:
        self._tasks = [task.name for task in settings.tasks]
        budgets = {spec.name: spec.max_bytes for spec in encoder.tables}
        self._tables = list(budgets)
        # That of all tables together has no name.
        self._budgets = {**budgets, "": settings.store.max_bytes}
        self._checkpoints = CheckpointStore(
            settings.service.data_dir / "trainer", keep=settings.checkpoint.keep
        )

    def standby(self) -> list[Reading]:
        """Of one that learns nothing: the totals of its checkpoint are another's."""
        return [Reading("trainer_leading", 0.0), *self._checkpoint()]

    def leading(self, totals: Mapping[str, int], gauges: Mapping[str, float]) -> list[Reading]:
        """Of the one that learns.

        Args:
            totals: Its `accounting`.
            gauges: Its `statistics`.
        """
        found = [Reading("trainer_leading", 1.0), *self._checkpoint()]
        found.append(Reading("trainer_steps", gauges["steps"]))
        found += [Reading(name, gauges[gauge]) for name, gauge in _GAUGES.items()]
        found += [
            Reading(name, totals.get(total, 0), {label: value} if label else {})
            for (name, label, value), total in _TOTALS.items()
        ]
        found += [
            Reading(
                "dead_letters",
                totals.get(f"{topic}_dead_letter", 0),
                {"topic": topic, "partition": ""},
            )
            for topic in ("examples", "control")
        ]
        n_skipped = totals.get("example_gap_records", 0)
        found.append(Reading("gap_records", n_skipped, {"stage": "train", "partition": ""}))
        return found + self._quality(gauges) + self._occupancy(gauges)

    def _checkpoint(self) -> list[Reading]:
        newest = self._checkpoints.newest()
        try:
            saved_s = newest.stat().st_mtime if newest is not None else None
        except FileNotFoundError:  # its trainer has just removed it
            saved_s = None
        name = "checkpoint_last_success_timestamp_seconds"
        return [] if saved_s is None else [Reading(name, saved_s)]

    def _quality(self, gauges: Mapping[str, float]) -> list[Reading]:
        return [
            Reading(name, gauges[gauge], {"task": task, "source": source})
            for task in self._tasks
            for source, prefix in _SOURCES.items()
            for name, measure in _QUALITY.items()
            if (gauge := f"{task}.{prefix}{measure}") in gauges
        ]

    def _occupancy(self, gauges: Mapping[str, float]) -> list[Reading]:
        found = [
            Reading(name, gauges[f"tables.{table}.{count}"], {"slot": table, label: value})
            for table in self._tables
            for (name, label, value), count in _TABLE.items()
        ]
        return found + [
            Reading("store_budget_bytes", n_bytes, {"slot": table})
            for table, n_bytes in self._budgets.items()
            if n_bytes
        ]
