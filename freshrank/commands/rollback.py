"""`freshrank rollback`: send the trainer back to a checkpoint, and see it happen."""

import json
import time
from typing import Any, Final

from freshrank.client import call
from freshrank.errors import TransportError

_LOOK_S: Final = 0.05


def run(
    to: str,
    *,
    url: str,
    key: str | None,
    reason: str,
    relearn: bool,
    pause: bool,
    is_dry: bool,
    wait_s: float,
    as_json: bool,
) -> None:
    """Give the command, and wait until another epoch is served; see `freshrank.cli`.

    Raises:
        DataError: the service refused.
        TransportError: nobody answers, or no other epoch came (code `not-obeyed`).
    """
    body = {"to": to, "reason": reason, "relearn": relearn, "dry_run": is_dry}
    if is_dry:
        undone = call(url, "/v1/admin/rollback", body, key=key)
        print(json.dumps(undone) if as_json else told(to, undone))
        return
    if pause:  # first, else what spoiled the model would be learned again
        call(url, "/v1/admin/trainer/pause", {"reason": reason}, key=key)
    began_s = time.monotonic()
    given = call(url, "/v1/admin/rollback", body, key=key)
    before = given["from"]
    after = _until_another(before, url=url, key=key, deadline_s=began_s + wait_s)
    seconds = time.monotonic() - began_s
    if as_json:
        print(json.dumps({"to": to, "from": before, "now": after, "seconds": round(seconds, 3)}))
        return
    was = "nothing" if before is None else f"{before['version']} of epoch {before['epoch']}"
    print(
        f"serving {after['version']} of epoch {after['epoch']}, the parameters of {to}, "
        f"instead of {was}: {seconds:.1f} s"
    )


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


def _until_another(
    before: dict[str, Any] | None, *, url: str, key: str | None, deadline_s: float
) -> dict[str, Any]:
    """The model that is served once its epoch is another one."""
    while True:
        models = call(url, "/v1/models", key=key)["models"]
        if models and (before is None or models[0]["epoch"] != before["epoch"]):
            model: dict[str, Any] = models[0]
            return model
        if time.monotonic() > deadline_s:
            raise TransportError(
                "the command is given, and the old epoch is still served: the trainer is away or "
                "has refused it (`freshrank dlq list --topic control` says why)",
                code="not-obeyed",
            )
        time.sleep(_LOOK_S)
