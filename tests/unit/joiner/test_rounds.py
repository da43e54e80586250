"""When rounds begin."""

import pytest

from tests.unit.joiner.conftest import MakeWorld
from tests.unit.joiner.world import World, append, append_ticks, impression
from trainer.joiner import pace
from trainer.joiner.pace import Pace


@pytest.fixture
def world(make_world: MakeWorld) -> World:
    """One with a joiner of clicks."""
    return make_world()


@pytest.fixture
def waits(world: World, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that its joiner would have rested, which takes no time."""
    rests: list[float] = []
    monkeypatch.setattr(world.joiner._closing, "wait", rests.append)
    return rests


def test_short_rounds_wait_for_company_from_when_the_last_one_began(
    world: World, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    for gather_s in (60.0, 0.0):  # neither is reached nor left over on any machine
        monkeypatch.setattr(pace, "_SOON_S", gather_s)
        append(world.log, impression(f"r{gather_s}", ["1"], 1_000))
        append_ticks(world.log, 2_500)
        assert world.joiner.step(0.0) > 0
        assert not waits
        world.joiner.step(0.01)
        (wait_s,) = waits
        assert (30.0 < wait_s <= 60.0) if gather_s else wait_s == 0.0
        waits.clear()


@pytest.mark.parametrize(
    ("n_records", "apart_s"),
    [(0, 0.0), (1, 60.0), (7, 60.0), (8, 300.0), (1_999, 300.0), (2_000, 0.0)],
)
def test_a_stream_gathers_for_longer_and_a_backlog_not_at_all(
    n_records: int, apart_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pace, "_SOON_S", 60.0)
    monkeypatch.setattr(pace, "_STREAM_S", 300.0)
    one = Pace()
    assert one.rest_s == 0.0
    one.begin()
    one.end(n_records)
    assert apart_s - 30.0 < one.rest_s <= apart_s


def test_time_that_passes_by_itself_holds_nobody_up(
    world: World, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pace, "_SOON_S", 60.0)
    append(world.log, impression("r", ["1"], 1_000))
    append_ticks(world.log, 1_500)
    world.settle()
    world.clock.advance(ms=2_000)
    assert world.joiner.step(0.0) == 2  # ticks alone, which change nothing: the window is open
    world.joiner.step(0.01)
    assert waits == [0.0]
