"""Receipts: what became of events, told from offsets alone, so that any replica can answer.

The text names, per log, the first and last offset, and carries a keyed checksum: what this
configuration did not issue is not found.
"""

import base64
import hashlib
import hmac
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Final, Literal

import msgspec

from freshrank.errors import DataError
from freshrank.progress import Progress
from freshrank.transport.base import ACTIONS, ENTITIES, IMPRESSIONS, EventLog
from service.bodies import EventOutcome, ReceiptResponse
from service.entities import EntityView
from service.learned import Learned, Reached
from service.patience import Patience
from service.times import rfc3339

State = Literal["queued", "joined", "trained", "servable"]
STATES: Final[tuple[State, ...]] = ("queued", "joined", "trained", "servable")
PENDING: Final = "pending"

_PREFIX: Final = "ev-"
_TOPICS: Final = (IMPRESSIONS, ACTIONS, ENTITIES)
_NONE: Final = "no such receipt"
_DIGEST_BYTES: Final = 8
# The most events that one request may be configured to bring; a forged receipt asks for no more.
_SPAN_RECORDS_MAX: Final = 100_000


@dataclass(frozen=True, slots=True)
class Span:
    """Consecutive records of one log."""

    topic: str
    partition: int
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Receipt:
    """Records that were appended together."""

    queued_at_ms: int
    spans: tuple[Span, ...]


_Count = Annotated[int, msgspec.Meta(ge=0)]
_Moment = Annotated[int, msgspec.Meta(ge=0, le=253_402_300_799_999)]  # the end of year 9999


class _Content(msgspec.Struct, array_like=True):
    queued_at_ms: _Moment
    spans: list[tuple[_Count, _Count, _Count, _Count]]


class Receipts:
    """Issues receipts and says how far their events have come.

    `progress` is that of joiner and trainer in this process, or None.
    """

    def __init__(
        self,
        *,
        salt: int,
        log: EventLog,
        learned: Learned,
        entities: EntityView,
        progress: Progress | None,
        looks: Patience,
    ) -> None:
        self._key = b"receipt" + salt.to_bytes(8, "little")
        self._log = log
        self._learned = learned
        self._entities = entities
        self._progress = progress
        self._looks = looks
        self._ends: dict[tuple[str, int], int] = {}  # as far as they are known

    def issue(self, appended: Mapping[str, Sequence[tuple[int, int]]], *, queued_at_ms: int) -> str:
        """A receipt for records: per topic the (partition, offset) of each."""
        spans: dict[tuple[int, int], tuple[int, int]] = {}
        for topic, places in appended.items():
            for partition, offset in places:
                log = (_TOPICS.index(topic), partition)
                first, last = spans.get(log, (offset, offset))
                spans[log] = (min(first, offset), max(last, offset))
                self._reach(topic, partition, offset + 1)
        content = _Content(queued_at_ms, [(*log, *span) for log, span in sorted(spans.items())])
        data = msgspec.msgpack.encode(content)
        return _PREFIX + base64.urlsafe_b64encode(self._digest(data) + data).decode().rstrip("=")

    def read(self, text: str) -> Receipt:
        """What a receipt names.

        Raises:
            DataError: not issued by a service with this configuration (code `receipt`).
            TransportError: the log cannot be asked.
        """
        receipt = self.parse(text)
        self.check(receipt)
        return receipt

    def parse(self, text: str) -> Receipt:
        """What a receipt names, if a service with this configuration issued it.

        Raises:
            DataError: none did (code `receipt`).
        """
        try:
            return self._parse(text)
        except (ValueError, LookupError, msgspec.MsgspecError) as error:
            raise DataError(_NONE, code="receipt") from error

    def is_known(self, receipt: Receipt) -> bool:
        """Whether its events are known to be in the log; else `check` has to ask."""
        return all(span.last < self._end(span) for span in receipt.spans)

    def check(self, receipt: Receipt) -> None:
        """See that its events are in this log; a receipt of an earlier one is none.

        Raises:
            DataError: they are not (code `receipt`).
            TransportError: the log cannot be asked.
        """
        for span in receipt.spans:
            place = (span.topic, span.partition)
            if span.partition < self._log.n_partitions(span.topic) and span.last >= self._end(span):
                self._reach(*place, self._looks.ask(partial(self._log.end_offset, *place)))
        if not self.is_known(receipt):
            raise DataError(_NONE, code="receipt")

    def is_servable(self, receipt: Receipt, offsets: Mapping[str, int] | None = None) -> bool:
        """Whether all its events are in the parameters: the applied ones, or those at `offsets`."""
        return all(self._is_in(span, offsets) for span in receipt.spans)

    def status(self, text: str, receipt: Receipt) -> ReceiptResponse:
        """The answer to `GET /v1/events/{receipt}`."""
        outcomes = [outcome for span in receipt.spans for outcome in self._outcomes(span)]
        state = STATES[min(STATES.index(self._state(span, span.last)) for span in receipt.spans)]
        if any(outcome.outcome == PENDING for outcome in outcomes):
            state = STATES[min(STATES.index(state), STATES.index("joined"))]
        is_servable = state == "servable"
        reached = [self._reached(span) for span in receipt.spans] if is_servable else []
        trained_at_ms = _latest([r.published_at_ms for r in reached])
        servable_at_ms = _latest([r.applied_at_ms for r in reached])
        seconds = None
        if servable_at_ms is not None:
            seconds = max(servable_at_ms - receipt.queued_at_ms, 0) / 1_000
        return ReceiptResponse(
            receipt=text,
            state=state,
            outcomes=outcomes,
            queued_at=rfc3339(receipt.queued_at_ms),
            trained_at=None if trained_at_ms is None else rfc3339(trained_at_ms),
            servable_at=None if servable_at_ms is None else rfc3339(servable_at_ms),
            event_to_servable_seconds=seconds,
        )

    def _parse(self, text: str) -> Receipt:
        body = text.removeprefix(_PREFIX)
        if body == text or not body.isascii():
            raise ValueError(text)
        raw = base64.b64decode(body + "=" * (-len(body) % 4), altchars=b"-_", validate=True)
        digest, data = raw[:_DIGEST_BYTES], raw[_DIGEST_BYTES:]
        if not hmac.compare_digest(digest, self._digest(data)):
            raise ValueError(text)
        content = msgspec.msgpack.decode(data, type=_Content)
        spans = tuple(Span(_TOPICS[topic], *rest) for topic, *rest in content.spans)
        if not spans or not all(0 <= s.last - s.first < _SPAN_RECORDS_MAX for s in spans):
            raise ValueError(text)
        return Receipt(content.queued_at_ms, spans)

    def _end(self, span: Span) -> int:
        return self._ends.get((span.topic, span.partition), 0)

    def _reach(self, topic: str, partition: int, end: int) -> None:
        self._ends[topic, partition] = max(end, self._ends.get((topic, partition), 0))

    def _digest(self, data: bytes) -> bytes:
        return hashlib.blake2b(data, key=self._key, digest_size=_DIGEST_BYTES).digest()

    def _is_in(self, span: Span, offsets: Mapping[str, int] | None) -> bool:
        if span.topic == ENTITIES or offsets is None:
            is_in = self._state(span, span.last) == "servable"
        else:
            is_in = offsets.get(f"{span.topic}:{span.partition}", 0) > span.last
        return is_in and not any(o.outcome == PENDING for o in self._outcomes(span))

    def _state(self, span: Span, offset: int) -> State:
        topic, partition = span.topic, span.partition
        if topic == ENTITIES:
            return "servable" if self._entities.offset(partition) > offset else "queued"
        if self._learned.offset(topic, partition) > offset:
            return "servable"
        if self._progress is None:
            return "queued"
        if self._progress.offset("trained", topic, partition) > offset:
            return "trained"
        is_joined = self._progress.offset("joined", topic, partition) > offset
        return "joined" if is_joined else "queued"

    def _outcomes(self, span: Span) -> Iterator[EventOutcome]:
        """Of every action; of other records where there is something to say."""
        for offset in range(span.first, span.last + 1):
            text = self._learned.outcome(span.topic, span.partition, offset)
            if text is None and span.topic == ACTIONS:
                text = self._plain_outcome(span, offset)
            if text is not None:
                yield EventOutcome(span.topic, span.partition, offset, text)

    def _plain_outcome(self, span: Span, offset: int) -> str:
        """Of an action of which no frame said anything: `trained`, if this process heard them."""
        state = self._state(span, offset)
        if state != "servable":
            return state
        reached = self._learned.reached(span.topic, span.partition, offset)
        return "unknown" if reached is None or reached.published_at_ms is None else "trained"

    def _reached(self, span: Span) -> Reached:
        if span.topic == ENTITIES:
            reached = self._entities.reached(span.partition, span.last)
        else:
            reached = self._learned.reached(span.topic, span.partition, span.last)
        return reached or Reached(None, None)


def _latest(moments: Sequence[int | None]) -> int | None:
    known = [moment for moment in moments if moment is not None]
    return max(known) if known and len(known) == len(moments) else None
