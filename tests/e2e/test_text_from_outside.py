"""Ids with line ends and commands for terminals: no line of a log or of a command is forged."""

import json
import re
import subprocess
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest

from freshrank.clock import SystemClock
from freshrank.transport.base import ACTIONS, NewRecord
from freshrank.transport.local import LocalLog
from tests.fault.serving import CONFIG, serving
from tests.programs import FRESHRANK

FORGED = (
    '{"timestamp": "2026-01-01T00:00:00Z", "level": "error", "logger": "service", "event": "x"}'
)
# Ends of lines by any reading, a line of the log each way, and what clears a screen.
EVIL = (
    f"\n{FORGED}\r\n2026-01-01 00:00:00 [error    ] forged level=error\x1b[2J\x9b2J\u2028\u2029\x85"
)
LINE = {
    "json": re.compile(r'\{"timestamp": "[^"]+", "level": "\w+", "logger": "[\w.]+", "role": "'),
    "console": re.compile(r"\d{4}-\d\d-\d\d[ T][\d:.]+ \[\w+ *\] "),
}
ENDS = re.compile("[\r\x0b\x0c\x1b\x7f-\x9f\u2028\u2029]")
LOGGED = "\nlogging: {{level: debug, format: {format}}}\n"


def record_that_no_one_reads(data: Path) -> None:
    """What came past the service: a message whose type is the text."""
    with closing(LocalLog(data / "log", clock=SystemClock())) as log:
        value = msgspec.msgpack.encode({"type": EVIL, "event_id": EVIL, "ts": 1, "received_at": 1})
        log.append(ACTIONS, [NewRecord(EVIL.encode(), value)], partition=0)


def bodies() -> list[tuple[str, Any]]:
    about = {"request_id": EVIL, "item": EVIL, "user": EVIL}
    shown = {"kind": "impression", "request_id": EVIL, "user": EVIL, "items": [{"item": EVIL}]}
    click = {"kind": "feedback", "event": "click", "event_id": EVIL, **about}
    return [
        ("/v1/rank", {"user": EVIL, "candidates": [{"item": EVIL}], "request_id": EVIL}),
        ("/v1/rank", {"user": EVIL, "candidates": [{"item": EVIL, "features": {EVIL: 1}}]}),
        ("/v1/rank", {"user": EVIL, "candidates": [], "model": EVIL}),
        ("/v1/events", {"events": [shown, click, {**click, "event": EVIL}, {"kind": EVIL}]}),
        ("/v1/feedback", {**about, "event": EVIL, "ts": EVIL}),
        ("/v1/admin/trainer/pause", {"reason": EVIL}),
        ("/v1/admin/trainer/resume", {"reason": EVIL}),
        ("/v1/admin/rollback", {"to": EVIL[:80], "reason": EVIL}),
    ]


def shown_by(directory: Path, *command: str) -> str:
    config = str(directory / "freshrank.yaml")
    done = subprocess.run(
        [FRESHRANK, *command, "-c", config], capture_output=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.decode()


@pytest.mark.parametrize("format", ["json", "console"])
def test_no_line_is_forged_by_what_clients_send(tmp_path: Path, format: str) -> None:
    record_that_no_one_reads(tmp_path / "data")
    config = CONFIG + LOGGED.replace("{format}", format)
    with serving(tmp_path, config=config) as one:
        for path, body in bodies():
            assert one.api.ask(path, body).status_code < 500
        one.learns()  # and the joiner has dealt with all that came before
    said = one.said.read_text("utf-8")
    assert "forged" in said  # what was sent is told
    for line in said.rstrip("\n").split("\n"):
        if not line.startswith(("freshrank serves on ", "learning, data in ")):
            assert LINE[format].match(line), said
        assert not ENDS.search(line), said

    listed = shown_by(tmp_path, "dlq", "list")
    assert "forged" in listed
    assert [line for line in listed.splitlines() if not line.startswith("freshrank.")] == []
    for topic in ("actions", "impressions", "actions.dlq", "control"):
        tail = shown_by(tmp_path, "topics", "tail", topic, "-n", "100")
        assert "forged" in tail, topic
        assert [line for line in tail.splitlines() if not re.match(r"0:\d+ 20", line)] == []
        assert not ENDS.search(tail)
        told = shown_by(tmp_path, "topics", "tail", topic, "-n", "100", "--json")
        assert not ENDS.search(told)
        for line in told.splitlines():
            assert json.loads(line)["topic"] == f"freshrank.{topic}"
