"""Rows served in fewer bytes than they are learned in, and what those cannot hold."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from freshrank.frames import TableRows
from freshrank.metrics import Metrics
from service.replica import Replica
from service.signal import Signal
from tests.unit.service.conftest import MakeWorld
from tests.unit.service.support import DIM, World, make_settings, table_rows

WIDTH = DIM + 1
ROW = np.linspace(-0.7, 0.9, WIDTH).tolist()
Start = Callable[[str], tuple[World, Replica]]


@pytest.fixture
def start(make_world: MakeWorld) -> Start:
    """A world and its replica, by dtype."""

    def start(dtype: str) -> tuple[World, Replica]:
        world = make_world(settings=make_settings(serving={"dtype": dtype}))
        metrics = Metrics(world.registry)
        return world, Replica(
            world.settings, world.encoder, world.channel, world.clock, metrics, Signal()
        )

    return start


def settle(replica: Replica) -> None:
    while replica.step(0.0):
        pass


def table(rows: dict[int, list[float]], name: str = "item_id") -> dict[str, TableRows]:
    return {name: table_rows(rows)}


def served(replica: Replica, key: int, name: str = "item_id") -> list[float]:
    assert replica.model is not None
    rows: list[float] = replica.model.tables[name].lookup(np.array([key], np.uint64))[0][0].tolist()
    return rows


def result(world: World, kind: str, result: str) -> float | None:
    labels = {"kind": kind, "result": result}
    return world.registry.get_sample_value("freshrank_sync_batches_total", labels)


@pytest.mark.parametrize(
    ("dtype", "error"), [("float32", 0.0), ("float16", 2**-12), ("int8", 0.9 / 254)]
)
def test_rows_are_served_as_exactly_as_the_dtype_says(
    start: Start, dtype: str, error: float
) -> None:
    world, replica = start(dtype)
    world.base(table({1: ROW}))
    world.delta(table({2: ROW}))
    settle(replica)
    for key in (1, 2):
        assert np.abs(np.array(served(replica, key)) - np.float32(ROW)).max() <= error
    assert replica.model is not None
    assert {one.dtype for one in replica.model.tables.values()} == {dtype}


def test_a_delta_that_float16_cannot_hold_changes_nothing_until_a_base_comes(start: Start) -> None:
    world, replica = start("float16")
    world.base(table({1: [1.0] * WIDTH}) | table({1: [1.0] * WIDTH}, "user_id"))
    settle(replica)
    # The first table's rows fit: even so none of them may be served.
    too_large = table({7: [70_000.0] * WIDTH}, "user_id")
    world.delta(table({1: [2.0] * WIDTH}) | too_large)
    settle(replica)
    assert replica.model is not None
    assert replica.model.current.info.version == "d0-s0"
    assert served(replica, 1) == [1.0] * WIDTH
    assert replica.is_behind
    assert replica.refusals == {"overflow": 1}
    assert result(world, "delta", "overflow") == 1.0
    assert world.channel.wanted_base()
    world.rebase(table({1: [3.0] * WIDTH}), seq=1)
    settle(replica)
    assert served(replica, 1) == [3.0] * WIDTH
    assert not replica.is_behind


def test_a_base_that_float16_cannot_hold_keeps_the_old_epoch_serving(start: Start) -> None:
    world, replica = start("float16")
    world.base(table({1: [1.0] * WIDTH}))
    settle(replica)
    world.base(table({1: [1e9] * WIDTH}))
    settle(replica)
    assert served(replica, 1) == [1.0] * WIDTH
    assert replica.refusals == {"overflow": 1}
    assert result(world, "base", "overflow") == 1.0
    world.base(table({1: [65_000.0] * WIDTH}))
    settle(replica)
    assert served(replica, 1) == [64_992.0] * WIDTH


def test_the_refusal_names_table_id_column_value_and_setting(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    world, replica = start("float16")
    row: list[Any] = [0.0] * WIDTH
    row[1] = -65_520.0
    world.base(table({9: row}))
    settle(replica)
    assert replica.model is None
    for part in ("table 'item_id'", "id 9", "column 1", "-65520", "float16", "serving.dtype"):
        assert part in caplog.text
