"""What a restart, a full disk and a wrong database do."""

import sqlite3
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from freshrank import examples, messages
from freshrank.clock import ManualClock
from freshrank.errors import SchemaError, TransportError
from freshrank.feature_state import LocalFeatureState
from freshrank.features import FeatureEncoder
from freshrank.frames import Outcome
from freshrank.messages import Message
from freshrank.progress import Progress
from freshrank.transport.base import ACTIONS, EXAMPLES, IMPRESSIONS, NewRecord
from freshrank.transport.local import LocalLog
from tests.unit.joiner import world as worlds
from tests.unit.joiner.conftest import MakeWorld
from tests.unit.joiner.world import (
    BUY,
    CLICK,
    LIKE,
    World,
    action,
    append,
    append_ticks,
    impression,
)
from trainer.joiner import Joiner, cache, state, sweeper
from trainer.joiner.outbox import Outbox


def story() -> list[Message]:
    """Some of everything."""
    return [
        impression("r", ["1", "2", "3"], 1_000),
        action("r", "1", 2_000),
        action("p", "1", 2_000),
        action("r", "1", 2_000),
        impression("p", ["1"], 2_500),
        action("r", "2", 13_500),
        action("orphan", "1", 14_000),
        impression("late", ["1"], 15_000),
        action("r", "-", 15_000),
        action("r", "3", 15_000, event="dance"),
    ]


def test_restart_after_every_round_changes_nothing(make_world: MakeWorld) -> None:
    undisturbed, restarted = make_world(CLICK, BUY), make_world(CLICK, BUY)
    for record in story():
        undisturbed.feed(record)
        restarted.feed(record)
        restarted.restart()
    undisturbed.drain()
    restarted.drain()

    assert restarted.rows() == undisturbed.rows()
    assert restarted.outcomes() == undisturbed.outcomes()
    assert restarted.joiner.accounting() == undisturbed.joiner.accounting()
    assert restarted.letters(ACTIONS) == undisturbed.letters(ACTIONS)
    assert len(undisturbed.letters(ACTIONS)) == 1


def test_requests_that_do_not_fit_the_cache_are_read_back(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = make_world()
    undisturbed.feed(*story())
    undisturbed.drain()
    monkeypatch.setattr(cache, "REQUESTS_MAX", 0)
    world = make_world()
    world.feed(*story())
    world.drain()

    assert world.rows() == undisturbed.rows()


def test_requests_are_told_apart_when_their_keys_are_equal(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = make_world()
    undisturbed.feed(*story())
    undisturbed.drain()
    monkeypatch.setattr(cache, "REQUESTS_MAX", 0)  # so that all are looked up
    monkeypatch.setattr(state, "hash_strings", lambda ids, _: np.zeros(len(ids), np.uint64))
    world = make_world()
    for record in story():
        world.feed(record)
    world.drain()

    assert Counter(world.said()) == Counter(undisturbed.said())


def test_database_of_an_earlier_format_is_refused(make_world: MakeWorld) -> None:
    world = make_world()
    world.joiner._state._db.execute("UPDATE meta SET value = '1' WHERE name = 'format'")

    with pytest.raises(SchemaError, match="written for format '1'") as caught:
        world.restart()

    assert caught.value.code == "joiner-state"


class Unplugged(Joiner):
    """Commits, but never gets to appending: as if killed in between."""

    def _relay(self) -> None:
        if self._position.watermark_ms < 0:
            super()._relay()


def test_what_was_committed_but_not_appended_is_appended_at_start(make_world: MakeWorld) -> None:
    undisturbed = make_world()
    undisturbed.feed(*story())
    world = make_world()
    world.kind = Unplugged
    world.restart()
    append(world.log, *story())
    while world.joiner.step(0.0):
        pass
    assert world.rows() == []
    assert world.letters(ACTIONS) == []

    world.kind = Joiner
    world.restart()
    world.settle()

    assert world.rows() == undisturbed.rows()
    assert len(world.letters(ACTIONS)) == 1
    assert world.progress.offset("joined", IMPRESSIONS, 0) >= 3


class Forgetful(Joiner):
    """Appends everything twice: as if killed after the append, before the next commit."""

    def _relay(self) -> None:
        super()._relay()
        assert isinstance(self._commits, Outbox)
        self._commits._unsent = self._state._db.execute(
            "SELECT topic, sequence, value FROM outbox ORDER BY topic, sequence"
        ).fetchall()


def test_append_that_is_done_again_adds_nothing(make_world: MakeWorld) -> None:
    undisturbed = make_world()
    undisturbed.feed(*story())
    world = make_world()
    world.kind = Forgetful
    world.restart()

    world.feed(*story())

    assert world.rows() == undisturbed.rows()
    assert world.log.end_offset(EXAMPLES, 0) == undisturbed.log.end_offset(EXAMPLES, 0)


def test_database_older_than_the_log_is_refused(make_world: MakeWorld) -> None:
    world = make_world()
    world.feed(*story())
    world.joiner.close()
    for path in world.directory.glob("joiner.sqlite*"):
        path.unlink()

    with pytest.raises(TransportError, match="older than the log") as caught:
        world.start()

    assert caught.value.code == "joiner-state"


@pytest.mark.parametrize(
    "changed",
    [
        worlds.settings(CLICK, LIKE),
        worlds.settings(CLICK, BUY, emit="at_close"),
        worlds.settings(CLICK, BUY, impressions="reported"),
    ],
)
def test_database_of_other_tasks_is_refused(make_world: MakeWorld, changed: Any) -> None:
    world = make_world(CLICK, BUY)
    world.feed(*story())

    world.config = changed
    with pytest.raises(SchemaError, match="start with the earlier ones"):
        world.restart()


def test_stored_impression_that_does_not_fit_new_features_stops_the_joiner(
    make_world: MakeWorld,
) -> None:
    world = make_world()
    world.feed(impression("r", ["1"], 1_000, columns={"tags": [["a", "b"]]}))
    features = [one for one in worlds.FEATURES if one["name"] != "tags"]
    tags = {"name": "tags", "type": "dense", "scope": "item"}

    world.config = worlds.settings(features=[*features, tags])
    world.restart()

    with pytest.raises(SchemaError, match="does not fit today's features"):
        world.drain()


def test_file_that_is_no_database_is_refused(make_world: MakeWorld) -> None:
    world = make_world()
    world.joiner.close()
    (world.directory / "joiner.sqlite").write_bytes(b"not a database" * 100)

    with pytest.raises(TransportError, match="not a database"):
        world.start()


def test_state_of_past_requests_leaves_the_database(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweeper, "_SLICES", 1)
    world = make_world()
    for i in range(20):
        world.feed(impression(f"r{i}", ["1"], 1_000), action(f"r{i}", "1", 2_000))
    counts = _table_counts(world)
    assert (counts["requests"], counts["parts"], counts["seen"]) == (20, 20, 20)

    append_ticks(world.log, 40_000)
    world.feed(impression("later", ["1"], 40_000))
    counts = _table_counts(world)
    assert (counts["requests"], counts["parts"], counts["seen"]) == (21, 1, 20)
    append_ticks(world.log, 200_000)
    world.feed(impression("last", ["1"], 200_000))
    counts = _table_counts(world)

    assert (counts["requests"], counts["parts"], counts["seen"]) == (1, 1, 0)
    assert counts["outbox"] <= 1


def test_joiners_of_two_partitions_keep_to_their_own(tmp_path: Path) -> None:
    clock = ManualClock()
    log = LocalLog(tmp_path / "log", clock=clock, n_partitions=2, fsync="never")
    config = worlds.settings()
    progress = Progress()
    for partition in (0, 1):
        name = f"r{partition}"
        for record in (impression(name, ["1"], 1_000), action(name, "1", 2_000)):
            topic = worlds.topic_of(record)
            log.append(topic, [NewRecord(b"", messages.encode(record))], partition=partition)
        log.append(ACTIONS, [NewRecord(b"", b"bad")], partition=partition)
    for partition in (0, 1):
        one = Joiner(
            config,
            FeatureEncoder(config),
            log,
            partition=partition,
            database=tmp_path / f"{partition}.sqlite",
            clock=clock,
            state=LocalFeatureState(config),
            progress=progress,
        )
        while one.step(0.0):
            pass
        one.close()

    slots = [slot.name for slot in FeatureEncoder(config).slots]
    for partition in (0, 1):
        read = log.read(EXAMPLES, partition, 0)
        batches = [examples.decode(record.value, ["click"], slots) for record in read]
        assert [name for batch in batches for name in batch.request_ids] == [f"r{partition}"]
        assert batches[-1].info.offsets[f"{ACTIONS}:{partition}"] >= 2
        assert batches[-1].info.outcomes == [Outcome(ACTIONS, partition, 1, "dead_letter")]
        assert log.last_sequence(f"{ACTIONS}.dlq", partition, f"joiner-{partition}") == 0
        assert progress.offset("joined", IMPRESSIONS, partition) == 1
    log.close()


def test_joiner_starts_without_torch() -> None:
    code = (
        "import sys, trainer.joiner; "
        "sys.exit(any(name.split('.')[0] == 'torch' for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def _table_counts(world: World) -> dict[str, int]:
    database: sqlite3.Connection = world.joiner._state._db
    tables = ("requests", "parts", "seen", "outbox")
    return {
        table: database.execute(f"SELECT count(*) FROM {table}").fetchone()[0]  # noqa: S608
        for table in tables
    }
