"""Drives the simulated audience through the real service: ask, look, click, read on.

Nothing is short-circuited but HTTP itself: requests go through the same ranker and events through
the same ingest as the routes use, and the audience sees only what the ranker answered.
"""

import heapq
import logging
import threading

import numpy as np

from freshrank.audience import Ask, Audience
from freshrank.clock import Clock
from freshrank.errors import TransportError
from service.ingest import Ingest
from service.ranker import Candidate, Ranker, RankRequest

logger = logging.getLogger(__name__)

TOP_K = 10
ASKS_PER_ROUND = 10
# One click in three is followed by a reading time.
DWELL_SHARE = 1 / 3
EVENTS_PER_SUBMIT = 500
# How long the audience stays away from a service that cannot take its events.
RETRY_S = 1.0


class Simulation:
    """The audience at work.

    Args:
        audience: Who.
        ranker: Where they ask.
        ingest: Where their clicks go.
        clock: Time; event times are the clock's. Tastes follow its monotonic part, so that a clock
            set back or forward does not move the world.

    Attributes:
        n_requests: Rank requests asked, each with one impression.
        n_actions: Clicks and reading times sent, repeated ones included.
        n_events: Both of these, and items introduced.
    """

    def __init__(self, audience: Audience, ranker: Ranker, ingest: Ingest, clock: Clock) -> None:
        self._audience = audience
        self._ranker = ranker
        self._ingest = ingest
        self._clock = clock
        self._start_ms = clock.now_ms()
        self._start_s = clock.monotonic_s()
        self._n_introduced = 0
        self._due: list[tuple[int, int, dict[str, object]]] = []
        self._n_scheduled = 0
        self._n_pushed = 0
        self.n_requests = 0
        self.n_actions = 0
        self.n_events = 0

    def introduce(self) -> None:
        """Tell the service about items it has not heard of, as a catalogue would."""
        n_items = self._audience.n_items(self._at_s())
        while self._n_introduced < n_items:
            last = min(n_items, self._n_introduced + EVENTS_PER_SUBMIT)
            items = range(self._n_introduced, last)
            self._submit(
                [
                    {
                        "kind": "item",
                        "item": self._audience.item_name(item),
                        "features": self._audience.item_features(item),
                    }
                    for item in items
                ]
            )
            self._n_introduced = last

    def run(
        self, stop: threading.Event, *, requests_per_second: float, seconds: float | None = None
    ) -> None:
        """Ask at a steady rate until stopped or for `seconds`; what is due then is never sent.

        A service that cannot take events, as its disk is full, is asked again later.
        """
        began_s = self._clock.monotonic_s()
        n_done = 0
        while not stop.is_set():
            elapsed_s = self._clock.monotonic_s() - began_s
            if seconds is not None and elapsed_s >= seconds:
                break
            n_owed = int(elapsed_s * requests_per_second) - n_done
            n = min(n_owed, ASKS_PER_ROUND)
            try:
                self.deliver()
                if n_owed <= 0:
                    stop.wait(0.005)
                    continue
                self.introduce()
                self._round(n)
            except TransportError as error:
                logger.warning("audience=away error=%s", error)
                stop.wait(RETRY_S)
            # What could not be asked in time is not asked later: an audience does not queue.
            n_done = max(n_done + n, int(elapsed_s * requests_per_second) - ASKS_PER_ROUND)

    def deliver(self) -> None:
        """Send the events whose time has come."""
        now_ms = self._clock.now_ms()
        while self._due and self._due[0][0] <= now_ms:
            n = min(len(self._due), EVENTS_PER_SUBMIT)
            due = [one for one in heapq.nsmallest(n, self._due) if one[0] <= now_ms]
            self._submit([event for _, _, event in due])
            for _ in due:  # not before: what the log refused is sent again
                heapq.heappop(self._due)
            self.n_actions += len(due)

    def _at_s(self) -> float:
        return self._clock.monotonic_s() - self._start_s

    def _round(self, n: int) -> None:
        at_s = self._at_s()
        asks = self._audience.asks(n, at_s=at_s)
        shown: list[tuple[str, int, int]] = []
        for ask in asks:
            request_id, ranked = self._ask(ask)
            shown.extend((request_id, ask.user, item) for item in ranked)
        self.n_requests += n
        self.n_events += n
        users = np.array([user for _, user, _ in shown])
        items = np.array([item for _, _, item in shown])
        clicked = np.flatnonzero(self._audience.clicks(users, items, at_s=at_s))
        self._schedule([shown[i] for i in clicked])

    def _ask(self, ask: Ask) -> tuple[str, list[int]]:
        by_name = {self._audience.item_name(int(item)): int(item) for item in ask.candidates}
        answer = self._ranker.rank(
            RankRequest(
                user=self._audience.user_name(ask.user),
                candidates=[Candidate(item=name) for name in by_name],
                context={"device": ask.device, "hour": ask.hour},
                top_k=TOP_K,
            )
        )
        return answer.request_id, [by_name[item.item] for item in answer.items]

    def _schedule(self, clicks: list[tuple[str, int, int]]) -> None:
        n = len(clicks)
        now_ms = self._clock.now_ms()
        due_ms = now_ms + self._audience.delays_ms(n)
        repeated = self._audience.repeats(n)
        dwells = self._audience.dwell_seconds(n)
        for k, (request_id, user, item) in enumerate(clicks):
            click = self._feedback(request_id, user, item, "click", 1.0, int(due_ms[k]))
            self._push(int(due_ms[k]), click)
            if repeated[k]:
                self._push(int(due_ms[k]) + 100, click)
            if dwells[k] < np.log(1 / (1 - DWELL_SHARE)) * 8.0:
                read_ms = int(due_ms[k]) + 500
                event = self._feedback(request_id, user, item, "dwell", float(dwells[k]), read_ms)
                self._push(read_ms, event)

    def _feedback(
        self, request_id: str, user: int, item: int, event: str, value: float, at_ms: int
    ) -> dict[str, object]:
        self._n_scheduled += 1
        return {
            "kind": "feedback",
            "event_id": f"simulated-{self._start_ms}-{self._n_scheduled}",
            "request_id": request_id,
            "user": self._audience.user_name(user),
            "item": self._audience.item_name(item),
            "event": event,
            "value": value,
            "ts": at_ms / 1_000,
        }

    def _push(self, due_ms: int, event: dict[str, object]) -> None:
        self._n_pushed += 1
        heapq.heappush(self._due, (due_ms, self._n_pushed, event))

    def _submit(self, events: list[dict[str, object]]) -> None:
        if events:
            self._ingest.submit(events)
            self.n_events += len(events)
