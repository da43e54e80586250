"""The simulated audience: repeatable, drifting, and paced by its clock."""

import threading
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from freshrank import simulation
from freshrank.audience import FEATURES, Audience
from freshrank.clock import ManualClock
from freshrank.commands import demo
from freshrank.config import demo_text, loads
from freshrank.errors import TransportError
from freshrank.simulation import Simulation

NOW_MS = 1_800_000_000_000


class Service:
    """Ranks nothing better than it came, and keeps what it is sent; full on demand."""

    def __init__(self, clock: ManualClock) -> None:
        self.events: list[dict[str, Any]] = []
        self.n_requests = 0
        self.is_full = False
        self._clock = clock

    def rank(self, request: Any) -> SimpleNamespace:
        self.n_requests += 1
        items = request.candidates[: request.top_k]
        return SimpleNamespace(request_id=f"r{self.n_requests}", items=items)

    def submit(self, events: Sequence[dict[str, Any]]) -> None:
        if self.is_full:
            raise TransportError("no room", code="disk-full")
        self.events.extend(events)

    def actions(self) -> list[dict[str, Any]]:
        return [event for event in self.events if event["kind"] == "feedback"]


class Stop(threading.Event):
    """Waiting moves the clock; nothing sleeps."""

    def __init__(self, clock: ManualClock) -> None:
        super().__init__()
        self._clock = clock

    def wait(self, timeout: float | None = None) -> bool:
        self._clock.advance(ms=round((timeout or 0.0) * 1_000))
        return self.is_set()


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(now_ms=NOW_MS)


@pytest.fixture
def service(clock: ManualClock) -> Service:
    return Service(clock)


def simulated(service: Service, clock: ManualClock) -> Simulation:
    any_service = cast(Any, service)
    return Simulation(Audience(seed=1), any_service, any_service, clock)


def asked(seed: int) -> list[tuple[int, str, tuple[int, ...]]]:
    asks = Audience(seed=seed).asks(50, at_s=10.0)
    return [(ask.user, ask.device, tuple(ask.candidates.tolist())) for ask in asks]


def test_the_same_seed_asks_the_same() -> None:
    assert asked(7) == asked(7)
    assert asked(7) != asked(8)


def test_candidates_are_distinct_and_exist() -> None:
    audience = Audience(seed=1)
    for ask in audience.asks(50, at_s=100.0):
        assert len(set(ask.candidates.tolist())) == Audience.N_CANDIDATES
        assert max(ask.candidates) < audience.n_items(100.0)


def test_tastes_drift_and_turn_once_in_four_drifts() -> None:
    audience = Audience(seed=1, drift_s=10.0)
    users, items = np.arange(100), np.arange(100)
    now, later, around = (
        audience.click_probability(users, items, at_s=at_s) for at_s in (0.0, 10.0, 40.0)
    )
    assert np.abs(later - now).mean() > 0.1
    np.testing.assert_allclose(around, now)


def test_clicks_come_as_often_as_the_probability_says() -> None:
    audience = Audience(seed=1)
    users, items = np.zeros(20_000, np.int64), np.arange(20_000) % 300
    chance = audience.click_probability(users, items, at_s=0.0)
    n_clicks = audience.clicks(users, items, at_s=0.0).sum()
    assert abs(n_clicks - chance.sum()) < 4 * np.sqrt((chance * (1 - chance)).sum())


def test_an_audience_of_weeks_has_all_its_items_and_goes_on() -> None:
    audience = Audience(seed=1, n_items=30, arrival_s=0.001)
    [ask] = audience.asks(1, at_s=1e6)
    names = {audience.item_name(int(item)) for item in ask.candidates}
    assert len(names) == Audience.N_CANDIDATES


def test_what_the_audience_sends_the_demo_knows() -> None:
    known = {feature.name for feature in loads(demo_text(), name="demo", environ={}).features}
    assert set(FEATURES) <= known
    assert set(Audience(seed=1).item_features(0)) <= set(FEATURES)


def test_requests_keep_their_rate(service: Service, clock: ManualClock) -> None:
    audience = simulated(service, clock)
    audience.run(Stop(clock), requests_per_second=20.0, seconds=10.0)
    assert audience.n_requests == service.n_requests
    assert 190 <= service.n_requests <= 200
    assert audience.n_actions == len(service.actions()) > 100
    assert audience.n_events == service.n_requests + len(service.events)
    assert all(event["ts"] * 1_000 <= clock.now_ms() for event in service.actions())


def test_items_are_introduced_once(service: Service, clock: ManualClock) -> None:
    simulated(service, clock).run(Stop(clock), requests_per_second=5.0, seconds=60.0)
    items = [event["item"] for event in service.events if event["kind"] == "item"]
    assert len(items) == len(set(items))
    assert 325 <= len(items) <= 330  # 300 and one more every 2 s


def test_a_stop_ends_it(service: Service, clock: ManualClock) -> None:
    stop = Stop(clock)
    stop.set()
    simulated(service, clock).run(stop, requests_per_second=5.0)
    assert service.n_requests == 0


def test_a_full_disk_is_waited_for_and_nothing_is_lost(
    service: Service, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    audience = simulated(service, clock)
    stop = Stop(clock)
    audience.run(stop, requests_per_second=20.0, seconds=5.0)
    scheduled = {event["event_id"] for _, _, event in audience._due}
    assert scheduled
    service.is_full = True
    audience.run(stop, requests_per_second=20.0, seconds=simulation.RETRY_S * 3)
    assert audience.n_actions == len(service.actions())
    service.is_full = False
    clock.advance(ms=10_000)
    audience.deliver()
    sent = [event["event_id"] for event in service.actions()]
    assert scheduled <= set(sent)
    assert max(map(sent.count, set(sent))) <= 2  # one in 100 is delivered twice


def test_a_clock_set_back_moves_no_tastes(
    service: Service, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    audience = simulated(service, clock)
    clock.advance(ms=5_000)
    step = {"ms": -3_600_000}
    wall = clock.now_ms
    monkeypatch.setattr(clock, "now_ms", lambda: wall() + step["ms"])
    audience.run(Stop(clock), requests_per_second=5.0, seconds=2.0)
    assert service.n_requests > 0
    step["ms"] = 10 * 365 * 86_400_000
    audience.run(Stop(clock), requests_per_second=5.0, seconds=2.0)
    assert len(service.events) < 1_000


def test_after_a_drift_the_audience_comes_back_for_a_while() -> None:
    stop, drifted = threading.Event(), threading.Event()
    runs: list[tuple[float, float]] = []

    class Runs:
        def run(self, _: threading.Event, *, requests_per_second: float, seconds: float) -> None:
            runs.append((requests_per_second, seconds))
            if len(runs) == 1:
                drifted.set()
            if len(runs) == 3:
                stop.set()

    demo.stay(cast(Simulation, Runs()), stop, drifted)
    trickle = (demo.SERVING_REQUESTS_PER_SECOND, demo.LOOK_S)
    assert runs == [trickle, (demo.WARM_UP_REQUESTS_PER_SECOND, demo.RUSH_S), trickle]
