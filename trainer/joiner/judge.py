"""What a record must be to be joined; anything else goes to the dead letter."""

import math
from collections.abc import Sequence
from typing import Final

import numpy as np

from freshrank import messages
from freshrank.errors import DataError
from freshrank.features import FeatureEncoder, RequestValues
from freshrank.messages import Action, Impression, Message, Tick
from freshrank.settings import RecentFeature, Settings
from freshrank.transport.base import IMPRESSIONS, Record
from trainer.joiner.arena import Arena
from trainer.joiner.merge import NO_TIME, Head
from trainer.rows import TIME_MS_MAX

# docs/semantics.md, records and time: further ahead of its ingest an event's clock is wrong.
AHEAD_MS_MAX: Final = 5 * 60 * 1_000
# Two rows of one item must fit into a record; canonical ids have at most 256 characters.
ID_LENGTH_MAX: Final = 512
PARTS_MAX: Final = 65_536
_VALUE_MAX: Final = float(np.finfo(np.float32).max)


class Judge:
    """Decodes records, checks them and encodes the features of impressions, a whole read at a time.

    Args:
        settings: Tasks, features and join are read.
        encoder: The feature encoder.
        arena: Where encoded rows go.
    """

    def __init__(self, settings: Settings, encoder: FeatureEncoder, arena: Arena) -> None:
        self._encoder = encoder
        self._arena = arena
        recent = [f.event for f in settings.features if isinstance(f, RecentFeature)]
        self._events = frozenset([task.event for task in settings.tasks] + recent)
        self._is_reported = settings.join.impressions == "reported"

    def __call__(self, records: Sequence[Record]) -> list[Head]:
        """One head per record, in order."""
        heads = [self._judge(record) for record in records]
        wanted = [i for i, head in enumerate(heads) if self._has_features(head)]
        if not wanted:
            return heads
        requests = [values_of(heads[i].message) for i in wanted]
        try:
            row = self._arena.append(self._encoder.encode(requests))
        except DataError:
            for i, request in zip(wanted, requests, strict=True):
                heads[i] = self._encoded_alone(heads[i], request)
            return heads
        for i, request in zip(wanted, requests, strict=True):
            head = heads[i]
            heads[i] = Head(head.record, head.time_ms, head.message, first_row=row)
            row += len(request.items)
        return heads

    def _has_features(self, head: Head) -> bool:
        message = head.message
        return isinstance(message, Impression) and not (
            self._is_reported and message.source == "client"
        )

    def _encoded_alone(self, head: Head, request: RequestValues) -> Head:
        try:
            row = self._arena.append(self._encoder.encode([request]))
        except DataError as error:
            return Head(head.record, head.time_ms, None, error)
        return Head(head.record, head.time_ms, head.message, first_row=row)

    def _judge(self, record: Record) -> Head:
        time_ms = NO_TIME
        try:
            message = messages.decode(record.value)
            time_ms = _event_time(message)
            self._check(record.topic, message)
        except DataError as error:
            return Head(record, time_ms, None, error)
        return Head(record, time_ms, message)

    def _check(self, topic: str, message: Message) -> None:
        if isinstance(message, Tick):
            return
        if message.ts_ms > message.received_at_ms + AHEAD_MS_MAX:
            ahead_ms = message.ts_ms - message.received_at_ms
            raise DataError(
                f"ts {message.ts_ms} is {ahead_ms} ms ahead of received_at: set the sender's clock",
                code="future",
            )
        if isinstance(message, Impression) and topic == IMPRESSIONS:
            _check_ids(message.event_id, message.request_id, message.user, *message.items)
            _check_impression(message)
        elif isinstance(message, Action) and topic != IMPRESSIONS:
            _check_ids(message.event_id, message.request_id, message.user, message.item)
            self._check_action(message)
        else:
            kind = type(message).__name__.lower()
            raise DataError(f"{topic} takes no {kind} records", code="wrong-topic")

    def _check_action(self, action: Action) -> None:
        if action.event not in self._events:
            known = ", ".join(sorted(self._events))
            raise DataError(
                f"event {action.event[:64]!r} belongs to no task or recent feature; known: {known}",
                code="unknown-event",
            )
        if not math.isfinite(action.value) or abs(action.value) > _VALUE_MAX:
            raise DataError(
                f"value {action.value} is not a finite 32-bit float", code="non-finite-value"
            )


def values_of(message: Message | None) -> RequestValues:
    """The raw values of an impression."""
    assert isinstance(message, Impression)  # noqa: S101 - callers keep nothing else
    return RequestValues(message.items, message.user, message.shared, message.columns)


def _event_time(message: Message) -> int:
    for name, time_ms in (("ts", message.ts_ms), ("received_at", message.received_at_ms)):
        if not 0 <= time_ms <= TIME_MS_MAX:
            raise DataError(
                f"{name} {time_ms} is not in milliseconds since 1970 (0 to {TIME_MS_MAX})",
                code="bad-time",
            )
    return min(message.ts_ms, message.received_at_ms)


def _check_ids(*ids: str | None) -> None:
    for one in ids:
        if one is not None and not 0 < len(one) <= ID_LENGTH_MAX:
            raise DataError(
                f"an id has {len(one)} characters, expected 1 to {ID_LENGTH_MAX}", code="bad-id"
            )


def _check_impression(impression: Impression) -> None:
    n_items = len(impression.items)
    for task, served in impression.served.items():
        if len(served) != n_items:
            raise DataError(
                f"served[{task[:64]!r}] has {len(served)} values for {n_items} items",
                code="bad-value",
            )
    if not 0 <= impression.part < impression.parts <= PARTS_MAX:
        raise DataError(
            f"part {impression.part} of {impression.parts}, expected 0 <= part < parts <= "
            f"{PARTS_MAX}",
            code="bad-value",
        )
