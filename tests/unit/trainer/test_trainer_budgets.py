"""Bytes that tables may hold: given to them, shared, and asked of a restart."""

import re
from typing import Any

import numpy as np
import pytest

from freshrank.errors import ConfigError, SchemaError
from freshrank.features import FeatureEncoder
from tests.unit.trainer.conftest import MakeBench
from tests.unit.trainer.example_records import FEATURES, Bench, make_batch, make_settings
from trainer.learner import Learner
from trainer.loop import Trainer

MIB = 1 << 20
NEVER = {"sync": {"sparse_every": "365d"}, "checkpoint": {"every": "365d", "keep": 3}}


def features(**changes: Any) -> list[dict[str, Any]]:
    """`FEATURES`, with changes to `item_id`."""
    return [{**f, **(changes if f["name"] == "item_id" else {})} for f in FEATURES]


def leases(learner: Learner) -> dict[str, int]:
    tables = learner.sparse.tables
    return {name: table.statistics()["budget_bytes"] for name, table in tables.items()}


def make_learner(**settings: Any) -> Learner:
    made = make_settings(**settings)
    return Learner(made, FeatureEncoder(made))


def fill(bench: Bench, n_items: int) -> None:
    """Every item once, in records of a thousand."""
    for start in range(1, n_items + 1, 1_000):
        ids = [[i] for i in range(start, min(start + 1_000, n_items + 1))]
        bench.append(make_batch(bench.encoder, {"item_id": ids}, np.zeros(len(ids))))


def learned(bench: Bench) -> Trainer:
    trainer = bench.trainer()
    trainer.drain()
    return trainer


def restarted(bench: Bench, **settings: Any) -> Trainer:
    """A trainer that goes on from the bench's checkpoint under other settings."""
    bench.settings = make_settings(**{**NEVER, **settings})
    bench.encoder = FeatureEncoder(bench.settings)
    return bench.trainer()


def test_without_limits_no_table_has_a_budget() -> None:
    assert set(leases(make_learner()).values()) == {0}


def test_tables_share_the_limit_of_all_and_one_may_have_its_own() -> None:
    learner = make_learner(
        store={"max_bytes": 65 * MIB}, features=features(max_bytes=8 * MIB, min_rows=7)
    )
    budgets = learner.sparse._budgets
    taken = leases(learner)
    assert budgets["item_id"].max_bytes == 8 * MIB
    assert budgets["item_id"].used_bytes == taken["item_id"] > 0
    assert budgets["user_id"] is budgets["tags"]
    assert budgets["tags"].max_bytes == 65 * MIB
    assert budgets["tags"].used_bytes == sum(taken.values())


def test_a_limit_of_one_table_leaves_the_others_without() -> None:
    taken = leases(make_learner(features=features(max_bytes=8 * MIB)))
    assert [name for name, n_bytes in taken.items() if n_bytes] == ["item_id"]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            {"store": {"max_bytes": MIB}},
            r"table user_id: the smallest table .* has 1048576 left; store\.max_bytes is 1048576",
        ),
        (
            {"store": {"initial_rows": 10**6}, "features": features(max_bytes=8 * MIB)},
            r"table item_id: initial_rows is 1000000; the budget has room for .*"
            r"the feature's max_bytes is 8388608, store\.initial_rows is 1000000: raise",
        ),
        (
            {"optimizer": {"sparse": {"eps": 1e-60}}},
            "table user_id: eps is .*; see store and optimizer.sparse",
        ),
    ],
)
def test_what_the_store_refuses_is_a_mistake_of_the_settings(
    settings: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        make_learner(**settings)


def test_a_restart_takes_the_budget_once_and_goes_on_bit_for_bit(make_bench: MakeBench) -> None:
    # Room for the tables with their reserved rows, and not for these twice.
    needed = sum(
        leases(make_learner(store={"max_bytes": 1 << 40, "initial_rows": 90_000})).values()
    )
    limits = {"store": {"max_bytes": needed * 3 // 2, "initial_rows": 90_000}}
    bench = make_bench(**NEVER, **limits)
    fill(bench, 3_000)
    trainer = learned(bench)
    before = {name: t.snapshot() for name, t in trainer.learner.sparse.tables.items()}
    trainer.close()
    again = restarted(bench, **limits).learner
    assert {name: t.snapshot() for name, t in again.sparse.tables.items()} == before
    assert again.sparse._budgets["tags"].used_bytes == sum(leases(again).values())


def test_a_checkpoint_beyond_its_budget_says_how_much_it_needs(make_bench: MakeBench) -> None:
    bench = make_bench(**NEVER)
    fill(bench, 70_000)
    learned(bench).close()
    with pytest.raises(
        ConfigError, match=r"checkpoint-[\d-]+: its tables need \d+ bytes"
    ) as caught:
        restarted(bench, store={"max_bytes": 16 * MIB})
    shares = re.findall(r"(\w+) (\d+) of (\d+)", str(caught.value))
    assert [name for name, *_ in shares] == ["user_id", "item_id", "tags"]
    assert {has for *_, has in shares} == {str(16 * MIB)}
    needed = int(re.findall(r"need (\d+) bytes", str(caught.value))[0])
    assert needed == sum(int(share) for _, share, _ in shares) > 16 * MIB
    again = restarted(bench, store={"max_bytes": needed}).learner
    assert len(again.sparse.tables["item_id"]) == 70_000
    del again
    with pytest.raises(ConfigError, match=f"item_id {shares[1][1]} of {5 * MIB}"):
        restarted(bench, features=features(max_bytes=5 * MIB))


def test_damage_is_damage_with_a_budget_too(make_bench: MakeBench) -> None:
    limits = {"store": {"max_bytes": 65 * MIB}}
    bench = make_bench(**NEVER, **limits)
    fill(bench, 100)
    learned(bench).close()
    [path] = (bench.directory / "trainer").glob("checkpoint-*/table-item_id.bin")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(Exception, match="none of the 1 checkpoints") as caught:
        restarted(bench, **limits)
    assert getattr(caught.value, "code", None) == "checkpoint-damaged"


def test_policies_of_today_reach_restored_tables_and_others_are_refused(
    make_bench: MakeBench,
) -> None:
    pending = {"pending_bytes": 1 << 17}
    bench = make_bench(**NEVER, features=features(admission=pending | {"count_half_life": "60s"}))
    fill(bench, 10)
    learned(bench).close()
    changed = pending | {"count_half_life": "90s", "min_count": 3}
    again = restarted(bench, features=features(admission=changed, min_rows=5), store={"threads": 2})
    table = again.learner.sparse.tables["item_id"]
    assert table.pending_bytes == 1 << 17
    assert table.statistics()["threshold"] == 3
    assert table.threads == 2
    said = "table item_id does not go with .*pending_bytes is 131072 there and cannot change to 0"
    with pytest.raises(SchemaError, match=said):
        restarted(bench)
