"""`freshrank events check`: what the service and the joiner would say of a file of events."""

import json
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path

import typer

from freshrank import config
from freshrank.clock import SystemClock
from freshrank.feature_state import LocalFeatureState
from freshrank.features import FeatureEncoder
from freshrank.messages import Action, Impression
from freshrank.printable import printable
from freshrank.replay.event_file import EventFile
from freshrank.replay.rejects import Rejects
from freshrank.settings import Settings
from service.event_checks import Checked, EventChecker
from service.known import KnownFeatures, nobody_sent


def check(file: Path, path: Path, *, environ: Mapping[str, str], as_json: bool) -> None:
    """Print a line per kind of problem; exit code 1 if there is one.

    Raises:
        ConfigError: the configuration is wrong.
        DataError: the file cannot be opened.
    """
    settings = config.load(path, environ=environ)
    encoder = FeatureEncoder(settings)
    known = KnownFeatures(settings, encoder, nobody_sent, LocalFeatureState(settings))
    checker, clock = EventChecker(settings, encoder, known), SystemClock()
    with (
        EventFile(file, line_bytes_max=settings.limits.body) as events,
        Rejects(None) as rejects,
    ):
        stream = _Stream(settings, rejects)
        for number, line in events.lines():
            with rejects.taking(number, line):
                event = events.event(line)
                checked = checker.check(event, received_at_ms=clock.now_ms())
                stream.take(number, checked, has_ts=event.ts is not None)
        stream.end()
        if events.stopped is not None:
            rejects.add(events.n_lines, "broken-file", events.stopped, b"")
    problems = [
        {"reason": reason, "events": n, "line": line, "detail": detail}
        for reason, n in rejects.counts.most_common()
        for line, detail in [rejects.first[reason]]
    ]
    if as_json:
        typer.echo(json.dumps({"events": events.n_lines, "problems": problems}))
    else:
        for one in problems:
            told = "{file}:{line}: {reason} ({events:,}): {detail}".format(file=file, **one)
            typer.echo(printable(told))
        typer.echo(f"{file}: {events.n_lines:,} events, {rejects.counts.total():,} problems")
    if problems:
        raise typer.Exit(1)


class _Stream:
    """What only all events together show: order, repeats, and feedback that meets no impression.

    It remembers an id of each event and of each item shown: some 200 bytes a line.
    """

    def __init__(self, settings: Settings, rejects: Rejects) -> None:
        self._rejects = rejects
        self._slack_ms = settings.join.max_out_of_order / timedelta(milliseconds=1)
        self._newest_ms = 0
        self._events: set[str] = set()
        self._requests: set[str] = set()
        self._shown: set[tuple[str, str]] = set()
        self._feedback: list[tuple[int, str, str]] = []

    def take(self, number: int, event: Checked, *, has_ts: bool) -> None:
        """An event that the service accepts; without a ts of its own it has no place in time."""
        message = event.message
        behind_ms = self._newest_ms - message.ts_ms
        if has_ts:
            self._newest_ms = max(self._newest_ms, message.ts_ms)
        if has_ts and behind_ms > self._slack_ms:
            self._tell(
                "out-of-order",
                number,
                f"ts lies {behind_ms / 1_000:.3f} s behind an earlier line, join.max_out_of_order "
                f"allows {self._slack_ms / 1_000:g} s: sort the file by ts",
            )
        if message.event_id in self._events:
            self._tell("duplicate", number, f"event_id {message.event_id!r} stood before")
        self._events.add(message.event_id)
        if isinstance(message, Impression):
            self._requests.add(message.request_id)
            self._shown.update((message.request_id, item) for item in message.items)
        elif isinstance(message, Action):
            self._feedback.append((number, message.request_id, message.item))

    def end(self) -> None:
        """Tell what met no impression, if the file has any: else the service wrote them itself."""
        for number, request, item in self._feedback if self._requests else ():
            if request not in self._requests:
                text = f"no impression of request {request!r} is in the file"
                self._tell("unmatched", number, text)
            elif (request, item) not in self._shown:
                text = f"item {item!r} was not shown in request {request!r}"
                self._tell("not-shown", number, text)

    def _tell(self, reason: str, number: int, detail: str) -> None:
        self._rejects.add(number, reason, detail, b"")
