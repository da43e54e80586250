"""The scalars of `freshrank.yaml`: durations, sizes, names; and the base of every section."""

import math
import re
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    WithJsonSchema,
)

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_MICROSECONDS: Final = {
    "d": 86_400_000_000,
    "h": 3_600_000_000,
    "m": 60_000_000,
    "s": 1_000_000,
    "ms": 1_000,
}
_BYTES = re.compile(r"(\d+)(B|KiB|MiB|GiB)")
_BYTES_UNITS: Final = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}


def _duration(value: Any) -> timedelta:
    if isinstance(value, timedelta):
        return value
    match = _DURATION.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError(f"not a duration: {value!r} (write 500ms, 10s, 5m, 12h or 30d)")
    try:
        return timedelta(microseconds=float(match[1]) * _MICROSECONDS[match[2]])
    except OverflowError:
        raise ValueError(f"too long: {value!r} (the longest duration is 999999999d)") from None


def duration_text(duration: timedelta) -> str:
    """The duration as the file writes it.

    Example:
        >>> duration_text(timedelta(minutes=5)), duration_text(timedelta(seconds=1.5))
        ('5m', '1500ms')
    """
    microseconds = duration // timedelta(microseconds=1)
    if microseconds == 0:
        return "0s"
    for unit, size in _MICROSECONDS.items():
        if microseconds % size == 0:
            return f"{microseconds // size}{unit}"
    return f"{microseconds / 1_000}ms"


def whole_seconds(duration: timedelta | None) -> int:
    """The duration in seconds as the store takes them, where 0 means never: a part rounds up.

    Example:
        >>> whole_seconds(timedelta(milliseconds=1)), whole_seconds(None)
        (1, 0)
    """
    return 0 if duration is None else math.ceil(duration.total_seconds())


def _at_least(minimum: timedelta) -> Callable[[timedelta], timedelta]:
    def check(value: timedelta) -> timedelta:
        if value < minimum:
            raise ValueError(
                f"expected at least {duration_text(minimum)}, got {duration_text(value)}"
            )
        return value

    return check


def _at_most(maximum: timedelta) -> Callable[[timedelta], timedelta]:
    def check(value: timedelta) -> timedelta:
        if value > maximum:
            raise ValueError(
                f"expected at most {duration_text(maximum)}, got {duration_text(value)}"
            )
        return value

    return check


def _bytes(value: Any) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    match = _BYTES.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError(f"not a size: {value!r} (write 65536, 512KiB, 2MiB or 8GiB)")
    return int(match[1]) * _BYTES_UNITS[match[2]]


def _home(path: Path) -> Path:
    try:
        return path.expanduser()  # else `~/data` would make a directory of that name
    except RuntimeError as error:
        raise ValueError(f"{path}: {error}") from None


Duration = Annotated[
    timedelta,
    BeforeValidator(_duration),
    PlainSerializer(duration_text, when_used="json"),
    WithJsonSchema({"type": "string", "pattern": f"^{_DURATION.pattern}$", "examples": ["10s"]}),
]
Period = Annotated[Duration, AfterValidator(_at_least(timedelta(milliseconds=1)))]  # 0: no rest
Age = Annotated[Duration, AfterValidator(_at_least(timedelta(seconds=1)))]  # stored in seconds
HalfLife = Annotated[Age, AfterValidator(_at_most(timedelta(days=36_500)))]
Bytes = Annotated[
    int,
    BeforeValidator(_bytes),
    Field(ge=1),
    WithJsonSchema({"type": ["integer", "string"], "pattern": f"^{_BYTES.pattern}$", "minimum": 1}),
]
FilePath = Annotated[Path, Field(strict=False), AfterValidator(_home)]  # a string in the file
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,63}$")]
Dim = Annotated[int, Field(ge=1, le=512)]
Ratio = Annotated[float, Field(gt=0, le=1)]


class Part(BaseModel):
    """Base of every section: frozen; unknown keys, `"8000"` for 8000 and NaN are mistakes."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)
