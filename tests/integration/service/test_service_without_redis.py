"""The service with feature state in Redis, while Redis is frozen, gone and back again."""

import contextlib
import functools
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from freshrank.dev.redis import redis
from freshrank.dev.servers import Server, free_ports
from freshrank.feature_state import Did, FeatureUpdates
from freshrank.messages import Impression
from freshrank.redis_state import RedisFeatureState
from freshrank.transport.base import IMPRESSIONS
from service.app import create_app
from tests.servers import started
from tests.unit.service.support import NOW_MS, TestClient, World, service_of, until, until_warm

# What a request waits at most for a server that is away: to connect, and for an answer.
WAIT_S: Final = 1.0


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path / "world")
    yield world
    world.state.close()
    world.close()


@contextlib.contextmanager
def served(world: World) -> Iterator[TestClient]:
    world.base()
    with TestClient(create_app(world.parts)) as client:
        until_warm(service_of(client))
        yield client


def rank(client: TestClient) -> dict[str, Any]:
    answer = client.post("/v1/rank", json={"user": "u1", "candidates": [{"item": "a"}]})
    assert answer.status_code == 200
    document: dict[str, Any] = answer.json()
    return document


def used(world: World) -> Any:
    """The recent items that the last ranking used."""
    last = world.records(IMPRESSIONS)[-1]
    assert isinstance(last, Impression)
    return last.shared.get("last_clicks")


def is_up(client: TestClient) -> str:
    name = "freshrank_serving_feature_state_up "
    lines: list[str] = client.get("/metrics").text.splitlines()
    return next(line for line in lines if line.startswith(name)).removeprefix(name)


@contextlib.contextmanager
def server(directory: Path, port: int) -> Iterator[Server]:
    yield from started(functools.partial(redis, port=port), directory)


def assert_goes_without(client: TestClient, world: World) -> None:
    """The first request may wait; then none does, and each says what it lacks."""
    for wait_s in (WAIT_S, *[0.25] * 5):
        start_s = time.monotonic()
        assert rank(client)["degraded"] == ["feature_state"]
        assert time.monotonic() - start_s < wait_s + 0.25
        assert used(world) in (None, [])
    assert is_up(client) == "0.0"
    assert client.get("/health/ready").json()["ready"]
    assert client.get("/health/ready").json()["degraded"] == ["feature_state"]


def assert_reads_again(client: TestClient, world: World, items: list[str]) -> None:
    until(lambda: rank(client)["degraded"] == [])
    assert used(world) == items
    assert is_up(client) == "1.0"


def test_requests_are_answered_without_redis_and_say_so(world: World, tmp_path: Path) -> None:
    [port] = free_ports(1)
    world.state = RedisFeatureState(world.settings, f"redis://127.0.0.1:{port}/0")
    with served(world) as client:
        with server(tmp_path / "redis", port) as running:
            did = [("click", "u1", Did(NOW_MS - 1, "e1", "a"))]
            world.state.apply(FeatureUpdates(did=did, marks={"freshrank.actions:0": 0}))
            assert_reads_again(client, world, ["a"])
            running.process.send_signal(signal.SIGSTOP)
            assert_goes_without(client, world)
            running.process.send_signal(signal.SIGCONT)
            assert_reads_again(client, world, ["a"])
        assert_goes_without(client, world)
        with server(tmp_path / "redis", port):  # it saved its data when it ended
            assert_reads_again(client, world, ["a"])


def test_a_service_starts_without_redis(world: World, tmp_path: Path) -> None:
    [port] = free_ports(1)
    world.state = RedisFeatureState(world.settings, f"redis://127.0.0.1:{port}/0")
    with served(world) as client:
        assert_goes_without(client, world)
        with server(tmp_path / "redis", port):
            assert_reads_again(client, world, [])
