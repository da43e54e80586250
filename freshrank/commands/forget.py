"""`freshrank forget`: have an id forgotten, and see it gone from what is served."""

import json
import time
from typing import Any, Final
from urllib.parse import quote

from freshrank.client import call
from freshrank.errors import TransportError

_LOOK_S: Final = 0.05


def run(
    slot: str,
    name: str,
    *,
    url: str,
    key: str | None,
    is_dry: bool,
    wait_s: float,
    as_json: bool,
) -> None:
    """Give the command, and wait until the service knows nothing of the id; see `freshrank.cli`.

    Raises:
        DataError: the service refused.
        TransportError: nobody answers, or something is still known (code `not-obeyed`).
    """
    path = f"/v1/admin/keys/{quote(slot, safe='')}/{quote(name, safe='')}"

    def ask(*, is_dry: bool) -> dict[str, Any]:
        query = "?dry_run=true" if is_dry else ""
        answer: dict[str, Any] = call(url, path + query, key=key, method="DELETE")
        return answer

    began_s = time.monotonic()
    given = ask(is_dry=is_dry)
    seconds = 0.0
    if not is_dry:
        while any(ask(is_dry=True)["known"].values()):
            if time.monotonic() > began_s + wait_s:
                raise TransportError(
                    "the command is given, and something of the id is still known: joiner or "
                    "trainer are away, or the trainer has refused it (`freshrank dlq list --topic "
                    "control` says why), or the id came back with new events",
                    code="not-obeyed",
                )
            time.sleep(_LOOK_S)
        seconds = time.monotonic() - began_s
    if as_json:
        print(json.dumps({**given, "seconds": round(seconds, 3)}))
        return
    known = [f"{name} {value}" for name, value in given["known"].items() if value]
    print(f"known: {', '.join(known) or 'nothing'}")
    print(f"stays: {', '.join(given['remains'])} (docs/forget.md)")
    print("nothing is done" if is_dry else f"forgotten in {seconds:.1f} s")
