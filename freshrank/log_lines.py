"""Log lines of a process: for people on a terminal, one JSON object per line elsewhere.

Modules log with the standard library, `logger.warning("worker=%s state=retrying", name)`. Here the
template tells which arguments are fields: what stands as a word of its own, `key=%s`, becomes the
field `key` with the argument as its value, and the rest is `event`, the same for every line of the
template. Nothing is parsed out of values, which may hold anything.

What a value or another library's text holds never ends its line, nor does it command a terminal; a
stack follows its line indented.

A line has `timestamp`, `level`, `logger`, `role` and `event`; while a request is answered also its
`request_id`. No line holds what users are or did: no id of a user or an item, no feature's value.
The stack of a bug is written without the values of its variables; the text of its exception is what
the failing code made it.
"""

import io
import logging
import math
import os
import re
import sys
from typing import Any, Final, TextIO

import structlog
from structlog.typing import EventDict, ExcInfo, Processor, WrappedLogger

from freshrank.logging_settings import LoggingSettings
from freshrank.printable import printable

# Their templates are ours; of other libraries' the whole text is the event.
_OURS: Final = ("freshrank", "service", "trainer")
# These tell each connection at level info.
_TALKATIVE: Final = ("asyncio", "kafka", "uvicorn")
# A conversion, with its key where they are a word of their own: `key=%s`, not `key=%d..%d`.
_ONE: Final = r"%[-#0+]*\d*(?:\.\d+)?[a-zA-Z]"
_CONVERSION: Final = re.compile(rf"%%|(?:(?<!\S)(?P<key>\w+)=(?={_ONE}(?!\S)))?(?P<one>{_ONE})")
_FIRST: Final = ("timestamp", "level", "logger", "role", "event")


def configure(settings: LoggingSettings, *, role: str) -> None:
    """From now on all loggers of this process write to its standard error.

    Args:
        settings: Level and format.
        role: The command, such as `serve`; stands in every line.
    """
    logging.captureWarnings(True)
    root = logging.getLogger()
    root.addHandler(handler(settings, role=role, stream=sys.stderr))
    root.setLevel(settings.level.upper())
    if settings.level == "info":
        for name in _TALKATIVE:
            logging.getLogger(name).setLevel(logging.WARNING)


def handler(settings: LoggingSettings, *, role: str, stream: TextIO) -> logging.Handler:
    """Writes records to a stream, in the format that the settings ask for.

    Args:
        settings: Its format.
        role: Stands in every line.
        stream: Where to; `auto` asks whether it is a terminal.
    """

    def of_process(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        return {**event, "role": role}

    is_console = settings.format == "console" or (settings.format == "auto" and stream.isatty())
    rendered = _console(stream) if is_console else _json()
    made = logging.StreamHandler(stream)
    made.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[
                structlog.contextvars.merge_contextvars,
                _take_fields,
                structlog.stdlib.add_log_level,
                structlog.stdlib.add_logger_name,
                structlog.processors.TimeStamper(fmt="iso", utc=not is_console),
                of_process,
            ],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *rendered],
            pass_foreign_args=True,
        )
    )
    return made


def fields(template: str, values: tuple[Any, ...]) -> tuple[str, dict[str, Any]]:
    """The event and the fields of a template and its arguments.

    Example:
        >>> fields("worker=%s state=stopped n=%d", ("trainer", 3))
        ('state=stopped', {'worker': 'trainer', 'n': 3})
        >>> fields("gap=%d..%d of %s", (3, 5, "log"))
        ('gap=3..5 of log', {})
    """
    found: dict[str, Any] = {}
    left = iter(values)

    def take(match: re.Match[str]) -> str:
        if match["one"] is None:
            return "%"
        value = next(left)
        if match["key"] is None:
            return match["one"] % (value,)
        found[match["key"]] = value if _is_json(value) else str(value)
        return ""

    return " ".join(_CONVERSION.sub(take, template).split()), found


def _is_json(value: Any) -> bool:
    return isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value))


def _take_fields(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """The fields of the record win over those of the context."""
    record: logging.LogRecord = event["_record"]
    values = event.pop("positional_args")
    is_ours = record.name.partition(".")[0] in _OURS
    if is_ours and isinstance(record.msg, str) and isinstance(values, tuple):
        text, found = fields(record.msg, values)
        return {**event, **found, "event": text or str(event["event"])}
    return event


def _console(stream: TextIO) -> list[Processor]:
    colors = stream.isatty() and not os.environ.get("NO_COLOR")
    return [_shown, structlog.dev.ConsoleRenderer(colors=colors, exception_formatter=_indented)]


class _Quoted:
    """Text that the renderer is to quote: by itself it does so for some characters only."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return repr(self._text)


def _shown(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    shown = {
        name: _Quoted(value) if isinstance(value, str) and not value.isprintable() else value
        for name, value in event.items()
    }
    return {**shown, "event": printable(str(event["event"]))}


def _indented(stream: TextIO, failed: ExcInfo) -> None:
    """Not the renderer's own choice of tracebacks, which shows the values of variables."""
    plain = io.StringIO()
    structlog.dev.plain_traceback(plain, failed)
    for line in plain.getvalue().strip("\n").split("\n"):
        stream.write(f"\n  {printable(line)}")


def _json() -> list[Processor]:
    return [
        structlog.processors.format_exc_info,
        _ordered,
        structlog.processors.JSONRenderer(),
    ]


def _ordered(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    return {**{name: event[name] for name in _FIRST if name in event}, **event}
