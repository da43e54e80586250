"""`freshrank replay`: what online learning is worth on your own data."""

import contextlib
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Final

from pydantic import TypeAdapter, ValidationError
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from freshrank import config
from freshrank.errors import ConfigError, Error
from freshrank.features import FeatureEncoder
from freshrank.replay import notes
from freshrank.replay.archive import ArchiveOptions, replay_archive
from freshrank.replay.baselines.base import Baseline
from freshrank.replay.loop import Reached, TableReplay, our_row, seeded
from freshrank.replay.pace import Pace
from freshrank.replay.page import minute_text
from freshrank.replay.rejects import Rejects
from freshrank.replay.report import Report
from freshrank.replay.report_text import report_lines
from freshrank.replay.sources import TableFile
from freshrank.replay.table import read_table
from freshrank.settings import Settings
from freshrank.table_encoder import TableEncoder
from freshrank.transport.files import disk_errors
from freshrank.units import Period

_PERIOD: Final[TypeAdapter[timedelta]] = TypeAdapter(Period)
_EVENT_SUFFIXES: Final = (".jsonl", ".ndjson")

Show = Callable[[float, str], None]


@dataclass(frozen=True, slots=True)
class Options:
    """The options of the command, as `freshrank.cli` describes them."""

    seeds: int
    sync_every: tuple[str, ...]
    baselines: tuple[str, ...]
    limit: int | None
    speed: str | None
    sort: bool
    report: Path | None
    rejects: Path | None
    max_rejects: str
    as_json: bool
    archive: ArchiveOptions


def run(source: Path, path: Path, options: Options, *, environ: Mapping[str, str]) -> None:
    """Replay, write the report, and print it.

    Raises:
        ConfigError: the configuration or an option is wrong.
        DataError: the source is empty, breaks off, goes back in time or has too many unfit rows.
            What was read until then has been reported.
        TransportError: the disk refused.
    """
    settings = config.load(path, environ=environ)
    if options.report is not None:  # rather now than after hours
        with disk_errors(f"write the report to {options.report}"):
            options.report.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=options.report).close()
    report = Report(config=path.name, source=source.name)
    broken = None
    if source.is_dir():
        _archive(source, settings, options, report)
    elif options.archive != ArchiveOptions():
        raise ConfigError(
            f"--from, --until, --checkpoint, --save and --allow-gaps are for archives; {source} is "
            "no directory"
        )
    else:
        broken = _file(source, settings, options, report)
        report.notes += notes.of_replay(report, settings)
    if options.report is not None:
        report.write(options.report)
    if options.as_json:
        json.dump(report.document(), sys.stdout, allow_nan=False)
        print()
    else:
        print(*report_lines(report, options.report), sep="\n")
    if broken is not None:
        raise broken


def _file(source: Path, settings: Settings, options: Options, report: Report) -> Error | None:
    default = Path(f"{source.name}.rejects.jsonl")
    if options.report is not None:
        default = options.report / "rejects.jsonl"
    rejects_path = options.rejects or default
    if rejects_path.resolve() == source.resolve():
        raise ConfigError(f"--rejects {rejects_path} is the log itself: name another file")
    with Rejects(rejects_path, share_max=_share(options.max_rejects)) as rejects, _bar() as show:
        replay = _events if _is_events(source) else _table
        broken = replay(source, settings, options, rejects, report, show)
    report.rejected = dict(rejects.counts)
    report.rejects_file = str(rejects_path) if rejects.counts else None
    report.rows_read = rejects.n_read
    return broken


def _archive(source: Path, settings: Settings, options: Options, report: Report) -> None:
    unfit = options.baselines or options.sync_every or options.limit or options.speed
    if unfit or options.sort or options.seeds > 1:
        raise ConfigError(
            f"{source} is a directory, so an archive: it is learned as it was, without --seeds, "
            "--sync-every, --baselines, --limit, --speed and --sort"
        )
    with _bar() as show:
        replay_archive(
            source,
            settings,
            options.archive,
            report,
            lambda share, ts_ms: show(share, f"{report.examples:,} examples  {minute_text(ts_ms)}"),
        )


def _is_events(source: Path) -> bool:
    return (source.stem if source.suffix == ".gz" else source.name).endswith(_EVENT_SUFFIXES)


def _table(
    source: Path, settings: Settings, options: Options, rejects: Rejects, report: Report, show: Show
) -> Error | None:
    file = TableFile(source, settings.replay.format)
    encoder = FeatureEncoder(settings)
    first_seed = settings.trainer.seed
    report.seeds = list(range(first_seed, first_seed + options.seeds))
    replay = TableReplay(
        settings,
        encoder,
        TableEncoder(settings, encoder).encode,
        seeds=report.seeds,
        sync_every=_durations(options.sync_every),
        baselines=_baselines(options.baselines, settings, encoder),
    )

    def progress(reached: Reached) -> None:
        auc = "" if reached.auc is None else f"  AUC {reached.auc:.3f}"
        text = f"{reached.n_examples:,} examples  {minute_text(reached.ts_ms)}{auc}"
        show(file.share_read, text)

    chunks = read_table(file, settings, rejects, sort=options.sort, limit=options.limit)
    return replay.run(chunks, report, pace=Pace(_speed(options.speed)), on_progress=progress)


def _baselines(names: Sequence[str], settings: Settings, encoder: FeatureEncoder) -> list[Baseline]:
    if not names:
        return []
    from freshrank.replay import baselines

    return [baselines.create(name, settings, encoder) for name in names]


def _events(
    source: Path, settings: Settings, options: Options, rejects: Rejects, report: Report, show: Show
) -> Error | None:
    """One pass per seed and cadence: what is served decides what the loop does."""
    from freshrank.replay.events import EventOptions, replay_events

    if options.baselines or options.sort or options.limit:
        raise ConfigError(
            "--baselines, --sort and --limit are for tables of labelled rows, not for events"
        )
    first_seed = settings.trainer.seed
    report.seeds = list(range(first_seed, first_seed + options.seeds))
    cadences = [None, *_durations(options.sync_every)]
    stopped: Error | None = None  # the first run tells; the others read the same
    for n, every in enumerate(cadences):
        runs = []
        for seed in report.seeds:
            is_first = n == 0 and seed == first_seed
            chosen = EventOptions(
                sync_every=every,
                speed=_speed(options.speed),
                on_progress=lambda share, ts_ms: show(share, minute_text(ts_ms)),
            )
            if not is_first:  # the same rejects again, which need no list
                rejects = Rejects(None, share_max=_share(options.max_rejects))
            done = replay_events(source, seeded(settings, seed), rejects, chosen)
            runs.append(done.measures.figures())
            report.wall_s += done.wall_s
            report.skipped_steps += done.skipped_steps
            if is_first:
                report.examples, report.requests = done.measures.n_rows, done.requests
                report.tables, report.accounting = done.tables, done.accounting
                report.stopped = None if done.broken is None else str(done.broken)
                stopped = done.broken
                speed = report.examples / max(done.wall_s, 1e-9)
            if done.accounting_problems:
                stopped = stopped or Error(
                    f"the accounting does not add up: {'; '.join(done.accounting_problems)}"
                )
        report.models.append(our_row(every, runs, speed))
    return stopped


def _durations(texts: Sequence[str]) -> list[timedelta]:
    found = []
    for text in (part for one in texts for part in one.split(",")):
        try:
            found.append(_PERIOD.validate_python(text))
        except ValidationError as error:
            reason = error.errors()[0]["msg"].removeprefix("Value error, ")
            raise ConfigError(f"--sync-every: {reason}") from None
    return found


def _speed(text: str | None) -> float | None:
    return None if text is None else _number(text, "--speed", "10x", 1.0, low=1e-6, high=1e9)


def _share(text: str) -> float:
    return _number(text, "--max-rejects", "1%", 100.0, low=0.0, high=1.0)


def _number(
    text: str, option: str, example: str, divisor: float, *, low: float, high: float
) -> float:
    """The number before the last character of `example`, or alone: 1% is 0.01, as is 0.01."""
    unit = example[-1]
    try:
        value = float(text.removesuffix(unit)) / (divisor if text.endswith(unit) else 1.0)
    except ValueError:
        value = -1.0
    if not low <= value <= high:
        raise ConfigError(f"{option} {text}: write a number such as {example}")
    return value


@contextlib.contextmanager
def _bar() -> Iterator[Show]:
    """A progress bar on a terminal; nothing elsewhere."""
    console = Console(stderr=True)
    columns = (
        BarColumn(bar_width=20),
        TextColumn("{task.percentage:.0f} %"),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("reading", total=1.0)
        yield lambda share, text: progress.update(task, completed=share, description=text)
