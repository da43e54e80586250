"""Replays raw events, as `POST /v1/events` takes them, through the whole loop."""

import contextlib
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

from freshrank import accounting
from freshrank.clock import Clock, SystemClock
from freshrank.errors import DataError
from freshrank.replay.event_file import EventFile
from freshrank.replay.fast_forward import FastForward
from freshrank.replay.measures import Measures
from freshrank.replay.pace import Pace
from freshrank.replay.rejects import Rejects
from freshrank.replay.report import table_counts
from freshrank.replay.served import ServedRows
from freshrank.settings import Settings


@dataclass(frozen=True, slots=True)
class EventOptions:
    """How events are replayed.

    Attributes:
        sync_every: Score with parameters that are taken over this often in event time; None takes
            them over after every slice (`FastForward`).
        speed: Event time per time, 1 as it happened; None as fast as it goes.
        data_dir: Keeps log, joiner state, parameters and checkpoint; None forgets them.
        clock: Its time is now: what lies more than five minutes after it is refused.
        on_progress: Told the share of the file read and the newest event time, often.
    """

    sync_every: timedelta | None = None
    speed: float | None = None
    data_dir: Path | None = None
    clock: Clock = field(default_factory=SystemClock)
    on_progress: Callable[[float, int], None] | None = None


@dataclass(frozen=True, slots=True)
class EventsReplay:
    """What a replay of events came to.

    Attributes:
        measures: Rows as they were scored at their impression, with the label they had in the end.
        rows_read: Lines: `received` of the accounting, accepted and rejected.
        requests: Impressions scored.
        accounting: Totals of joiner and trainer, and of the lines; `out_of_order` of them were
            further behind the newest event than `join.max_out_of_order`.
        accounting_problems: Sums that do not hold; empty when every event is accounted for.
        tables: As in the report.
        skipped_steps: Steps whose loss or gradient was not finite.
        broken: Why the file was not read to its end; None if it was.
        wall_s: Seconds it took.
    """

    measures: Measures
    rows_read: int
    requests: int
    accounting: dict[str, int]
    accounting_problems: list[str]
    tables: dict[str, dict[str, int]]
    skipped_steps: int
    broken: DataError | None
    wall_s: float


def replay_events(
    path: Path, settings: Settings, rejects: Rejects, options: EventOptions | None = None
) -> EventsReplay:
    """Replay a file of events, a JSON object per line, sorted by `ts`; gzip is taken as well.

    Args:
        path: The file.
        settings: The configuration.
        rejects: Told of every line that cannot be used.
        options: How.

    Raises:
        ConfigError: the extra `train` is missing, or `data_dir` has a log already.
        DataError: the file cannot be opened (code `no-file`) or holds no event (`empty`).
        TransportError: the disk refused.
    """
    options = options or EventOptions()
    began_s = time.perf_counter()
    measures = Measures([t.name for t in settings.tasks], [t.loss for t in settings.tasks])
    served = ServedRows(settings, measures)
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(EventFile(path, line_bytes_max=settings.limits.body))
        directory = options.data_dir
        if directory is None:
            temporary = tempfile.TemporaryDirectory(prefix="freshrank-replay-")
            directory = Path(stack.enter_context(temporary))
        forward = FastForward(
            settings,
            directory,
            is_kept=options.data_dir is not None,
            served=served,
            sync_every=options.sync_every,
            now_ms=options.clock.now_ms(),
        )
        stack.enter_context(forward)
        broken = None
        try:
            _read(file, forward, rejects, options)
        except DataError as error:
            if not forward.accepted:
                raise
            broken = error
        forward.finish()
        totals = {
            **forward.loop.accounting(),
            "received": file.n_lines,
            "accepted": forward.accepted.total(),
            "rejected": rejects.counts.total(),
            "out_of_order": forward.out_of_order.total(),
        }
        return EventsReplay(
            measures=measures,
            rows_read=file.n_lines,
            requests=served.n_requests,
            accounting=totals,
            accounting_problems=accounting.problems(totals, settings),
            tables=table_counts(forward.learner.sparse.tables),
            skipped_steps=totals.get("nonfinite_steps", 0),
            broken=broken,
            wall_s=time.perf_counter() - began_s,
        )


def _read(file: EventFile, forward: FastForward, rejects: Rejects, options: EventOptions) -> None:
    pace = Pace(options.speed)
    for number, line in file.lines():
        is_slice_end = False
        with rejects.taking(number, line):
            is_slice_end = forward.take(file.event(line))
        if is_slice_end:
            _check(forward, rejects)
            pace.wait(forward.newest_ms)
            if options.on_progress is not None:
                options.on_progress(file.share, forward.newest_ms)
    if not forward.accepted:
        rejects.check(at_end=True)
        reason = file.stopped or (
            f"none of its {file.n_lines} lines is an event" if file.n_lines else "it is empty"
        )
        raise DataError(
            f"there is nothing to replay in {file.path}: {reason}. Each line must be one event as "
            "POST /v1/events takes them, with its ts",
            code="empty",
        )
    if file.stopped is not None:
        raise DataError(file.stopped, code="broken-file")
    _check(forward, rejects, at_end=True)


def _check(forward: FastForward, rejects: Rejects, *, at_end: bool = False) -> None:
    """Hold that no larger share of the events than allowed is unfit, or out of order."""
    rejects.check(at_end=at_end)
    if (n := forward.out_of_order.total()) > rejects.n_allowed(at_end=at_end):
        raise DataError(
            f"{n:,} of {rejects.n_read:,} events lie further behind the newest before them than "
            "join.max_out_of_order allows: sort the file by ts. --max-rejects says how many may",
            code="unsorted",
        )
