"""Calls from several threads: no torn row, no lost update, no deadlock."""

import subprocess
import sys
import threading
from collections.abc import Callable

import numpy as np
import pytest

from embedding_store import ServingTable
from tests.store.helpers import admit, make

WIDTH = 32
KEYS = np.arange(500, dtype=np.uint64)


def run_together(*works: Callable[[], None]) -> None:
    failures: list[BaseException] = []

    def guarded(work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=guarded, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert not failures, failures


def test_reader_never_sees_a_torn_row_while_deltas_arrive() -> None:
    table = ServingTable(width=WIDTH, initial_rows=0)
    written = 0
    versions_seen: list[set[float]] = []

    def write() -> None:
        nonlocal written
        while len(versions_seen) < 2:  # until both readers have read enough
            written += 1
            table.upsert(KEYS, np.full((500, WIDTH), written, np.float32))
            if written % 10 == 0:
                table.remove(KEYS[::7])

    def read() -> None:
        last = np.zeros(500, np.float32)
        seen: set[float] = set()
        try:
            while len(seen) < 20:
                rows, found = table.lookup(KEYS)
                assert (rows == rows[:, :1]).all()
                current = np.where(found == 1, rows[:, 0], last)
                assert (current >= last).all()  # never an older version again
                last = current
                seen.add(float(current.max()))
        finally:
            versions_seen.append(seen)

    run_together(write, read, read)
    assert [len(seen) for seen in versions_seen] == [20, 20]
    rows, found = table.lookup(KEYS)
    assert (rows[found == 1] == written).all()


def test_no_update_of_concurrent_writers_is_lost() -> None:
    table = make(dim=WIDTH, init_scale=0.0, lr=1.0)
    admit(table, KEYS)
    gradient = np.full((500, WIDTH), -1, np.float32)

    def write() -> None:
        for _ in range(200):
            table.apply(KEYS, gradient)

    def grow() -> None:
        for start in range(1_000, 60_000, 500):
            admit(table, np.arange(start, start + 500, dtype=np.uint64))

    def read() -> None:
        for _ in range(200):
            rows = table.lookup(KEYS)
            assert (rows == rows[0, 0]).all()
            table.snapshot()

    run_together(write, write, grow, read)
    assert (table.lookup(KEYS) == 400).all()
    assert len(table) == 500 + 59_000


FORKED = """
import os, sys
import numpy as np
from embedding_store import Optimizer, ServingTable, StoreError, Table

table = Table(dim=4, optimizer=Optimizer("sgd", lr=0.1))
table.threads = 2
serving = ServingTable(width=4)
ids = np.arange(10_000, dtype=np.uint64)
table.lookup_or_admit(ids, np.ones(len(ids), np.uint32), 1)
snapshot = table.begin_snapshot()
child = os.fork()
if child:
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert len(b"".join(snapshot)) > 0
    sys.exit()
reading = [lambda: table.lookup(ids), lambda: serving.lookup(ids), snapshot.__next__]
for call in [*reading, lambda: table.erase(ids)]:
    try:
        call()
        os._exit(1)
    except StoreError as error:
        assert "restore a snapshot here" in str(error), error
snapshot.close()
del snapshot, serving, table
os._exit(0)
"""


@pytest.mark.parametrize(
    "first", ["", "import torch\ntorch.ones(256, 256) @ torch.ones(256, 256)\n"]
)
def test_a_fork_is_told_and_never_waits(first: str) -> None:
    """Beside torch's threads as well."""
    subprocess.run([sys.executable, "-c", first + FORKED], check=True, timeout=60)
