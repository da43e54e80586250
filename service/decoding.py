"""Bodies -> typed requests, and every mistake as a JSON pointer."""

import re
from collections.abc import Iterable, Sequence
from typing import Any, Final, TypeVar

import msgspec

from freshrank.hints import did_you_mean
from freshrank.messages import Value
from service.fields import enter, names_at
from service.problems import FieldError, ProblemError, validation

T = TypeVar("T")

_PATH_STEP = re.compile(r"\.([^.\[\]]+)|\[(\d+)\]|(\[\.\.\.\])")
_UNKNOWN_FIELD = re.compile(r"Object contains unknown field `(.*)`", re.DOTALL)
_EVENTS_GO: Final = 'events go in {"events": […]}'
_MALFORMED: Final = (msgspec.DecodeError, RecursionError, UnicodeDecodeError)


def decode(decoder: msgspec.json.Decoder[T], body: bytes) -> T:
    """The request in `body`.

    Raises:
        ProblemError: 400 when it is not JSON, 422 with a pointer when it has another shape.
    """
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise validation([locate(error, parse(body), decoder.type)]) from error
    except _MALFORMED as error:
        raise malformed(error) from error


def parse(body: bytes) -> Any:
    """The JSON value in `body`, untyped.

    Raises:
        ProblemError: 400 when it is not JSON.
    """
    try:
        return msgspec.json.decode(body)
    except _MALFORMED as error:
        raise malformed(error) from error


def malformed(error: Exception) -> ProblemError:
    """400 for a body that no JSON parser takes."""
    reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
    return ProblemError("malformed-json", f"the body is not JSON: {reason}")


def locate(error: msgspec.ValidationError, raw: Any, body: Any) -> FieldError:
    """What msgspec refused, as a pointer into `raw`; msgspec hides the keys of mappings.

    Args:
        error: Raised by msgspec.
        raw: The body as sent.
        body: The type it should have had.
    """
    text, _, path = str(error).rpartition(" - at `$")
    if not text:
        text, path = str(error), ""
    steps: list[str] = []
    place = raw
    for name, index, hidden in _PATH_STEP.findall(path.removesuffix("`")):
        step = _refused_key(place) if hidden else index or name
        steps.append(step)
        place = enter(place, step)
    names = names_at(body, raw, steps)
    unwrapped = _unwrapped(names, steps, raw)
    if unknown := _UNKNOWN_FIELD.fullmatch(text):
        steps.append(unknown[1])
        text = f"unknown field {unknown[1][:64]!r}"
        if names and not unwrapped:
            hint = did_you_mean(unknown[1], names)
            text += f"{hint or ';'} known: {', '.join(names)}"
    if unwrapped:
        text = f"{text}; {unwrapped}"
    return FieldError(pointer(steps), text)


def pointer(steps: Iterable[str | int]) -> str:
    """A JSON pointer as a URI fragment.

    Example:
        >>> pointer(["candidates", 0, "a/b"])
        '#/candidates/0/a~1b'
    """
    return "#" + "".join("/" + str(s).replace("~", "~0").replace("/", "~1") for s in steps)


def _refused_key(mapping: Any) -> str:
    for key, value in mapping.items() if isinstance(mapping, dict) else ():
        try:
            msgspec.convert({key: value}, dict[str, Value])
        except msgspec.ValidationError:
            return str(key)
    return ""


def _unwrapped(names: Sequence[str], steps: Sequence[str], raw: Any) -> str:
    """What to say of an event, or a list of them, sent bare; else nothing."""
    is_events = list(names) == ["events"] and not steps
    is_bare = isinstance(raw, list) or (isinstance(raw, dict) and "events" not in raw)
    return _EVENTS_GO if is_events and is_bare else ""
