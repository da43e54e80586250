"""What a command to forget an id tells the loop, and what this service knows of the id itself."""

import logging
from dataclasses import dataclass
from typing import Any, Final
from uuid import uuid4

import numpy as np

from freshrank.encoding import parse_text, parse_uint64
from freshrank.errors import DataError
from freshrank.feature_updates import StateQuery
from freshrank.hints import did_you_mean
from freshrank.messages import Control, Entity, encode, entity_key
from freshrank.settings import IdFeature, IdListFeature, RecentFeature
from freshrank.state_layout import StateLayout
from freshrank.transport.base import ACTIONS, CONTROL, ENTITIES, NewRecord
from service.core import Service
from service.problems import ProblemError

logger = logging.getLogger(__name__)

# Slots that joiner and feature state know without a feature of that name.
_SCOPES: Final = {"user_id": "user", "item_id": "item"}
_FOR_EVER_MS: Final = 1 << 62


@dataclass(frozen=True, slots=True)
class Key:
    """An id as a route names it.

    Attributes:
        slot: The feature that declares the table.
        scope: `user` or `item` where the id is one; "" for other features.
        canonical: The id's canonical text.
        id: The 64-bit id.
    """

    slot: str
    scope: str
    canonical: str
    id: int


def parse_key(service: Service, slot: str, text: str) -> Key:
    """The id that a path names.

    Raises:
        ProblemError: the slot has no ids that anybody sends.
        DataError: the text is none of its ids.
    """
    settings, encoder = service.parts.settings, service.parts.encoder
    named = {feature.name: feature for feature in settings.features}
    feature = named.get(slot)
    if isinstance(feature, RecentFeature):  # its rows are those of another feature
        slot, feature = feature.table, named.get(feature.table)
    if slot in _SCOPES:
        to_canonical = encoder.canonical_user if slot == "user_id" else encoder.canonical_item
        canonical = to_canonical(text)
    elif isinstance(feature, IdFeature | IdListFeature):
        canonical = str(parse_uint64(text)) if feature.key == "uint64" else parse_text(text)
    else:
        known = [
            *_SCOPES,
            *(n for n, f in named.items() if isinstance(f, IdFeature | IdListFeature)),
        ]
        raise ProblemError(
            "not-found", f"{slot[:64]!r} is no feature with ids{did_you_mean(slot, known)}"
        )
    if not canonical:
        raise DataError("expected a non-empty id", code="bad-id")
    token = int(StateLayout(settings).tokens(slot, [canonical])[0])
    return Key(slot, _SCOPES.get(slot, ""), canonical, token)


def known(service: Service, key: Key) -> dict[str, Any]:
    """What this service knows of an id; null where it cannot tell."""
    model = service.replica.model
    row: bool | None = None
    if model is not None and key.slot in model.tables:
        row = bool(model.tables[key.slot].lookup(np.array([key.id], np.uint64))[1][0])
    recent: int | None = None
    if key.scope == "user" and not service.state.is_away:
        answer = service.state.read(StateQuery(_FOR_EVER_MS, {}, key.canonical))
        recent = sum(map(len, answer.recent.values()))
    features = service.entities.features(key.scope, key.canonical) if key.scope else {}
    return {"row": row, "recent": recent, "features": len(features)}


def remains(service: Service) -> list[str]:
    """What forgetting does not undo, by the names that `docs/forget.md` explains."""
    archive = [] if service.parts.settings.archive is None else ["archive"]
    return ["dense_net", "rows_of_others", "counters_of_others", "log", *archive]


def command(service: Service, key: Key) -> int:
    """Give the command: to the joiner of every partition, then to the trainer.

    Where it fails halfway nothing is lost by giving it again.

    Returns:
        Its offset in the control topic.

    Raises:
        TransportError: the log cannot be written.
    """
    log, now_ms = service.parts.log, service.parts.clock.now_ms()
    event_id = uuid4().hex
    if key.scope and service.entities.features(key.scope, key.canonical):
        nothing = Entity(
            event_id=event_id,
            ts_ms=now_ms,
            received_at_ms=now_ms,
            scope="user" if key.scope == "user" else "item",
            id=key.canonical,
            features={},
        )
        log.append(ENTITIES, [NewRecord(entity_key(key.scope, key.canonical), encode(nothing))])
    # At equal times actions go before impressions: behind all that came in this millisecond.
    behind_ms = now_ms + 1

    def control(marks: dict[str, int]) -> NewRecord:
        told = Control(
            event_id=event_id,
            ts_ms=behind_ms,
            received_at_ms=behind_ms,
            command="forget",
            slot=key.slot,
            id=key.id,
            marks=marks,
        )
        return NewRecord(b"trainer", encode(told))

    marks = {}
    for partition in range(log.n_partitions(ACTIONS)):
        [(_, offset)] = log.append(ACTIONS, [control({})], partition=partition)
        marks[f"{ACTIONS}:{partition}"] = offset
    [(_, offset)] = log.append(CONTROL, [control(marks)])
    # For whoever looks who did what: never the key.
    slot = key.slot
    logger.warning("admin=forget slot=%s control_offset=%d", slot, offset)
    return offset
