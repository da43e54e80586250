"""The channel in Redis passes the checks of all channels, and keeps what only it promises."""

import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from itertools import chain, count
from pathlib import Path
from typing import Final, cast

import pytest
from redis import Redis
from redis.crc import key_slot

from freshrank.clock import ManualClock, SystemClock
from freshrank.dev.servers import Server, free_ports, program, running
from freshrank.errors import SyncError, TransportError
from freshrank.transport.base import Head
from freshrank.transport.redis_channel import RedisChannel
from freshrank.transport.redis_channel_frames import CHUNK_BYTES
from tests.integration.transport.channel_checks import (
    CHANNEL_CHECKS,
    DEADLINE_S,
    Check,
    frame,
    place,
    publish,
)
from tests.integration.transport.log_checks import eventually
from tests.servers import started

_NUMBERS = count()
_INFO: Final = ("CLUSTER", "INFO")
OpenRedisChannel = Callable[..., RedisChannel]


@pytest.fixture
def prefix() -> str:
    """Of the keys of this test alone."""
    return f"test-channel-{next(_NUMBERS)}"


@pytest.fixture
def open_channel(redis_server: Server, prefix: str) -> Iterator[OpenRedisChannel]:
    """Opens one channel as often as asked, as so many processes would."""
    channels: list[RedisChannel] = []

    def opened(retention_bytes: int = 512 << 20) -> RedisChannel:
        channels.append(
            RedisChannel(
                f"redis://{redis_server.address}/0",
                clock=SystemClock(),
                prefix=prefix,
                retention_bytes=retention_bytes,
            )
        )
        return channels[-1]

    yield opened
    for channel in channels:
        channel.close()


@pytest.fixture
def redis(redis_server: Server) -> Iterator[Redis]:
    """The server itself, for tests that look behind the channel or damage it."""
    host, port = redis_server.address.split(":")
    with Redis(host, int(port)) as client:
        yield client


# 300 kB: less than two deltas of the check that follows a stream of large ones.
@pytest.mark.parametrize("retention_bytes", [512 << 20, 300_000])
@pytest.mark.parametrize(
    "check", CHANNEL_CHECKS, ids=lambda check: check.__name__.removeprefix("check_")
)
def test_redis_channel_passes(
    check: Check, retention_bytes: int, open_channel: OpenRedisChannel
) -> None:
    check(lambda: open_channel(retention_bytes))


LARGE: Final = [CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES + 17]


@pytest.mark.parametrize("n_bytes", [0, 1, *LARGE])
def test_frames_of_every_length_come_back(open_channel: OpenRedisChannel, n_bytes: int) -> None:
    channel, reader = open_channel(), open_channel()
    epoch = channel.open_epoch()
    base, delta = frame("base", epoch, 0, n_bytes)[:n_bytes], frame("d", epoch, 1, n_bytes)
    channel.publish_base(epoch, 0, base)
    channel.publish_delta(epoch, 1, delta[:n_bytes])
    assert reader.base() == (epoch, 0, base)
    assert reader.delta(epoch, 1) == delta[:n_bytes]


def frames_in(redis: Redis, prefix: str) -> dict[str, int]:
    """The frames there are, as `delta-2`, with the milliseconds they still have, -1 for ever."""
    names = {}
    for key in sorted(redis.scan_iter(f"{{{prefix}}}sync:frame:*")):
        kind, _, seq = key.decode().split(":")[2].split("-")
        names[f"{kind}-{seq}"] = redis.pttl(key)
    return names


def test_covered_deltas_stay_within_their_bytes(
    open_channel: OpenRedisChannel, redis: Redis, prefix: str
) -> None:
    channel = open_channel(2_500)
    epoch = channel.open_epoch()
    publish(channel, epoch, 0, 2)
    channel.publish_base(epoch, 2, frame("base", epoch, 2))
    for seq in (3, 4, 5):
        channel.publish_delta(epoch, seq, frame("delta", epoch, seq))
    # What follows the base stays, beyond the bytes as well; then a base is wanted.
    assert {"delta-3", "delta-4", "delta-5"} <= frames_in(redis, prefix).keys()
    assert channel.delta(epoch, 2) is None
    assert channel.wanted_base()
    channel.publish_base(epoch, 5, frame("base", epoch, 5))
    assert not channel.wanted_base()
    found = frames_in(redis, prefix)
    assert {name: ttl for name, ttl in found.items() if ttl < 0} == dict.fromkeys(
        ("base-5", "delta-4", "delta-5"), -1
    )


def test_the_base_before_the_last_stays_for_a_while(
    open_channel: OpenRedisChannel, redis: Redis, prefix: str
) -> None:
    channel = open_channel()
    for _ in range(2):
        epoch = channel.open_epoch()
        publish(channel, epoch, 0, 1)
    channel.publish_base(epoch, 1, frame("base", epoch, 1))
    found = frames_in(redis, prefix)
    assert list(found) == ["base-0", "base-1", "delta-1"]
    assert 0 < found["base-0"] <= 300_000
    assert found["base-1"] == found["delta-1"] == -1


def test_chunks_that_nobody_publishes_leave(
    open_channel: OpenRedisChannel, redis: Redis, prefix: str
) -> None:
    old, new = open_channel(), open_channel()
    epoch = old.open_epoch()
    publish(old, epoch, 0, 1)
    new.open_epoch()
    with pytest.raises(SyncError):
        old.publish_delta(epoch, 2, b"late")
    assert 0 < frames_in(redis, prefix)["delta-2"] <= 60_000


def test_repeated_delta_needs_no_second_place(
    open_channel: OpenRedisChannel, redis: Redis, prefix: str
) -> None:
    channel = open_channel()
    epoch = channel.open_epoch()
    publish(channel, epoch, 0, 1)
    channel.publish_delta(epoch, 1, frame("delta", epoch, 1))
    assert channel.delta(epoch, 1) == frame("delta", epoch, 1)
    assert redis.xlen(f"{{{prefix}}}sync:log") == 2


def test_damaged_delta_is_not_there_and_damaged_base_is_an_error(
    open_channel: OpenRedisChannel, redis: Redis, prefix: str
) -> None:
    channel = open_channel()
    epoch = channel.open_epoch()
    channel.publish_base(epoch, 0, frame("base", epoch, 0, 3 * CHUNK_BYTES))
    for seq in (1, 2):
        channel.publish_delta(epoch, seq, frame("delta", epoch, seq, 3 * CHUNK_BYTES))
    base, first, second = sorted(redis.scan_iter(f"{{{prefix}}}sync:frame:*"))
    redis.hset(first, "1", frame("delta", epoch, 1, CHUNK_BYTES)[:CHUNK_BYTES])  # out of step
    redis.hdel(second, "2")
    assert channel.delta(epoch, 1) is None
    assert channel.delta(epoch, 2) is None
    redis.hset(base, "0", b"short")
    with pytest.raises(TransportError, match="has it damaged") as damaged:
        channel.base()
    assert damaged.value.code == "channel-damaged"
    redis.hdel(base, "1")
    assert channel.base_beginning(5) == b"short"  # what is read of it says whether it is sound
    with pytest.raises(TransportError, match="has it damaged") as damaged:
        channel.base_beginning(CHUNK_BYTES)
    assert damaged.value.code == "channel-damaged"
    assert place(channel.head()) == (epoch, 2, 0)


def test_writer_whose_channel_was_emptied_is_told_and_begins_anew(
    open_channel: OpenRedisChannel, redis: Redis, prefix: str
) -> None:
    channel = open_channel()
    channel.open_epoch()
    epoch = channel.open_epoch()
    publish(channel, epoch, 4, 6)
    # The head alone, as a server does that evicts keys: what is left of the log is in the way.
    redis.delete(f"{{{prefix}}}sync:head")
    for say in (channel.publish_base, channel.publish_delta):
        with pytest.raises(SyncError, match="emptied or put back") as lost:
            say(epoch, 7, b"next")
        assert lost.value.code == "lost"
    assert channel.head() is None
    assert channel.base() is None
    assert not channel.wait(epoch, 6, timeout_s=0.01)
    above = channel.open_epoch()
    assert above > epoch
    publish(channel, above, 2, 3)
    assert channel.delta(above, 3) == frame("delta", above, 3)
    assert channel.delta(epoch, 6) is None


def test_head_tells_when_it_was_published(redis_server: Server, prefix: str) -> None:
    url = f"redis://{redis_server.address}/0"
    channel = RedisChannel(url, clock=ManualClock(now_ms=1_234), prefix=prefix)
    epoch = channel.open_epoch()
    publish(channel, epoch, 0, 1)
    assert channel.head() == Head(epoch, 1, 0, 1_234)
    channel.close()


def test_waiting_costs_the_server_two_commands_in_half_a_second(
    open_channel: OpenRedisChannel, redis: Redis
) -> None:
    channel = open_channel()
    epoch = channel.open_epoch()
    publish(channel, epoch, 0, 0)

    def calls() -> int:
        stats = redis.info("commandstats")
        return sum(
            stats.get(f"cmdstat_{name}", {"calls": 0})["calls"] for name in ("hmget", "xread")
        )

    before = calls()
    assert not channel.wait(epoch, 0, timeout_s=0.4)
    assert calls() - before <= 3


def test_close_of_a_waiting_channel_leaves_no_connection(
    open_channel: OpenRedisChannel, redis: Redis, prefix: str
) -> None:
    channel = open_channel()
    results: list[bool] = []
    waiter = threading.Thread(
        target=lambda: results.append(channel.wait(0, 0, timeout_s=DEADLINE_S))
    )
    waiter.start()
    while not any(one["cmd"] == "xread" for one in redis.client_list()):
        assert waiter.is_alive()
    channel.close()
    waiter.join(DEADLINE_S)
    assert results == [False]


def test_a_server_that_is_away_is_named(leaky_client: None) -> None:
    channel = RedisChannel("redis://127.0.0.1:1/0", clock=SystemClock())
    for say in (channel.open_epoch, channel.head, channel.beat_age_s):
        with pytest.raises(TransportError, match=r"Redis at 127\.0\.0\.1:1 does not ans") as away:
            say()
        assert away.value.code == "channel-unreachable"


def test_a_user_needs_the_keys_of_the_prefix_and_no_more(
    open_channel: OpenRedisChannel, redis: Redis, redis_server: Server, prefix: str
) -> None:
    """The rules that docs/redis.md gives."""
    keys = f"{{{prefix}}}*"
    rules = ("on", ">secret", f"~{keys}", "+@read", "+@write", "+@scripting", "+@connection")
    ask: Callable[..., object] = redis.execute_command
    ask("ACL", "SETUSER", f"{prefix}-w", *rules, "+multi", "+exec", "+time")
    ask("ACL", "SETUSER", f"{prefix}-r", "on", ">secret", f"%R~{keys}", "+@read", "+@connection")
    writer, reader = (
        RedisChannel(
            f"redis://{prefix}-{role}:secret@{redis_server.address}/0",
            clock=SystemClock(),
            prefix=prefix,
        )
        for role in "wr"
    )
    epoch = writer.open_epoch()
    publish(writer, epoch, 0, 1)
    writer.beat(epoch)
    assert reader.delta(epoch, 1) == frame("delta", epoch, 1)
    assert not reader.wait(epoch, 1, timeout_s=0.01)
    with pytest.raises(TransportError) as refused:
        reader.open_epoch()
    assert refused.value.code == "channel-refused"
    assert "secret" not in str(refused.value)
    for channel in (writer, reader):
        channel.close()


@pytest.fixture
def certificate(tmp_path: Path) -> dict[str, str]:
    """A key and its self-signed certificate for this host, as Redis names them."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl is not installed: apt-get install openssl")
    key, cert = str(tmp_path / "key.pem"), str(tmp_path / "cert.pem")
    subject = ["-subj", "/CN=redis", "-addext", "subjectAltName=IP:127.0.0.1"]
    made = ["-keyout", key, "-out", cert, "-days", "1"]
    command = [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", *subject, *made]
    subprocess.run(command, check=True, capture_output=True)
    return {"tls-cert-file": cert, "tls-key-file": key, "tls-ca-cert-file": cert}


def test_url_with_tls_is_encrypted_and_the_server_is_verified(
    redis: Redis, certificate: dict[str, str], prefix: str, leaky_client: None
) -> None:
    [port] = free_ports(1)
    options = {**certificate, "tls-auth-clients": "no", "tls-port": str(port)}
    ask: Callable[..., object] = redis.execute_command
    ask("CONFIG", "SET", *chain.from_iterable(options.items()))
    url = f"rediss://127.0.0.1:{port}/0"
    try:
        trusting = f"{url}?ssl_ca_certs={certificate['tls-ca-cert-file']}"
        with closing(RedisChannel(trusting, clock=SystemClock(), prefix=prefix)) as channel:
            epoch = channel.open_epoch()
            publish(channel, epoch, 0, 1)
            assert channel.delta(epoch, 1) == frame("delta", epoch, 1)
        with (
            closing(RedisChannel(url, clock=SystemClock(), prefix=prefix)) as stranger,
            pytest.raises(TransportError, match="certificate verify failed") as refused,
        ):
            stranger.head()
        assert refused.value.code == "channel-unreachable"
    finally:
        ask("CONFIG", "SET", "tls-port", "0")


def test_a_cluster_has_all_of_it_in_one_place(tmp_path: Path, prefix: str) -> None:
    """A cluster of one: it refuses a script that reaches beyond its keys' place all the same."""
    port, bus_port = free_ports(2)

    @contextmanager
    def cluster(directory: Path) -> Iterator[Server]:
        command = [program("redis-server", "redis-server"), "--port", str(port), "--save", ""]
        command += ["--dir", str(directory), "--cluster-enabled", "yes"]
        command += ["--cluster-port", str(bus_port)]
        log = directory / "redis.log"
        with running("Redis", command, port=port, log=log, answers=lambda _: True) as server:
            yield server

    with contextmanager(started)(cluster, tmp_path), Redis("127.0.0.1", port) as client:
        ask: Callable[..., object] = client.execute_command
        ask("CLUSTER", "ADDSLOTSRANGE", "0", "16383")
        eventually(lambda: b"cluster_state:ok" in cast(bytes, client.execute_command(*_INFO)))
        url = f"redis://127.0.0.1:{port}/0"
        with closing(
            RedisChannel(url, clock=SystemClock(), prefix=prefix, retention_bytes=2_500)
        ) as channel:
            for _ in range(2):
                epoch = channel.open_epoch()
                publish(channel, epoch, 0, 5)
                publish(channel, epoch, 5, 8)
                channel.request_base(epoch, 8)
                assert channel.wanted_base()
                channel.beat(epoch)
                assert channel.delta(epoch, 8) == frame("delta", epoch, 8)
        slots = {key_slot(key) for key in client.scan_iter()}
        assert len(slots) == 1
