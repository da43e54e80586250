"""Services whose parameters come over Redis: what goes wrong there is no matter of a request."""

import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from freshrank import frames
from freshrank.clock import SystemClock
from freshrank.dev.servers import Server
from freshrank.frames import TableRows
from freshrank.metrics import Metrics
from freshrank.transport.redis_channel import RedisChannel
from service.app import create_app
from service.replica import Replica
from service.signal import Signal
from tests.loops import Loop
from tests.proxy import Proxy, half_open, proxy, slow, thin
from tests.unit.service.support import (
    DIM,
    TestClient,
    World,
    service_of,
    table_rows,
    until,
    until_warm,
)
from trainer.checkpoint_store import CheckpointStore

_NUMBERS = count()
WIDTH = DIM + 1
N_ROWS = 5_000  # a frame of 140 kB
WAIT_S = 60.0


@pytest.fixture
def prefix() -> str:
    return f"serving-{next(_NUMBERS)}"


@pytest.fixture
def world(redis_server: Server, prefix: str, tmp_path: Path) -> Iterator[World]:
    """Publishes over Redis, and nothing disturbs it."""
    with closing(World(tmp_path)) as world:
        world.channel.close()
        world.channel = channel(redis_server.address, prefix)
        yield world


def channel(address: str, prefix: str) -> RedisChannel:
    return RedisChannel(f"redis://{address}/0", clock=SystemClock(), prefix=prefix)


def rows(value: float, n: int = 1) -> dict[str, TableRows]:
    return {"item_id": table_rows({key: [value] * WIDTH for key in range(1, n + 1)})}


@contextmanager
def served(world: World, net: Proxy, prefix: str) -> Iterator[TestClient]:
    """A service that has its parameters through the network."""
    with (
        closing(channel(net.address, prefix)) as far,
        TestClient(create_app(replace(world.parts, channel=far))) as client,
    ):
        yield client


def version(client: TestClient) -> str:
    """That answers; the request is a good one."""
    answer = client.post("/v1/rank", json={"user": "u", "candidates": [{"item": "a"}]})
    assert answer.status_code == 200, answer.text
    text: str = answer.json()["model"]["version"]
    return text


@pytest.mark.parametrize("trouble", [slow, thin, half_open])
def test_an_ill_network_delays_parameters_and_no_request(
    trouble: Callable[[Proxy], None],
    world: World,
    redis_server: Server,
    prefix: str,
    leaky_client: None,
) -> None:
    world.base(rows(1.0))
    with proxy(redis_server.address) as net, served(world, net, prefix) as client:
        until_warm(service_of(client), timeout_s=WAIT_S)
        trouble(net)
        world.delta(rows(2.0, N_ROWS))
        took_s = []
        for _ in range(60):
            began_s = time.monotonic()
            assert version(client) in ("d0-s0", "d0-s1")  # half a second may be no more than late
            took_s.append(time.monotonic() - began_s)
        # A request that waited for the network would wait half a second, or until it gives up.
        assert sorted(took_s)[len(took_s) // 2] < 0.25
        if trouble is not slow:
            assert version(client) == "d0-s0"
        if trouble is half_open:
            until(lambda: service_of(client).replica.refusals != {}, timeout_s=WAIT_S)
        net.recover()
        until(lambda: version(client) == "d0-s1", timeout_s=WAIT_S)


def test_a_service_without_parameters_is_not_ready_and_makes_none_up(
    world: World, redis_server: Server, prefix: str, leaky_client: None
) -> None:
    with proxy(redis_server.address) as net:
        half_open(net)
        with served(world, net, prefix) as client:
            replica = service_of(client).replica
            for is_answered in (False, True):
                net.is_silent = not is_answered
                until(lambda: bool(replica.refusals) or net.is_silent is False, timeout_s=WAIT_S)
                ready = client.get("/health/ready")
                assert ready.status_code == 503
                assert "no base loaded" in ready.text
                ask = {"user": "u", "candidates": [{"item": "a"}]}
                assert client.post("/v1/rank", json=ask).status_code == 503
            world.base(rows(1.0))
            until(lambda: client.get("/health/ready").status_code == 200, timeout_s=WAIT_S)
            assert version(client) == "d0-s0"


@pytest.fixture
def replica(world: World) -> Replica:
    metrics = Metrics(CollectorRegistry())
    return Replica(world.settings, world.encoder, world.channel, world.clock, metrics, Signal())


def settle(replica: Replica) -> None:
    while replica.step(0.0):
        pass


def of_a_newer_format(world: World, patch: pytest.MonkeyPatch) -> None:
    with patch.context() as newer:
        newer.setattr(frames, "VERSION", frames.VERSION + 1)
        world.base(rows(2.0))


def of_another_schema(world: World, _: pytest.MonkeyPatch) -> None:
    world.base(rows(2.0), schema_hash="of tomorrow")


def of_wider_rows(world: World, _: pytest.MonkeyPatch) -> None:
    world.base({"item_id": table_rows({1: [2.0] * (WIDTH + 4)})})


@pytest.mark.parametrize(
    ("upgrade", "reason"),
    [(of_a_newer_format, "version"), (of_another_schema, "schema"), (of_wider_rows, "schema")],
)
def test_what_a_newer_trainer_publishes_is_refused_and_the_old_version_serves_on(
    upgrade: Callable[[World, pytest.MonkeyPatch], Any],
    reason: str,
    world: World,
    replica: Replica,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world.base(rows(1.0), seq=3)
    settle(replica)
    upgrade(world, monkeypatch)
    settle(replica)
    assert replica.model is not None
    assert replica.model.current.info.version == "d0-s3"
    assert replica.refusals == {reason: 1}
    assert replica.is_behind

    world.base(rows(4.0), seq=5)  # the trainer is put back, or this service was upgraded too
    settle(replica)
    assert replica.model.current.info.version == "d0-s5"
    assert not replica.is_behind


def test_replicas_follow_a_trainer_that_goes_back_to_an_earlier_checkpoint(
    redis_server: Server, prefix: str, tmp_path: Path
) -> None:
    with closing(Loop(tmp_path, lambda: channel(redis_server.address, prefix))) as loop:
        loop.start()
        loop.tick()
        assert loop.trainer._saver.save()
        loop.follow()
        checkpoint = CheckpointStore(tmp_path / "trainer", keep=1).newest()
        assert checkpoint is not None
        assert loop.replica.model is not None
        before, epoch, table = loop.seq, loop.replica.model.current.info.epoch, "user_id"
        keys = loop.replica.model.tables[table].keys()
        good = loop.replica.model.tables[table].lookup(keys)[0]
        for _ in range(3):
            loop.tick()
        loop.follow()
        assert not np.array_equal(loop.replica.model.tables[table].lookup(keys)[0], good)

        loop.bench.command("rollback", to=checkpoint.name)
        for _ in range(2):
            loop.tick(n_rows=0)
            loop.follow()
        info = loop.replica.model.current.info
        assert (info.epoch, info.seq > before) == (epoch + 1, True)
        np.testing.assert_array_equal(loop.replica.model.tables[table].lookup(keys)[0], good)
        loop.assert_caught_up()
