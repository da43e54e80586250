"""What a service says where its clock was set."""

import pytest

from tests.unit.service.conftest import MakeClient, MakeWorld
from tests.unit.service.support import StubLoop, TestClient

HOUR_MS = 3_600_000


def degraded(client: TestClient) -> list[str]:
    told: list[str] = client.get("/v1/stats").json()["degraded"]
    return told


def test_a_clock_behind_event_time_is_said(make_world: MakeWorld, make_client: MakeClient) -> None:
    loop = StubLoop()
    world = make_world(loop=loop)
    world.base()
    client = make_client(world)
    assert degraded(client) == []
    loop.gauges["clock_behind_seconds"] = 3_590.0
    assert degraded(client) == ["clock"]
    loop.gauges.clear()
    assert degraded(client) == []


def test_a_trainer_is_missed_though_the_clock_was_set_back(
    make_world: MakeWorld, make_client: MakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_world()
    monkeypatch.setattr(world.channel, "beat_age_s", lambda: 0.0)
    world.base()
    client = make_client(world)
    client.post("/v1/rank", json={"user": "u", "candidates": [{"item": "a"}]})  # never learned
    world.clock.step(ms=-HOUR_MS)
    assert degraded(client) == []
    world.clock.advance(ms=42_501)  # the window, its slack, ten frames, and what is believed
    assert degraded(client) == ["trainer_away"]
