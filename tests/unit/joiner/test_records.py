"""What a record of examples says beside its rows, and how large it gets."""

import msgspec
import pytest

from freshrank import messages
from freshrank.features import FeatureEncoder
from freshrank.frames import Outcome
from freshrank.messages import Value
from freshrank.transport.base import ACTIONS, EXAMPLES, IMPRESSIONS, RECORD_BYTES_MAX, NewRecord
from tests.unit.joiner.conftest import MakeWorld
from tests.unit.joiner.world import BUY, CLICK, action, append, append_ticks, impression
from trainer.joiner import cache, rows

I0, A0 = f"{IMPRESSIONS}:0", f"{ACTIONS}:0"


def test_offsets_and_watermark_cover_what_the_round_decided(make_world: MakeWorld) -> None:
    world = make_world()
    impressed, acted = world.feed(impression("r", ["1"], 1_000), action("r", "1", 2_000))
    append_ticks(world.log, 3_000)
    orphaned = world.feed(action("x", "1", 2_900))[0]

    infos = [batch.info for batch in world.batches()]
    assert infos[-1].offsets[I0] > impressed
    assert infos[-1].offsets[A0] == orphaned + 1
    assert infos[-1].watermark_ms == 2_000
    assert infos[-1].outcomes == [Outcome(ACTIONS, 0, orphaned, "pending")]
    assert {info.schema_hash for info in infos} == {FeatureEncoder(world.config).schema_hash}
    assert acted < infos[-1].offsets[A0]


def test_round_without_rows_still_brings_its_offsets(make_world: MakeWorld) -> None:
    world = make_world()

    world.feed(impression("r", ["1"], 1_000))

    (batch,) = world.batches()
    assert batch.n_rows == 0
    assert batch.info.offsets == {I0: 1, A0: 0}


def test_progress_is_joined_once_the_examples_are_in_the_log(make_world: MakeWorld) -> None:
    world = make_world()

    world.feed(impression("r", ["1"], 1_000), action("r", "1", 2_000))

    assert world.progress.offset("joined", ACTIONS, 0) >= 1
    assert world.progress.offset("joined", IMPRESSIONS, 0) == 1
    assert world.progress.offset("trained", ACTIONS, 0) == 0


def test_fields_that_nobody_knows_are_skipped_and_counted(make_world: MakeWorld) -> None:
    world = make_world()
    for topic, one in (
        (IMPRESSIONS, impression("r", ["1"], 1_000)),
        (ACTIONS, action("r", "1", 2)),
    ):
        fields = msgspec.msgpack.decode(messages.encode(one)) | {"added_later": 1}
        world.log.append(topic, [NewRecord(b"", msgspec.msgpack.encode(fields))], partition=0)
    world.feed(impression("s", ["1"], 1_100))
    world.drain()

    assert {row.request: row.labels for row in world.rows()} == {"r": (1.0,), "s": (0.0,)}
    found = {
        one.labels["topic"]: one.value
        for one in world.joiner.readings()
        if one.name == "joiner_unknown_fields"
    }
    assert found == {"impressions": 1, "actions": 1}


def test_rows_of_one_round_are_cut_into_records_below_the_limit(make_world: MakeWorld) -> None:
    world = make_world(CLICK, BUY)
    items = [str(i) for i in range(400)]
    tags: dict[str, list[Value]] = {"tags": [[f"{i}-{k}" for k in range(32)] for i in items]}
    for name in ("a", "b", "c", "d", "e", "f"):
        for part in range(4):
            some = slice(100 * part, 100 * part + 100)
            columns: dict[str, list[Value]] = {"tags": tags["tags"][some]}
            append(
                world.log,
                impression(name, items[some], 1_000, columns=columns, part=part, parts=4),
            )
    world.drain()

    records = world.log.read(EXAMPLES, 0, 0, n_max=1_000, bytes_max=1 << 30)
    assert max(len(record.value) for record in records) < RECORD_BYTES_MAX
    assert max(len(record.value) for record in records) > RECORD_BYTES_MAX / 3
    said = [(row.request, row.item) for row in world.rows()]
    assert said == [(name, item) for name in "abcdef" for item in items]
    assert all(len(row.ids[2]) == 32 for row in world.rows())


def test_only_the_last_record_of_a_round_moves_the_offsets(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "_ROWS_MAX", 2)
    monkeypatch.setattr(rows, "_OUTCOMES_MAX", 2)
    world = make_world()
    append(
        world.log,
        impression("r", [str(i) for i in range(5)], 1_000),
        *(action("r", str(i), 2_000) for i in (*range(5), 7, 8, 9)),
    )
    append_ticks(world.log, 2_500)

    while world.joiner.step(0.0):
        pass

    batches = world.batches()
    # Outcomes never come before rows: "trained" may be one of them.
    assert [batch.n_rows for batch in batches] == [2, 2, 1, 0]
    assert [batch.info.offsets[A0] for batch in batches] == [0, 0, 0, 9]
    assert [len(batch.info.outcomes) for batch in batches] == [0, 0, 2, 1]


@pytest.mark.parametrize(
    ("rows_max", "bytes_max"), [(2, 1 << 19), (3, 1 << 19), (5, 1 << 19), (99, 3_700)]
)
def test_reversal_pair_is_never_split_over_records(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch, rows_max: int, bytes_max: int
) -> None:
    monkeypatch.setattr(rows, "_ROWS_MAX", rows_max)
    monkeypatch.setattr(rows, "RECORD_BYTES_MAX", bytes_max)
    world = make_world(CLICK)
    items = [str(i) for i in range(9)]
    world.feed(impression("r", items, 1_000), action("r", "0", 1_500))
    world.drain(12_000)

    world.feed(impression("s", ["1"], 13_000), action("s", "1", 13_000, event_id="first"))
    append(world.log, *(action("r", item, 13_000) for item in items[1:]))
    append_ticks(world.log, 13_500)
    world.settle()

    assert sum(row.is_reversal for row in world.rows()) == 16
    assert len([batch for batch in world.batches() if batch.is_reversal.any()]) > 1
    sizes = [len(record.value) for record in world.log.read(EXAMPLES, 0, 0)]
    assert max(sizes) < bytes_max
    for batch in world.batches():
        pairs = batch.weights[batch.is_reversal][:, 0].tolist()
        assert pairs == [1.0, -1.0] * (len(pairs) // 2)
        positions = batch.is_reversal.nonzero()[0]
        assert (positions[1::2] - positions[::2] == 1).all()


def test_more_outcomes_than_fit_into_a_record_are_spread(make_world: MakeWorld) -> None:
    world = make_world()
    n_orphans = 4_000
    many = [NewRecord(b"", messages.encode(action(f"r{i}", "1", 1_000))) for i in range(n_orphans)]
    world.log.append(ACTIONS, many, partition=0)
    append_ticks(world.log, 100_000)
    world.settle()

    assert set(map(tuple, world.outcomes().values())) == {("pending", "unmatched")}
    assert len(world.outcomes()) == n_orphans
    assert max(len(batch.info.outcomes) for batch in world.batches()) <= 1_500


def test_rows_are_encoded_again_once_they_left_the_arena(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "ARENA_ROWS_MAX", 4)
    shown = [
        impression(f"r{i}", ["1", "2"], 1_000 + i, columns={"price": [float(i), 2.0 * i]})
        for i in range(50)
    ]
    world = make_world()
    for one in shown:
        world.feed(one)
    world.drain(12_500)
    world.feed(*(action(f"r{i}", "2", 13_000) for i in range(50)))

    assert [row.dense for row in world.rows() if row.item == "1"] == [
        (float(i),) for i in range(50)
    ]
    reversed_ = [row for row in world.rows() if row.is_reversal]
    assert [row.dense for row in reversed_[::2]] == [(2.0 * i,) for i in range(50)]
    assert [row.ids[1] for row in reversed_] == [(2,)] * 100
