"""What a round changes in the joiner's database, as values that can be written there and sent."""

from typing import Any, Final

import msgspec

from trainer.joiner.ledger import Ledger
from trainer.joiner.requests import UNSAVED
from trainer.joiner.sweeper import places_of

Row = tuple[Any, ...]
Rows = dict[str, list[Row]]  # table -> whole rows

# Tables that hold the state, and the key that each is read and written by. What stands in `meta` is
# written whole by every round, and the outbox has its own way into the log.
TABLES: Final = {
    "requests": "number",
    "parts": "place",
    "seen": "key",
    "feature_updates": "number",
}


class Changes(msgspec.Struct, array_like=True):
    """What one round changes.

    Attributes:
        meta: Offsets, sequences and totals after it.
        gone: Numbers of requests that are removed.
        new: Requests: number, id, due, times (4), flags, status, extra.
        changed: Requests that fall due when they did: times (4), flags, status, extra, number.
        rescheduled: As `changed`, with when they fall due before the number.
        parts: Impression records: place, when appended, bytes.
        seen: Key of an event id, or of a user with a quota -> when it is forgotten.
        updates: Number and bytes of what feature state is told; None for nothing.
        features_saved: Number of the last such round that feature state keeps by itself.
    """

    meta: dict[str, int]
    gone: list[int]
    new: list[Row]
    changed: list[Row]
    rescheduled: list[Row]
    parts: list[tuple[int, int, bytes]]
    seen: dict[int, int]
    updates: tuple[int, bytes] | None
    features_saved: int


def changes_of(ledger: Ledger, features_saved: int) -> Changes:
    """The changes of a round that is decided; bytes and numbers only, which the round keeps."""
    new, changed, rescheduled = [], [], []
    for r in ledger.changed.values():
        due_at = r.due_at_ms
        flags = r.is_armed | r.is_closed << 1 | r.has_first << 2
        times = (r.time_ms, r.close_at_ms, r.purge_at_ms, r.forget_at_ms)
        rest = (*times, flags, r.status, r.extra())
        if r.saved_due_ms == UNSAVED:
            new.append((r.number, r.request_id, due_at, *rest))
        elif r.saved_due_ms == due_at:
            changed.append((*rest, r.number))
        else:
            rescheduled.append((*rest, due_at, r.number))
    return Changes(
        meta=ledger.meta,
        gone=ledger.gone,
        new=new,
        changed=changed,
        rescheduled=rescheduled,
        parts=[
            (places_of(number)[0] + part, appended_at_ms, value)
            for number, part, appended_at_ms, value in ledger.parts
        ],
        seen=ledger.seen,
        updates=ledger.updates,
        features_saved=features_saved,
    )
