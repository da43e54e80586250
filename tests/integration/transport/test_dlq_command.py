"""`freshrank dlq`: refused records are shown with their reasons, and put back once."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from freshrank import config
from freshrank.clock import SystemClock
from freshrank.logs import open_log
from freshrank.messages import Action, encode
from freshrank.transport.base import (
    ACTIONS,
    DEAD_LETTER_SUFFIX,
    EXAMPLES,
    EventLog,
    NewRecord,
    Record,
)
from tests.integration.transport.log_checks import read_all
from tests.programs import ended
from tests.servers import NewCluster
from trainer.dead_letters import dead_letter

FEATURES = """
features: [{name: item_id, type: id, scope: item}]
tasks: [{name: click, event: click}]
"""
KINDS = ("local", "kafka")


@pytest.fixture(params=KINDS)
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A configuration with an empty log of two partitions."""
    log = "kind: local, fsync: never"
    if request.param == "kafka":
        new_cluster: NewCluster = request.getfixturevalue("new_cluster")
        cluster = new_cluster(2)
        log = f"kind: kafka, brokers: {json.dumps(cluster.brokers)}, prefix: {cluster.prefix}"
    path = tmp_path / "freshrank.yaml"
    path.write_text(f"service: {{data_dir: {tmp_path}}}\nlog: {{{log}, partitions: 2}}{FEATURES}")
    return path


@pytest.fixture
def opened(path: Path) -> Callable[[], closing[EventLog]]:
    return lambda: closing(open_log(config.load(path, environ={}), SystemClock()))


def dlq(path: Path, *arguments: object) -> Iterator[dict[str, Any]]:
    """What a command prints as JSON."""
    program = [sys.executable, "-c", "from freshrank.cli import main; main()"]
    done = ended(*program, "dlq", *arguments, "-c", path, "--json")
    return map(json.loads, done.stdout.splitlines())


def action(event_id: str) -> bytes:
    head = {"ts_ms": 1, "received_at_ms": 1, "request_id": "r1", "item": "i1", "event": "click"}
    return encode(Action(event_id=event_id, **head))  # type: ignore[arg-type]


def refuse(log: EventLog, record: Record, code: str, value: bytes | None = None) -> None:
    """As joiner and trainer do."""
    letter = dead_letter(
        record, code, f"because of {code}", record.value if value is None else value
    )
    log.append(
        record.topic + DEAD_LETTER_SUFFIX, [NewRecord(b"", letter)], partition=record.partition
    )


def test_letters_are_told_and_put_back_once_and_a_second_failure_is_seen(
    path: Path, opened: Callable[[], closing[EventLog]]
) -> None:
    newer = action("newer").replace(b"\xa1v\x01", b"\xa1v\x63")
    with opened() as log:
        values = [NewRecord(b"r1", value) for value in (action("a"), newer, action("large"))]
        log.append(ACTIONS, values, partition=1)
        first, second, third = read_all(log, ACTIONS, 1)
        refuse(log, first, "unknown-event")
        refuse(log, second, "newer-version")
        refuse(log, third, "unknown-event", value=b"")  # too large for a letter
        rows = Record(EXAMPLES, 0, 7, b"", b"", 0)
        refuse(log, rows, "non-finite")  # the rest of its record was learned
    told = list(dlq(path, "list"))
    assert [(one["topic"], one["partition"], one["offset"], one["reason"]) for one in told] == [
        (ACTIONS, 1, first.offset, "unknown-event"),
        (ACTIONS, 1, second.offset, "newer-version"),
        (ACTIONS, 1, third.offset, "unknown-event"),
        (EXAMPLES, 0, 7, "non-finite"),
    ]
    assert told[1]["bytes"] == len(newer)
    assert told[1]["detail"] == "because of newer-version"
    assert {(one["attempt"], one["replayed"]) for one in told} == {(1, False)}
    [offset] = [one["letter_offset"] for one in dlq(path, "list", "--reason", "newer-version")]

    nothing = {"put_back_before": 0, "lost": 0, "left": 0, "dry_run": False}
    [dry] = dlq(path, "replay", "--dry-run", "--limit", 2)
    assert dry == nothing | {"put_back": 2, "left": 2, "dry_run": True}
    choice = ("--topic", "actions", "--partition", 1, "--offset", offset)
    [done] = dlq(path, "replay", *choice)
    assert done == nothing | {"put_back": 1}
    [done] = dlq(path, "replay")
    assert done == nothing | {"put_back": 2, "put_back_before": 1, "lost": 1}
    [done] = dlq(path, "replay")
    assert done == nothing | {"put_back": 0, "put_back_before": 3, "lost": 1}

    with opened() as log:
        records = read_all(log, ACTIONS, 1)
        assert [one.value for one in records[3:]] == [newer, first.value, third.value]
        assert {one.key for one in records[4:]} == {b"r1"}
        refuse(log, records[3], "newer-version")  # it fails again
    again = list(dlq(path, "list", "--reason", "newer-version"))
    assert [(one["attempt"], one["replayed"]) for one in again] == [(1, True), (2, False)]
    assert again[1]["offset"] == records[3].offset


def test_what_is_no_letter_is_shown_and_left(
    path: Path, opened: Callable[[], closing[EventLog]]
) -> None:
    with opened() as log:
        log.append(ACTIONS + DEAD_LETTER_SUFFIX, [NewRecord(b"", b"\xc1")], partition=0)
    [told] = dlq(path, "list", "-n", 5)
    assert told["reason"] == "unreadable"
    [done] = dlq(path, "replay")
    assert (done["put_back"], done["lost"]) == (0, 1)
