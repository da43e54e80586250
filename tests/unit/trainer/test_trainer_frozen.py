"""Scoring without learning: with the parameters of now, and with those of the last refresh."""

from typing import Any

import numpy as np

from freshrank.features import FeatureEncoder
from tests.unit.trainer.example_records import FEATURES, NOW_MS, make_settings, random_batch
from trainer.frozen import FrozenModel
from trainer.learner import Learner, scores
from trainer.passes import Passes


def _learner(**settings: Any) -> tuple[FeatureEncoder, Learner]:
    made = make_settings(**settings)
    encoder = FeatureEncoder(made)
    return encoder, Learner(made, encoder)


def _snapshots(learner: Learner) -> dict[str, bytes]:
    return {name: table.snapshot() for name, table in learner.sparse.tables.items()}


def test_prediction_is_what_learning_scores_first_and_leaves_no_trace() -> None:
    encoder, learner = _learner()
    rng = np.random.default_rng(1)
    learner.learn(random_batch(encoder, rng, 64))
    batch = random_batch(encoder, rng, 64)
    learner.learn(batch)  # every id has its row now
    before = _snapshots(learner)
    predicted = learner.predict(batch.values)
    assert _snapshots(learner) == before
    np.testing.assert_allclose(predicted, learner.learn(batch).predictions, rtol=1e-5)


def test_unknown_ids_are_scored_as_missing_ones() -> None:
    encoder, learner = _learner()
    rng = np.random.default_rng(1)
    learner.learn(random_batch(encoder, rng, 64))
    batch = random_batch(encoder, rng, 8)
    for column in batch.values.slots.values():
        column.ids[:] += np.uint64(1 << 40)
    none = np.zeros((8, 3, 5), np.float32)
    np.testing.assert_array_equal(
        learner.predict(batch.values),
        scores(Passes(learner.net), learner.losses, none, batch.values.dense),
    )


def test_frozen_model_scores_as_at_its_last_refresh() -> None:
    encoder, learner = _learner()
    rng = np.random.default_rng(2)
    learner.learn(random_batch(encoder, rng, 64))
    frozen = FrozenModel(learner, encoder, "float32")
    probe = random_batch(encoder, rng, 32).values
    for _ in range(3):
        then = learner.predict(probe)
        np.testing.assert_array_equal(frozen.predict(probe), then)
        for _ in range(5):
            learner.learn(random_batch(encoder, rng, 64))
        np.testing.assert_array_equal(frozen.predict(probe), then)
        assert np.abs(learner.predict(probe) - then).max() > 1e-4
        frozen.refresh()


def test_rows_that_expired_leave_the_frozen_model_at_a_refresh() -> None:
    features = [{**feature, "expire": "60s"} for feature in FEATURES[:3]] + FEATURES[3:]
    encoder, learner = _learner(features=features)
    rng = np.random.default_rng(3)
    early = random_batch(encoder, rng, 64)
    learner.learn(early)
    frozen = FrozenModel(learner, encoder, "float32")
    late = random_batch(encoder, rng, 1, ts_ms=NOW_MS + 3_600_000)
    learner.learn(late)
    assert len(learner.sparse.tables["user_id"]) == 1
    assert (frozen.predict(early.values) != learner.predict(early.values)).any()
    frozen.refresh()
    np.testing.assert_array_equal(frozen.predict(early.values), learner.predict(early.values))
