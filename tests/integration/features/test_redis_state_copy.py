"""Feature state in Redis goes into a backup and comes back: values, ends of life, marks."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis

from freshrank.backup import manifest
from freshrank.backup.redis import RedisStateCopy
from freshrank.backup.restore import restore
from freshrank.backup.take import take
from freshrank.dev.servers import Server
from freshrank.errors import DataError
from freshrank.redis_state import RedisFeatureState
from freshrank.settings import Settings
from tests.conftest import GOLDEN
from tests.integration.features.state_checks import SETTINGS, known, one_round
from tests.unit.backups import learn, settings_of

# Two thousand users: more than one batch of keys.
N_USERS = 2_000


@pytest.fixture
def redis(redis_server: Server) -> Iterator[Redis]:
    """An empty database."""
    host, port = redis_server.address.split(":")
    with contextlib.closing(Redis(host, int(port))) as client:
        client.flushdb()
        yield client
        client.flushdb()


def settings(server: Server) -> Settings:
    state = {"kind": "redis", "url": f"redis://{server.address}/0", "prefix": "shop"}
    return Settings.model_validate(SETTINGS.model_dump(by_alias=True) | {"state": state})


def content(client: Redis) -> dict[bytes, bytes | None]:
    """Every key but the version, which only says that something was written."""
    return {key: client.dump(key) for key in client.scan_iter() if not key.endswith(b"version")}


def test_a_state_comes_back_with_its_ends_of_life(
    redis_server: Server, redis: Redis, tmp_path: Path
) -> None:
    with contextlib.closing(
        RedisFeatureState(SETTINGS, f"redis://{redis_server.address}/0", prefix="shop")
    ) as state:
        state.apply(one_round(7, 1_000, 2_000))
        redis.set("other", "not ours")
        for n in range(N_USERS):
            redis.set(b"{shop}r:click:%08d" % n, b"\x90")
        redis.set(b"{shop}f:whoever8", b"2000", ex=9_000)  # forgotten, which must stay so
        before, read = content(redis), known(state, 3_000)
        lives = {key: redis.ttl(key) for key in before}
        with contextlib.closing(RedisStateCopy(settings(redis_server))) as copy:
            copy.save(tmp_path / "state")
            state.apply(one_round(8, 2_500))
            redis.set(b"{shop}r:click:new", b"\x90")
            redis.set(b"{shop}f:whoever9", b"2500")
            redis.delete(b"{shop}f:whoever8")
            assert content(redis) != before
            assert copy.is_taken()
            copy.load(tmp_path / "state")
            assert not copy.is_taken()  # it may be loaded again
            copy.load(tmp_path / "state")
            copy.done()
            assert copy.is_taken()
        assert content(redis) == before
        assert known(state, 3_000) == read
        for key, life_s in lives.items():
            assert abs(redis.ttl(key) - life_s) < 60
        state.apply(one_round(7, 9_000))  # known already
        assert content(redis) == before
        state.apply(one_round(9, 9_000))
        assert content(redis) != before


def test_a_backup_has_the_state_and_a_restore_keeps_the_one_it_replaces(
    redis_server: Server, redis: Redis, tmp_path: Path
) -> None:
    directory = tmp_path / "data"
    learn(directory, "first")
    text = (
        "features:\n  - {name: item_id, type: id, scope: item, dim: 4}\n"
        "  - {name: rate, type: rate, event: click, half_life: 1h}\n"
        "tasks: [{name: click, event: click}]\n"
        f"state: {{kind: redis, url: 'redis://{redis_server.address}/0', prefix: shop}}\n"
    )
    ours = settings_of(directory, text)
    redis.set(b"{shop}s:rate:12345678", b"then")
    redis.hset("{shop}marks", "freshrank.actions:0", 3)
    taken = take(ours, text.encode(), tmp_path / "backup")
    assert manifest.REDIS_STATE in taken.files
    assert "features" not in taken.parts
    then = content(redis)
    redis.set(b"{shop}s:rate:12345678", b"now")
    now = content(redis)
    elsewhere = settings_of(tmp_path / "elsewhere", text)
    with pytest.raises(DataError, match=r"state\.prefix shop"):
        restore(elsewhere, tmp_path / "backup", is_forced=False)
    restored = restore(elsewhere, tmp_path / "backup", is_forced=True)
    assert content(redis) == then
    assert restored.before is not None
    with contextlib.closing(RedisStateCopy(ours)) as copy:
        copy.load(restored.before / "state.redis")
        copy.done()
    assert content(redis) == now
    redis.flushdb()
    restore(settings_of(tmp_path / "third", text), tmp_path / "backup", is_forced=False)
    assert content(redis) == then


def test_the_golden_file_of_a_state_is_loaded_for_ever(
    redis_server: Server, redis: Redis, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """Two values of each kind and the marks, none of which expires."""
    path = GOLDEN / "redis_state_v1.bin"
    state = {
        b"s:rate:\x00\xff345678": b"\x01" * 24,
        b"r:click:\x00\xff345678": b"\x91\x94\x01\x02\x03\xa1a",
    }
    with contextlib.closing(RedisStateCopy(settings(redis_server))) as copy:
        if request.config.getoption("--update-golden") and not path.exists():
            for key, value in state.items():
                redis.set(b"{shop}" + key, value)
            redis.hset("{shop}marks", "freshrank.actions:0", 41)
            copy.save(path)
        copy.load(path)
        copy.done()
        copy.save(tmp_path / "again")
    assert {key: redis.get(b"{shop}" + key) for key in state} == state
    assert redis.hgetall("{shop}marks") == {b"freshrank.actions:0": b"41"}
    assert len(redis.keys(b"*")) == len(state) + 2
    assert (tmp_path / "again").read_bytes() == path.read_bytes()
