"""`freshrank train`: the trainer of a configuration, and on a local log its joiners."""

import json
import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

from freshrank import accounting, config, log_lines
from freshrank.commands.serving import metrics_served, stopped_by_signal
from freshrank.commands.train_kafka import Standby
from freshrank.embedded import Embedded, check_can_learn
from freshrank.errors import DataError, SyncError, TransportError
from freshrank.garbage import spare_program
from freshrank.messages import Tick, decode
from freshrank.settings import Settings
from freshrank.transport.base import ACTIONS, IMPRESSIONS

if TYPE_CHECKING:
    from trainer.loop import Trainer
    from trainer.reader import ExampleReader

logger = logging.getLogger(__name__)

# Short beside a second, in which people want to see something move, and costs nothing.
_LOOK_S: Final = 0.2
_TELL_S: Final = 2.0
# Beyond so many records nobody minds whether some are ticks.
_COUNTED_MAX: Final = 1_000

Summary = dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Run:
    """What the options ask for."""

    stop: threading.Event
    history: Path | None
    allow_gaps: bool
    until_lag: int | None
    is_quiet: bool


def run(
    path: Path,
    *,
    history: Path | None,
    allow_gaps: bool,
    until_lag: int | None,
    as_json: bool,
    environ: Mapping[str, str],
) -> None:
    """Learn; the options are those of `freshrank.cli_roles`.

    Raises:
        ConfigError: the configuration is wrong, or the extra `train` or `kafka` is not installed.
        DataError: the history is no archive, damaged or has a gap.
        SchemaError: history, examples or checkpoint are of another configuration.
        TransportError: another process has the data directory, or has taken over (`lease-lost`);
            the log cannot be reached, is another one (`log-replaced`) or has lost what was not
            learned (`offset-removed`); `metrics.port` is taken (`port-taken`).
    """
    settings = config.load(path, environ=environ)
    log_lines.configure(settings.logging, role="train")
    check_can_learn()
    learn = _learn_from_kafka if settings.log.kind == "kafka" else _learn_locally
    with stopped_by_signal() as stop:
        began_s = time.monotonic()
        try:
            summary = learn(settings, _Run(stop, history, allow_gaps, until_lag, as_json))
        except SyncError as error:  # what comes late from a trainer that was replaced
            raise TransportError(str(error), code="lease-lost") from error
        summary["seconds"] = round(time.monotonic() - began_s, 3)
    if as_json:
        print(json.dumps(summary))
    else:
        print(
            "saved a checkpoint: {history:,} rows of history, {stream:,} of the stream, "
            "{seconds:.1f} s".format_map(summary)
        )


def _learn_locally(settings: Settings, run: _Run) -> Summary:
    loop = Embedded(
        settings, learn=True, serve=False, history=run.history, allow_gaps=run.allow_gaps
    )
    before = _rows(loop)
    is_done = False
    try:
        with metrics_served(settings, loop.readings):
            loop.start()
            is_done = _follow(
                run,
                has_failed=lambda: bool(loop.failures),
                lag=lambda: _lag(loop),
                summary=lambda: _summary(_rows(loop) - before, _reader(loop).n_history_rows),
            )
    finally:
        loop.close(drain=is_done)
    if loop.failures:
        raise loop.failures[0]
    return _summary(_rows(loop) - before, _reader(loop).n_history_rows)


def _learn_from_kafka(settings: Settings, run: _Run) -> Summary:
    standby = Standby(settings, history=run.history, allow_gaps=run.allow_gaps)
    is_done = False
    try:
        with metrics_served(settings, standby.readings):
            if not run.is_quiet:
                logger.info("trainer=standby waits=lease")
            while not run.stop.is_set() and not standby.wait(_LOOK_S):
                pass
            if not run.stop.is_set():
                is_done = _follow(
                    run,
                    has_failed=lambda: standby.failure is not None,
                    lag=standby.lag,
                    summary=lambda: _summary(standby.n_learned, standby.n_history),
                )
    finally:
        standby.close(drain=is_done)
    if standby.failure is not None:
        raise standby.failure
    return _summary(standby.n_learned, standby.n_history)


def _follow(
    run: _Run,
    *,
    has_failed: Callable[[], bool],
    lag: Callable[[], int | None],
    summary: Callable[[], Summary],
) -> bool:
    """Until told to stop, or a worker failed: False. Until the lag is small: True."""
    spare_program()
    told_s = time.monotonic()
    while not run.stop.wait(_LOOK_S) and not has_failed():
        n_behind = None if run.until_lag is None else lag()
        if n_behind is not None and run.until_lag is not None and n_behind <= run.until_lag:
            return True
        if not run.is_quiet and time.monotonic() - told_s >= _TELL_S:
            told_s = time.monotonic()
            n_behind = lag()
            told = summary()
            logger.info(
                "trainer=learning history=%d stream=%d lag=%s",
                *(told["history"], told["stream"], "unknown" if n_behind is None else n_behind),
            )
    return False


def _reader(loop: Embedded) -> "ExampleReader":
    return cast("Trainer", loop.trainer).reader  # a loop that learns has one


def _rows(loop: Embedded) -> int:
    return loop.accounting().get("rows_learned", 0)


def _summary(n_rows: int, n_history: int) -> Summary:
    n_history = min(n_rows, n_history)  # it comes first
    return {"history": n_history, "stream": n_rows - n_history}


def _lag(loop: Embedded) -> int:
    """What is not learned yet: input and example records, parked actions, items still open."""
    n_inputs = sum(
        _n_undecided(loop, topic, partition)
        for topic in (IMPRESSIONS, ACTIONS)
        for partition in range(loop.log.n_partitions(topic))
    )
    n_open = accounting.n_open(loop.accounting(), loop.settings)
    return n_inputs + n_open + _reader(loop).n_behind()


def _n_undecided(loop: Embedded, topic: str, partition: int) -> int:
    """Records that the joiner has not decided; ticks, which bring nothing, left out."""
    offset = max(
        loop.progress.offset("joined", topic, partition), loop.log.start_offset(topic, partition)
    )
    n_records = loop.log.end_offset(topic, partition) - offset
    if n_records > _COUNTED_MAX:
        return n_records
    records = loop.log.read(topic, partition, offset, n_max=_COUNTED_MAX)
    return sum(not _is_tick(record.value) for record in records)


def _is_tick(value: bytes) -> bool:
    try:
        return isinstance(decode(value), Tick)
    except DataError:
        return False
