"""Log lines: one JSON object each, or for people; fields by the template; nothing of users."""

import ast
import io
import json
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import pytest
from structlog.contextvars import bound_contextvars

from freshrank.log_lines import fields, handler
from freshrank.logging_settings import LoggingSettings

ROOT = Path(__file__).parents[2]
LEVELS = ("debug", "info", "warning", "error", "exception", "critical")
OF_EVERY_LINE = {"timestamp", "level", "logger", "role", "event", "exception"}


@contextmanager
def written(
    name: str = "freshrank.worker", stream: TextIO | None = None, **settings: str
) -> Iterator[tuple[logging.Logger, TextIO]]:
    """A logger whose lines go to a stream and nowhere else."""
    stream = stream or io.StringIO()
    logger = logging.getLogger(name)
    made = handler(LoggingSettings.model_validate(settings), role="train", stream=stream)
    logger.addHandler(made)
    before = logger.level, logger.propagate
    logger.propagate = False
    logger.setLevel(logging.DEBUG)
    try:
        yield logger, stream
    finally:
        logger.removeHandler(made)
        logger.setLevel(before[0])
        logger.propagate = before[1]


def lines(stream: TextIO) -> list[dict[str, Any]]:
    assert isinstance(stream, io.StringIO)
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_line_is_an_object_with_the_fields_of_its_template() -> None:
    with written() as (logger, stream), bound_contextvars(http_request_id="h1"):
        logger.warning("step=refused rows=%d of=%.1f error=%s", 3, 2.5, ValueError('a "b"\nc'))
    [line] = lines(stream)
    assert list(line)[:5] == ["timestamp", "level", "logger", "role", "event"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:.]+Z", line.pop("timestamp"))
    assert line == {
        "level": "warning",
        "logger": "freshrank.worker",
        "role": "train",
        "event": "step=refused",
        "rows": 3,
        "of": 2.5,
        "error": 'a "b"\nc',
        "http_request_id": "h1",
    }


def test_what_is_no_word_of_its_own_stays_in_the_event() -> None:
    assert fields("gap=%d..%d of %s, 100%% lost n=%d", (3, 5, "log", 7)) == (
        "gap=3..5 of log, 100% lost",
        {"n": 7},
    )
    # A value that looks like a field is none.
    assert fields("audience=away error=%s", ("x=1 y=2",)) == ("audience=away", {"error": "x=1 y=2"})


def test_a_line_of_fields_alone_has_them_as_its_event_too() -> None:
    with written() as (logger, stream):
        logger.warning("lease=%s", "revoked")
    assert {"event": "lease=revoked", "lease": "revoked"}.items() <= lines(stream)[0].items()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None, 1 << 70, object])
def test_every_value_makes_a_line_of_json(value: object) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    with written() as (logger, stream):
        logger.info("value=%s", value)
    assert isinstance(stream, io.StringIO)
    json.loads(stream.getvalue(), parse_constant=refuse)


def test_lines_of_other_libraries_are_as_they_said_them() -> None:
    with written("kafka.net.manager") as (logger, stream):
        logger.warning("<node=%s host=%s> failed", 1, "broker")
        logger.warning("%(a)s", {"a": "named"})
    assert [line["event"] for line in lines(stream)] == ["<node=1 host=broker> failed", "named"]


@pytest.mark.parametrize("format", ["json", "console"])
def test_a_stack_is_one_line_or_a_block_without_the_values_of_variables(format: str) -> None:
    def fails(user: str) -> None:
        raise KeyError(len(user))

    with written(format=format) as (logger, stream):
        try:
            fails("private-person")
        except KeyError:
            logger.exception("request=failed")
    assert isinstance(stream, io.StringIO)
    text = stream.getvalue()
    assert "KeyError: 14" in text
    assert "in fails" in text
    assert "private-person" not in re.sub(r'fails\("private-person"\)', "", text.replace("\\", ""))
    if format == "json":
        assert "Traceback" in lines(stream)[0]["exception"]


EVIL = "a\n2026-01-01 00:00:00 [error    ] forged level=error\r\x1b[2J\x9b2J\u2028\u2029\x85\u202e"


@pytest.mark.parametrize("text", [EVIL, EVIL.replace(" ", ""), "\x1b[2J", "\u2028"])
@pytest.mark.parametrize("format", ["json", "console"])
def test_no_value_and_no_stack_forges_a_line(format: str, text: str) -> None:
    with written(format=format) as (logger, stream), bound_contextvars(http_request_id=text):
        logger.warning("step=refused error=%s", text)  # a field
        logger.warning("partition failed: %s", text)  # within the event
        try:
            raise ValueError(text)
        except ValueError:
            logger.exception("request=failed http_request_id=%s", text)
    with written("kafka.client", stream, format=format) as (logger, _):
        logger.warning("%s of another library", text)
    assert isinstance(stream, io.StringIO)
    shown = stream.getvalue()
    assert not re.search("[\r\x1b\x80-\x9f\u2028\u2029\u202e]", shown)
    begin = r'\{"timestamp"' if format == "json" else r"\d{4}-\d\d-\d\d[ T][\d:.]+ \["
    found = [line for line in shown.splitlines() if not line.startswith("  ")]
    assert len(found) == 4
    assert all(re.match(begin, line) for line in found)
    assert "error=" in shown or format == "json"


def test_a_terminal_gets_text_in_colour_and_a_pipe_json() -> None:
    ours, theirs = os.openpty()
    with open(theirs, "w", encoding="utf-8") as terminal, open(ours, "rb") as shown:  # noqa: PTH123
        with written(stream=terminal) as (logger, _):
            logger.warning("worker=%s state=retrying", "trainer")
        text = os.read(shown.fileno(), 4_096).decode()
    assert "state=retrying" in text
    assert "\x1b[" in text
    assert "trainer" in text
    with pytest.raises(ValueError, match="Expecting value"):
        json.loads(text)


def calls() -> Iterator[tuple[str, ast.Call]]:
    """Every call of a module's logger."""
    for package in ("freshrank", "service", "trainer", "embedding_store"):
        for path in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                if (
                    isinstance(node, ast.Call)
                    and isinstance(node.func, ast.Attribute)
                    and node.func.attr in LEVELS
                    and ast.unparse(node.func.value) == "logger"
                ):
                    yield f"{path.relative_to(ROOT)}:{node.lineno}", node


def test_templates_are_constants_and_their_keys_are_free() -> None:
    found = list(calls())
    assert len(found) > 50
    for place, call in found:
        template = call.args[0]
        if isinstance(template, ast.Name):
            continue  # guard.py chooses between two
        assert isinstance(template, ast.Constant), place
        keys = re.findall(r"(?<!\S)(\w+)=%", str(template.value))
        assert not OF_EVERY_LINE & set(keys), place
        assert len(keys) == len(set(keys)), place


def test_no_line_is_given_what_users_are_or_did() -> None:
    """Names of values in the calls: ids of users and items and feature values have these."""
    private = {"user", "users", "item", "items", "features", "values", "columns", "shared", "key"}
    for place, call in calls():
        for argument in call.args[1:]:
            names = {
                node.id if isinstance(node, ast.Name) else node.attr
                for node in ast.walk(argument)
                if isinstance(node, ast.Name | ast.Attribute)
            }
            assert not private & names, place
