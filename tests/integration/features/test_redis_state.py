"""The state in Redis passes the checks of all feature states, and keeps what only it promises."""

import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import Final

import numpy as np
import pytest
from redis import Redis

from freshrank.dev.servers import Server
from freshrank.errors import TransportError
from freshrank.feature_state import Did, FeatureUpdates, LocalFeatureState
from freshrank.redis_state import RedisFeatureState
from tests.integration.features.state_checks import (
    AGE,
    CLICKED,
    CLICKS,
    KEYS,
    SETTINGS,
    STATE_CHECKS,
    Check,
    known,
    one_round,
)

_NUMBERS = count()
ACTIONS: Final = "freshrank.actions"


@contextmanager
def states(server: Server) -> Iterator[Callable[[], RedisFeatureState]]:
    """Opens one state as often as asked, as so many processes would; all are closed at the end."""
    opened: list[RedisFeatureState] = []
    prefix = f"test-{next(_NUMBERS)}"

    def open_state() -> RedisFeatureState:
        opened.append(RedisFeatureState(SETTINGS, f"redis://{server.address}/0", prefix=prefix))
        return opened[-1]

    try:
        yield open_state
    finally:
        for one in opened:
            one.close()


@pytest.mark.parametrize(
    "check", STATE_CHECKS, ids=lambda check: check.__name__.removeprefix("check_")
)
def test_redis_state_passes(check: Check, redis_server: Server) -> None:
    with states(redis_server) as open_state:
        check(open_state)


def test_it_knows_what_the_state_in_process_knows(redis_server: Server) -> None:
    """Random rounds of three partitions, sent in another order by as many writers."""
    rounds: list[FeatureUpdates] = []
    for partition in range(3):
        for offset in range(10):
            n = random.randint(0, 20)
            keys = np.array([random.choice(KEYS) for _ in range(n)], np.uint64)
            ts_ms = np.array([1_000 * random.randint(0, 20) for _ in range(n)], np.int64)
            did = [
                ("click", random.choice(["ann", "bob"]), Did(int(at), f"e{at % 7}", f"i{offset}"))
                for at in ts_ms
            ]
            events = {name: (keys, ts_ms) for name in (CLICKS, CLICKED, AGE)}
            rounds.append(FeatureUpdates(events, did, {f"{ACTIONS}:{partition}": offset}))
    local = LocalFeatureState(SETTINGS)
    with states(redis_server) as open_state:
        writers = {f"{ACTIONS}:{partition}": open_state() for partition in range(3)}
        for updates in rounds:
            local.apply(updates)
            (log,) = updates.marks
            writers[log].apply(updates)
        reader = open_state()
        for before_ms in (0, 1, 5_000, 20_000, 20_001, 60_000):
            for user in ("ann", "bob"):
                assert known(reader, before_ms, user) == known(local, before_ms, user)
        assert reader.saved == {f"{ACTIONS}:{partition}": 9 for partition in range(3)}


def test_writers_at_the_same_time_lose_nothing(redis_server: Server) -> None:
    n_writers, n_rounds = 4, 25
    with states(redis_server) as open_state:

        def write(partition: int) -> None:
            state = open_state()
            for offset in range(n_rounds):
                state.apply(one_round(offset, 1_000, log=f"{ACTIONS}:{partition}"))

        writers = [threading.Thread(target=write, args=(one,)) for one in range(n_writers)]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join(60)
        values, _ = known(open_state(), 1_001)
        n_clicks = n_writers * n_rounds
        assert values[CLICKS] == [round(n_clicks * 0.5**0.0001, 9)] * len(KEYS)


def test_a_request_is_one_command(redis_server: Server) -> None:
    host, port = redis_server.address.split(":")
    with states(redis_server) as open_state, Redis(host, int(port)) as other:
        state = open_state()
        state.apply(one_round(0, 1_000))
        before = other.info("commandstats")
        known(state, 2_000)
        after = other.info("commandstats")
        calls = {
            name: after[name]["calls"] - before.get(name, {"calls": 0})["calls"] for name in after
        }
        assert {name: n for name, n in calls.items() if n} == {"cmdstat_mget": 1, "cmdstat_info": 1}


def test_what_can_be_read_no_more_leaves(redis_server: Server) -> None:
    host, port = redis_server.address.split(":")
    with states(redis_server) as open_state, Redis(host, int(port)) as other:
        open_state().apply(one_round(0, 1_000))
        prefix = f"{{test-{next(_NUMBERS) - 1}}}"
        ttl_s = {
            name: other.ttl(f"{prefix}s:{name}:".encode() + KEYS[0].tobytes())
            for name in (CLICKS, CLICKED)
        }
        assert 390 <= ttl_s[CLICKS] <= 401  # forty half-lives of 10 s
        assert 3_590 <= ttl_s[CLICKED] <= 3_601


def test_a_server_that_is_away_is_named(leaky_client: None) -> None:
    state = RedisFeatureState(SETTINGS, "redis://127.0.0.1:1/0")
    with pytest.raises(TransportError, match=r"Redis at 127\.0\.0\.1:1 does not answer") as away:
        known(state, 0)
    assert away.value.code == "state-unreachable"
