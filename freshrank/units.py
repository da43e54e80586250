"""The scalars of `freshrank.yaml`: durations, sizes, names; and the base of every section."""

import re
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_DURATION_UNITS = {"ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0}
_BYTES = re.compile(r"(\d+)(B|KiB|MiB|GiB)")
_BYTES_UNITS = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}


def _duration(value: Any) -> timedelta:
    if isinstance(value, timedelta):
        return value
    match = _DURATION.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError(f"not a duration: {value!r} (write 500ms, 10s, 5m, 12h or 30d)")
    try:
        return timedelta(seconds=float(match[1]) * _DURATION_UNITS[match[2]])
    except OverflowError:
        raise ValueError(f"too long: {value!r} (the longest duration is 999999999d)") from None


def _bytes(value: Any) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    match = _BYTES.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError(f"not a size: {value!r} (write 65536, 512KiB, 2MiB or 8GiB)")
    return int(match[1]) * _BYTES_UNITS[match[2]]


Duration = Annotated[timedelta, BeforeValidator(_duration)]
Period = Annotated[Duration, Field(ge=timedelta(milliseconds=1))]  # 0 would never rest
Age = Annotated[Duration, Field(ge=timedelta(seconds=1))]  # whole seconds in the store, 0 is never
FilePath = Annotated[Path, Field(strict=False)]  # a string in the file
Bytes = Annotated[int, BeforeValidator(_bytes), Field(ge=1)]
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,63}$")]
Dim = Annotated[int, Field(ge=1, le=512)]
Ratio = Annotated[float, Field(gt=0, le=1)]


class Part(BaseModel):
    """Base of every section: frozen; unknown keys, `"8000"` for 8000 and NaN are mistakes."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)
