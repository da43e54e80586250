"""Progressive metrics against slow formulas, and the sample of append times."""

import numpy as np
import pytest

from freshrank.features import FeatureEncoder
from tests.unit.trainer.example_records import NOW_MS, make_batch, make_settings
from trainer.evaluation import Evaluation, auc
from trainer.state import Sample

ENCODER = FeatureEncoder(make_settings())


def _slow_auc(score: np.ndarray, positive: np.ndarray, weight: np.ndarray) -> float:
    total = wins = 0.0
    for i in np.flatnonzero(positive):
        for j in np.flatnonzero(~positive):
            pair = weight[i] * weight[j]
            total += pair
            wins += pair * ((score[i] > score[j]) + 0.5 * (score[i] == score[j]))
    return wins / total


@pytest.mark.parametrize("seed", range(5))
def test_auc_equals_counting_all_pairs(seed: int) -> None:
    rng = np.random.default_rng(seed)
    score = rng.integers(0, 12, 60) / 12  # many ties
    positive = rng.random(60) < 0.4
    weight = rng.random(60) + 0.1
    assert auc(score, positive, weight) == pytest.approx(_slow_auc(score, positive, weight))


def test_auc_of_one_class_is_not_reported() -> None:
    evaluation = Evaluation(["click"], ["logloss"])
    batch = make_batch(ENCODER, {}, [0, 0], served=0.5)
    evaluation.add(batch, np.zeros((2, 1), np.float32), np.zeros(2, np.int64))
    assert "click.auc" not in evaluation.report()
    assert evaluation.report()["click.logloss"] == pytest.approx(np.log(2))


def test_served_scores_are_judged_apart_from_own_ones() -> None:
    evaluation = Evaluation(["click"], ["logloss"])
    served = [[0.9], [0.1], [np.nan], [np.nan]]
    own = np.array([[0.1], [0.9], [0.2], [0.7]], np.float32)
    batch = make_batch(ENCODER, {}, [1, 0, 1, 0], served=served)
    evaluation.add(batch, own, np.zeros(4, np.int64))
    report = evaluation.report()
    assert report["click.auc"] == 1.0
    assert report["click.own_auc"] == 0.0


def test_a_reversal_takes_back_its_negative_exactly() -> None:
    evaluation = Evaluation(["click"], ["logloss"])
    batch = make_batch(
        ENCODER,
        {},
        [1, 0, 0, 1, 0, 1],
        served=[[0.9], [0.2], [0.7], [0.7], [0.7], [0.0]],
        weights=[[1], [1], [1], [1], [-1], [0]],
        is_reversal=[False, False, False, True, True, False],
    )
    evaluation.add(batch, np.zeros((6, 1), np.float32), np.zeros(6, np.int64))
    report = evaluation.report()
    # What is left: 0.9 and 0.7 were clicked, 0.2 was not.
    assert report["click.auc"] == 1.0
    assert report["click.calibration"] == pytest.approx(1.8 / 2)
    assert report["click.logloss"] == pytest.approx(-np.log([0.9, 0.7, 0.8]).mean(), rel=1e-6)


def test_own_scores_of_reversals_do_not_count() -> None:
    evaluation = Evaluation(["click"], ["logloss"])
    batch = make_batch(
        ENCODER,
        {},
        [1, 0, 1, 0],
        weights=[[1], [1], [1], [-1]],
        is_reversal=[False, False, True, True],
    )
    own = np.array([[0.9], [0.2], [0.1], [0.1]], np.float32)
    evaluation.add(batch, own, np.zeros(4, np.int64))
    report = evaluation.report()
    assert report["click.own_auc"] == 1.0
    assert report["click.own_calibration"] == pytest.approx(1.1)


def test_a_window_with_a_lone_reversal_reports_nothing() -> None:
    evaluation = Evaluation(["click"], ["logloss"])
    batch = make_batch(ENCODER, {}, [0], served=0.5, weights=[[-1]], is_reversal=True)
    evaluation.add(batch, np.zeros((1, 1), np.float32), np.zeros(1, np.int64))
    assert evaluation.report() == {}


def test_calibration_weighs_sampled_negatives_back() -> None:
    evaluation = Evaluation(["click"], ["logloss"])
    labels = [1] * 10 + [0] * 9  # of 90 negatives a tenth was kept
    batch = make_batch(ENCODER, {}, labels, served=0.1, keep_rates=0.1)
    evaluation.add(batch, np.zeros((19, 1), np.float32), np.zeros(19, np.int64))
    assert evaluation.report()["click.calibration"] == pytest.approx(1.0)


def test_calibration_is_split_by_age_of_the_item() -> None:
    evaluation = Evaluation(["click"], ["logloss"])
    ages = np.array([0, 59, 60, 600, 3_599, 3_600], np.int64)
    served = [[0.1], [0.3], [0.5], [0.6], [0.8], [0.9]]
    batch = make_batch(ENCODER, {}, [1] * 6, served=served)
    evaluation.add(batch, np.zeros((6, 1), np.float32), ages)
    report = evaluation.report()
    found = [report[f"click.calibration_{age}"] for age in ("age_1m", "age_10m", "age_1h")]
    assert found == pytest.approx([0.2, 0.5, 0.7])
    assert report["click.calibration_age_older"] == pytest.approx(0.9)


def test_huber_task_reports_its_loss() -> None:
    evaluation = Evaluation(["dwell"], ["huber"])
    encoder = FeatureEncoder(
        make_settings(tasks=[{"name": "dwell", "event": "dwell", "loss": "huber"}])
    )
    batch = make_batch(encoder, {}, [3.0, 5.0], served=[[2.5], [9.0]])
    evaluation.add(batch, np.zeros((2, 1), np.float32), np.zeros(2, np.int64))
    report = evaluation.report()
    assert report["dwell.huber"] == pytest.approx((0.125 + 3.5) / 2)
    assert report["dwell.calibration"] == pytest.approx(11.5 / 8)


def test_window_forgets_the_oldest_and_survives_a_restart() -> None:
    evaluation = Evaluation(["click"], ["logloss"], window_rows=10)
    rng = np.random.default_rng(3)
    scores, labels = rng.random(47), rng.integers(0, 2, 47)
    for i in range(0, 47, 7):
        part = slice(i, i + 7)
        batch = make_batch(ENCODER, {}, labels[part], served=scores[part, None])
        evaluation.add(batch, np.zeros((batch.n_rows, 1), np.float32), np.zeros(batch.n_rows, int))
    last = scores[-10:].astype(np.float32).astype(np.float64)
    expected = _slow_auc(last, labels[-10:] == 1, np.ones(10))
    assert evaluation.report()["click.auc"] == pytest.approx(expected)
    other = Evaluation(["click"], ["logloss"], window_rows=10)
    other.restore(evaluation.state())
    assert other.report() == evaluation.report()


def test_sample_is_bounded_uniform_and_repeatable() -> None:
    chosen = np.zeros(100)
    for seed in range(400):
        sample = Sample(10, seed)
        for start in range(0, 100, 25):
            sample.add(np.arange(start, start + 25, dtype=np.int64))
        assert len(sample.values()) == 10
        chosen[sample.values()] += 1
    # 400 draws of 10 in 100: each value 40 times, standard deviation 6.
    assert chosen.min() > 40 - 5 * 6
    assert chosen.max() < 40 + 5 * 6
    repeated = Sample(10, 7)
    repeated.add(np.arange(100, dtype=np.int64))
    other = Sample(10, 7)
    other.add(np.arange(60, dtype=np.int64))
    restored = Sample(10, 7)
    restored.restore(other.state())
    restored.add(np.arange(60, 100, dtype=np.int64))
    assert restored.values() == repeated.values()


def test_short_stream_is_sampled_whole() -> None:
    sample = Sample(10, 1)
    sample.add(np.array([NOW_MS, NOW_MS + 1], np.int64))
    assert sample.values() == [NOW_MS, NOW_MS + 1]
    sample.clear()
    assert sample.values() == []
