"""What a replica takes while it goes over from one base to another is what docs/redis.md says."""

import multiprocessing
from contextlib import closing
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from embedding_store import ServingTable
from freshrank import frames
from freshrank.clock import SystemClock
from freshrank.dev.servers import Server
from freshrank.features import FeatureEncoder
from freshrank.frames import Frame, TableRows
from freshrank.metrics import Metrics
from freshrank.transport.redis_channel import RedisChannel
from service.replica import Replica
from service.signal import Signal
from tests.proofs import resident_bytes
from tests.unit.service.support import DIM, World, linear_net, make_settings

N_ROWS = 1_000_000
# Beside the rows: a session of each dense net, and what the allocator keeps.
BESIDE_BYTES = 32 << 20


def most_resident_bytes() -> int:
    """Of this program; `ru_maxrss` has what its parent held when it was started, too."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    [line] = [line for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1]) << 10


def follow(url: str, told: Connection) -> None:
    """In a process of its own: tell what each base made it take, until there is nothing to do."""
    settings = make_settings()
    with closing(RedisChannel(url, clock=SystemClock())) as channel:
        metrics = Metrics(CollectorRegistry())
        encoder = FeatureEncoder(settings)
        replica = Replica(settings, encoder, channel, SystemClock(), metrics, Signal())
        before = resident_bytes()
        while told.recv():
            assert replica.step(10.0), replica.refusals
            assert replica.model is not None
            peak = most_resident_bytes()
            tables = sum(table.nbytes for table in replica.model.tables.values())
            told.send((peak - before, tables))


def test_a_replica_takes_both_versions_and_the_frame_twice(
    redis_server: Server, tmp_path: Path
) -> None:
    url = f"redis://{redis_server.address}/0"
    world, width = World(tmp_path), DIM + 1
    keys = np.arange(1, N_ROWS + 1, dtype=np.uint64)
    spawned = multiprocessing.get_context("spawn")
    ours, theirs = spawned.Pipe()
    replica = spawned.Process(target=follow, args=(url, theirs))
    replica.start()
    try:
        with closing(RedisChannel(url, clock=SystemClock())) as channel:
            for number in range(3):  # the third takes no more than the second: nothing adds up
                world.epoch = channel.open_epoch()
                rows = np.full((N_ROWS, width), number, np.float32)
                tables = {world.encoder.tables[0].name: TableRows(keys, rows, keys[:0])}
                dense = linear_net(world.settings)
                data = frames.encode(Frame(world.info("base", 0), tables, dense))
                channel.publish_base(world.epoch, 0, data)
                ours.send(True)
                assert ours.poll(60)
                taken, kept = ours.recv()
                n_versions = 1 if number == 0 else 2
                assert taken < n_versions * kept + 2 * len(data) + BESIDE_BYTES
                assert taken > kept  # it is measured at all
        ours.send(False)
    finally:
        replica.join(10)
        replica.kill()


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_a_served_row_takes_its_weights_and_less_than_36_bytes(dtype: str) -> None:
    table, n_rows = ServingTable(width=17, initial_rows=0, dtype=dtype), 0
    while n_rows < N_ROWS:  # however full the index is
        some = np.arange(n_rows + 1, n_rows + 10_001, dtype=np.uint64)
        table.upsert(some, np.zeros((len(some), 17), np.float32))
        n_rows += len(some)
        if n_rows >= 200_000:
            assert table.nbytes / n_rows < table.statistics()["row_bytes"] + 36
