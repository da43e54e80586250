"""Figures of a replay against slow references."""

import numpy as np
import pytest

from freshrank.replay.measures import (
    STRETCH_CLASS_MIN,
    STRETCH_ROWS_MIN,
    Figures,
    Measures,
    by_request,
)
from trainer.losses import Loss

N_REQUESTS = 300
HOUR_MS = 3_600_000


def stream(seed: int = 1) -> tuple[np.ndarray, ...]:
    """Scores with ties, labels, request numbers in order and times of requests of 1 to 7 rows."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 8, N_REQUESTS)
    requests = np.repeat(np.arange(N_REQUESTS), sizes)
    n = len(requests)
    scores = rng.choice([0.1, 0.25, 0.4, 0.8, 0.95], n).astype(np.float32)
    labels = (rng.random(n) < 0.4).astype(np.float32)
    ts_ms = np.sort(rng.integers(0, 5 * HOUR_MS, N_REQUESTS))[requests]
    return scores, labels, requests, ts_ms


def slow_auc(scores: np.ndarray, labels: np.ndarray) -> float | None:
    pairs = [
        1.0 if positive > negative else 0.5 if positive == negative else 0.0
        for positive in scores[labels > 0]
        for negative in scores[labels == 0]
    ]
    return sum(pairs) / len(pairs) if pairs else None


def slow_reciprocal_rank(scores: np.ndarray, labels: np.ndarray) -> float:
    best = max(scores[labels > 0])
    return float(1 / (sum(scores > best) + (sum(scores == best) + 1) / 2))


def measured(*, weights: np.ndarray | None = None, age_s: np.ndarray | None = None) -> Figures:
    scores, labels, requests, ts_ms = stream()
    measures = Measures(["click"], ["logloss"])
    weights = np.ones_like(labels) if weights is None else weights
    for rows in np.array_split(np.arange(len(labels)), 7):  # in parts, as a replay adds them
        measures.add(
            scores[rows, None],
            labels[rows, None],
            weights[rows, None],
            ts_ms=ts_ms[rows],
            request_numbers=requests[rows],
            item_age_s=None if age_s is None else age_s[rows],
        )
    return measures.figures()["click"]


def test_auc_over_all_rows_and_over_the_second_half_equals_counting_pairs() -> None:
    scores, labels, *_ = stream()
    figures = measured()
    half = len(labels) // 2
    assert figures["examples"] == len(labels)
    assert figures["auc_all"] == pytest.approx(slow_auc(scores, labels))
    assert figures["auc_second_half"] == pytest.approx(slow_auc(scores[half:], labels[half:]))
    assert figures["auc_all"] != pytest.approx(figures["auc_second_half"], abs=1e-6)


def test_request_auc_and_mrr_are_means_over_requests_with_both_classes() -> None:
    scores, labels, requests, _ = stream()
    aucs, ranks = [], []
    for request in range(N_REQUESTS):
        rows = requests == request
        auc = slow_auc(scores[rows], labels[rows])
        if auc is not None:
            aucs.append(auc)
            ranks.append(slow_reciprocal_rank(scores[rows], labels[rows]))
    assert 0 < len(aucs) < N_REQUESTS
    figures = measured()
    assert figures["request_auc"] == pytest.approx(np.mean(aucs))
    assert figures["mrr"] == pytest.approx(np.mean(ranks))


def test_rows_of_a_request_need_not_stand_together() -> None:
    scores, labels, requests, _ = stream()
    shuffled = np.random.default_rng(2).permutation(len(labels))
    expected = by_request(scores, labels > 0, requests)
    found = by_request(scores[shuffled], labels[shuffled] > 0, requests[shuffled])
    assert found == pytest.approx(expected)


def test_log_loss_and_calibration_equal_their_formulas() -> None:
    scores, labels, *_ = stream()
    chosen = np.where(labels > 0, scores, 1 - scores).astype(float)
    figures = measured()
    assert figures["logloss"] == pytest.approx(-np.log(chosen).mean())
    assert figures["calibration"] == pytest.approx(scores.sum() / labels.sum())


def test_calibration_by_age_counts_each_row_in_its_band() -> None:
    scores, labels, *_ = stream()
    bounds = {"age_1m": (0, 60), "age_10m": (60, 600), "age_1h": (600, 3_600)}
    bounds["age_older"] = (3_600, 10**9)
    age_s = np.random.default_rng(3).choice([0, 59, 60, 599, 600, 3_599, 3_600, 10**6], len(labels))
    found = measured(age_s=age_s)["calibration_by_age"]
    for name, (low, high) in bounds.items():
        rows = (age_s >= low) & (age_s < high)
        assert found[name]["examples"] == rows.sum() > 0
        assert found[name]["calibration"] == pytest.approx(scores[rows].sum() / labels[rows].sum())


def test_unknown_ages_stand_in_no_band() -> None:
    assert {band["examples"] for band in measured()["calibration_by_age"].values()} == {0}


def test_hours_hold_their_own_rows() -> None:
    scores, labels, _, ts_ms = stream()
    hours = measured()["by_hour"]
    assert [hour["ts_ms"] for hour in hours] == [hour * HOUR_MS for hour in range(5)]
    for hour in hours:
        rows = ts_ms // HOUR_MS * HOUR_MS == hour["ts_ms"]
        assert hour["examples"] == rows.sum()
        assert hour["auc"] == pytest.approx(slow_auc(scores[rows], labels[rows]))
        assert hour["calibration"] == pytest.approx(scores[rows].sum() / labels[rows].sum())


def over_time(labels: np.ndarray, hours: np.ndarray, kind: Loss = "logloss") -> list[Figures]:
    rng = np.random.default_rng(4)
    measures = Measures(["click"], [kind])
    column = labels.astype(np.float32)[:, None]
    scores = rng.random((len(labels), 1), np.float32)
    ones = np.ones_like(scores)
    measures.add(scores, column, ones, ts_ms=hours * HOUR_MS + 7, request_numbers=hours)
    found: list[Figures] = measures.figures()["click"]["over_time"]
    return found


def test_neighbouring_hours_are_joined_until_they_have_enough_rows() -> None:
    hours = np.repeat([0, 1, 2, 9, 10, 11], [300, 199, 1, 500, 499, 3])
    labels = np.arange(len(hours)) % 2
    found = over_time(labels, hours)
    ends = [(stretch["ts_ms"] // HOUR_MS, stretch["end_ms"] // HOUR_MS) for stretch in found]
    assert ends == [(0, 3), (9, 10), (10, 12)]
    assert [stretch["examples"] for stretch in found] == [500, 500, 502]
    assert [stretch["positives"] for stretch in found] == [250, 250, 251]
    few = over_time(labels[:-3], hours[:-3])  # the last 499 go to the stretch before
    assert [stretch["examples"] for stretch in few] == [500, 999]


@pytest.mark.parametrize("rare", [0, 1])
def test_a_stretch_has_enough_rows_of_both_classes(rare: int) -> None:
    hours = np.repeat(np.arange(8), STRETCH_ROWS_MIN)
    labels = np.full(len(hours), 1 - rare)
    labels[:: STRETCH_ROWS_MIN // 5] = rare  # five an hour
    found = over_time(labels, hours)
    assert [stretch["ts_ms"] // HOUR_MS for stretch in found] == [0, STRETCH_CLASS_MIN // 5]
    assert len(over_time(labels, hours, "huber")) == 8


def test_stretches_are_few_however_long_the_log_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("freshrank.replay.measures.STRETCHES_MAX", 10)
    hours = np.repeat(np.arange(25), STRETCH_ROWS_MIN)
    found = over_time(np.arange(len(hours)) % 2, hours)
    assert [stretch["examples"] for stretch in found] == [3 * STRETCH_ROWS_MIN] * 7 + [2_000]


def test_rows_without_weight_do_not_count() -> None:
    scores, labels, *_ = stream()
    weights = (np.arange(len(labels)) % 3 > 0).astype(np.float32)
    figures = measured(weights=weights)
    kept = weights > 0
    assert figures["examples"] == kept.sum()
    assert figures["positives"] == labels[kept].sum() < labels.sum()
    assert figures["auc_all"] == pytest.approx(slow_auc(scores[kept], labels[kept]))


def test_one_class_alone_has_no_auc() -> None:
    measures = Measures(["click"], ["logloss"])
    ones = np.ones((4, 1), np.float32)
    zeros = np.zeros(4, np.int64)
    measures.add(ones * np.float32(0.5), ones, ones, ts_ms=zeros, request_numbers=zeros)
    figures = measures.figures()["click"]
    assert figures["auc_all"] is figures["request_auc"] is figures["mrr"] is None
    assert figures["logloss"] == pytest.approx(np.log(2))


def test_value_task_has_its_errors() -> None:
    measures = Measures(["click", "dwell"], ["logloss", "huber"])
    scores = np.array([[0.5, 3.0], [0.5, -1.0], [0.5, 9.0]], np.float32)
    labels = np.array([[1, 3.5], [0, 1.0], [0, 0.0]], np.float32)
    weights = np.array([[1, 1], [1, 1], [1, 0]], np.float32)
    rows = np.arange(3)
    measures.add(scores, labels, weights, ts_ms=rows, request_numbers=rows)
    dwell = measures.figures()["dwell"]
    assert dwell["examples"] == 2
    assert dwell["mean_error"] == pytest.approx((0.5 + 2.0) / 2)
    assert dwell["huber"] == pytest.approx((0.5 * 0.5**2 + (2.0 - 0.5)) / 2)
    assert dwell["by_hour"] == [
        {
            "ts_ms": 0,
            "end_ms": HOUR_MS,
            "examples": 2,
            "huber": dwell["huber"],
            "calibration": dwell["calibration"],
        }
    ]
    assert "positives" not in dwell


def test_nothing_measured_is_no_figure() -> None:
    assert Measures(["click"], ["logloss"]).figures() == {"click": {"examples": 0}}
