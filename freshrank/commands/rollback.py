"""`freshrank rollback`: send the trainer back to a checkpoint, and see it happen."""

import json
import time
from collections.abc import Sequence
from typing import Any

from freshrank.client import TIMEOUT_S, call
from freshrank.commands.replicas import ask, listed, until_all
from freshrank.errors import Error, TransportError

# What stands in `GET /v1/models`; None while a service has no parameters.
Served = dict[str, Any] | None


def run(
    to: str,
    *,
    url: str,
    services: Sequence[str],
    key: str | None,
    reason: str,
    relearn: bool,
    pause: bool,
    is_dry: bool,
    wait_s: float,
    as_json: bool,
) -> None:
    """Give the command, and wait until every service serves another epoch; see `freshrank.cli`.

    Raises:
        DataError: the service refused.
        TransportError: nobody answers, or no other epoch came (code `not-obeyed`).
    """
    body = {"to": to, "reason": reason, "relearn": relearn, "dry_run": is_dry}
    # The others first: a wrong address is told before anything is done.
    others = {place: _served(place, key) for place in services if place != url}
    if is_dry:
        undone = call(url, "/v1/admin/rollback", body, key=key)
        print(json.dumps(undone) if as_json else told(to, undone))
        return
    if pause:  # first, else what spoiled the model would be learned again
        call(url, "/v1/admin/trainer/pause", {"reason": reason}, key=key)
    began_s = time.monotonic()
    try:
        before = {url: call(url, "/v1/admin/rollback", body, key=key)["from"], **others}
    except Error as error:
        paused = "; learning stays paused until `POST /v1/admin/trainer/resume`" if pause else ""
        raise type(error)(f"{error}{paused}", code=error.code) from error
    after = _until_another(before, key, wait_s)
    seconds = time.monotonic() - began_s
    if as_json:
        found = {"to": to, "from": before[url], "now": after[url], "services": after}
        print(json.dumps({**found, "seconds": round(seconds, 3)}))
        return
    for place, was in before.items():
        who = f"{place}: serving" if others else "serving"
        now = _named(after[place])
        print(f"{who} {now}, the parameters of {to}, instead of {_named(was)}")
    print(f"rolled back in {seconds:.1f} s")


def told(to: str, undone: dict[str, Any]) -> str:
    """What a dry run found."""
    if undone["snapshot"] is None:
        return (
            "nothing is done; what would be taken back only the trainer knows, another process: "
            "`freshrank snapshots list` where it runs"
        )
    n_rows = undone["rows_taken_back"]
    if n_rows is None:
        return f"nothing is done; {to} cannot be gone back to: it is damaged"
    return f"nothing is done; {to} would take back {n_rows:,} learned rows"


def _until_another(before: dict[str, Served], key: str | None, wait_s: float) -> dict[str, Served]:
    """What each service serves, once all of them serve an epoch above all that were served.

    Args:
        before: What each served.
        key: API key of all of them.
        wait_s: For how long.

    Raises:
        TransportError: that time is over.
    """
    newest = max((one["epoch"] for one in before.values() if one is not None), default=-1)
    after: dict[str, Served] = {}

    def look(place: str, timeout_s: float) -> str:
        after[place] = served = _served(place, key, timeout_s)
        return _named(served) if served is None or served["epoch"] <= newest else ""

    if left := until_all(before, look, wait_s=wait_s):
        raise TransportError(
            f"the command is given, and the old epoch is still served: {listed(left)}. The trainer "
            "is away or has refused it (`freshrank dlq list --topic control` says why), or a "
            "service is cut off from the channel",
            code="not-obeyed",
        )
    return after


def _served(place: str, key: str | None, timeout_s: float = TIMEOUT_S) -> Served:
    models = ask(place, "/v1/models", key=key, timeout_s=timeout_s)["models"]
    return models[0] if models else None


def _named(served: Served) -> str:
    return "nothing" if served is None else f"{served['version']} of epoch {served['epoch']}"
