"""Moments as clients write and read them."""

import math
from datetime import UTC, datetime

from freshrank.errors import DataError


def rfc3339(ms: int) -> str:
    """Milliseconds since 1970 UTC as text.

    Example:
        >>> rfc3339(1_763_708_400_200)
        '2025-11-21T07:00:00.200Z'
    """
    moment = datetime.fromtimestamp(ms / 1_000, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def parse_moment(value: int | float | str) -> int:
    """RFC 3339 text or seconds since 1970 UTC -> milliseconds.

    Example:
        >>> parse_moment("2025-11-21T08:00:00.2+01:00"), parse_moment(1_763_708_400.2)
        (1763708400200, 1763708400200)

    Raises:
        DataError: neither, without a time zone, or before 1970 (code `bad-ts`).
    """
    if isinstance(value, str):
        seconds = _parse_text(value)
    else:
        seconds = float(value) if abs(value) < 1e15 else math.inf
    if not seconds >= 0:  # NaN included
        raise DataError("ts lies before 1970: send seconds since 1970 UTC", code="bad-ts")
    # 1e15 s is thirty million years from now: refused as future, never an overflow.
    return round(min(seconds, 1e15) * 1_000)


def _parse_text(value: str) -> float:
    try:
        moment = datetime.fromisoformat(value)
        if moment.tzinfo is not None:
            return moment.timestamp()
    except (ValueError, OverflowError):
        pass
    raise DataError(
        "ts is neither RFC 3339 with a time zone (2026-11-21T07:00:00Z) nor seconds since 1970",
        code="bad-ts",
    )
