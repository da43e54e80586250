"""What a service ranks before it is ready, and that nobody hears of it."""

from typing import Any

import pytest

from freshrank.errors import TransportError
from freshrank.messages import Impression, Tick, encode
from freshrank.transport.base import IMPRESSIONS, NewRecord
from service.bodies import RankRequest
from service.ranker import Ranker
from tests.unit.service.conftest import MakeClient, MakeWorld
from tests.unit.service.support import NOW_MS, World, make_settings, service_of, until


@pytest.fixture
def ranked(monkeypatch: pytest.MonkeyPatch) -> list[RankRequest]:
    """What rankers are asked for, in order."""
    requests: list[RankRequest] = []
    inner = Ranker.rank

    def rank(self: Ranker, request: RankRequest) -> Any:
        requests.append(request)
        return inner(self, request)

    monkeypatch.setattr(Ranker, "rank", rank)
    return requests


def log_impressions(world: World, n: int) -> None:
    """So many, with a tick and a damaged record behind each."""
    tick = encode(Tick(event_id="t", ts_ms=NOW_MS, received_at_ms=NOW_MS))
    for number in range(n):
        shown = Impression(
            event_id=f"e{number}",
            ts_ms=NOW_MS,
            received_at_ms=NOW_MS,
            request_id=f"r{number}",
            user=f"u{number}",
            items=["a", "b"],
        )
        for value in (encode(shown), tick, b"damaged"):
            world.log.append(IMPRESSIONS, [NewRecord(b"key", value)], partition=0)


def test_the_newest_logged_requests_are_ranked_before_a_service_is_ready(
    make_world: MakeWorld, make_client: MakeClient, ranked: list[RankRequest]
) -> None:
    world = make_world(
        settings=make_settings(log={"partitions": 1}, serving={"warmup_requests": 3})
    )
    log_impressions(world, 5)
    client = make_client(world, wait=False)
    components = client.get("/health/ready").json()["components"]
    assert {
        "name": "warmup",
        "ready": False,
        "reason": "no logged request ranked yet",
    } in components
    n_logged = len(world.log.read(IMPRESSIONS, 0, 0))

    world.base()
    until(lambda: client.get("/health/ready").status_code == 200)
    assert [one.user for one in ranked] == ["u2", "u3", "u4"]
    assert [one.item for one in ranked[0].candidates] == ["a", "b"]
    assert len(world.log.read(IMPRESSIONS, 0, 0)) == n_logged  # nothing was shown to anybody
    series = client.get("/metrics").text
    assert 'freshrank_http_requests_total{code="200",method="POST",route="/v1/rank"}' not in series


def test_what_cannot_be_ranked_any_more_holds_nobody_up(
    make_world: MakeWorld, make_client: MakeClient, ranked: list[RankRequest]
) -> None:
    world = make_world(settings=make_settings(log={"partitions": 1}, item_key="uint64"))
    log_impressions(world, 2)  # "a" is no number
    world.base()
    client = make_client(world)
    until(lambda: client.get("/health/ready").status_code == 200)
    assert len(ranked) == 2


def test_a_log_that_cannot_be_read_holds_nobody_up(
    world: World,
    make_client: MakeClient,
    monkeypatch: pytest.MonkeyPatch,
    ranked: list[RankRequest],
) -> None:
    inner = type(world.log).end_offset

    def away(self: Any, topic: str, partition: int) -> int:
        if topic == IMPRESSIONS:
            raise TransportError("the broker is away: start it", code="broker-unreachable")
        return inner(self, topic, partition)

    monkeypatch.setattr(type(world.log), "end_offset", away)
    world.base()
    client = make_client(world)
    until(lambda: client.get("/health/ready").status_code == 200)
    assert ranked == []


@pytest.mark.parametrize("n_logged", [0, 3])
def test_none_are_ranked_where_none_are_wanted(
    make_world: MakeWorld, make_client: MakeClient, ranked: list[RankRequest], n_logged: int
) -> None:
    world = make_world(settings=make_settings(serving={"warmup_requests": 0}))
    log_impressions(world, n_logged)
    client = make_client(world, wait=False)
    assert service_of(client).warmup.is_over
    assert ranked == []
