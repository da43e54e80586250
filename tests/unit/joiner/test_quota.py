"""How many requests of one user are learned from: docs/semantics.md, what is an impression."""

from freshrank.messages import Impression
from freshrank.transport.base import ACTIONS, IMPRESSIONS
from tests.unit.joiner.conftest import MakeWorld
from tests.unit.joiner.test_forget import forget
from tests.unit.joiner.world import World, action, impression

HOUR_MS = 3_600_000


def requests(name: str, n: int, ts: int, user: str | None = "bot") -> list[Impression]:
    return [impression(f"{name}-{i}", ["1"], ts, user=user) for i in range(n)]


def learned(world: World) -> set[str]:
    return {row.request for row in world.rows()}


def test_what_one_user_asks_beyond_the_quota_is_dead_lettered(make_world: MakeWorld) -> None:
    world = make_world(user_requests_per_hour=3)

    offsets = world.feed(
        *requests("bot", 5, 1_000),
        impression("other", ["1"], 1_000, user="u"),
        *requests("nobody", 5, 1_000, user=None),
    )
    (click,) = world.feed(action("bot-4", "1", 1_500))
    world.drain()

    nobodies = {f"nobody-{i}" for i in range(5)}
    assert learned(world) == {"bot-0", "bot-1", "bot-2", "other", *nobodies}
    assert world.outcomes(IMPRESSIONS) == {offsets[i]: ["dead_letter"] for i in (3, 4)}
    assert world.outcomes(ACTIONS) == {click: ["pending", "unmatched"]}
    assert [letter.code for letter in world.letters(IMPRESSIONS)] == ["flood", "flood"]


def test_the_quota_comes_back_as_time_passes_and_whole_after_an_hour(
    make_world: MakeWorld,
) -> None:
    world = make_world(user_requests_per_hour=3)

    world.feed(*requests("first", 3, 1_000))
    world.feed(*requests("third", 2, 1_000 + HOUR_MS // 3))
    world.feed(*requests("later", 4, 1_000 + 2 * HOUR_MS))
    world.drain()

    assert learned(world) == {
        *(f"first-{i}" for i in range(3)),
        "third-0",
        *(f"later-{i}" for i in range(3)),
    }


def test_a_restart_knows_what_was_used_and_time_decides_not_what_was_swept(
    make_world: MakeWorld,
) -> None:
    world = make_world(user_requests_per_hour=2)
    world.feed(*requests("before", 2, 1_000))
    world.restart()
    world.feed(*requests("after", 1, 2_000))
    # More rounds than there are slices of what is swept, half an hour on: nothing is whole yet.
    for n in range(300):
        world.feed(impression(f"other-{n}", ["1"], HOUR_MS // 2 + n, user=None))
    world.feed(*requests("half", 2, HOUR_MS // 2 + 2_000))
    for n in range(300, 600):
        world.feed(impression(f"other-{n}", ["1"], 2 * HOUR_MS + n, user=None))
    world.feed(*requests("whole", 3, 2 * HOUR_MS + 2_000))
    world.drain()

    of_bot = {one for one in learned(world) if not one.startswith("other")}
    assert of_bot == {"before-0", "before-1", "half-0", "whole-0", "whole-1"}


def test_what_comes_late_counts_as_if_it_came_in_time(make_world: MakeWorld) -> None:
    world = make_world(user_requests_per_hour=3, allowed_lateness="2h", window="10s")
    world.feed(impression("now", ["1"], 2 * HOUR_MS, user="u"))
    world.feed(*requests("offline", 5, HOUR_MS // 2))
    world.feed(*requests("online", 1, 2 * HOUR_MS + 1))
    # One of now does not use up what another did long before.
    world.feed(impression("uploaded", ["1"], HOUR_MS, user="u"))
    world.drain()

    assert learned(world) == {"now", "offline-0", "offline-1", "offline-2", "uploaded"}


def test_a_user_who_is_forgotten_begins_anew(make_world: MakeWorld) -> None:
    world = make_world(user_requests_per_hour=1)
    world.feed(*requests("before", 2, 1_000))
    forget(world, "bot", 1_100)
    world.feed(*requests("after", 2, 1_200))
    world.drain()

    assert learned(world) == {"after-0"}


def test_parts_and_repeated_impressions_of_a_request_count_once(make_world: MakeWorld) -> None:
    world = make_world(user_requests_per_hour=1)

    world.feed(
        impression("r", ["1"], 1_000, user="bot", part=0, parts=2),
        impression("r", ["2"], 1_000, user="bot", part=1, parts=2),
        impression("r", ["1"], 1_000, user="bot", part=0, parts=2),
    )
    world.drain()

    assert [row.item for row in world.rows()] == ["1", "2"]
    assert world.joiner.accounting()["impressions_duplicate"] == 1
    assert world.joiner.accounting()["impressions_dead_letter"] == 0


def test_an_impression_is_refused_with_all_its_parts(make_world: MakeWorld) -> None:
    world = make_world(user_requests_per_hour=60)
    world.feed(*requests("bot", 61, 1_000))
    world.feed(impression("split", ["1"], 2_000, user="bot", part=0, parts=2))
    world.feed(impression("other", ["1"], 1_000 + HOUR_MS // 30, user=None))  # one more is whole
    world.feed(impression("split", ["2"], 2_000, user="bot", part=1, parts=2))
    world.feed(impression("next", ["1"], 1_000 + HOUR_MS // 30, user="bot"))
    world.drain()

    assert "split" not in learned(world)
    assert "next" in learned(world)
    assert world.joiner.accounting()["impressions_dead_letter"] == 3
