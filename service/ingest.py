"""Events in: checked one by one, appended, acknowledged by a receipt. No HTTP here."""

import logging
import threading
from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from freshrank.clock import Clock
from freshrank.features import FeatureEncoder
from freshrank.metrics import Metrics
from freshrank.settings import Settings
from freshrank.transport.base import ACTIONS, ENTITIES, IMPRESSIONS, EventLog, NewRecord
from service.bodies import EventBody, EventsResponse, Rejection
from service.decoding import locate, malformed, parse, pointer
from service.event_checks import Checked, EventChecker, Refusal
from service.known import KnownFeatures, SentTogether
from service.patience import Patience
from service.problems import FieldError
from service.receipts import Receipts

logger = logging.getLogger(__name__)

# Ids of about five minutes at 300 events/s; the joiner keeps the true window.
RECENT_IDS_MAX: Final = 100_000
# How long a client waits for the log. Half of the requests let in may: the rest can rank.
ACCEPT_WAIT_S: Final = 5.0
# Features first, so that what follows can use them; then what actions refer to.
_TOPICS: Final = (ENTITIES, IMPRESSIONS, ACTIONS)

_decoder: Final[msgspec.json.Decoder[EventBody]] = msgspec.json.Decoder(EventBody)


class Ingest:
    """Takes events from HTTP and from the simulated audience alike. Safe for threads.

    Attributes:
        checker: Decides which events are good.
    """

    def __init__(
        self,
        settings: Settings,
        encoder: FeatureEncoder,
        *,
        known: KnownFeatures,
        log: EventLog,
        receipts: Receipts,
        clock: Clock,
        metrics: Metrics,
    ) -> None:
        self.checker = EventChecker(settings, encoder, known)
        self._log = log
        self._receipts = receipts
        self._clock = clock
        self._metrics = metrics
        self._lock = threading.Lock()
        self._recent: OrderedDict[str, None] = OrderedDict()
        n_max = max(settings.limits.in_flight // 2, 1)
        self._patience = Patience("events", n_max=n_max, wait_s=ACCEPT_WAIT_S)
        self._totals: Counter[str] = Counter()

    def totals(self) -> dict[str, int]:
        """Events received, accepted, rejected and (best effort) duplicates so far."""
        names = ("received", "accepted", "rejected", "duplicates")
        with self._lock:
            return {name: self._totals[name] for name in names}

    def submit(
        self,
        events: Sequence[msgspec.Raw | EventBody | Mapping[str, object]],
        *,
        source: str = "simulation",
    ) -> EventsResponse:
        """Check every event and append the good ones.

        Args:
            events: Each as JSON text, decoded, or as a mapping of JSON values.
            source: Where they come from, for counters.

        Returns:
            What became of them; the receipt is empty when none was accepted.

        Raises:
            ProblemError: an event is not JSON.
            TransportError: the log cannot take them; none counts as received then.
        """
        received_at_ms = self._clock.now_ms()
        checked: list[Checked] = []
        rejected: list[Rejection] = []
        received: Counter[str] = Counter()
        refused: Counter[tuple[str, str]] = Counter()
        sent: SentTogether = {}
        for index, event in enumerate(events):
            kind = "unknown"
            try:
                body = decode_event(event)
                kind = _kind(body)
                checked.append(self.checker.check(body, received_at_ms=received_at_ms, sent=sent))
            except Refusal as refusal:
                place = pointer(["events", index, *refusal.steps])
                rejected.append(Rejection(index, place, refusal.detail))
                refused[kind, refusal.reason] += 1
            received[kind] += 1
        receipt = self._patience.ask(lambda: self._append(checked)) if checked else ""
        if logger.isEnabledFor(logging.DEBUG):
            for one in checked:
                request_id = getattr(one.message, "request_id", None)
                logger.debug("event=accepted topic=%s request_id=%s", one.topic, request_id)
        self._count(received, refused, source)
        return EventsResponse(
            accepted=len(checked),
            duplicates=self._remember(checked, len(rejected)),
            rejected=rejected,
            receipt=receipt,
        )

    def _append(self, checked: Sequence[Checked]) -> str:
        records: dict[str, list[NewRecord]] = {topic: [] for topic in _TOPICS}
        for event in checked:
            records[event.topic].extend(event.records)
        places = {
            topic: self._log.append(topic, batch) for topic, batch in records.items() if batch
        }
        return self._receipts.issue(places, queued_at_ms=self._clock.now_ms())

    def _count(
        self, received: Counter[str], refused: Counter[tuple[str, str]], source: str
    ) -> None:
        for kind, n in received.items():
            self._metrics.events_received.labels(kind, source).inc(n)
        for (kind, reason), n in refused.items():
            self._metrics.events_rejected.labels(kind, reason).inc(n)

    def _remember(self, checked: Sequence[Checked], n_rejected: int) -> int:
        """Note the ids that are in the log now. Returns how many were there before."""
        duplicates = 0
        with self._lock:
            for event in checked:
                event_id = event.message.event_id
                duplicates += event_id in self._recent
                self._recent[event_id] = None
                self._recent.move_to_end(event_id)
            while len(self._recent) > RECENT_IDS_MAX:
                self._recent.popitem(last=False)
            self._totals["accepted"] += len(checked)
            self._totals["rejected"] += n_rejected
            self._totals["received"] += len(checked) + n_rejected
            self._totals["duplicates"] += duplicates
        return duplicates


def decode_event(event: bytes | msgspec.Raw | EventBody | Mapping[str, object]) -> EventBody:
    """The event, from JSON text or a mapping of JSON values.

    Raises:
        Refusal: it is no event.
        ProblemError: it is not JSON.
    """
    if isinstance(event, msgspec.Struct):
        return event
    try:
        if isinstance(event, Mapping):
            body: EventBody = msgspec.convert(event, EventBody)
            return body
        return _decoder.decode(event)
    except msgspec.ValidationError as error:
        raw = event if isinstance(event, Mapping) else parse(bytes(event))
        raise _refusal(locate(error, raw, EventBody)) from error
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise malformed(error) from error


def _kind(event: EventBody) -> str:
    tag: Any = event.__struct_config__.tag
    return str(tag)


def _refusal(error: FieldError) -> Refusal:
    steps = [s.replace("~1", "/").replace("~0", "~") for s in error.pointer.split("/")[1:]]
    return Refusal("schema", steps, error.detail)
