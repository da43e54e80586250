"""`freshrank forget`: have an id forgotten, and see it gone from what every replica serves."""

import json
import time
from collections.abc import Sequence
from typing import Any, Final
from urllib.parse import quote

from freshrank.client import call
from freshrank.errors import DataError, Error, TransportError

_LOOK_S: Final = 0.05

Known = dict[str, Any]


def run(
    slot: str,
    name: str,
    *,
    url: str,
    services: Sequence[str],
    key: str | None,
    is_dry: bool,
    wait_s: float,
    as_json: bool,
) -> None:
    """Give the command, and wait until no service knows anything of the id; see `freshrank.cli`.

    Raises:
        DataError: a service refused.
        TransportError: nobody answers, or something is still known (code `not-obeyed`).
    """
    path = f"/v1/admin/keys/{quote(slot, safe='')}/{quote(name, safe='')}"
    # The others first: a wrong address is told before anything is done.
    others = {place: _ask(place, path, key)["known"] for place in services if place != url}
    given = _ask(url, path, key, is_dry=is_dry)
    before: dict[str, Known] = {url: given["known"], **others}
    began_s = time.monotonic()
    if not is_dry:
        _until_gone(before, path, key, deadline_s=began_s + wait_s)
    seconds = time.monotonic() - began_s
    if as_json:
        print(json.dumps({**given, "services": before, "seconds": round(seconds, 3)}))
        return
    for place, known in before.items():
        print(f"known{f' by {place}' if others else ''}: {_listed(known) or 'nothing'}")
    print(f"stays: {', '.join(given['remains'])} (docs/forget.md)")
    everywhere = f" by {len(before)} services" if others else ""
    print("nothing is done" if is_dry else f"forgotten{everywhere} in {seconds:.1f} s")


def _ask(place: str, path: str, key: str | None, *, is_dry: bool = True) -> dict[str, Any]:
    try:
        query = "?dry_run=true" if is_dry else ""
        answer: dict[str, Any] = call(place, path + query, key=key, method="DELETE")
    except DataError as error:
        raise DataError(f"{place}: {error}") from error
    return answer


def _until_gone(before: dict[str, Known], path: str, key: str | None, *, deadline_s: float) -> None:
    """Return once every service says that it knows nothing.

    Args:
        before: What each knew.
        path: Of the id.
        key: API key of all of them.
        deadline_s: On the monotonic clock.

    Raises:
        TransportError: that time is over.
    """
    while left := {
        place: why for place in before if (why := _left(place, before[place], path, key))
    }:
        if time.monotonic() > deadline_s:
            places = "; ".join(f"{place} ({why})" for place, why in left.items())
            raise TransportError(
                f"the command is given, and something of the id is still known: {places}. Joiner "
                "or trainer are away, or the trainer has refused it (`freshrank dlq list --topic "
                "control` says why), or the id came back with new events",
                code="not-obeyed",
            )
        time.sleep(_LOOK_S)


def _left(place: str, before: Known, path: str, key: str | None) -> str:
    """What speaks against a service having forgotten the id; nothing where it has."""
    try:
        known = _ask(place, path, key)["known"]
    except Error as error:  # it may restart meanwhile
        return str(error)
    lost = [what for what in known if known[what] is None and before.get(what) is not None]
    return _listed(known) or (f"cannot tell: {', '.join(lost)}" if lost else "")


def _listed(known: Known) -> str:
    return ", ".join(f"{what} {value}" for what, value in known.items() if value)
