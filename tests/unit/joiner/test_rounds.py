"""When rounds begin."""

import pytest

from tests.unit.joiner.conftest import MakeWorld
from tests.unit.joiner.world import append, append_ticks, impression
from trainer.joiner import joiner


def test_short_rounds_wait_for_company_from_when_the_last_one_began(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    world = make_world()
    monkeypatch.setattr(world.joiner._closing, "wait", waits.append)
    for gather_s in (60.0, 0.0):  # neither is reached nor left over on any machine
        monkeypatch.setattr(joiner, "_GATHER_S", gather_s)
        append(world.log, impression(f"r{gather_s}", ["1"], 1_000))
        append_ticks(world.log, 2_500)
        assert world.joiner.step(0.0) > 0
        assert not waits
        world.joiner.step(70.0 if gather_s else 0.01)
        (wait_s,) = waits
        assert (30.0 < wait_s <= 60.0) if gather_s else wait_s == 0.0
        waits.clear()
