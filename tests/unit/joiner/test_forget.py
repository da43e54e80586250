"""What the joiner drops of a user at a command to forget, and what begins afresh behind it."""

import pytest

from freshrank import messages
from freshrank.feature_state import LocalFeatureState, StateQuery
from freshrank.messages import Control
from freshrank.state_layout import StateLayout
from freshrank.transport.base import ACTIONS, IMPRESSIONS, NewRecord
from tests.unit.joiner.conftest import MakeWorld
from tests.unit.joiner.world import World, action, impression


def token(world: World, slot: str, key: str) -> int:
    return int(StateLayout(world.config).tokens(slot, [key])[0])


def forget(world: World, key: str, ts: int, *, slot: str = "user_id") -> int:
    """Append the command; returns its offset."""
    told = Control(
        event_id=f"forget-{ts}",
        ts_ms=ts,
        received_at_ms=ts,
        command="forget",
        slot=slot,
        id=token(world, slot, key),
    )
    new = [NewRecord(b"", messages.encode(told))]
    [(_, offset)] = world.log.append(ACTIONS, new, partition=0)
    return offset


def stored(world: World) -> bytes:
    """Every row of the joiner's database that may name somebody."""
    rows = [
        row
        for table in ("requests", "parts", "feature_updates")
        for row in world.joiner._state._db.execute(f"SELECT * FROM {table}")  # noqa: S608
    ]
    return repr(rows).encode()


def test_open_request_of_the_user_leaves_no_row_and_no_trace(make_world: MakeWorld) -> None:
    world = make_world()
    world.feed(
        impression("r1", ["1", "2"], 1_000, user="ann"), impression("r2", ["1"], 1_000, user="bob")
    )
    assert b"ann" in stored(world)
    forget(world, "ann", 2_000)
    world.settle()
    assert b"ann" not in stored(world)
    assert b"bob" in stored(world)
    world.drain()
    assert world.said() == [("r2", "1", (0.0,), (1.0,))]
    assert world.count("click.sampled_out", "click.negative") == {
        "click.sampled_out": 2,
        "click.negative": 1,
    }


@pytest.mark.parametrize("is_restarted", [False, True])
def test_later_requests_begin_afresh_and_earlier_ones_are_over(
    make_world: MakeWorld, *, is_restarted: bool
) -> None:
    world = make_world()
    world.feed(impression("r1", ["1"], 1_000, user="ann"))
    forget(world, "ann", 2_000)
    world.settle()
    if is_restarted:
        world.restart()
    world.feed(
        action("r1", "1", 3_000),
        impression("r3", ["1"], 3_000, user="ann"),
        action("r3", "1", 3_500),
    )
    world.drain()
    assert world.said() == [("r3", "1", (1.0,), (1.0,))]


def test_actions_that_wait_for_an_impression_are_given_up(make_world: MakeWorld) -> None:
    world = make_world()
    [first, other] = world.feed(
        action("r1", "1", 1_000, user="ann"), action("r1", "2", 1_000, user="bob")
    )
    forget(world, "ann", 2_000)
    world.settle()
    assert b"ann" not in stored(world)
    assert world.outcomes()[first] == ["pending", "unmatched"]
    assert world.outcomes()[other] == ["pending"]
    assert world.count("pending", "unmatched") == {"pending": 1, "unmatched": 1}


def test_labels_held_until_the_close_are_given_up(make_world: MakeWorld) -> None:
    world = make_world(emit="at_close")
    _, held = world.feed(impression("r1", ["1"], 1_000, user="ann"), action("r1", "1", 1_500))
    forget(world, "ann", 2_000)
    world.settle()
    world.drain()
    assert world.said() == []
    assert world.outcomes()[held] == ["pending", "unmatched"]


def recent(world: World, user: str) -> list[str]:
    return world.state.read(StateQuery(9_000, {}, user)).recent["click"]


def test_feature_state_forgets_the_user_and_learns_anew(make_world: MakeWorld) -> None:
    world = make_world()
    for n, user in enumerate(("ann", "bob")):
        world.feed(impression(f"r{n}", ["1"], 1_000, user=user), action(f"r{n}", "1", 1_500))
    assert recent(world, "ann") == ["1"]
    forget(world, "ann", 2_000)
    world.settle()
    assert recent(world, "ann") == []
    assert recent(world, "bob") == ["1"]
    world.feed(impression("r3", ["2"], 3_000, user="ann"), action("r3", "2", 3_500))
    assert recent(world, "ann") == ["2"]
    # Another process finds the same, from the rounds that the database keeps.
    world.joiner.close()
    world.start(LocalFeatureState(world.config))
    assert recent(world, "ann") == ["2"]


def test_the_same_log_gives_the_same_in_rounds_of_one_record(make_world: MakeWorld) -> None:
    worlds = [make_world(), make_world()]
    worlds[1].joiner.n_read_max = 1
    for world in worlds:
        for n in range(6):
            shown = impression(f"r{n}", ["1"], 1_000 + n, user="ann")
            new = NewRecord(b"", messages.encode(shown))
            world.log.append(IMPRESSIONS, [new], partition=0)
            if n == 3:
                forget(world, "ann", 1_004)  # a millisecond on, as the service has it
        world.settle()
        world.drain()
    assert worlds[0].said() == worlds[1].said()
    assert [row[0] for row in worlds[0].said()] == ["r4", "r5"]


def test_what_is_no_id_is_a_dead_letter(make_world: MakeWorld) -> None:
    world = make_world()
    told = Control(event_id="f", ts_ms=1, received_at_ms=1, command="forget", slot="user_id", id=-1)
    pause = Control(event_id="p", ts_ms=1, received_at_ms=1, command="pause")
    for one in (told, pause):
        world.log.append(ACTIONS, [NewRecord(b"", messages.encode(one))], partition=0)
    world.settle()
    assert [letter.code for letter in world.letters(ACTIONS)] == ["bad-id", "wrong-topic"]


def test_an_item_is_forgotten_by_feature_state_alone(make_world: MakeWorld) -> None:
    world = make_world()
    world.feed(impression("r1", ["1", "2"], 1_000, user="ann"), action("r1", "1", 1_500))
    forget(world, "1", 2_000, slot="item_id")
    world.settle()
    assert recent(world, "ann") == []
    world.drain()
    assert [row[:2] for row in world.said()] == [("r1", "1"), ("r1", "2")]
