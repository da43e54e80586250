"""`freshrank forget`: have an id forgotten, and see it gone from what every replica serves."""

import json
import time
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from freshrank.client import TIMEOUT_S
from freshrank.commands.replicas import ask, listed, until_all
from freshrank.errors import TransportError

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
        _until_gone(before, slot, path, key, wait_s)
    seconds = time.monotonic() - began_s
    if as_json:
        print(json.dumps({**given, "services": before, "seconds": round(seconds, 3)}))
        return
    for place, known in before.items():
        print(f"known{f' by {place}' if others else ''}: {_listed(known) or 'nothing'}")
    print(f"stays: {', '.join(given['remains'])} (docs/forget.md)")
    everywhere = f" by {len(before)} services" if others else ""
    print("nothing is done" if is_dry else f"forgotten{everywhere} in {seconds:.1f} s")


def _ask(
    place: str, path: str, key: str | None, *, is_dry: bool = True, timeout_s: float = TIMEOUT_S
) -> dict[str, Any]:
    query = "?dry_run=true" if is_dry else ""
    answer: dict[str, Any] = ask(place, path + query, key=key, method="DELETE", timeout_s=timeout_s)
    return answer


def _until_gone(
    before: dict[str, Known], slot: str, path: str, key: str | None, wait_s: float
) -> None:
    """Return once every service says that it knows nothing.

    Args:
        before: What each knew.
        slot: Of the id.
        path: Of the id.
        key: API key of all of them.
        wait_s: For how long.

    Raises:
        TransportError: that time is over.
    """

    def look(place: str, timeout_s: float) -> str:
        known = _ask(place, path, key, timeout_s=timeout_s)["known"]
        needed = {what for what, value in before[place].items() if value is not None}
        if slot == "user_id":  # of whom alone there are some: who cannot tell is cut off from them
            needed.add("recent")
        lost = [what for what, value in known.items() if value is None and what in needed]
        return _listed(known) or (f"cannot tell: {', '.join(lost)}" if lost else "")

    if left := until_all(before, look, wait_s=wait_s):
        raise TransportError(
            f"the command is given, and something of the id is still known: {listed(left)}. Joiner "
            "or trainer are away, or the trainer has refused it (`freshrank dlq list --topic "
            "control` says why), or the id came back with new events",
            code="not-obeyed",
        )


def _listed(known: Known) -> str:
    return ", ".join(f"{what} {value}" for what, value in known.items() if value)
