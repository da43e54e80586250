"""What `GET /v1/embeddings/{slot}/{key}` answers: one id's vector, and why it is what it is."""

from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from embedding_store import mix_ids
from freshrank.settings import CrossFeature
from service.core import Service
from service.forgetting import Key, parse_key
from service.problems import FieldError, ProblemError, validation
from service.times import rfc3339

_WHY: Final = {
    "absent": "never seen, or so long ago that nobody remembers: it has no row and reads zeros",
    "admitted": "it has a row of its own",
    "expired": "its row is out of time: zeros are read as soon as the next sweep has taken it",
    "removed": "its row expired, was evicted or forgotten: it reads zeros until it is seen again",
}
_TIMES: Final = {"last_seen_at": "last_seen_s", "expires_at": "expires_s", "born_at": "born_s"}


def parse(service: Service, slot: str, text: str, other: str | None) -> Key:
    """The id that a path names; of a cross, the ids of its two parts together.

    Args:
        service: Has the features.
        slot: The feature.
        text: Its id; of a cross, the first part's.
        other: Of a cross, the second part's.

    Raises:
        ProblemError: the slot has no ids that anybody can name, or a part is missing.
        DataError: the text is none of its ids.
    """
    settings = service.parts.settings
    cross = next((f for f in settings.features if f.name == slot), None)
    if not isinstance(cross, CrossFeature):
        return parse_key(service, slot, text)
    if other is None:
        told = f"{slot!r} is a cross of {cross.of[0]} and {cross.of[1]}: name the second id too"
        raise validation([FieldError("?with", told)])
    parts = [
        parse_key(service, name, one) for name, one in zip(cross.of, (text, other), strict=True)
    ]
    left, right = (np.array([part.id], np.uint64) for part in parts)
    token = int(mix_ids(left, right, settings.salt)[0])
    return Key(slot, "", " & ".join(part.canonical for part in parts), token)


def inspect(service: Service, key: Key) -> dict[str, Any]:
    """The document; null is what this process cannot know.

    Raises:
        ProblemError: 503, no base is loaded yet.
    """
    model, loop = service.replica.model, service.parts.loop
    if model is None:
        raise ProblemError("model-not-ready", "no base is loaded yet", headers={"Retry-After": "1"})
    rows, found = model.tables[key.slot].lookup(np.array([key.id], np.uint64))
    is_served, row = bool(found[0]), rows[0]
    known = loop.inspect(key.slot, key.id) if loop else {}
    state = known.get("state") or ("admitted" if is_served else None)
    vector, first_order = row[:-1], float(row[-1])  # the last column is a weight of its own
    return {
        "slot": key.slot,
        "key": key.canonical,
        "id": str(key.id),  # beyond what JavaScript calls an integer
        "state": state,
        "why": _why(state, known, is_served=is_served),
        "served": is_served,
        "vector": vector.tolist() if is_served else None,
        "first_order": first_order if is_served else None,
        "norm": float(np.sqrt(np.square(row).sum())),
        "dim": len(vector),
        "trainer": _of_trainer(known) if known else None,
    }


def _why(state: str | None, known: Mapping[str, Any], *, is_served: bool) -> str:
    if state is None:
        return (
            "no row is served and it reads zeros; whether it waits for one or has lost it only the "
            "trainer knows, a process of its own"
        )
    if state == "pending":
        return (
            f"seen {known['count']} of {known['min_count']} times: it waits for a row of its own "
            "and reads zeros"
        )
    if state == "admitted" and not is_served:
        return "it has a row where it is learned; until the next sync brings it, it reads zeros"
    return _WHY[state]


def _of_trainer(known: Mapping[str, Any]) -> dict[str, Any]:
    """Counts as they are, event times as text: null where there is none."""
    told = {name: known[name] for name in ("count", "min_count", "frequency", "version")}
    times = {name: known[of] for name, of in _TIMES.items()}
    return (
        told
        | {name: rfc3339(at_s * 1_000) if at_s else None for name, at_s in times.items()}
        | {"weight_norm": known["weight_norm"], "state_norm": known["state_norm"]}
    )
