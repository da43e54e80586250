"""Bodies -> typed requests, and every mistake as a JSON pointer."""

import re
from collections.abc import Iterable
from typing import Any, Final, TypeVar

import msgspec

from freshrank.hints import did_you_mean
from freshrank.messages import Value
from service.bodies import EVENT_BODIES, Candidate, ControlRequest, Feedback, RankRequest, ShownItem
from service.problems import FieldError, ProblemError, validation

T = TypeVar("T")

_PATH_STEP = re.compile(r"\.([^.\[\]]+)|\[(\d+)\]|(\[\.\.\.\])")
_UNKNOWN_FIELD = re.compile(r"Object contains unknown field `(.*)`", re.DOTALL)
_MALFORMED: Final = (msgspec.DecodeError, RecursionError, UnicodeDecodeError)


def decode(decoder: msgspec.json.Decoder[T], body: bytes) -> T:
    """The request in `body`.

    Raises:
        ProblemError: 400 when it is not JSON, 422 with a pointer when it has another shape.
    """
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise validation([locate(error, parse(body))]) from error
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


def locate(error: msgspec.ValidationError, raw: Any) -> FieldError:
    """What msgspec refused, as a pointer into `raw`; msgspec hides the keys of mappings."""
    text, _, path = str(error).rpartition(" - at `$")
    if not text:
        text, path = str(error), ""
    steps: list[str] = []
    place = raw
    for name, index, hidden in _PATH_STEP.findall(path.removesuffix("`")):
        step = _refused_key(place) if hidden else index or name
        steps.append(step)
        place = _enter(place, step)
    if unknown := _UNKNOWN_FIELD.fullmatch(text):
        steps.append(unknown[1])
        text = f"unknown field {unknown[1][:64]!r}{did_you_mean(unknown[1], _field_names())}"
    return FieldError(pointer(steps), text)


def pointer(steps: Iterable[str | int]) -> str:
    """A JSON pointer as a URI fragment.

    Example:
        >>> pointer(["candidates", 0, "a/b"])
        '#/candidates/0/a~1b'
    """
    return "#" + "".join("/" + str(s).replace("~", "~0").replace("/", "~1") for s in steps)


def _enter(place: Any, step: str) -> Any:
    try:
        return place[int(step)] if isinstance(place, list) else place[step]
    except (KeyError, IndexError, TypeError, ValueError):
        return None


def _refused_key(mapping: Any) -> str:
    for key, value in mapping.items() if isinstance(mapping, dict) else ():
        try:
            msgspec.convert({key: value}, dict[str, Value])
        except msgspec.ValidationError:
            return str(key)
    return ""


def _field_names() -> list[str]:
    bodies = (RankRequest, Candidate, ShownItem, Feedback, ControlRequest, *EVENT_BODIES)
    names = {field.encode_name for body in bodies for field in msgspec.structs.fields(body)}
    return sorted(names | {"kind", "events"})
