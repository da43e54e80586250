"""Asking several replicas again and again, until each has done what was ordered."""

import time
from collections.abc import Callable, Collection
from typing import Any, Final

from freshrank.client import TIMEOUT_S, call
from freshrank.errors import DataError, Error

_LOOK_S: Final = 0.05
# How long one that hangs keeps the others waiting, and how long one is asked that has no time left.
_HANG_S: Final = 5.0
_LAST_LOOK_S: Final = 0.2

# What is asked of whom, and within how many seconds; what speaks against it, or nothing.
Look = Callable[[str, float], str]


def until_all(places: Collection[str], look: Look, *, wait_s: float) -> dict[str, str]:
    """Ask until nothing speaks against any of them, or time is over.

    Args:
        places: Addresses.
        look: Asks one of them; what it raises speaks against it, as a service may restart.
        wait_s: For how long.

    Returns:
        What still speaks against whom; empty once all have done it.
    """
    deadline_s = time.monotonic() + wait_s
    while True:
        left: dict[str, str] = {}
        for place in places:
            left_s = deadline_s - time.monotonic()
            try:
                why = look(place, min(max(left_s, _LAST_LOOK_S), _HANG_S))
            except Error as error:
                why = str(error)
            if why:
                left[place] = why
        if not left or time.monotonic() > deadline_s:
            return left
        time.sleep(_LOOK_S)


def listed(left: dict[str, str]) -> str:
    """Who has not done it, and why."""
    return "; ".join(f"{place} ({why})" for place, why in left.items())


def ask(
    place: str,
    path: str,
    *,
    key: str | None,
    method: str | None = None,
    timeout_s: float = TIMEOUT_S,
) -> Any:
    """What one of them answers; see `freshrank.client.call`. A refusal names whose it is."""
    try:
        return call(place, path, key=key, method=method, timeout_s=timeout_s)
    except DataError as error:
        raise DataError(f"{place}: {error}") from error
