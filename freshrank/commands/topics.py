"""`freshrank topics`: make those of a log on Kafka, look into those of any log."""

import contextlib
import json
from collections.abc import Iterator, Mapping
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
from freshrank.transport.base import EXAMPLES, EventLog, Record, TopicPartition

_READ_RECORDS_MAX: Final = 1_000
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
    """Print records of a topic; the options are those of `freshrank.cli`.

    Raises:
        ConfigError: the configuration is wrong.
        TransportError: no such topic or partition, or the log cannot be read.
    """
    settings = config.load(path, environ=environ)
    topic = topic if topic.startswith(_PREFIX) else _PREFIX + topic
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
                typer.echo(_json(record) if as_json else _line(record))
            if not follow:
                return
            log.wait(positions, timeout_s=_LOOK_S)


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
