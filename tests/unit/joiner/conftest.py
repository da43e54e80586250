"""A world that closes itself."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.joiner.world import World, settings

MakeWorld = Callable[..., World]


@pytest.fixture
def make_world(tmp_path: Path) -> Iterator[MakeWorld]:
    """Worlds by tasks and changes of the join settings, each in a directory of its own."""
    worlds: list[World] = []

    def make(*tasks: dict[str, Any], **join: Any) -> World:
        world = World(tmp_path / str(len(worlds)), settings(*tasks, **join))
        worlds.append(world)
        return world

    yield make
    for world in worlds:
        world.close()
