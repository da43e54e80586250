"""What a record must be to be joined; anything else goes to the dead letter."""

import math
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np

from embedding_store import hash_strings
from freshrank import messages
from freshrank.errors import DataError
from freshrank.feature_types import U64
from freshrank.features import FeatureEncoder
from freshrank.live import LiveFeatures
from freshrank.messages import Action, Control, Impression, Message, Tick, check_id
from freshrank.metrics import Reading
from freshrank.settings import Settings
from freshrank.transport.base import ACTIONS, IMPRESSIONS, Record
from trainer.joiner.admission import key_of_user
from trainer.joiner.arena import Arena
from trainer.joiner.merge import NO_TIME, Head, Shown
from trainer.joiner.plain import AHEAD_MS_MAX, ID_LENGTH_MAX, PARTS_MAX, VALUE_MAX, PlainCheck
from trainer.rows import TIME_MS_MAX

# Decoded impressions are many objects. So few of them at a time die young; 2,000 would live to be
# looked at, with all that the process has, by a full garbage collection every other round.
_RECORDS_MAX: Final = 256


class Judge:
    """Decodes records, checks them and encodes the features of impressions, a whole read at a time.

    Args:
        settings: Tasks and join are read.
        encoder: Checks users, and items that are no feature.
        live: Says which actions feature state wants.
        arena: Where encoded rows go.
        tokens: Ids of canonical users, `uint64[n]`.
    """

    def __init__(
        self,
        settings: Settings,
        encoder: FeatureEncoder,
        live: LiveFeatures,
        arena: Arena,
        tokens: Callable[[Sequence[str]], U64],
    ) -> None:
        self._arena = arena
        self._encoder = encoder
        self._salt = settings.salt
        self._n_unknown = dict.fromkeys((IMPRESSIONS, ACTIONS), 0)
        self._tokens = tokens
        self._has_quota = settings.join.user_requests_per_hour is not None
        # What feature state keeps must have an id: encoding tells of items that are a feature.
        self._encodes_items = any(slot.name == "item_id" for slot in encoder.slots)
        self._events = live.events.union(task.event for task in settings.tasks)
        self._is_reported = settings.join.impressions == "reported"
        self._is_plain = PlainCheck(encoder, self._events, encodes_items=self._encodes_items)

    def __call__(self, records: Sequence[Record]) -> list[Head]:
        """One head per record, in order."""
        heads: list[Head] = []
        for start in range(0, len(records), _RECORDS_MAX):
            heads += self._judge_some(records[start : start + _RECORDS_MAX])
        return heads

    def readings(self, partition: int) -> list[Reading]:
        """Records that said more than this program knows, since the start; from any thread."""
        return [
            Reading(
                "joiner_unknown_fields",
                n_records,
                {"partition": str(partition), "topic": topic.rpartition(".")[2]},
            )
            for topic, n_records in self._n_unknown.items()
        ]

    def _judge_some(self, records: Sequence[Record]) -> list[Head]:
        heads = self._plain(records) or [self._judge(record) for record in records]
        acted = [(one, one.message.event_id) for one in heads if isinstance(one.message, Action)]
        keys = hash_strings([event_id for _, event_id in acted], self._salt).view(np.int64)
        for (head, _), key in zip(acted, keys.tolist(), strict=True):
            head.key = key
        shown = [(one, one.message) for one in heads if isinstance(one.message, Impression)]
        if self._has_quota:
            asked = [(head, one.user) for head, one in shown if one.user is not None]
            tokens = self._tokens([user for _, user in asked]).tolist()
            for (head, _), token in zip(asked, tokens, strict=True):
                head.key = key_of_user(token)
        with_features = [one for one in shown if self._has_features(one[1])]
        if with_features:
            self._encode(with_features)
        for head, impression in shown:
            if head.error is None:
                head.message = Shown.of(impression)
        return heads

    def _plain(self, records: Sequence[Record]) -> list[Head] | None:
        """Heads of records that are all in order; None when one may not be."""
        found = messages.decode_all([record.value for record in records])
        topic = records[0].topic
        if found is None or not self._is_plain(topic, found[0]):
            return None
        news, n_unknown = found
        self._n_unknown[topic] += n_unknown
        times_ms = [min(message.ts_ms, message.received_at_ms) for message in news]
        return list(map(Head, records, times_ms, news))

    def _has_features(self, impression: Impression) -> bool:
        return not (self._is_reported and impression.source == "client")

    def _encode(self, shown: Sequence[tuple[Head, Impression]]) -> None:
        """Encode impressions together, or one by one where a value does not fit its feature."""
        impressions = [impression for _, impression in shown]
        appended_at_ms = [head.record.appended_at_ms for head, _ in shown]
        try:
            row = self._arena.encode(impressions, appended_at_ms)
        except DataError as error:
            if len(shown) > 1:
                for one in shown:
                    self._encode([one])
            else:
                shown[0][0].message, shown[0][0].error = None, error
            return
        for head, impression in shown:
            head.first_row = row
            row += len(impression.items)

    def _judge(self, record: Record) -> Head:
        time_ms = NO_TIME
        try:
            message, says_more = messages.decode_noting(record.value)
            self._n_unknown[record.topic] += says_more
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
            _check_ids(message.user, message.event_id, message.request_id, *message.items)
            _check_impression(message)
            if message.user is not None:
                self._encoder.canonical_user(message.user)
            for item in () if self._encodes_items else message.items:
                self._encoder.canonical_item(item)
        elif isinstance(message, Action) and topic != IMPRESSIONS:
            _check_ids(message.user, message.event_id, message.request_id, message.item)
            self._check_action(message)
        elif isinstance(message, Control) and message.command == "forget" and topic == ACTIONS:
            check_id(message)
        else:
            kind = type(message).__name__.lower()
            raise DataError(f"{topic} takes no {kind} records", code="wrong-topic")

    def _check_action(self, action: Action) -> None:
        if action.event not in self._events:
            known = ", ".join(sorted(self._events))
            raise DataError(
                f"event {action.event[:64]!r} belongs to no task or live feature; known: {known}",
                code="unknown-event",
            )
        if action.user is not None:
            self._encoder.canonical_user(action.user)
        if not math.isfinite(action.value) or abs(action.value) > VALUE_MAX:
            raise DataError(
                f"value {action.value} is not a finite 32-bit float", code="non-finite-value"
            )


def _event_time(message: Message) -> int:
    ts_ms, received_at_ms = message.ts_ms, message.received_at_ms
    if 0 <= ts_ms <= TIME_MS_MAX and 0 <= received_at_ms <= TIME_MS_MAX:
        return min(ts_ms, received_at_ms)
    is_ts = not 0 <= ts_ms <= TIME_MS_MAX
    raise DataError(
        f"{'ts' if is_ts else 'received_at'} {ts_ms if is_ts else received_at_ms} is not in "
        f"milliseconds since 1970 (0 to {TIME_MS_MAX})",
        code="bad-time",
    )


def _check_ids(user: str | None, *ids: str) -> None:
    lengths = [*map(len, ids), 1 if user is None else len(user)]
    if not 0 < min(lengths) <= max(lengths) <= ID_LENGTH_MAX:
        bad = next(length for length in lengths if not 0 < length <= ID_LENGTH_MAX)
        raise DataError(f"an id has {bad} characters, expected 1 to {ID_LENGTH_MAX}", code="bad-id")


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
