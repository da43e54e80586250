"""Which rows keep a batch from being learned, and who died in which batch."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from freshrank.errors import Error
from freshrank.examples import ExampleBatch
from freshrank.features import FeatureEncoder
from tests.unit.trainer.conftest import MakeBench
from tests.unit.trainer.example_records import make_batch, make_settings
from trainer.poison import Attempts, culprits
from trainer.queue import Position

ENCODER = FeatureEncoder(make_settings())
SPANS = {0: (Position(3, 0), Position(5, 2)), 1: (Position(7, 1), Position(8, 0))}


@given(st.lists(st.sampled_from(["good", "bad", "pair", "bad pair"]), min_size=1, max_size=40))
def test_culprits_are_the_rows_that_fail_alone_and_pairs_stay_whole(kinds: list[str]) -> None:
    rows = [kind for kind in kinds for _ in range(2 if "pair" in kind else 1)]
    is_reversal = ["pair" in kind for kind in rows]
    batch = make_batch(
        ENCODER,
        {"item_id": [[1 + ("bad" in kind)] for kind in rows]},
        np.zeros(len(rows)),
        is_reversal=is_reversal,
    )
    asked: list[int] = []

    def is_sound(part: ExampleBatch) -> bool:
        asked.append(part.n_rows)
        assert part.is_reversal.sum() % 2 == 0
        return 2 not in part.values.slots["item_id"].ids

    expected = [row for row, kind in enumerate(rows) if "bad" in kind]
    assert culprits(batch, is_sound).tolist() == expected
    n_bad = sum("bad" in kind for kind in kinds)
    assert len(asked) <= 1 + 2 * n_bad * max(1, np.ceil(np.log2(len(kinds))))


def test_who_died_in_a_batch_is_known_to_the_next(tmp_path: Path) -> None:
    path = tmp_path / "ATTEMPT"
    standby = Attempts(path, "log")
    for n_deaths in range(4):
        attempts = Attempts(path, "log")
        assert attempts.deaths(SPANS) == n_deaths
        attempts.begin(SPANS)
    # Cut differently, as adaptive batches are: any row in common counts.
    later = Attempts(path, "log")
    assert later.deaths({0: (Position(5, 1), Position(9, 0))}) == 4
    assert later.deaths({0: (Position(5, 2), Position(9, 0))}) == 0
    assert later.deaths({1: (Position(0, 0), Position(7, 1))}) == 0
    assert later.deaths({2: SPANS[0]}) == 0
    assert Attempts(path, "another").deaths(SPANS) == 0
    assert standby.deaths(SPANS) == 4


def test_a_batch_that_was_learned_killed_nobody(tmp_path: Path) -> None:
    attempts = Attempts(tmp_path / "ATTEMPT", "log")
    attempts.begin(SPANS)
    attempts.end()
    assert Attempts(tmp_path / "ATTEMPT", "log").deaths(SPANS) == 0


@pytest.mark.parametrize("data", [b"", b"{", b'{"log":"log"', b"\xff\xfe", b"[]\n"])
def test_half_an_attempt_is_none(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "ATTEMPT").write_bytes(data)
    attempts = Attempts(tmp_path / "ATTEMPT", "log")
    assert attempts.deaths(SPANS) == 0
    attempts.begin(SPANS)
    assert Attempts(tmp_path / "ATTEMPT", "log").deaths(SPANS) == 1


def test_a_dense_net_that_is_not_finite_stops_the_trainer_and_refuses_nothing(
    make_bench: MakeBench,
) -> None:
    bench = make_bench()
    bench.append(make_batch(bench.encoder, {"item_id": [[1]] * 64}, np.zeros(64)))
    trainer = bench.trainer()
    trainer.learner.adam.parameters[:] = np.nan
    with pytest.raises(Error, match="parameters are not finite") as sick:
        trainer.drain()
    assert sick.value.code == "sick-model"
    assert trainer.accounting().get("examples_dead_letter", 0) == 0


def test_rows_that_are_not_finite_everywhere_stop_the_trainer_after_three_batches(
    make_bench: MakeBench,
) -> None:
    bench = make_bench()
    bench.append(make_batch(bench.encoder, {"item_id": [[1]] * 32}, np.zeros(32)))
    trainer = bench.trainer()
    assert trainer.drain() == 32
    table = trainer.learner.sparse.tables["item_id"]
    table.apply(np.array([1], np.uint64), np.full((1, table.width), np.nan, np.float32))
    bench.append(make_batch(bench.encoder, {"item_id": [[1]] * 320}, np.zeros(320)))
    with pytest.raises(Error, match="parameters are not finite") as sick:
        trainer.drain()
    assert sick.value.code == "sick-model"
    assert trainer.accounting()["examples_dead_letter"] == 2 * 32
    trainer.close()  # saves nothing
    assert bench.trainer().accounting().get("rows_learned", 0) == 0
