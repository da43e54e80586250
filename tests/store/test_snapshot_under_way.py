"""A snapshot is of the instant at which it began, whatever happens until its last chunk."""

import gc
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from embedding_store import Snapshot, StoreError, Table
from tests.store.helpers import admit, ids_of, make

# So wide that a block of the file holds 16 rows: a snapshot of 60 is many chunks.
DIM = 4_000
IDS = st.lists(st.integers(0, 60), min_size=1, max_size=30)


def wide(**changes: object) -> Table:
    options = {"min_count": 2, "ttl_s": 40, "pending_bytes": 1 << 16, "count_half_life_s": 30}
    return make("sgd", dim=DIM, **(options | changes))


class TwinTables(RuleBasedStateMachine):
    """Both do the same; one is written chunk by chunk while it goes on, the other at once."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = wide(), wide()
        self.now_s = 1
        self.rng = np.random.default_rng(1)
        self.snapshot: Snapshot | None = None
        self.chunks: list[bytes] = []
        self.expected = b""
        self.chain: list[bytes] = []
        self.last: int | None = None

    @rule(ids=IDS, count=st.integers(0, 3), pause_s=st.integers(0, 5))
    def admit(self, ids: list[int], count: int, pause_s: int) -> None:
        self.now_s += pause_s
        for table in self.tables:
            admit(table, ids_of(*ids), self.now_s, count=count)

    @rule(ids=IDS)
    def apply(self, ids: list[int]) -> None:
        gradients = self.rng.normal(size=(len(ids), DIM)).astype(np.float32)
        for table in self.tables:
            table.apply(ids_of(*ids), gradients)

    @rule(first=st.integers(100, 2_000))
    def fill_the_sketch(self, first: int) -> None:
        for table in self.tables:
            admit(table, np.arange(first, first + 1_500, dtype=np.uint64), self.now_s)

    @rule(ids=IDS)
    def erase(self, ids: list[int]) -> None:
        for table in self.tables:
            table.erase(ids_of(*ids))

    @rule(pause_s=st.integers(0, 50), n=st.integers(0, 50))
    def expire(self, pause_s: int, n: int) -> None:
        self.now_s += pause_s
        for table in self.tables:
            table.expire(self.now_s, n)

    @rule(trim=st.booleans())
    def advance(self, trim: bool) -> None:
        for table in self.tables:
            closed = table.advance()
            if trim:
                table.trim_tombstones(closed - 1)

    @rule(ids=IDS)
    def put_rows(self, ids: list[int]) -> None:
        keys = np.unique(ids_of(*ids))
        values = self.rng.normal(size=(len(keys), DIM)).astype(np.float32)
        times = np.full(len(keys), self.now_s, np.uint32)
        for table in self.tables:
            table.put_rows(keys, values, None, times, times, times)

    @rule(ttl_s=st.integers(20, 50_000), half_life_s=st.integers(0, 60))
    def configure(self, ttl_s: int, half_life_s: int) -> None:
        for table in self.tables:
            table.configure(
                optimizer=table.optimizer, min_count=2, probability=1.0, ttl_s=ttl_s,
                count_half_life_s=half_life_s,
            )  # fmt: skip

    @precondition(lambda self: self.snapshot is None)
    @rule(is_increment=st.booleans())
    def begin(self, is_increment: bool) -> None:
        if not is_increment:
            self.chain, self.last = [], None
        self.snapshot = self.tables[0].begin_snapshot(self.last)
        self.chunks = []
        self.expected = self.tables[1].snapshot()

    @precondition(lambda self: self.snapshot is not None)
    @rule(n=st.integers(1, 4))
    def read_on(self, n: int) -> None:
        assert self.snapshot is not None
        for _ in range(n):
            chunk = next(self.snapshot, None)
            if chunk is None:
                self.finish()
                return
            self.chunks.append(chunk)

    @precondition(lambda self: self.snapshot is not None)
    @rule()
    def give_up(self) -> None:
        assert self.snapshot is not None
        self.snapshot.close()
        self.snapshot, self.chain, self.last = None, [], None

    def finish(self) -> None:
        assert self.snapshot is not None
        self.last, self.snapshot = self.snapshot.id, None
        data = b"".join(self.chunks)
        if not self.chain:
            assert data == self.expected
        self.chain.append(data)
        assert Table.restore(*self.chain).snapshot() == self.expected
        assert self.tables[0].statistics()["snapshot_bytes"] == 0

    def teardown(self) -> None:
        while self.snapshot is not None:
            self.read_on(100)
        assert self.tables[0].snapshot() == self.tables[1].snapshot()


TwinTables.TestCase.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
TestTwinTables = TwinTables.TestCase


def chunks_of(table: Table, since: int | None = None) -> tuple[int, list[bytes]]:
    with table.begin_snapshot(since) as snapshot:
        chunks = list(snapshot)
    return snapshot.id, chunks


def test_chain_is_restored_from_bytes_chunks_and_files_and_goes_on(tmp_path: Path) -> None:
    table = wide()
    admit(table, ids_of(*range(40)), count=2)
    base, chunks = chunks_of(table)
    assert max(map(len, chunks)) < 300_000
    table.apply(ids_of(3), np.ones((1, DIM), np.float32))
    admit(table, ids_of(50, 51, 70), now_s=2, count=2)
    table.erase(ids_of(5, 6, 70))
    admit(table, ids_of(52), now_s=2, count=2)
    second, increment = chunks_of(table, base)
    assert sum(map(len, increment)) < 6 * 4 * DIM  # rows 3, 50, 51, 52 of 41
    path = tmp_path / "table.bin"
    path.write_bytes(b"".join(chunks))
    for data in (path, str(path), b"".join(chunks), bytearray(b"".join(chunks)), iter(chunks)):
        restored = Table.restore(data, b"".join(increment))
        third, rest = chunks_of(restored, second)
        assert chunks_of(restored, third)
        assert restored.snapshot() == table.snapshot()
        assert sum(map(len, rest)) < 4 * DIM


def test_increment_holds_what_was_only_seen_again() -> None:
    table = wide(min_count=1)
    admit(table, ids_of(1, 2), now_s=1)
    base, chunks = chunks_of(table)
    admit(table, ids_of(2), now_s=9)
    _, increment = chunks_of(table, base)
    restored = Table.restore(iter(chunks), iter(increment))
    assert restored.last_seen_s(ids_of(1, 2)).tolist() == [1, 9]


def test_broken_chains_are_refused() -> None:
    table = wide(min_count=1)
    admit(table, ids_of(*range(10)))
    ids: list[int] = []
    data: list[bytes] = []
    for since in range(3):
        admit(table, ids_of(20 + since), now_s=2)
        own, chunks = chunks_of(table, ids[-1] if ids else None)
        ids.append(own)
        data.append(b"".join(chunks))
    Table.restore(*data)
    with pytest.raises(StoreError, match="is an increment: it must follow snapshot"):
        Table.restore(data[1])
    with pytest.raises(StoreError, match=f"follows snapshot {ids[1]}, not {ids[0]}"):
        Table.restore(data[0], data[2])
    with pytest.raises(StoreError, match="whole snapshot cannot follow another"):
        Table.restore(data[0], data[0])
    with pytest.raises(StoreError, match=f"snapshot {ids[0]}: the last of this table was {ids[2]}"):
        table.begin_snapshot(ids[0])
    for at in np.random.default_rng(1).integers(0, len(data[1]), 200).tolist():
        damaged = bytearray(data[1])
        damaged[at] ^= 1 << at % 8
        with pytest.raises(StoreError, match="snapshot"):
            Table.restore(data[0], damaged)
        with pytest.raises(StoreError, match="truncated"):
            Table.restore(data[0], data[1][:at])


def test_one_at_a_time_and_what_nobody_holds_is_given_up() -> None:
    table = wide(min_count=1)
    admit(table, ids_of(*range(40)))
    snapshot = table.begin_snapshot()
    with pytest.raises(StoreError, match="a snapshot of this table is being taken"):
        table.snapshot()
    next(snapshot)
    with pytest.raises(StoreError, match="read to its end"):
        _ = snapshot.id
    table.apply(ids_of(*range(40)), np.ones((40, DIM), np.float32))
    assert table.statistics()["snapshot_bytes"] > 40 * 4 * DIM
    del snapshot
    gc.collect()
    assert table.statistics()["snapshot_bytes"] == 0
    with pytest.raises(RuntimeError, match="stop"), table.begin_snapshot() as snapshot:
        raise RuntimeError("stop")
    with pytest.raises(StoreError, match="closed before its end"):
        next(snapshot)
    assert len(Table.restore(table.snapshot())) == 40


def test_what_yields_no_bytes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Table.restore(tmp_path / "missing")
    with pytest.raises(TypeError, match="bytes, a path or an iterable of bytes"):
        Table.restore([1, 2])  # type: ignore[list-item]
    with pytest.raises(StoreError, match="truncated"):
        Table.restore([])


def test_error_of_an_iterable_comes_through() -> None:
    data = wide().snapshot()

    def broken() -> object:
        yield data[:100]
        raise KeyError("gone")

    with pytest.raises(KeyError, match="gone"):
        Table.restore(broken())  # type: ignore[arg-type]
