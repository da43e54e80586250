"""`freshrank events check`: each kind of mistake in a file of events, once, with its first line."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from freshrank.cli import app

CONFIG = """
features:
  - {name: item_id, type: id, scope: item}
  - {name: hour, type: bucket, scope: context, boundaries: [6, 12]}
tasks: [{name: click, event: click}]
join: {max_out_of_order: 2s}
"""


def impression(request: str, ts: float, *items: str, **fields: Any) -> dict[str, Any]:
    shown = [{"item": item} for item in items]
    return {"kind": "impression", "request_id": request, "ts": ts, "items": shown, **fields}


def click(request: str, ts: float, item: str, **fields: Any) -> dict[str, Any]:
    one = {"kind": "feedback", "request_id": request, "ts": ts, "item": item, "event": "click"}
    return one | fields


GOOD = [
    click("r1", 99.0, "a"),  # before its impression: the joiner waits for it
    impression("r1", 100.0, "a", "b", context={"hour": 7}),
    {"kind": "item", "item": "a", "features": {}},
    click("r1", 98.5, "b", event_id="e1"),
]


def check(directory: Path, *arguments: str) -> tuple[int, str]:
    (directory / "freshrank.yaml").write_text(CONFIG)
    command = [
        "events",
        "check",
        str(directory / "events"),
        "-c",
        str(directory / "freshrank.yaml"),
    ]
    done = CliRunner().invoke(app, [*command, *arguments])
    return done.exit_code, done.stdout


def write(directory: Path, *events: object) -> None:
    (directory / "events").write_text("\n".join(map(json.dumps, events)))


def test_a_good_file_passes_compressed_or_not(tmp_path: Path) -> None:
    write(tmp_path, *GOOD)
    assert check(tmp_path, "--json") == (0, '{"events": 4, "problems": []}\n')
    (tmp_path / "events").write_bytes(gzip.compress((tmp_path / "events").read_bytes()))
    code, text = check(tmp_path)
    assert (code, text.rpartition("events: ")[2]) == (0, "4 events, 0 problems\n")


BAD: list[tuple[dict[str, Any], str, str]] = [
    (click("r1", 100.0, "a", event="clik"), "unknown-event", "did you mean 'click'"),
    (click("r1", 1e11, "a"), "future", "ts lies"),
    (click("r1", 100.0, "a", value="1"), "schema", "Expected `float`"),
    (impression("r2", 100.0, "c", context={"houre": 1}), "bad-value", "did you mean 'hour'"),
    (click("r1", 97.5, "a"), "out-of-order", "2.500 s behind an earlier line"),
    (click("r1", 100.0, "b", event_id="e1"), "duplicate", "event_id 'e1' stood before"),
    (click("r9", 100.0, "a"), "unmatched", "no impression of request 'r9'"),
    (click("r1", 100.0, "z"), "not-shown", "item 'z' was not shown in request 'r1'"),
]


@pytest.mark.parametrize(("event", "reason", "detail"), BAD, ids=[reason for _, reason, _ in BAD])
def test_what_the_service_refuses_or_the_joiner_cannot_use_is_told(
    tmp_path: Path, event: dict[str, Any], reason: str, detail: str
) -> None:
    write(tmp_path, *GOOD, event, {**event, "event_id": "other"})
    code, text = check(tmp_path, "--json")
    [problem, *others] = json.loads(text)["problems"]
    assert (code, problem["reason"], problem["line"]) == (1, reason, 5)
    assert detail in problem["detail"]
    assert others == []
    assert problem["events"] == (1 if reason == "duplicate" else 2)


def test_all_kinds_are_told_at_once_with_their_first_lines(tmp_path: Path) -> None:
    write(tmp_path, *GOOD, *[event for event, *_ in BAD], *[event for event, *_ in BAD])
    with (tmp_path / "events").open("a") as file:
        file.write("\n{")
    code, text = check(tmp_path)
    lines = text.replace(str(tmp_path), "").splitlines()
    found = {line.split()[1]: line.split(":")[1] for line in lines[:-1]}
    assert found == {reason: str(i) for i, (_, reason, _) in enumerate(BAD, start=5)} | {
        "malformed-json": "21",
        "duplicate": "10",
    }
    assert code == 1


def test_feedback_alone_belongs_to_what_the_service_ranked(tmp_path: Path) -> None:
    write(tmp_path, click("r1", 100.0, "a"))
    assert check(tmp_path)[0] == 0
