"""The order of records and the ticks that keep it moving."""

import re
from contextlib import closing
from pathlib import Path

import pytest

from freshrank import messages
from freshrank.clock import ManualClock
from freshrank.messages import Tick
from freshrank.transport.base import ACTIONS, IMPRESSIONS, NewRecord
from freshrank.transport.local import LocalLog
from tests.unit.joiner.conftest import MakeWorld
from tests.unit.joiner.world import World, action, append, append_ticks, impression
from trainer.joiner.merge import Head, Source


def ticks(world: World, topic: str) -> list[int]:
    """Times of the ticks in a topic."""
    read = [messages.decode(record.value) for record in world.log.read(topic, 0, 0)]
    return [one.ts_ms for one in read if isinstance(one, Tick)]


def test_drained_topic_gets_a_tick_of_now_while_the_other_waits(make_world: MakeWorld) -> None:
    world = make_world()
    world.clock.advance(ms=5_000)

    world.feed(impression("r", ["1"], 1_000), impression("s", ["1"], 1_100))

    assert ticks(world, ACTIONS) == [5_000]


def test_tick_follows_the_records_where_the_clock_is_behind_them(make_world: MakeWorld) -> None:
    world = make_world()

    world.feed(impression("r", ["1"], 1_000), impression("s", ["1"], 3_000))
    world.feed(action("r", "1", 4_000))

    # An action's tick must be later than the impression: at the same time actions come first.
    assert ticks(world, ACTIONS) == [1_001, 3_001]
    assert ticks(world, IMPRESSIONS) == [3_001, 4_000]  # past the tick that is left, too
    assert world.joiner.accounting()["matched"] == 1


def test_record_behind_a_later_tick_of_its_own_topic_moves(make_world: MakeWorld) -> None:
    world = make_world()
    world.feed(impression("r", ["1"], 1_000), action("r", "1", 4_000))

    world.feed(impression("s", ["1"], 2_000), action("s", "1", 2_500))

    assert world.joiner.accounting()["matched"] == 2


def test_tick_that_no_record_waits_behind_needs_no_tick_itself(make_world: MakeWorld) -> None:
    world = make_world()
    append(world.log, impression("r", ["1"], 1_000))
    tick = Tick(event_id="t", ts_ms=5_000, received_at_ms=5_000)
    world.log.append(IMPRESSIONS, [NewRecord(b"", messages.encode(tick))], partition=0)

    world.settle()

    assert ticks(world, ACTIONS) == [1_001]


def test_idle_log_with_nothing_open_gets_no_ticks(make_world: MakeWorld) -> None:
    world = make_world()
    world.feed(impression("r", ["1"], 1_000), action("r", "1", 1_500))
    world.drain()
    ends = [world.log.end_offset(topic, 0) for topic in (ACTIONS, IMPRESSIONS)]

    for _ in range(5):
        world.clock.advance(ms=60_000)
        assert world.joiner.step(0.0) == 0

    assert [world.log.end_offset(topic, 0) for topic in (ACTIONS, IMPRESSIONS)] == ends


def test_time_passes_by_ticks_in_both_topics_while_a_window_is_open(
    make_world: MakeWorld,
) -> None:
    world = make_world()
    world.clock.advance(ms=1_000)
    world.feed(impression("r", ["1"], 1_000))
    assert ticks(world, IMPRESSIONS) == []

    for _ in range(200):
        world.clock.advance(ms=100)
        world.settle()
        if world.rows():
            break

    assert world.said() == [("r", "1", (0.0,), (1.0,))]
    # Window 10 s and 1 s out of order after an impression at 1 s, seen a tick or two later.
    assert 12_000 <= world.clock.now_ms() <= 12_400
    assert len(ticks(world, IMPRESSIONS)) <= 11_400 / 200 + 1


def test_parked_action_lets_time_pass(make_world: MakeWorld) -> None:
    world = make_world()
    world.clock.advance(ms=1_000)
    offset = world.feed(action("r", "1", 1_000))[0]

    for _ in range(200):
        world.clock.advance(ms=200)
        world.settle()

    assert world.outcomes() == {offset: ["pending", "unmatched"]}


def test_ticks_alone_write_no_examples(make_world: MakeWorld) -> None:
    world = make_world()
    world.feed(impression("r", ["1"], 1_000))
    n_records = len(world.batches())

    append_ticks(world.log, 5_000)
    world.settle()

    assert len(world.batches()) == n_records


def test_replay_of_the_log_with_its_ticks_gives_the_same_rows(make_world: MakeWorld) -> None:
    live = make_world()
    for second in range(1, 40):
        live.clock.advance(ms=1_000)
        now = live.clock.now_ms()
        if second % 3:
            append(live.log, impression(f"r{second}", ["1", "2"], now))
        if second % 5 == 0:
            append(live.log, action(f"r{second - 4}", "2", now))
        live.settle()
    live.drain()

    replay = make_world()
    for topic in (IMPRESSIONS, ACTIONS):
        recorded = live.log.read(topic, 0, 0, n_max=10_000)
        new = [NewRecord(record.key, record.value) for record in recorded]
        replay.log.append(topic, new, partition=0)
    replay.settle()

    assert replay.said() == live.said()
    assert len(live.said()) > 40


def test_a_clock_behind_what_was_joined_is_told_until_it_has_caught_up(
    make_world: MakeWorld, caplog: pytest.LogCaptureFixture
) -> None:
    world = make_world()

    def looked() -> tuple[float, list[str]]:
        world.joiner.step(0.001)
        return world.joiner.clock_behind_s, re.findall(r" clock=([\w-]+)", caplog.text)

    world.feed(impression("r", ["1"], 32_000))
    world.clock.advance(ms=1_000)
    assert looked() == (31.0, ["behind"])  # window + lateness + slack: what happens now is late
    assert looked() == (31.0, ["behind"])
    world.clock.advance(ms=1)
    assert looked() == (0.0, ["behind", "caught-up"])
    world.feed(impression("s", ["1"], 1_001))
    assert not world.letters(IMPRESSIONS)


def test_an_own_tick_counts_as_read_only_where_nothing_stands_before_it(tmp_path: Path) -> None:
    def judge(records: object) -> list[Head]:
        raise AssertionError(f"{records} need not be read")

    with closing(LocalLog(tmp_path, clock=ManualClock())) as log:
        source = Source(log, ACTIONS, 0, 0, judge)
        source.tick([1_000, 2_000])
        assert [one.record.offset for one in source.heads] == [0, 1]
        assert [one.time_ms for one in source.heads] == [1_000, 2_000]
        assert [head.record.value for head in source.heads] == [
            record.value for record in log.read(ACTIONS, 0, 0)
        ]

        append(log, action("r", "1", 2_500))  # somebody else's, at offset 2
        source.tick([3_000])
        assert (len(source.heads), source.position) == (2, 2)
