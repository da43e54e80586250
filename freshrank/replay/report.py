"""What a replay found: one JSON document, and the page that shows it."""

import json
import math
import resource
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from embedding_store import Table
from freshrank.replay.measures import Figures
from freshrank.replay.page import page
from freshrank.transport.files import disk_errors, replace_file

VERSION: Final = 1
_TABLE_COUNTS: Final = ("rows", "bytes", "filtered", "expired")


@dataclass(frozen=True, slots=True)
class ModelRow:
    """One model's figures: a row of the report.

    Attributes:
        name: `freshrank`, `freshrank every 60m`, or that of a baseline.
        runs: Per seed, `Measures.figures()`: at least one.
        sync_every_s: How old its parameters may be; None when it is no such row.
        examples_per_second: Its speed, None where it was not measured on its own.
    """

    name: str
    runs: Sequence[Mapping[str, Figures]]
    sync_every_s: float | None = None
    examples_per_second: float | None = None

    def document(self) -> dict[str, Any]:
        """Figures of the first run; under `seeds` mean, sd, min and max over all of them."""
        tasks = {
            task: figures | {"seeds": _spread([run[task] for run in self.runs])}
            for task, figures in self.runs[0].items()
        }
        return {
            "name": self.name,
            "sync_every_s": self.sync_every_s,
            "examples_per_second": self.examples_per_second,
            "tasks": tasks,
        }


@dataclass(slots=True)
class Report:
    """A whole replay; `docs/replay.md` describes the keys of its document.

    Attributes:
        config: File name of the configuration.
        source: File or directory replayed.
        models: Rows, our own first.
        rows_read: Rows of the source: examples and rejected ones. Of raw events, their records.
        examples: Rows scored and learned, per seed.
        requests: Requests of them.
        wall_s: Seconds it took, all seeds and baselines.
        rejected: Reason -> rows.
        rejects_file: Where they are listed; None without any.
        seeds: Seeds of the runs.
        tables: Table -> `rows`, `bytes`, `filtered` (occurrences that got no row), `expired`.
        skipped_steps: Steps whose loss or gradient was not finite.
        stopped: Why the replay ended before its source did; None if it did not.
        accounting: Totals of joiner and trainer where the source went through them.
        parameters: Of an archive, the fingerprint of what was learned: equal ones, equal bits.
        waiting_rows: Of an archive, rows that wait for their batch to be full.
        notes: Sentences on what a reader of the figures should know, the weightiest first.
    """

    config: str
    source: str
    models: list[ModelRow] = field(default_factory=list)
    rows_read: int = 0
    examples: int = 0
    requests: int = 0
    wall_s: float = 0.0
    rejected: dict[str, int] = field(default_factory=dict)
    rejects_file: str | None = None
    seeds: list[int] = field(default_factory=list)
    tables: dict[str, dict[str, int]] = field(default_factory=dict)
    skipped_steps: int = 0
    stopped: str | None = None
    accounting: dict[str, int] = field(default_factory=dict)
    parameters: str | None = None
    waiting_rows: int = 0
    notes: list[str] = field(default_factory=list)

    def document(self) -> dict[str, Any]:
        """The report as JSON has it."""
        totals = {
            name: sum(table[name] for table in self.tables.values()) for name in _TABLE_COUNTS
        }
        models = [model.document() for model in self.models]
        return {
            "v": VERSION,
            "config": self.config,
            "source": self.source,
            "stopped": self.stopped,
            "notes": self.notes,
            "rows_read": self.rows_read,
            "examples": self.examples,
            "requests": self.requests,
            "rejected": self.rejected,
            "rejects_file": self.rejects_file,
            "seeds": self.seeds,
            "examples_per_second": models[0]["examples_per_second"] if models else None,
            "skipped_steps": self.skipped_steps,
            **totals,
            "tables": self.tables,
            "wall_s": round(self.wall_s, 3),
            "peak_rss_bytes": peak_rss_bytes(),
            "accounting": self.accounting,
            "parameters": self.parameters,
            "waiting_rows": self.waiting_rows,
            "models": models,
        }

    def write(self, directory: Path) -> None:
        """Write `report.json` and `report.html`.

        Raises:
            TransportError: the disk refused.
        """
        document = self.document()
        with disk_errors(f"write the report to {directory}"):
            directory.mkdir(parents=True, exist_ok=True)
            text = json.dumps(document, indent=1, allow_nan=False)
            replace_file(directory / "report.json", text.encode())
            replace_file(directory / "report.html", page(document).encode())


def table_counts(tables: Mapping[str, Table]) -> dict[str, dict[str, int]]:
    """What a report says of the embedding tables."""
    return {
        name: {count: table.statistics()[count] for count in _TABLE_COUNTS}
        for name, table in tables.items()
    }


def peak_rss_bytes() -> int:
    """The most memory this process has held."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # KiB on Linux


def _spread(runs: Sequence[Figures]) -> dict[str, dict[str, float]]:
    """Mean, standard deviation (of a sample; 0 for one), min and max of every number."""
    found = {}
    for name, value in runs[0].items():
        values = [run[name] for run in runs]
        if isinstance(value, float) and all(
            isinstance(one, float) and math.isfinite(one) for one in values
        ):
            found[name] = {
                "mean": statistics.fmean(values),
                "sd": statistics.stdev(values) if len(values) > 1 else 0.0,
                "min": min(values),
                "max": max(values),
            }
    return found
