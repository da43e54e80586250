"""`freshrank topics`: make those of a log on Kafka, look into any log, replay a recorded one."""

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import msgspec
import typer

from freshrank import config
from freshrank.clock import SystemClock
from freshrank.commands.serving import stopped_by_signal
from freshrank.errors import DataError
from freshrank.logs import cluster, open_log, topic_plan
from freshrank.printable import printable
from freshrank.transport.base import EXAMPLES, EventLog, NewRecord, Record, TopicPartition
from freshrank.transport.local import LocalLog

_READ_RECORDS_MAX: Final = 1_000
_REPLAY_BYTES_MAX: Final = 8 << 20  # a quarter of what may be under way to Kafka
_LOOK_S: Final = 0.5
_PREFIX: Final = "freshrank."


def create(path: Path, *, environ: Mapping[str, str], as_json: bool) -> None:
    """Make the topics that are missing, and say where the others are not as configured.

    Raises:
        ConfigError: the log is not on Kafka, or the configuration is wrong.
        TransportError: the cluster cannot be reached, or topics have other partitions.
    """
    settings = config.load(path, environ=environ)
    where, plan = cluster(settings.log), topic_plan(settings.log)
    from freshrank.transport import kafka_topics

    with where.admin() as admin:
        made = kafka_topics.create(admin, where, plan)
        differences = kafka_topics.differences(admin, where, plan)
    if as_json:
        report = {"made": made, "differences": [asdict(one) for one in differences]}
        typer.echo(json.dumps(report))
    else:
        typer.echo(f"made {', '.join(map(where.name, made)) or 'none: all topics are there'}")
        for difference in differences:
            typer.echo(f"{where.prefix}{difference}; change it with Kafka's own tools")
    if differences:
        raise typer.Exit(1)


def tail(
    path: Path,
    topic: str,
    *,
    partition: int | None,
    last: int,
    offset: int | None,
    follow: bool,
    as_json: bool,
    environ: Mapping[str, str],
) -> None:
    """Print records of a topic; the options are those of `freshrank.cli_groups`.

    Raises:
        ConfigError: the configuration is wrong.
        TransportError: no such topic or partition, or the log cannot be read.
    """
    settings = config.load(path, environ=environ)
    topic = full_name(topic)
    with (
        stopped_by_signal() as stop,
        contextlib.closing(open_log(settings, SystemClock(), writable=False)) as log,
    ):
        n_partitions = log.n_partitions(topic)
        positions = {}
        for one in range(n_partitions) if partition is None else [partition]:
            start, end = log.start_offset(topic, one), log.end_offset(topic, one)
            first = end - last if offset is None else offset
            positions[TopicPartition(topic, one)] = min(max(first, start), end)
        while not stop.is_set():
            for record in _read(log, positions):
                typer.echo(printable(_json(record) if as_json else _line(record)))
            if not follow:
                return
            log.wait(positions, timeout_s=_LOOK_S)


def replay(
    source: Path,
    path: Path,
    topics: Sequence[str],
    *,
    environ: Mapping[str, str],
    as_json: bool,
) -> None:
    """Append what a local log recorded to the log of the configuration, as it stands.

    Args:
        source: Directory of the local log.
        path: The configuration.
        topics: Which; in this order, each partition into the one of the same number.
        environ: Environment variables that override the configuration.
        as_json: Print one object instead of text.

    Raises:
        ConfigError: the configuration is wrong.
        TransportError: there is no such log or topic, the partitions differ, or the other log
            does not take the records: it has those of the topics before, and some of this one.
    """
    settings = config.load(path, environ=environ)
    clock = SystemClock()
    n_partitions = settings.log.partitions
    recorded = LocalLog(source, clock=clock, n_partitions=n_partitions, writable=False)
    with (
        contextlib.closing(recorded),
        contextlib.closing(open_log(settings, clock)) as log,
    ):
        n_records = {
            topic: sum(
                _copy(recorded, log, TopicPartition(topic, partition))
                for partition in range(log.n_partitions(topic))
            )
            for topic in map(full_name, topics)
        }
    if as_json:
        typer.echo(json.dumps({"records": n_records}))
    else:
        for topic, n in n_records.items():
            typer.echo(f"{topic}: {n:,} records")


def _copy(source: EventLog, target: EventLog, place: TopicPartition) -> int:
    n_records, offset = 0, source.start_offset(*place)
    while records := source.read(*place, offset, bytes_max=_REPLAY_BYTES_MAX):
        new = [NewRecord(record.key, record.value) for record in records]
        target.append(place.topic, new, partition=place.partition)
        n_records += len(new)
        offset = records[-1].offset + 1
    return n_records


def full_name(topic: str) -> str:
    """The topic by its whole name: `actions` is `freshrank.actions`."""
    return topic if topic.startswith(_PREFIX) else _PREFIX + topic


def _read(log: EventLog, positions: dict[TopicPartition, int]) -> Iterator[Record]:
    """Every record up to the end; the positions move along."""
    for place in positions:
        while records := log.read(*place, positions[place], n_max=_READ_RECORDS_MAX):
            yield from records
            positions[place] = records[-1].offset + 1


def _json(record: Record) -> str:
    fields = {name: getattr(record, name) for name in ("topic", "partition", "offset")}
    fields |= {"appended_at_ms": record.appended_at_ms, "key": _text(record.key)}
    return msgspec.json.encode(fields | {"message": _message(record)}).decode()


def _line(record: Record) -> str:
    at = datetime.fromtimestamp(record.appended_at_ms / 1_000, UTC).isoformat(
        timespec="milliseconds"
    )
    message = msgspec.json.encode(_message(record)).decode()
    return f"{record.partition}:{record.offset} {at} {_text(record.key)} {message}"


def _text(key: bytes) -> str:
    return key.decode("utf-8", "backslashreplace")


def _message(record: Record) -> Any:
    """The value for people: a message as it is, of an example batch what it holds."""
    try:
        if record.topic == EXAMPLES:
            from freshrank.examples import unpack

            rows, info = unpack(record.value)
            return {"rows": rows.num_rows, "columns": rows.schema.names, "info": asdict(info)}
        return msgspec.msgpack.decode(record.value)
    except (DataError, ValueError, RecursionError) as error:
        return {"unreadable": str(error), "bytes": len(record.value)}
