"""What becomes of an action: docs/semantics.md, the joiner and accounting."""

import math
from typing import Any

import msgspec
import pytest

from freshrank import messages
from freshrank.messages import Control, Entity, Impression
from freshrank.transport.base import ACTIONS, IMPRESSIONS, NewRecord
from tests.unit.joiner.conftest import MakeWorld
from tests.unit.joiner.world import CLICK, LIKE, action, append_ticks, impression, topic_of
from trainer.joiner.decider import PARKED_MAX


def test_event_id_is_a_duplicate_within_the_dedup_window(make_world: MakeWorld) -> None:
    world = make_world(CLICK, LIKE)
    first = action("r", "1", 2_000, event_id="same")

    offsets = world.feed(impression("r", ["1", "2"], 1_000), first, first)
    again = world.feed(action("r", "2", 2_500, event_id="same"))

    assert len(world.rows()) == 1
    assert world.outcomes() == {offsets[2]: ["duplicate"], again[0]: ["duplicate"]}
    assert world.joiner.accounting()["duplicate"] == 2


def test_event_id_is_forgotten_after_the_dedup_window(make_world: MakeWorld) -> None:
    world = make_world(dedup_window="5s")
    world.feed(impression("r", ["1", "2"], 1_000), action("r", "1", 2_000, event_id="same"))
    append_ticks(world.log, 8_000)  # watermark 7 s = 2 s + dedup window

    world.feed(action("r", "2", 8_000, event_id="same"))

    assert world.joiner.accounting()["matched"] == 2


def test_second_event_on_an_item_that_is_positive_is_a_duplicate(make_world: MakeWorld) -> None:
    world = make_world()

    offsets = world.feed(
        impression("r", ["1"], 1_000), action("r", "1", 2_000), action("r", "1", 2_500)
    )

    assert len(world.rows()) == 1
    assert world.outcomes() == {offsets[2]: ["duplicate"]}


def test_action_before_its_impression_is_parked_then_matched(make_world: MakeWorld) -> None:
    world = make_world()
    parked = world.feed(action("r", "1", 900))[0]
    assert world.joiner.accounting()["pending"] == 1

    world.feed(impression("r", ["1"], 1_000))

    assert world.said() == [("r", "1", (1.0,), (1.0,))]
    assert world.outcomes() == {parked: ["pending", "trained"]}
    assert world.joiner.accounting()["pending"] == 0


def test_of_two_parked_actions_the_first_to_arrive_counts(make_world: MakeWorld) -> None:
    world = make_world()
    first, second = world.feed(action("r", "1", 950), action("r", "1", 900))

    world.feed(impression("r", ["1"], 1_000))

    assert world.outcomes() == {first: ["pending", "trained"], second: ["pending", "duplicate"]}


def test_orphan_is_unmatched_after_window_and_allowed_lateness(make_world: MakeWorld) -> None:
    world = make_world()
    orphan = world.feed(action("r", "1", 1_000))[0]

    append_ticks(world.log, 31_999)
    world.settle()
    assert world.outcomes() == {orphan: ["pending"]}
    append_ticks(world.log, 32_000)  # 1 s + window 10 s + lateness 20 s + out of order 1 s
    world.settle()

    assert world.outcomes() == {orphan: ["pending", "unmatched"]}
    assert world.joiner.accounting()["unmatched"] == 1
    world.feed(impression("r", ["1"], 33_000), action("r", "1", 34_000))
    assert world.said() == [("r", "1", (1.0,), (1.0,))]


def test_request_parks_a_limited_number_of_actions(make_world: MakeWorld) -> None:
    world = make_world()
    recorded = [action("r", "1", 1_000, event_id=str(i)) for i in range(PARKED_MAX + 5)]
    world.log.append(
        ACTIONS, [NewRecord(b"", messages.encode(one)) for one in recorded], partition=0
    )

    world.settle()

    assert world.count("pending", "unmatched") == {"pending": PARKED_MAX, "unmatched": 5}


def test_item_that_was_not_shown_is_unmatched_at_once(make_world: MakeWorld) -> None:
    world = make_world()

    offsets = world.feed(impression("r", ["1"], 1_000), action("r", "7", 2_000))

    assert world.outcomes() == {offsets[1]: ["unmatched"]}


def test_action_after_window_and_lateness_is_late(make_world: MakeWorld) -> None:
    world = make_world()

    offsets = world.feed(
        impression("r", ["1", "2"], 1_000), action("r", "1", 31_000), action("r", "2", 31_001)
    )
    world.drain()

    assert world.outcomes() == {offsets[2]: ["late"]}
    assert sum(row.weights[0] for row in world.rows() if row.item == "2") == 1.0
    assert {row.labels for row in world.rows() if row.item == "2"} == {(0.0,)}


def test_action_that_arrives_after_the_state_is_gone_is_late(make_world: MakeWorld) -> None:
    world = make_world()
    world.feed(impression("r", ["1"], 1_000))
    append_ticks(world.log, 32_000)  # watermark at the end of lateness
    world.settle()
    world.restart()

    offset = world.feed(action("r", "1", 2_000))[0]

    assert world.outcomes() == {offset: ["late"]}


def test_request_is_forgotten_after_lateness_and_dedup_window(make_world: MakeWorld) -> None:
    world = make_world()
    world.feed(impression("r", ["1"], 1_000))
    append_ticks(world.log, 91_999)
    late = world.feed(action("r", "1", 91_999))[0]
    append_ticks(world.log, 92_000)  # 1 + 10 + 20 + 60 s, and 1 s out of order
    unknown = world.feed(action("r", "1", 92_000))[0]

    assert world.outcomes() == {late: ["late"], unknown: ["pending"]}


def test_event_time_is_clamped_to_received_at(make_world: MakeWorld) -> None:
    world = make_world()

    offsets = world.feed(
        impression("r", ["1"], 1_000),
        action("r", "1", 1_000 + 299_000, received=2_000),
        action("r", "1", 1_000 + 302_000, received=2_000),
    )

    assert [row.labels for row in world.rows()] == [(1.0,)]
    assert world.outcomes() == {offsets[2]: ["dead_letter"]}


def test_action_of_a_feature_only_event_is_recorded(make_world: MakeWorld) -> None:
    world = make_world()

    offsets = world.feed(
        impression("r", ["1"], 1_000),
        action("r", "1", 2_000, event="view"),
        action("r", "1", 2_100, event="view"),
    )

    assert world.rows() == []
    assert world.outcomes() == {offsets[1]: ["recorded"], offsets[2]: ["recorded"]}
    assert world.joiner.accounting()["matched"] == 2


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"value": math.nan}, "non-finite-value"),
        ({"value": math.inf}, "non-finite-value"),
        ({"value": 1e39}, "non-finite-value"),
        ({"event": "dance"}, "unknown-event"),
        ({"ts": 700_000, "received": 1_000}, "future"),
        ({"ts": -1}, "bad-time"),
        ({"ts": 1 << 62}, "bad-time"),
        ({"event_id": "x" * 513}, "bad-id"),
        ({"item": ""}, "bad-id"),
    ],
)
def test_bad_action_goes_to_the_dead_letter_and_the_stream_goes_on(
    make_world: MakeWorld, change: dict[str, Any], code: str
) -> None:
    world = make_world()

    bad = {"item": "1", "ts": 2_000, **change}
    offset = world.feed(impression("r", ["1"], 1_000), action("r", **bad), action("r", "1", 2_000))[
        1
    ]

    assert world.said() == [("r", "1", (1.0,), (1.0,))]
    assert world.outcomes() == {offset: ["dead_letter"]}
    (letter,) = world.letters(ACTIONS)
    assert (letter.topic, letter.partition, letter.offset) == (ACTIONS, 0, offset)
    assert letter.code == code
    assert letter.value == world.log.read(ACTIONS, 0, offset, n_max=1)[0].value


def test_bytes_that_are_no_message_go_to_the_dead_letter(make_world: MakeWorld) -> None:
    world = make_world()
    for topic in (ACTIONS, IMPRESSIONS):
        for value in (b"", b"\xff" * 9, b"\x80", b"x" * 500_000):
            world.log.append(topic, [NewRecord(b"", value)], partition=0)

    world.feed(impression("r", ["1"], 1_000), action("r", "1", 2_000))

    assert len(world.rows()) == 1
    for topic in (ACTIONS, IMPRESSIONS):
        letters = world.letters(topic)
        assert [letter.code for letter in letters] == ["malformed"] * 4
        assert letters[3].value == b"x" * 500_000
    assert world.count("dead_letter", "impressions_dead_letter").total() == 8


def test_message_of_a_newer_program_goes_to_the_dead_letter(make_world: MakeWorld) -> None:
    world = make_world()
    for message in (action("r", "1", 2_000), impression("r", ["1"], 1_000)):
        newer = msgspec.structs.replace(message, v=messages.VERSION + 1)
        world.log.append(topic_of(newer), [NewRecord(b"r", messages.encode(newer))], partition=0)

    world.feed(impression("r", ["1"], 1_000), action("r", "1", 2_000))

    assert len(world.rows()) == 1
    for topic in (ACTIONS, IMPRESSIONS):
        (letter,) = world.letters(topic)
        assert letter.code == "newer-version"
        assert f"version {messages.VERSION + 1} is newer than {messages.VERSION}" in letter.reason
        assert letter.value == world.log.read(topic, 0, 0, n_max=1)[0].value


def test_message_of_another_topic_goes_to_the_dead_letter(make_world: MakeWorld) -> None:
    world = make_world()
    entity = Entity(event_id="e", ts_ms=1, received_at_ms=1, scope="item", id="1", features={})
    control = Control(event_id="c", ts_ms=1, received_at_ms=1, command="pause")

    world.feed(entity, control)

    assert [letter.code for letter in world.letters(IMPRESSIONS)] == ["wrong-topic"] * 2


@pytest.mark.parametrize(
    ("bad", "code"),
    [
        (impression("r", ["-1"], 1_000), "bad-value"),
        (impression("r", ["1"], 1_000, columns={"price": [1.0, 2.0]}), "bad-value"),
        (impression("r", ["1"], 1_000, columns={"price": ["dear"]}), "bad-value"),
        (impression("r", ["1"], 1_000, served={"click": []}), "bad-value"),
        (impression("r", ["1"], 1_000, part=2, parts=2), "bad-value"),
        (impression("", ["1"], 1_000), "bad-id"),
        (impression("r", ["1"], 999_999, received=1_000), "future"),
    ],
)
def test_bad_impression_goes_to_the_dead_letter_beside_good_ones(
    make_world: MakeWorld, bad: Impression, code: str
) -> None:
    world = make_world()

    world.feed(impression("before", ["1"], 500), bad, impression("after", ["2"], 1_500))
    world.drain()

    assert [(row.request, row.item) for row in world.rows()] == [("before", "1"), ("after", "2")]
    assert [letter.code for letter in world.letters(IMPRESSIONS)] == [code]
    assert world.outcomes(IMPRESSIONS) == {1: ["dead_letter"]}
