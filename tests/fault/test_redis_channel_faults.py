"""Redis dies, hangs, forgets, fills up: learning and serving go on, and both meet again."""

import contextlib
import functools
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, cast

import pytest
from redis import Redis

from freshrank.clock import SystemClock
from freshrank.dev.redis import redis
from freshrank.dev.servers import Server, free_ports
from freshrank.errors import SyncError, TransportError
from freshrank.transport.redis_channel import RedisChannel
from freshrank.transport.redis_channel_frames import CHUNK_BYTES
from tests.loops import Loop
from tests.proofs import scale
from tests.proxy import proxy
from tests.servers import started


class Place:
    """A Redis that a test may break, and the loops over it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        [self.port] = free_ports(1)
        self.address = f"127.0.0.1:{self.port}"
        self._parts = contextlib.ExitStack()
        self._server = contextlib.ExitStack()
        self.client = self._parts.enter_context(Redis("127.0.0.1", self.port))

    def begin(self) -> Server:
        """Start the server, with what it saved."""
        start = functools.partial(redis, port=self.port)
        server = contextlib.contextmanager(started)(start, self.directory / "redis")
        return self._server.enter_context(server)

    def end(self) -> None:
        """Stop the server in order: it saves what it has."""
        self._server.close()

    def channel(self, address: str | None = None) -> RedisChannel:
        return RedisChannel(f"redis://{address or self.address}/0", clock=SystemClock())

    def loop(self, address: str | None = None, **sync: str) -> Loop:
        """A trainer and a replica that have not begun."""
        loop = Loop(self.directory / "loop", functools.partial(self.channel, address), **sync)
        self._parts.callback(loop.close)
        return loop

    def close(self) -> None:
        self._parts.close()
        self._server.close()


@pytest.fixture
def at(tmp_path: Path, leaky_client: None) -> Iterator[Place]:
    with contextlib.closing(Place(tmp_path)) as place:
        yield place


def learn_without(loop: Loop, n_ticks: int) -> None:
    """Seconds in which the channel takes nothing: the trainer learns, the replica serves."""
    learned, served = loop.trainer.accounting()["rows_learned"], loop.seq
    for _ in range(n_ticks):
        loop.tick()
        with contextlib.suppress(TransportError):  # its thread tries again in a second
            loop.follow()
    assert loop.trainer.accounting()["rows_learned"] == learned + 20 * n_ticks
    assert loop.trainer.accounting()["publish_failures"] >= 1
    assert loop.seq == served


def epoch_of(loop: Loop) -> int:
    """That the replica serves."""
    assert loop.replica.model is not None
    return loop.replica.model.current.info.epoch


def test_redis_that_is_down_at_the_start_is_waited_for(at: Place) -> None:
    loop = at.loop()
    for step in (functools.partial(loop.trainer.step, 0.0), loop.follow):
        with pytest.raises(TransportError, match="does not answer") as away:
            step()
        assert away.value.code == "channel-unreachable"
    at.begin()
    loop.start()
    loop.tick()
    loop.follow()
    loop.assert_caught_up()


def test_redis_that_restarts_gets_what_it_missed_as_one_delta(at: Place) -> None:
    at.begin()
    loop = at.loop(dense_every="1h")
    loop.start()
    loop.tick()
    loop.follow()
    epoch = epoch_of(loop)
    at.client.save()
    at.end()
    learn_without(loop, 4)
    at.begin()
    loop.tick()
    loop.follow()
    assert (epoch_of(loop), loop.seq) == (epoch, 2)
    loop.assert_caught_up()


def kill(at: Place, server: Server) -> None:
    server.process.kill()
    server.process.wait()
    at.end()
    (at.directory / "redis" / "dump.rdb").unlink(missing_ok=True)
    at.begin()


def flush(at: Place, _: Server) -> None:
    at.client.flushall()


@pytest.mark.parametrize("n_rows", [20, 0], ids=["busy", "idle"])
@pytest.mark.parametrize("forget", [kill, flush])
def test_redis_that_forgot_everything_gets_a_base_of_an_epoch_above(
    at: Place, forget: Callable[[Place, Server], None], n_rows: int
) -> None:
    server = at.begin()
    loop = at.loop()
    loop.start()
    loop.restart().start()
    loop.tick()
    loop.follow()
    served, epoch = loop.seq, epoch_of(loop)
    forget(at, server)
    loop.follow()
    assert loop.seq == served
    loop.tick(n_rows=n_rows)  # two of `sync.sparse_every` at most
    loop.tick(n_rows=n_rows)
    loop.follow()
    assert epoch_of(loop) > epoch
    loop.assert_caught_up()


def test_redis_put_back_to_an_earlier_state_is_overtaken(at: Place) -> None:
    at.begin()
    loop = at.loop()
    loop.start()
    loop.tick()
    loop.follow()
    epoch = epoch_of(loop)
    at.client.save()
    saved = (at.directory / "redis" / "dump.rdb").read_bytes()
    for _ in range(3):
        loop.tick()
    loop.follow()
    at.end()
    (at.directory / "redis" / "dump.rdb").write_bytes(saved)
    at.begin()
    for _ in range(2):
        loop.tick()
        loop.follow()
    assert epoch_of(loop) == epoch
    loop.assert_caught_up()


def test_redis_that_hangs_gets_what_it_missed(at: Place) -> None:
    server = at.begin()
    loop = at.loop()
    loop.start()
    loop.tick()
    loop.follow()
    epoch = epoch_of(loop)
    os.kill(server.process.pid, signal.SIGSTOP)  # connections stay: half-open, to its peers
    learn_without(loop, 1)
    os.kill(server.process.pid, signal.SIGCONT)
    for _ in range(3):
        loop.tick()
        loop.follow()
    assert epoch_of(loop) == epoch
    loop.assert_caught_up()


def test_publication_that_comes_twice_or_late_changes_nothing(at: Place) -> None:
    at.begin()
    loop = at.loop()
    loop.start()
    epoch = epoch_of(loop)
    deltas: list[bytes] = []
    for seq in range(1, 6):
        loop.tick()
        deltas.append(loop.channel.delta(epoch, seq) or b"")
        before = loop.channel.head()
        loop.channel.publish_delta(epoch, seq, deltas[-1])
        for old in range(1, seq):
            with pytest.raises(SyncError) as gap:
                loop.channel.publish_delta(epoch, old, deltas[old - 1])
            assert gap.value.code == "gap"
        assert loop.channel.head() == before
        loop.follow()
        loop.assert_caught_up()
    assert loop.replica.refusals == {}


def test_publication_that_arrived_although_it_failed_is_covered_by_a_base(at: Place) -> None:
    at.begin()
    loop = at.loop()
    loop.start()
    loop.tick()
    loop.channel.publish_delta(epoch_of(loop), 2, b"of which the trainer knows nothing")
    loop.follow()
    assert loop.replica.refusals == {"checksum": 1}
    for _ in range(2):
        loop.tick()
        loop.follow()
    assert loop.seq == 4
    loop.assert_caught_up()


def test_slow_network_delays_and_a_slower_one_is_an_error(at: Place) -> None:
    at.begin()
    with proxy(at.address) as slow:
        loop = at.loop(slow.address)
        loop.start()
        slow.delay_s = 0.05
        loop.tick()
        loop.follow()
        loop.assert_caught_up()
        slow.delay_s = 1.2
        learn_without(loop, 1)
        slow.delay_s = 0.0
        for _ in range(3):
            loop.tick()
            loop.follow()
        loop.assert_caught_up()
        loop.channel.close()
        loop.bench.channel.close()


def test_redis_without_memory_takes_nothing_and_then_all_of_it(at: Place) -> None:
    at.begin()
    loop = at.loop(dense_every="1h")
    loop.start()
    loop.tick()
    loop.follow()
    at.client.config_set("maxmemory", 1)  # the policy is noeviction
    with pytest.raises(TransportError, match="no memory left") as full:
        loop.bench.channel.publish_delta(epoch_of(loop), 2, b"delta")
    assert full.value.code == "channel-full"
    learn_without(loop, 3)
    at.client.config_set("maxmemory", 0)
    loop.tick()
    loop.follow()
    assert loop.seq == 2
    loop.assert_caught_up()


@pytest.mark.parametrize("n_rows", [20, 0], ids=["busy", "idle"])
def test_trainer_whose_epoch_is_over_stops(at: Place, n_rows: int) -> None:
    at.begin()
    loop = at.loop()
    loop.start()
    loop.tick()
    with contextlib.closing(at.channel()) as other:
        epoch = other.open_epoch()
        with pytest.raises(SyncError) as fenced:
            loop.tick(n_rows=n_rows)
        assert fenced.value.code == "fenced"
        other.publish_base(epoch, 9, b"base of the other")
        with pytest.raises(SyncError):
            loop.tick(n_rows=n_rows)
        assert other.base() == (epoch, 9, b"base of the other")


Damage = Callable[[Redis, bytes], object]


def flip(client: Redis, key: bytes) -> None:
    chunk = bytearray(cast(bytes, client.hget(key, "0")))
    chunk[len(chunk) // 2] ^= 1
    client.hset(key, "0", bytes(chunk))


def lose(client: Redis, key: bytes) -> None:
    client.delete(key)


DAMAGES: Final[list[Damage]] = [flip, lose]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("kind", ["delta", "base"])
def test_damaged_frame_is_refused_and_a_base_heals(at: Place, kind: str, damage: Damage) -> None:
    at.begin()
    loop = at.loop(dense_every="1h")
    loop.start()
    loop.tick()
    loop.follow()
    if kind == "base":
        loop.restart().start()
    loop.tick()
    newest = sorted(at.client.scan_iter(f"*frame:{kind}-*"))[-1]
    damage(at.client, newest)
    with contextlib.suppress(TransportError):
        loop.follow()
    assert loop.seq == 1
    for _ in range(2):
        loop.tick()
        loop.follow()
    loop.assert_caught_up()


_WRITER: Final = """
import sys
from freshrank.clock import SystemClock
from freshrank.transport.redis_channel import RedisChannel

channel = RedisChannel(sys.argv[1], clock=SystemClock())
epoch = channel.open_epoch()
seq = head.seq + 1 if (head := channel.head()) else 0
channel.publish_base(epoch, seq, b"%d;" % seq * int(sys.argv[2]))
print("published", flush=True)
while True:
    seq += 1
    channel.publish_delta(epoch, seq, b"%d;" % seq * int(sys.argv[2]))
    if seq % 3 == 0:
        channel.publish_base(epoch, seq, b"%d;" % seq * int(sys.argv[2]))
"""


def is_between_chunks(client: Redis) -> bool:
    return any(0 < client.hlen(key) < 6 for key in client.scan_iter("*frame:*", count=1_000))


def test_writer_killed_between_chunks_leaves_nothing_half_done(at: Place) -> None:
    at.begin()
    n, n_kills, rng = 3 * CHUNK_BYTES, scale("kills", 6), random.Random(11)  # 6 chunks and more
    n_half_done = 0
    with contextlib.closing(at.channel()) as reader:
        before = 0
        for _ in range(n_kills):
            writer = subprocess.Popen(
                [sys.executable, "-c", _WRITER, f"redis://{at.address}/0", str(n)],
                stdout=subprocess.PIPE,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )
            try:
                assert writer.stdout is not None
                assert writer.stdout.readline() == b"published\n"
                for _ in range(rng.randint(0, 3)):
                    head = reader.head()
                    assert head is not None
                    assert reader.wait(head.epoch, head.seq, timeout_s=20)
                while not is_between_chunks(at.client):
                    assert writer.poll() is None
            finally:
                writer.kill()
                writer.communicate()
            base, head = reader.base(), reader.head()
            assert base is not None
            assert head is not None
            epoch = head.epoch
            assert before < base[0] == epoch
            before = epoch
            assert base[2] == b"%d;" % base[1] * n
            for seq in range(head.base_seq + 1, head.seq + 1):
                assert reader.delta(epoch, seq) == b"%d;" % seq * n
            found = {key: at.client.pttl(key) for key in at.client.scan_iter("*frame:*")}
            named = {entry[b"frame"] for _, entry in at.client.xrange("{freshrank}sync:log")}
            named |= {at.client.hget("{freshrank}sync:head", "base")}
            assert {key for key, ttl_ms in found.items() if ttl_ms < 0} == named - {b""}
            n_half_done += is_between_chunks(at.client)
            for key in found.keys() - named:  # else the next round would see it
                at.client.delete(key)
    assert n_half_done  # else it was killed elsewhere
