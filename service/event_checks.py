"""One event as a client sent it -> the record to append, or why not."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final, Literal, TypedDict
from uuid import uuid4

import msgspec

from freshrank.errors import DataError
from freshrank.features import FeatureEncoder
from freshrank.hints import did_you_mean
from freshrank.messages import Action, Entity, Impression, Value, encode, entity_key
from freshrank.settings import Settings
from freshrank.transport.base import ACTIONS, ENTITIES, IMPRESSIONS, RECORD_BYTES_MAX, NewRecord
from service.bodies import EventBody, FeedbackEvent, ImpressionEvent, ItemEvent, UserEvent
from service.impressions import records_of
from service.known import KnownFeatures, SentTogether
from service.times import parse_moment

# Clocks of clients go wrong by minutes; what lies further ahead would hold the watermark back.
FUTURE_MS_MAX: Final = 300_000


class Refusal(Exception):  # noqa: N818 - an outcome of its own, not an error of the service
    """An event that is not accepted.

    Args:
        reason: A slug for counters.
        steps: Where in the event.
        detail: What is wrong and what is expected.
    """

    def __init__(self, reason: str, steps: Sequence[str | int], detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.steps = tuple(steps)
        self.detail = detail


@dataclass(frozen=True, slots=True)
class Checked:
    """An accepted event.

    Attributes:
        topic: Where it goes.
        message: What it says, complete.
        records: It, as one record or several.
    """

    topic: str
    message: Action | Entity | Impression
    records: list[NewRecord]


class _Head(TypedDict):
    """What every record begins with."""

    event_id: str
    ts_ms: int
    received_at_ms: int


class EventChecker:
    """Checks events of one configuration and makes records of them. Immutable."""

    def __init__(self, settings: Settings, encoder: FeatureEncoder, known: KnownFeatures) -> None:
        self._encoder = encoder
        self._known = known
        # A report names what was shown; the joiner takes the features from the served record.
        self._is_reported = settings.join.impressions == "reported"
        self._events = sorted({task.event for task in settings.tasks} | known.live.events)

    def check(
        self,
        event: EventBody,
        *,
        received_at_ms: int,
        sent: SentTogether | None = None,
        is_replay: bool = False,
    ) -> Checked:
        """The event's records.

        Args:
            event: As decoded.
            received_at_ms: Now.
            sent: Entities that came before it in the same request; an entity joins them.
            is_replay: It was received at its `ts`, which it must have; now only says what lies in
                the future.

        Raises:
            Refusal: it cannot be used.
        """
        ts_ms = self._ts(event, received_at_ms, is_required=is_replay)
        event_id = event.event_id or _derived_id(event) or uuid4().hex
        sent = {} if sent is None else sent
        head = _Head(
            event_id=event_id,
            ts_ms=ts_ms,
            received_at_ms=ts_ms if is_replay else received_at_ms,
        )
        match event:
            case FeedbackEvent():
                return self._feedback(event, head)
            case ImpressionEvent():
                return self._impression(event, head, sent)
            case ItemEvent():
                return self._entity("item", self._item(event.item, ["item"]), event, head, sent)
            case UserEvent():
                return self._entity("user", self._user(event.user), event, head, sent)

    def _ts(self, event: EventBody, received_at_ms: int, *, is_required: bool) -> int:
        if event.ts is None:
            if is_required:
                raise Refusal("no-ts", ["ts"], "without a ts nobody knows when it happened")
            return received_at_ms
        try:
            ts_ms = parse_moment(event.ts)
        except DataError as error:
            raise Refusal("bad-ts", ["ts"], str(error)) from error
        if ts_ms > received_at_ms + FUTURE_MS_MAX:
            raise Refusal(
                "future",
                ["ts"],
                f"ts lies {(ts_ms - received_at_ms) / 1_000:.0f} s ahead, at most "
                f"{FUTURE_MS_MAX // 1_000} s are taken: send RFC 3339 or seconds, not milliseconds",
            )
        return ts_ms

    def _feedback(self, event: FeedbackEvent, head: _Head) -> Checked:
        if event.event not in self._events:
            hint = did_you_mean(event.event, self._events) or f"; known: {', '.join(self._events)}"
            raise Refusal("unknown-event", ["event"], f"unknown event {event.event!r}{hint}")
        action = Action(
            **head,
            request_id=event.request_id,
            item=self._item(event.item, ["item"]),
            event=event.event,
            user=None if event.user is None else self._user(event.user),
            value=event.value,
        )
        record = NewRecord(event.request_id.encode(), encode(action))
        return Checked(ACTIONS, action, [record])

    def _impression(self, event: ImpressionEvent, head: _Head, sent: SentTogether) -> Checked:
        items = [self._item(one.item, ["items", i, "item"]) for i, one in enumerate(event.items)]
        self._check_features(event.user_features, ["user"], ["user_features"])
        self._check_features(event.context, ["context"], ["context"])
        first_of: dict[str, int] = {}
        for i, (item, shown) in enumerate(zip(items, event.items, strict=True)):
            self._check_features(shown.features, ["item", "candidate"], ["items", i, "features"])
            if (first := first_of.setdefault(item, i)) != i:
                raise Refusal("bad-value", ["items", i, "item"], f"the same item as {first}")
        user = None if event.user is None else self._user(event.user)
        shared, columns = self._values(event, head["ts_ms"], user, items, sent)
        impression = Impression(
            **head,
            request_id=event.request_id,
            user=user,
            items=items,
            shared=shared,
            columns=columns,
            positions=[shown.position or i for i, shown in enumerate(event.items, start=1)],
            source="client",
        )
        try:
            return Checked(IMPRESSIONS, impression, records_of(impression))
        except DataError as error:
            raise Refusal("too-large", ["items"], str(error)) from error

    def _values(
        self,
        event: ImpressionEvent,
        ts_ms: int,
        user: str | None,
        items: Sequence[str],
        sent: SentTogether,
    ) -> tuple[dict[str, Value], dict[str, list[Value]]]:
        """What a ranking at that time would have used; its shared values, and those per item."""
        explicit = [shown.features for shown in event.items]
        shared = {**event.user_features, **event.context}
        if self._is_reported:
            names = sorted({name for features in explicit for name in features})
            return shared, {name: [features.get(name) for features in explicit] for name in names}
        values = self._known.complete(user, items, shared, explicit, before_ms=ts_ms, sent=sent)
        return dict(values.shared), {name: list(one) for name, one in values.columns.items()}

    def _entity(
        self,
        scope: Literal["item", "user"],
        identity: str,
        event: ItemEvent | UserEvent,
        head: _Head,
        sent: SentTogether,
    ) -> Checked:
        self._check_features(event.features, [scope], ["features"])
        entity = Entity(
            **head,
            scope=scope,
            id=identity,
            features=event.features,
        )
        value = encode(entity)
        if len(value) >= RECORD_BYTES_MAX:
            detail = f"{len(value)} bytes of features, at most {RECORD_BYTES_MAX - 1} are taken"
            raise Refusal("too-large", ["features"], detail)
        sent[scope, identity] = event.features
        return Checked(ENTITIES, entity, [NewRecord(entity_key(scope, identity), value)])

    def _item(self, item: int | str, steps: Sequence[str | int]) -> str:
        try:
            return self._encoder.canonical_item(item)
        except DataError as error:
            raise Refusal("bad-id", steps, str(error)) from error

    def _user(self, user: int | str) -> str:
        try:
            return self._encoder.canonical_user(user)
        except DataError as error:
            raise Refusal("bad-id", ["user"], str(error)) from error

    def _check_features(
        self, features: Mapping[str, Value], scopes: Sequence[str], steps: Sequence[str | int]
    ) -> None:
        for problem in self._encoder.check(features, scopes):
            # The encoder escapes its pointer already, and so would we.
            name = problem.pointer.replace("~1", "/").replace("~0", "~")
            raise Refusal("bad-value", [*steps, name], problem.detail)


def _derived_id(event: EventBody) -> str | None:
    """Equal events of equal time are the same event; without a time nobody can tell."""
    if event.ts is None:
        return None
    return blake2b(msgspec.msgpack.encode(event), digest_size=16).hexdigest()
