"""Builds archives for tests."""

from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path

import numpy as np

from freshrank.examples import ExampleBatch
from freshrank.settings import ArchiveSettings, Settings
from tests.unit.trainer.example_records import NOW_MS, Bench, random_batch
from trainer.archive import Archiver
from trainer.archive_reader import Archive

HOUR_MS = 3_600_000


def at(batch: ExampleBatch, watermark_ms: int) -> ExampleBatch:
    """The batch, written when the joiner's watermark stood there."""
    return replace(batch, info=replace(batch.info, watermark_ms=watermark_ms))


def record_hours(bench: Bench, *, n_records: int = 12, n_rows: int = 10, seed: int = 0) -> None:
    """Append records, three to an hour; each also says how far the joiner has decided."""
    rng = np.random.default_rng(seed)
    for n in range(n_records):
        time_ms = NOW_MS + n * HOUR_MS // 3
        offsets = {"freshrank.actions:0": n + 1}
        batch = random_batch(bench.encoder, rng, n_rows, ts_ms=time_ms, offsets=offsets)
        bench.append(at(batch, time_ms))


def archiver(
    bench: Bench,
    directory: Path,
    *,
    wanted: Callable[[], Collection[int]] | None = None,
    **settings: object,
) -> Archiver:
    """An archiver of the bench's log."""
    parsed = ArchiveSettings.model_validate({"dir": directory, **settings})
    return Archiver(parsed, bench.log, bench.clock, wanted=wanted)


def archived(bench: Bench, directory: Path) -> Path:
    """All that stands in the bench's log, archived."""
    archiver(bench, directory).close()
    return directory


def opened(bench: Bench, directory: Path, **options: object) -> Archive:
    """The archive, for the bench's configuration."""
    settings: Settings = bench.settings
    return Archive(directory, settings, bench.encoder, **options)  # type: ignore[arg-type]
