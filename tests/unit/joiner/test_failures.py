"""What a joiner does when its disk or its log fails."""

import sqlite3
from typing import Any

import pytest

from freshrank.errors import TransportError
from freshrank.messages import Message, Value
from freshrank.transport.base import ACTIONS, EXAMPLES
from tests.unit.joiner.conftest import MakeWorld
from tests.unit.joiner.world import action, append, append_ticks, impression


def test_full_disk_commits_nothing_and_goes_on_when_space_is_free(make_world: MakeWorld) -> None:
    undisturbed, world = make_world(), make_world()
    database: sqlite3.Connection = world.joiner._state._db
    pages = database.execute("PRAGMA page_count").fetchone()[0]
    database.execute(f"PRAGMA max_page_count = {pages}")
    big: dict[str, Value] = {"not_a_feature_any_more": "x" * 100_000}
    records: list[Message] = [impression("r", ["1"], 1_000, shared=big), action("r", "1", 2_000)]
    append(world.log, *records)
    append_ticks(world.log, 2_500)
    for _ in range(2):
        with pytest.raises(TransportError, match="no space left") as caught:
            world.joiner.step(0.0)
        assert caught.value.code == "disk-full"
        assert set(world.joiner.accounting().values()) == {0}
        assert world.log.end_offset(EXAMPLES, 0) == 0

    database.execute("PRAGMA max_page_count = 1000000")
    world.settle()
    undisturbed.feed(*records)

    assert world.rows() == undisturbed.rows()
    assert len(world.rows()) == 1


def test_log_that_fails_after_the_commit_gets_the_records_with_the_next_step(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_world()
    append(world.log, impression("r", ["1"], 1_000), action("r", "1", 2_000))
    append_ticks(world.log, 2_500)

    def refuse(*_: Any, **__: Any) -> None:
        raise TransportError("full", code="disk-full")

    with monkeypatch.context() as patch:
        patch.setattr(world.log, "append", refuse)
        with pytest.raises(TransportError):
            world.joiner.step(0.0)
    assert world.progress.offset("joined", ACTIONS, 0) == 0
    world.settle()

    assert world.said() == [("r", "1", (1.0,), (1.0,))]
    assert world.progress.offset("joined", ACTIONS, 0) >= 1


def test_database_that_also_fails_to_say_where_it_stands_is_asked_again(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed, world = make_world(), make_world()
    records: list[Message] = [impression("r", ["1"], 1_000), action("r", "1", 2_000)]
    append(world.log, *records)
    append_ticks(world.log, 2_500)

    def refuse(*_: Any, **__: Any) -> None:
        raise TransportError("broken", code="joiner-state")

    with monkeypatch.context() as patch:
        patch.setattr(world.joiner._state, "write", refuse)
        patch.setattr(world.joiner._state, "meta", refuse)
        for _ in range(2):
            with pytest.raises(TransportError, match="broken"):
                world.joiner.step(0.0)
    world.settle()
    undisturbed.feed(*records)

    assert world.rows() == undisturbed.rows()
    assert world.joiner.accounting() == undisturbed.joiner.accounting()
