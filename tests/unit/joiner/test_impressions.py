"""Which items are live: docs/semantics.md, what is an impression."""

import pytest

from freshrank.messages import Value
from freshrank.transport.base import IMPRESSIONS
from tests.unit.joiner.conftest import MakeWorld
from tests.unit.joiner.world import CLICK, action, append_ticks, impression


def test_first_impression_of_a_request_wins(make_world: MakeWorld) -> None:
    world = make_world()

    offsets = world.feed(
        impression("r", ["1"], 1_000),
        impression("r", ["1"], 1_000),
        impression("r", ["2"], 1_100, event_id="other"),
    )
    world.drain()

    assert [row.item for row in world.rows()] == ["1"]
    assert world.outcomes(IMPRESSIONS) == {offsets[1]: ["duplicate"], offsets[2]: ["duplicate"]}
    assert world.joiner.accounting()["impression_items"] == 1


def test_client_impression_of_an_unknown_request_is_the_impression_when_served_ones_count(
    make_world: MakeWorld,
) -> None:
    world = make_world()

    world.feed(
        impression("r", ["1"], 1_000, source="client"),
        impression("r", ["1", "2"], 1_100),
        impression("s", ["1"], 1_000),
        impression("s", ["2"], 1_100, source="client"),
    )
    world.drain()

    assert [(row.request, row.item) for row in world.rows()] == [("r", "1"), ("s", "1")]
    assert world.joiner.accounting()["impressions_duplicate"] == 2


@pytest.mark.parametrize(("newest", "is_late"), [(31_999, False), (32_000, True)])
def test_impression_whose_time_is_over_teaches_nothing(
    newest: int, is_late: bool, make_world: MakeWorld
) -> None:
    world = make_world()
    world.feed(impression("now", ["1"], newest), action("now", "1", newest))

    (offset,) = world.feed(impression("old", ["2"], 1_000))
    world.drain()

    assert [row.request for row in world.rows()] == ["now", *([] if is_late else ["old"])]
    assert world.outcomes(IMPRESSIONS) == ({offset: ["dead_letter"]} if is_late else {})
    assert world.joiner.accounting()["impressions_dead_letter"] == is_late


def test_impression_repeated_after_lateness_is_still_a_duplicate(make_world: MakeWorld) -> None:
    world = make_world()
    world.feed(impression("r", ["1"], 1_000))
    append_ticks(world.log, 40_000)
    world.settle()

    world.feed(impression("r", ["1"], 1_000))

    assert world.joiner.accounting()["impressions_duplicate"] == 1
    assert world.joiner.accounting()["impression_items"] == 1


def test_parts_of_an_impression_are_accepted_once_each(make_world: MakeWorld) -> None:
    world = make_world()
    price: dict[str, list[Value]] = {"price": [5.0]}

    world.feed(
        impression("r", ["2"], 1_000, part=1, parts=2, columns=price),
        impression("r", ["2"], 1_000, part=1, parts=2),
    )
    parked = world.feed(action("r", "1", 1_500))[0]
    world.feed(impression("r", ["1"], 1_000, part=0, parts=2))
    world.drain()

    assert [(row.item, row.labels, row.dense) for row in world.rows()] == [
        ("1", (1.0,), (0.0,)),
        ("2", (0.0,), (5.0,)),
    ]
    assert world.outcomes() == {parked: ["pending", "trained"]}
    assert world.joiner.accounting()["impressions_duplicate"] == 1


def test_part_after_the_window_closed_is_decided_with_the_next_record(
    make_world: MakeWorld,
) -> None:
    world = make_world()
    world.feed(impression("r", ["1"], 1_000, part=0, parts=2))
    append_ticks(world.log, 15_000)
    world.settle()

    world.feed(impression("r", ["2"], 1_000, part=1, parts=2))
    append_ticks(world.log, 15_001)
    world.settle()

    assert [(row.item, row.labels) for row in world.rows()] == [("1", (0.0,)), ("2", (0.0,))]


def test_item_named_twice_counts_once(make_world: MakeWorld) -> None:
    world = make_world()

    world.feed(impression("r", ["1", "2", "1"], 1_000))
    world.drain()

    assert [row.item for row in world.rows()] == ["1", "2"]


def test_only_reported_items_are_live_in_either_order_of_arrival(make_world: MakeWorld) -> None:
    rank = impression("r", ["1", "2", "3"], 1_000, served={"click": [0.1, 0.2, 0.3]})
    client = impression("r", ["3", "1", "77"], 1_500, source="client", user=None)
    for records in ((rank, client), (client, rank)):
        world = make_world(impressions="reported")
        for record in records:
            world.feed(record)
        world.feed(action("r", "3", 2_000))
        world.drain()

        assert [(row.item, row.labels, row.ts) for row in world.rows()] == [
            ("3", (1.0,), 1_500),
            ("1", (0.0,), 1_500),
        ]
        assert [round(row.served[0], 3) for row in world.rows()] == [0.3, 0.1]
        assert world.joiner.accounting()["impression_items"] == 2


def test_window_of_a_reported_impression_starts_when_it_was_seen(make_world: MakeWorld) -> None:
    world = make_world(impressions="reported")
    world.feed(impression("r", ["1"], 1_000), impression("r", ["1"], 9_000, source="client"))

    append_ticks(world.log, 19_999)
    world.settle()
    assert world.rows() == []
    append_ticks(world.log, 20_000)
    world.settle()

    assert len(world.rows()) == 1


def test_action_on_an_item_that_is_not_reported_yet_is_parked(make_world: MakeWorld) -> None:
    world = make_world(impressions="reported")
    offset = world.feed(impression("r", ["1"], 1_000), action("r", "1", 2_000))[1]

    world.feed(impression("r", ["1"], 2_500, source="client"))

    assert world.outcomes() == {offset: ["pending", "trained"]}


def test_served_record_that_nobody_reports_leaves_nothing(make_world: MakeWorld) -> None:
    world = make_world(CLICK, impressions="reported")
    offset = world.feed(impression("r", ["1"], 1_000), action("r", "1", 2_000))[1]

    append_ticks(world.log, 33_001)
    world.settle()

    assert world.rows() == []
    assert world.outcomes() == {offset: ["pending", "unmatched"]}
    assert world.joiner.accounting()["impression_items"] == 0
