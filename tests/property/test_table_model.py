"""Random calls on a table and on plain dictionaries, which must agree after every one.

The model is written from the rules alone: it knows ids, counts and times, never row numbers, so
sweeps are always whole here (bounded slices are tested with the unit tests).
"""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from embedding_store import Optimizer, ServingTable, Table
from tests.proofs import record, scale

F32 = npt.NDArray[np.float32]
U64 = npt.NDArray[np.uint64]

DIM, LR, EVERYTHING = 2, 0.5, 1 << 40
# Few ids, so that they meet again; the extremes of the range among them.
IDS = st.sampled_from([0, 1, 2, 3, 5, 2**32, 2**63, 2**64 - 2, 2**64 - 1])
BATCH = st.lists(IDS, max_size=8)


@dataclass
class Row:
    """One row as the model knows it."""

    weights: F32
    born_s: int
    last_seen_s: int
    version: int


@dataclass
class Model:
    """The table's rules on dictionaries."""

    min_count: int
    ttl_s: int
    half_life_s: int
    min_rows: int
    clock_s: int = 0
    version: int = 1
    rows: dict[int, Row] = field(default_factory=dict)
    pending: dict[int, tuple[int, int]] = field(default_factory=dict)  # count, last seen
    tombstones: dict[int, int] = field(default_factory=dict)

    def count(self, key: int, n: int, now_s: int, start: F32) -> None:
        """n occurrences of one id; `start` is its row if this brings it to life."""
        if key in self.rows:
            self.rows[key].last_seen_s = max(self.rows[key].last_seen_s, now_s)
            return
        before, seen_s = self.waiting(key, now_s)
        if before + n < self.min_count:
            self.pending[key] = (before + n, max(seen_s, now_s))
            self.move_clock(self.clock_s)
            return
        self.pending.pop(key, None)
        self.tombstones.pop(key, None)
        self.rows[key] = Row(start.copy(), now_s, now_s, self.version)

    def waiting(self, key: int, now_s: int) -> tuple[int, int]:
        """Occurrences counted of an id without a row, halved by age, and when it was seen."""
        count, seen_s = self.pending.get(key, (0, 0))
        if self.half_life_s > 0 and now_s > seen_s:
            count >>= now_s // self.half_life_s - seen_s // self.half_life_s
        return count, seen_s

    def move_clock(self, now_s: int) -> None:
        """Never back; counts out of time are forgotten at once."""
        self.clock_s = max(self.clock_s, now_s)
        self.pending = {k: v for k, v in self.pending.items() if not self.is_stale(v[1])}

    def remove(self, key: int) -> None:
        """Drop a row and leave a tombstone."""
        del self.rows[key]
        self.tombstones[key] = self.version

    def is_stale(self, seen_s: int) -> bool:
        """Whether a thing last seen then is out of time."""
        return self.ttl_s > 0 and seen_s + self.ttl_s < self.clock_s


def array(ids: list[int]) -> U64:
    """Ids as the table takes them."""
    return np.array(ids, np.uint64)


class TableMachine(RuleBasedStateMachine):
    """Every public call, in any order."""

    n_calls = 0  # of all examples

    def __init__(self) -> None:
        super().__init__()
        self.replica = ServingTable(width=DIM, initial_rows=0)
        self.replicated = 0  # the version through which the replica has followed
        self.trimmed = 0  # tombstones of versions up to here are gone

    @initialize(
        min_count=st.sampled_from([1, 2, 4]),
        ttl_s=st.sampled_from([0, 20]),
        half_life_s=st.sampled_from([0, 7]),
        min_rows=st.sampled_from([0, 2]),
    )
    def build(self, min_count: int, ttl_s: int, half_life_s: int, min_rows: int) -> None:
        """Build both, and read every id's newborn row from a table without a filter."""
        self.model = Model(min_count, ttl_s, half_life_s, min_rows)
        self.table = self.make(min_count, ttl_s, half_life_s, min_rows)
        self.newborn = self.make(1, 0)

    @staticmethod
    def make(min_count: int, ttl_s: int, half_life_s: int = 0, min_rows: int = 0) -> Table:
        """Plain gradient descent: its arithmetic is one line in the model."""
        return Table(
            dim=DIM, first_order=False, optimizer=Optimizer("sgd", lr=LR), init_scale=0.1, seed=1,
            slot=2, min_count=min_count, probability=1.0, ttl_s=ttl_s, initial_rows=0,
            min_rows=min_rows, count_half_life_s=half_life_s,
        )  # fmt: skip

    def start(self, key: int) -> F32:
        """The row an id is born with."""
        rows = self.newborn.lookup_or_admit(array([key]), np.ones(1, np.uint32), 0)
        return rows.reshape(DIM)

    def expected(self, ids: list[int]) -> F32:
        """What a lookup must return."""
        zeros = np.zeros(DIM, np.float32)
        rows = [self.model.rows[key].weights if key in self.model.rows else zeros for key in ids]
        return np.array(rows, np.float32).reshape(len(ids), DIM)

    @rule(ids=BATCH)
    def lookup(self, ids: list[int]) -> None:
        """Read, which changes nothing."""
        np.testing.assert_array_equal(self.table.lookup(array(ids)), self.expected(ids))

    @rule(entries=st.lists(st.tuples(IDS, st.integers(0, 3)), max_size=8), now_s=st.integers(0, 99))
    def lookup_or_admit(self, entries: list[tuple[int, int]], now_s: int) -> None:
        """Count occurrences, then read: all entries see the rows born in this call."""
        ids = [key for key, _ in entries]
        counts = np.array([n for _, n in entries], np.uint32)
        values = self.table.lookup_or_admit(array(ids), counts, now_s)
        self.model.move_clock(now_s)
        for key, n in entries:
            if n > 0:
                self.model.count(key, n, now_s, self.start(key))
        np.testing.assert_array_equal(values, self.expected(ids))

    @rule(entries=st.lists(st.tuples(IDS, st.integers(-8, 8)), max_size=8))
    def apply(self, entries: list[tuple[int, int]]) -> None:
        """One step per distinct id with a row, over the sum of its gradients."""
        ids = [key for key, _ in entries]
        gradients = np.array([[g, -g / 4] for _, g in entries], np.float32).reshape(-1, DIM)
        present = {key for key in ids if key in self.model.rows}
        assert self.table.apply(array(ids), gradients) == len(present)
        for key in present:
            total = gradients[[other == key for other in ids]].sum(axis=0)
            row = self.model.rows[key]
            row.weights = row.weights - np.float32(LR) * total
            row.version = self.model.version

    @rule(now_s=st.integers(0, 150))
    def expire(self, now_s: int) -> None:
        """A whole sweep: which rows stay where a floor keeps some is the table's choice."""
        model = self.model
        model.move_clock(now_s)
        stale = [key for key, row in model.rows.items() if model.is_stale(row.last_seen_s)]
        n_removed = min(len(stale), max(0, len(model.rows) - model.min_rows))
        assert self.table.expire(now_s, EVERYTHING) == n_removed
        is_left = self.table.contains(array(stale))
        assert len(stale) - is_left.sum() == n_removed
        for key, is_kept in zip(stale, is_left, strict=True):
            if not is_kept:
                model.remove(key)

    @rule(ids=BATCH)
    def erase(self, ids: list[int]) -> None:
        """Rows and pending counts go; rows leave tombstones."""
        present = {key for key in ids if key in self.model.rows}
        assert self.table.erase(array(ids)) == len(present)
        for key in ids:
            self.model.pending.pop(key, None)
        for key in present:
            self.model.remove(key)

    @rule()
    def advance(self) -> None:
        """Close a version."""
        assert self.table.advance() == self.model.version
        self.model.version += 1

    @rule(data=st.data())
    def delta(self, data: st.DataObject) -> None:
        """Exactly what changed since any version."""
        since = data.draw(st.integers(0, self.model.version))
        keys, rows, tombstones = self.table.delta(since)
        changed = sorted(key for key, row in self.model.rows.items() if row.version > since)
        assert keys.tolist() == changed
        np.testing.assert_array_equal(rows, self.expected(changed))
        assert tombstones.tolist() == sorted(
            key for key, version in self.model.tombstones.items() if version > since
        )

    @rule()
    def replicate(self) -> None:
        """A replica that follows deltas holds the table."""
        keys, rows, tombstones = self.table.delta(self.replicated)
        self.replica.upsert(keys, rows)
        self.replica.remove(tombstones)
        self.advance()
        self.replicated = self.model.version - 1
        assert self.replica.keys().tolist() == sorted(self.model.rows)
        everything = array(sorted(self.model.rows))
        np.testing.assert_array_equal(
            self.replica.lookup(everything)[0], self.table.lookup(everything)
        )

    @precondition(lambda self: self.replicated > 0)
    @rule()
    def trim_tombstones(self) -> None:
        """Forget tombstones the replica has."""
        gone = [k for k, version in self.model.tombstones.items() if version <= self.replicated]
        assert self.table.trim_tombstones(self.replicated) == len(gone)
        for key in gone:
            del self.model.tombstones[key]

    @rule()
    def snapshot_and_restore(self) -> None:
        """Go on with the restored table."""
        data = self.table.snapshot()
        self.table = Table.restore(data)
        assert self.table.snapshot() == data

    @invariant()
    def same_content(self) -> None:
        """Ids, times and counts agree."""
        if not hasattr(self, "model"):
            return
        TableMachine.n_calls += 1
        model = self.model
        assert self.table.keys().tolist() == sorted(model.rows)
        assert self.table.version == model.version
        keys = sorted(model.rows)
        assert self.table.born_s(array(keys)).tolist() == [model.rows[k].born_s for k in keys]
        seen_s = [model.rows[key].last_seen_s for key in keys]
        assert self.table.last_seen_s(array(keys)).tolist() == seen_s
        waiting = sorted(model.pending)
        counts = [model.waiting(key, model.clock_s)[0] for key in waiting]
        assert self.table.pending(array(waiting)).tolist() == counts
        statistics = self.table.statistics()
        assert statistics["rows"] == len(self.table) == len(model.rows)
        assert statistics["pending"] == len(model.pending)
        assert statistics["tombstones"] == len(model.tombstones)
        assert statistics["clock_s"] == model.clock_s


def test_any_calls_leave_a_table_as_its_rules_say() -> None:
    n = scale("model", 100)
    run_state_machine_as_test(
        TableMachine,
        settings=settings(max_examples=n, stateful_step_count=40, deadline=None, print_blob=True),
    )
    record(
        "after any calls a table holds what a model on dictionaries holds",
        examples=n,
        calls=TableMachine.n_calls,
        different=0,
    )
