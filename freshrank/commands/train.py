"""`freshrank train`: joiner and trainer of a configuration, without the HTTP service."""

import json
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final, cast

from freshrank import accounting, config
from freshrank.commands.serving import stopped_by_signal
from freshrank.embedded import Embedded
from freshrank.errors import DataError
from freshrank.messages import Tick, decode
from freshrank.transport.base import ACTIONS, IMPRESSIONS

if TYPE_CHECKING:
    from trainer.loop import Trainer
    from trainer.reader import ExampleReader

# Short beside a second, in which people want to see something move, and costs nothing.
_LOOK_S: Final = 0.2
_TELL_S: Final = 2.0
# Beyond so many records nobody minds whether some are ticks.
_COUNTED_MAX: Final = 1_000


def run(
    path: Path,
    *,
    history: Path | None,
    allow_gaps: bool,
    until_lag: int | None,
    as_json: bool,
    environ: Mapping[str, str],
) -> None:
    """Learn; the options are those of `freshrank.cli`.

    Raises:
        ConfigError: the configuration is wrong, or the extra `train` is not installed.
        DataError: the history is no archive, damaged or has a gap.
        SchemaError: history, examples or checkpoint are of another configuration.
        TransportError: another process has the data directory.
    """
    settings = config.load(path, environ=environ)
    with stopped_by_signal() as stop:
        began_s = time.monotonic()
        loop = Embedded(settings, learn=True, serve=False, history=history, allow_gaps=allow_gaps)
        before = _rows(loop)
        is_done = False
        loop.start()
        try:
            is_done = _follow(loop, stop, until_lag, before, is_quiet=as_json)
        finally:
            loop.close(drain=is_done)
    if loop.failures:
        raise loop.failures[0]
    summary = _summary(loop, before) | {"seconds": round(time.monotonic() - began_s, 3)}
    if as_json:
        print(json.dumps(summary))
    else:
        print(
            "saved a checkpoint: {history:,} rows of history, {stream:,} of the stream, "
            "{seconds:.1f} s".format_map(summary)
        )


def _follow(
    loop: Embedded, stop: threading.Event, until_lag: int | None, before: int, *, is_quiet: bool
) -> bool:
    """Until told to stop, or a worker failed: False. Until the lag is small: True."""
    told_s = time.monotonic()
    while not stop.wait(_LOOK_S) and not loop.failures:
        if until_lag is not None and _lag(loop) <= until_lag:
            return True
        if not is_quiet and time.monotonic() - told_s >= _TELL_S:
            told_s = time.monotonic()
            line = "{history:,} rows of history, {stream:,} of the stream, lag {lag:,}"
            print(line.format_map(_summary(loop, before) | {"lag": _lag(loop)}), file=sys.stderr)
    return False


def _reader(loop: Embedded) -> "ExampleReader":
    return cast("Trainer", loop.trainer).reader  # a loop that learns has one


def _rows(loop: Embedded) -> int:
    return loop.accounting().get("rows_learned", 0)


def _summary(loop: Embedded, before: int) -> dict[str, float]:
    n_rows = _rows(loop) - before
    n_history = min(n_rows, _reader(loop).n_history_rows)  # it comes first
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
