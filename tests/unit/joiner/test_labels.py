"""Labels and weights: docs/semantics.md, the joiner."""

import pytest

from tests.unit.joiner.conftest import MakeWorld
from tests.unit.joiner.world import BUY, CLICK, LIKE, RATING, action, append, impression

CLOSED = 12_000  # window 10 s after an impression at 1 s, watermark 1 s behind


def test_positive_leaves_at_once_with_the_other_task_at_weight_0(make_world: MakeWorld) -> None:
    world = make_world(CLICK, BUY)

    world.feed(impression("r", ["1", "2"], 1_000), action("r", "1", 2_000))

    assert world.said() == [("r", "1", (1.0, 0.0), (1.0, 0.0))]
    assert world.outcomes() == {}


def test_later_event_of_another_task_leaves_with_that_tasks_weight_only(
    make_world: MakeWorld,
) -> None:
    world = make_world(CLICK, BUY)

    world.feed(
        impression("r", ["1"], 1_000),
        action("r", "1", 2_000),
        action("r", "1", 3_000, event="buy"),
    )

    assert world.said()[1:] == [("r", "1", (0.0, 1.0), (0.0, 1.0))]


def test_window_close_brings_one_row_with_the_unlabelled_tasks_that_have_a_negative_rule(
    make_world: MakeWorld,
) -> None:
    world = make_world(CLICK, BUY, LIKE)

    world.feed(impression("r", ["1", "2"], 1_000), action("r", "1", 2_000))
    world.drain(CLOSED)

    assert world.said()[1:] == [
        ("r", "1", (0.0, 0.0, 0.0), (0.0, 1.0, 0.0)),
        ("r", "2", (0.0, 0.0, 0.0), (1.0, 1.0, 0.0)),
    ]


def test_window_closes_when_the_watermark_reaches_it_and_not_before(make_world: MakeWorld) -> None:
    world = make_world()
    world.feed(impression("r", ["1"], 1_000))

    world.feed(impression("s", [], 11_999), action("s", "9", 11_999))
    assert world.said() == []
    world.feed(impression("t", [], 12_000), action("t", "9", 12_000))

    assert world.said() == [("r", "1", (0.0,), (1.0,))]


def test_windows_close_in_order_of_time_then_request(make_world: MakeWorld) -> None:
    world = make_world()

    world.feed(
        impression("c", ["1"], 2_000), impression("b", ["1"], 1_000), impression("a", ["1"], 2_000)
    )
    world.drain()

    assert [row.request for row in world.rows()] == ["b", "a", "c"]


def test_late_positive_leaves_as_an_adjacent_reversal_pair(make_world: MakeWorld) -> None:
    world = make_world(CLICK, BUY)
    world.feed(impression("r", ["1"], 1_000))
    world.drain(CLOSED)

    world.feed(action("r", "1", 13_000))

    assert world.said() == [
        ("r", "1", (0.0, 0.0), (1.0, 1.0)),
        ("r", "1", (1.0, 0.0), (1.0, 0.0)),
        ("r", "1", (0.0, 0.0), (-1.0, 0.0)),
    ]
    assert [row.is_reversal for row in world.rows()] == [False, True, True]
    assert world.joiner.accounting()["reversals"] == 1
    assert world.joiner.accounting()["examples_written"] == 2


def test_late_positive_of_a_task_without_negatives_is_a_plain_row(make_world: MakeWorld) -> None:
    world = make_world(CLICK, LIKE)
    world.feed(impression("r", ["1"], 1_000))
    world.drain(CLOSED)

    world.feed(action("r", "1", 13_000, event="like"))

    assert world.said()[1:] == [("r", "1", (0.0, 1.0), (0.0, 1.0))]


def test_huber_task_learns_the_value_and_logloss_learns_one(make_world: MakeWorld) -> None:
    world = make_world({**CLICK, "event": "rate"}, RATING)

    world.feed(impression("r", ["1"], 1_000), action("r", "1", 2_000, event="rate", value=4.5))

    assert world.said() == [("r", "1", (1.0, 4.5), (1.0, 1.0))]


def test_one_event_of_two_tasks_reverses_only_the_task_that_left_as_a_negative(
    make_world: MakeWorld,
) -> None:
    world = make_world({**CLICK, "event": "rate"}, RATING)
    world.feed(impression("r", ["1"], 1_000))
    world.drain(CLOSED)

    world.feed(action("r", "1", 13_000, event="rate", value=4.0))

    assert world.said()[1:] == [
        ("r", "1", (0.0, 4.0), (0.0, 1.0)),
        ("r", "1", (1.0, 0.0), (1.0, 0.0)),
        ("r", "1", (0.0, 0.0), (-1.0, 0.0)),
    ]


def test_first_of_request_is_the_first_row_of_positive_weight_only(make_world: MakeWorld) -> None:
    world = make_world()
    world.feed(
        impression("r", ["1", "2"], 1_000), action("r", "2", 2_000), impression("s", ["1"], 1_000)
    )
    world.drain()

    world.feed(action("s", "1", 13_000))

    firsts = [(row.request, row.item, row.is_first) for row in world.rows()]
    assert firsts == [
        ("r", "2", True),
        ("r", "1", False),
        ("s", "1", True),
        ("s", "1", False),
        ("s", "1", False),
    ]


def test_row_carries_what_was_served_and_who_decided_it(make_world: MakeWorld) -> None:
    world = make_world(CLICK, BUY)
    world.clock.advance(ms=1_500)
    world.feed(
        impression(
            "r",
            ["1", "2"],
            1_000,
            served={"buy": [0.25, 0.75]},
            columns={"price": [3.0, 4.0]},
            shared={"last_clicks": ["1"]},
        )
    )
    world.clock.advance(ms=500)
    world.feed(action("r", "2", 2_000))
    world.drain()

    positive, first, second = world.rows()
    assert (positive.is_action, positive.appended_at, positive.ts) == (True, 2_000, 1_000)
    assert (first.is_action, first.appended_at, first.ts) == (False, 1_500, 1_000)
    assert (first.item, first.served, first.dense) == ("1", (-1.0, 0.25), (3.0,))
    assert (second.item, second.served, second.dense) == ("2", (-1.0, 0.75), (4.0,))
    assert (positive.served, positive.dense, positive.ids) == (
        second.served,
        second.dense,
        second.ids,
    )
    assert [ids[1] for ids in (first.ids, second.ids)] == [(1,), (2,)]
    assert len(first.ids[3]) == 1  # last_clicks


def test_sampled_out_negative_weighs_0_and_its_late_positive_is_a_plain_row(
    make_world: MakeWorld,
) -> None:
    items = [str(i) for i in range(200)]
    world = make_world({**CLICK, "negative": {"from": "shown", "sample_rate": 0.25}})
    world.feed(impression("r", items, 1_000))
    world.drain(CLOSED)
    kept = [row.item for row in world.rows()]
    lost = [item for item in items if item not in kept]

    world.feed(action("r", kept[0], 13_000), action("r", lost[0], 13_000))

    assert 20 <= len(kept) <= 80
    assert world.said()[len(kept) :] == [
        ("r", kept[0], (1.0,), (1.0,)),
        ("r", kept[0], (0.0,), (-1.0,)),
        ("r", lost[0], (1.0,), (1.0,)),
    ]
    assert {row.keep_rates for row in world.rows()} == {(0.25,)}
    totals = world.joiner.accounting()
    assert totals["click.sampled_out"] == len(lost) - 1
    assert totals["click.positive"] == 2


def test_sampling_depends_on_request_item_and_salt_alone(make_world: MakeWorld) -> None:
    task = {**CLICK, "negative": {"from": "shown", "sample_rate": 0.5}}
    items = [str(i) for i in range(64)]
    kept = []
    for _ in range(2):
        world = make_world(task)
        world.feed(impression("r", items, 1_000), impression("s", items, 1_000))
        world.drain()
        kept.append([(row.request, row.item) for row in world.rows()])

    assert kept[0] == kept[1]
    of_r = {item for request, item in kept[0] if request == "r"}
    of_s = {item for request, item in kept[0] if request == "s"}
    assert of_r != of_s


def test_at_once_sends_negatives_on_the_impression_and_reverses_them(
    make_world: MakeWorld,
) -> None:
    world = make_world(CLICK, LIKE, emit="at_once")

    world.feed(impression("r", ["1", "2"], 1_000))
    assert world.said() == [
        ("r", "1", (0.0, 0.0), (1.0, 0.0)),
        ("r", "2", (0.0, 0.0), (1.0, 0.0)),
    ]
    world.feed(action("r", "1", 2_000), action("r", "2", 2_000, event="like"))
    world.drain()

    assert world.said()[2:] == [
        ("r", "1", (1.0, 0.0), (1.0, 0.0)),
        ("r", "1", (0.0, 0.0), (-1.0, 0.0)),
        ("r", "2", (0.0, 1.0), (0.0, 1.0)),
    ]


def test_at_once_does_not_send_a_negative_for_an_action_that_came_first(
    make_world: MakeWorld,
) -> None:
    world = make_world(emit="at_once")

    world.feed(action("r", "2", 900), impression("r", ["1", "2"], 1_000))

    assert world.said() == [("r", "2", (1.0,), (1.0,)), ("r", "1", (0.0,), (1.0,))]
    assert [row.is_first for row in world.rows()] == [True, False]


def test_at_close_sends_all_rows_of_a_request_together(make_world: MakeWorld) -> None:
    world = make_world(CLICK, BUY, RATING, emit="at_close")
    offsets = world.feed(
        impression("r", ["1", "2", "3"], 1_000),
        action("r", "2", 2_000),
        action("r", "2", 2_500, event="rate", value=3.0),
        action("r", "3", 3_000, event="rate", value=5.0),
        impression("s", ["1"], 1_500),
    )
    assert world.said() == []
    assert world.outcomes() == {offset: ["pending"] for offset in offsets[1:4]}

    world.drain(CLOSED)

    assert world.said() == [
        ("r", "1", (0.0, 0.0, 0.0), (1.0, 1.0, 0.0)),
        ("r", "2", (1.0, 0.0, 3.0), (1.0, 1.0, 1.0)),
        ("r", "3", (0.0, 0.0, 5.0), (1.0, 1.0, 1.0)),
        ("s", "1", (0.0, 0.0, 0.0), (1.0, 1.0, 0.0)),
    ]
    assert world.outcomes() == {offset: ["pending", "trained"] for offset in offsets[1:4]}
    assert [row.is_first for row in world.rows()] == [True, False, False, True]
    assert [row.is_action for row in world.rows()] == [False, True, True, False]


def test_row_held_until_the_close_is_as_old_as_its_last_action(make_world: MakeWorld) -> None:
    world = make_world(CLICK, BUY, emit="at_close")
    for appended_at, record in (
        (100, impression("r", ["1", "2"], 1_000)),
        (250, action("r", "1", 2_000)),
        (375, action("r", "1", 2_500, event="buy")),
    ):
        world.clock.advance(ms=appended_at - world.clock.now_ms())
        append(world.log, record)
    world.drain(CLOSED)

    assert [(row.item, row.appended_at) for row in world.rows()] == [("1", 375), ("2", 100)]


def test_at_close_reverses_after_the_window_only(make_world: MakeWorld) -> None:
    world = make_world(emit="at_close")
    world.feed(impression("r", ["1"], 1_000))
    world.drain(CLOSED)

    world.feed(action("r", "1", 13_000))

    assert [row.is_reversal for row in world.rows()] == [False, True, True]


@pytest.mark.parametrize("emit", ["positives_first", "at_once", "at_close"])
def test_weights_of_each_item_and_task_sum_to_1(make_world: MakeWorld, emit: str) -> None:
    world = make_world(CLICK, BUY, emit=emit)
    world.feed(
        impression("r", ["1", "2", "3"], 1_000),
        action("r", "1", 2_000),
        action("r", "1", 2_100, event="buy"),
        action("r", "2", 2_200, event="buy"),
    )
    world.drain(CLOSED)
    world.feed(action("r", "3", 13_000), action("r", "2", 13_000))

    for item in ("1", "2", "3"):
        for task in (0, 1):
            assert sum(row.weights[task] for row in world.rows() if row.item == item) == 1.0
