"""What the joiner tells feature state: matched actions and live items, each once."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from freshrank import feature_state, messages
from freshrank.clock import ManualClock
from freshrank.errors import TransportError
from freshrank.feature_state import FeatureState, FeatureUpdates, LocalFeatureState
from freshrank.feature_types import RequestValues
from freshrank.features import FeatureEncoder
from freshrank.live import LiveFeatures
from freshrank.messages import Action, Impression, Message
from freshrank.progress import Progress
from freshrank.settings import Settings
from freshrank.transport.base import ACTIONS, IMPRESSIONS, NewRecord
from freshrank.transport.local import LocalLog
from tests.unit.joiner.conftest import MakeWorld
from tests.unit.joiner.world import (
    FEATURES,
    World,
    action,
    append,
    impression,
    settings,
    topic_of,
)
from trainer.joiner import Joiner, features

LIVE: list[dict[str, Any]] = [
    *FEATURES,
    {"name": "hour", "type": "id", "scope": "context"},
    {"name": "rate", "type": "rate", "event": "click", "half_life": "10s", "prior": 0.1},
    {"name": "hourly", "type": "rate", "event": "click", "by": "hour", "half_life": "10s"},
    {"name": "shown", "type": "count", "half_life": "10s"},
    {"name": "carts", "type": "count", "event": "cart", "half_life": "10s"},
    {"name": "ago", "type": "seen", "event": "click", "value": "ago"},
    {"name": "age", "type": "seen", "event": "click", "value": "age"},
]
HISTORY: list[Message] = [
    impression("r", ["1", "2", "3", "4"], 1_000, shared={"hour": "8"}),
    impression("s", ["1"], 1_500, user=None, shared={"hour": "9"}),
    impression("s", ["1", "5"], 1_600, user=None, event_id="again"),
    action("r", "1", 2_000),
    action("r", "1", 2_000),  # the same again
    action("r", "2", 2_001, user="other"),
    action("r", "3", 2_002, event="view"),
    action("r", "4", 2_002, event="cart"),
    action("r", "9", 2_003),  # was not shown
    action("s", "1", 2_004),  # nobody's
    action("later", "5", 2_500, user="u"),
    impression("later", ["5"], 3_000, shared={"hour": "8"}),
]


def known(world: World, items: list[str], *, user: str = "u", at: int = 4_000) -> dict[str, Any]:
    """Everything feature state knows before `at`, in the hour 8, rounded."""
    return known_to(world.config, world.state, items, user=user, at=at)


def known_to(
    config: Settings, state: FeatureState, items: list[str], *, user: str = "u", at: int
) -> dict[str, Any]:
    live = LiveFeatures(config, FeatureEncoder(config))
    found = live.fill(RequestValues(items, user, {"hour": "8"}), state, before_ms=at)
    columns = {
        name: [None if value is None else round(float(str(value)), 9) for value in column]
        for name, column in found.columns.items()
    }
    return columns | {"clicks": found.shared["last_clicks"], "views": found.shared["last_views"]}


def decayed(*ts_ms: int, at: int = 4_000) -> float:
    """A sum of events with a half-life of 10 s."""
    return float(sum(0.5 ** ((at - ts) / 10_000) for ts in ts_ms))


def rounded(*values: float) -> list[float]:
    return [round(value, 9) for value in values]


def test_matched_actions_and_live_items_count_once(make_world: MakeWorld) -> None:
    world = make_world(features=LIVE)
    world.feed(*HISTORY)
    for _ in range(2):
        found = known(world, ["1", "2", "4", "5", "9"])
        shown_of_1 = decayed(1_000, 1_500)
        assert found["shown"] == rounded(
            shown_of_1, decayed(1_000), decayed(1_000), decayed(3_000), 0
        )
        rate = (decayed(2_000, 2_004) + 10 * 0.1) / (shown_of_1 + 10)
        assert found["rate"][0] == round(rate, 9)
        in_hour = (decayed(2_000) + 10 * 0.1) / (decayed(1_000) + 10)
        assert found["hourly"][0] == round(in_hour, 9)
        assert found["carts"] == rounded(0, 0, decayed(2_002), 0, 0)
        assert found["ago"] == [2.0, None, None, 1.5, None]
        assert found["age"] == [3.0, 3.0, 3.0, 1.0, None]
        assert (found["clicks"], found["views"]) == (["5", "1"], ["3"])
        other = known(world, ["2"], user="other")  # who acted, not whom it was shown to
        assert (other["ago"], other["clicks"], other["views"]) == ([1.999], ["2"], [])
        world.restart()


@pytest.mark.parametrize("n_read_max", [1, 3])
def test_what_is_known_does_not_depend_on_rounds(make_world: MakeWorld, n_read_max: int) -> None:
    whole, split = make_world(features=LIVE), make_world(features=LIVE)
    split.joiner.n_read_max = n_read_max
    for world in (whole, split):
        world.feed(*HISTORY)
    assert known(split, ["1", "2", "4", "5"]) == known(whole, ["1", "2", "4", "5"])


def test_only_reported_items_count_as_shown(make_world: MakeWorld) -> None:
    world = make_world(features=LIVE, impressions="reported")
    world.feed(
        impression("r", ["1", "2", "3"], 1_000, shared={"hour": "8"}),
        impression("r", ["2"], 1_200, source="client", event_id="seen"),
        action("r", "2", 1_300),
    )
    found = known(world, ["1", "2"])
    assert found["shown"] == rounded(0, decayed(1_200))
    assert found["ago"] == [None, 2.7]


def test_rounds_leave_the_database_when_feature_state_has_saved_them(
    make_world: MakeWorld, tmp_path: Path
) -> None:
    world = make_world(features=LIVE)

    def start() -> None:
        world.joiner.close()
        state = LocalFeatureState(world.config, tmp_path / "state")
        world.start(state)

    start()
    world.feed(*HISTORY[:5])
    world.state._save()
    world.feed(*HISTORY[5:9])
    world.feed(*HISTORY[9:])
    expected = known(world, ["1", "2", "4", "5"])
    kept = [FeatureUpdates.from_bytes(value) for _, value in rounds(world)]
    assert kept
    saved = world.state.saved
    assert all(any(at > saved[log] for log, at in one.marks.items()) for one in kept)
    for _ in range(2):
        start()
        assert known(world, ["1", "2", "4", "5"]) == expected
    world.state._save()
    world.feed(impression("more", ["1"], 5_000), impression("end", ["2"], 6_000))
    start()
    assert known(world, ["1"], at=9_000)["shown"] == rounded(decayed(1_000, 1_500, 5_000, at=9_000))


def test_joining_goes_on_for_a_while_without_feature_state(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    world, undisturbed = make_world(features=LIVE), make_world(features=LIVE)
    undisturbed.feed(*HISTORY)
    world.feed(*HISTORY[:3])

    def fails(updates: FeatureUpdates) -> None:
        raise TransportError("unreachable", code="state-unreachable")

    with monkeypatch.context() as patch:
        patch.setattr(world.state, "apply", fails)
        for i in range(3, 7):
            world.feed(HISTORY[i])
        assert len(world.said()) == 2
        patch.setattr(features, "UNTOLD_MAX", len(rounds(world)))
        append(world.log, *HISTORY[7:])
        for _ in range(2):
            with pytest.raises(TransportError, match="unreachable"):
                world.settle()
        assert world.said() != undisturbed.said()
    world.settle()
    assert world.said() == undisturbed.said()
    assert known(world, ["1", "2", "4", "5"]) == known(undisturbed, ["1", "2", "4", "5"])


def test_rounds_that_feature_state_missed_are_told_when_it_is_back(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    world, undisturbed = make_world(features=LIVE), make_world(features=LIVE)
    undisturbed.feed(*HISTORY)

    def fails(updates: FeatureUpdates) -> None:
        raise TransportError("unreachable", code="state-unreachable")

    with monkeypatch.context() as patch:
        patch.setattr(world.state, "apply", fails)
        for one in HISTORY:
            world.feed(one)
    assert known(world, ["1"]) != known(undisturbed, ["1"])
    world.settle()  # nothing new
    assert known(world, ["1", "2", "4", "5"]) == known(undisturbed, ["1", "2", "4", "5"])


def test_partitions_that_die_again_and_again_share_one_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feature_state, "UNSAVED_MAX", 500)  # saved every third round
    config, clock = settings(features=LIVE), ManualClock(now_ms=0)
    log = LocalLog(tmp_path / "log", clock=clock, n_partitions=2, fsync="never")
    for n in range(12):
        for one in HISTORY:
            assert isinstance(one, Impression | Action)
            event, request = f"{one.event_id}-{n}", f"{one.request_id}-{n}"
            one = replace(one, event_id=event, request_id=request, ts_ms=one.ts_ms + 200 * n)
            log.append(topic_of(one), [NewRecord(b"", messages.encode(one))], partition=n % 2)
    log.close()
    found = []
    for n_lives, n_steps in ((1, 600), (40, 5)):
        directory = tmp_path / str(n_lives)
        shutil.copytree(tmp_path / "log", directory / "log")
        log = LocalLog(directory / "log", clock=clock, n_partitions=2, fsync="never")
        for _ in range(n_lives):
            state = LocalFeatureState(config, directory / "state")
            joiners = [
                Joiner(
                    *(config, FeatureEncoder(config), log),
                    partition=partition,
                    database=directory / f"{partition}.sqlite",
                    clock=clock,
                    state=state,
                    progress=Progress(),
                )
                for partition in (0, 1)
            ]
            for n in range(n_steps):
                joiners[n % 2].n_read_max = 2
                joiners[n % 2].step(0.0)
            for joiner in joiners:
                joiner.close()
        log.close()
        assert len(state.saved) == 4  # both topics of both partitions
        found.append(known_to(config, state, ["1", "2", "4", "5"], at=9_000))
    assert found[0] == found[1]
    assert found[0]["ago"][0] is not None


def rounds(world: World) -> list[tuple[int, bytes]]:
    return world.joiner._state.feature_updates()


@pytest.mark.parametrize(("user", "item"), [("u" * 300, "1"), ("u", "i" * 300)])
def test_an_impression_of_what_has_no_id_goes_to_the_dead_letter(
    make_world: MakeWorld, user: str, item: str
) -> None:
    """Neither is a feature, yet feature state would keep both."""
    sku = {"name": "sku", "type": "id", "scope": "item"}
    last = {"name": "last", "type": "recent", "event": "click", "table": "sku"}
    world = make_world(features=[sku, last])
    world.feed(impression("r", [item], 1_000, user=user), action("r", item, 2_000))
    assert [letter.code for letter in world.letters(IMPRESSIONS)] == ["bad-id"]


def test_a_reporting_user_that_has_no_id_goes_to_the_dead_letter(make_world: MakeWorld) -> None:
    world = make_world(features=[{**LIVE[0], "key": "uint64"}, *LIVE[1:]], impressions="reported")
    world.feed(
        impression("r", ["1"], 1_000, user=None, shared={"hour": "8"}),
        impression("r", ["1"], 1_200, user="ann", source="client", event_id="seen"),
        action("r", "1", 1_300),
    )
    assert [letter.code for letter in world.letters(IMPRESSIONS)] == ["bad-id"]


@pytest.mark.parametrize(("key", "user"), [("uint64", "ann"), ("string", "a" * 300)])
def test_an_action_of_a_user_that_has_no_id_goes_to_the_dead_letter(
    make_world: MakeWorld, key: str, user: str
) -> None:
    world = make_world(features=[{**LIVE[0], "key": key}, *LIVE[1:]])
    world.feed(
        impression("r", ["1"], 1_000, user="7", shared={"hour": "8"}),
        action("r", "1", 2_000, user=user),
        action("r", "1", 2_001, user="7"),
    )
    assert [letter.code for letter in world.letters(ACTIONS)] == ["bad-id"]
    assert known(world, ["1"], user="7")["ago"] == [1.999]
