"""What a user would otherwise pick: each learns what it can, and none looks ahead."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from freshrank.errors import ConfigError
from freshrank.feature_types import TableValues
from freshrank.features import FeatureEncoder
from freshrank.replay.baselines import NAMES, create
from freshrank.replay.baselines.vw import VowpalWabbit
from freshrank.replay.chunks import Chunk
from freshrank.settings import Settings
from freshrank.table_encoder import TableEncoder

F32 = npt.NDArray[np.float32]

N_ITEMS = 5  # rows of a request
CHUNK_REQUESTS = 200
FIELDS: list[dict[str, Any]] = [
    {"name": "user_id", "type": "id", "scope": "user"},
    {"name": "item_id", "type": "id", "scope": "item", "key": "uint64"},
    {"name": "device", "type": "id", "scope": "context"},
]
OTHERS: list[dict[str, Any]] = [
    {"name": "topic", "type": "id", "scope": "item"},
    {"name": "words", "type": "id_list", "scope": "item"},
    {"name": "age", "type": "bucket", "scope": "user", "boundaries": [20, 40]},
    {"name": "price", "type": "dense", "scope": "candidate"},
    {"name": "taste", "type": "cross", "of": ["user_id", "topic"]},
    {"name": "last", "type": "recent", "event": "click"},
    {"name": "clicks", "type": "rate", "event": "click"},
]


def settings(features: Sequence[dict[str, Any]] = FIELDS, **more: Any) -> Settings:
    tasks = [{"name": "click", "event": "click"}]
    return Settings.model_validate({"features": list(features), "tasks": tasks, **more})


def stream(
    chance: Callable[..., Any],
    *,
    n_chunks: int = 8,
    n_requests: int = CHUNK_REQUESTS,
    step_ms: int = 1_000,
) -> list[Chunk]:
    """Requests of five rows whose chance of a click is that of their item, device and time."""
    rng = np.random.default_rng(1)
    chunks = []
    for number in range(n_chunks):
        first = number * n_requests
        ts_ms = 1_000_000 + (first + np.arange(n_requests)) * step_ms
        devices = rng.integers(2, size=n_requests)
        items = rng.integers(20, size=n_requests * N_ITEMS)
        row_ts_ms = np.repeat(ts_ms, N_ITEMS)
        clicked = rng.random(len(items)) < chance(items, np.repeat(devices, N_ITEMS), row_ts_ms)
        values = TableValues(
            n_items=np.full(n_requests, N_ITEMS),
            ts_ms=ts_ms,
            users=[f"u{one}" for one in rng.integers(30, size=n_requests)],
            items=items,
            shared={"device": [f"d{one}" for one in devices]},
            acted={"click": clicked},
        )
        labels = clicked[:, None].astype(np.float32)
        requests = np.repeat(first + np.arange(n_requests), N_ITEMS)
        chunks.append(Chunk(values, labels, np.ones_like(labels), requests, row_ts_ms))
    return chunks


def scores(name: str, own: Settings, chunks: Sequence[Chunk]) -> list[F32]:
    encoder = FeatureEncoder(own)
    table = TableEncoder(own, encoder)
    baseline = create(name, own, encoder)
    return [baseline.predict_then_learn(chunk, table.encode(chunk.values)) for chunk in chunks]


def auc(chunks: Sequence[Chunk], found: Sequence[F32]) -> float:
    """Share of (clicked, not clicked) pairs in the right order, over the second half."""
    labels = np.concatenate([chunk.labels[:, 0] for chunk in chunks])
    half = len(labels) // 2
    labels, values = labels[half:], np.concatenate(found)[half:]
    better = values[labels == 1][:, None] - values[labels == 0]
    return float((better > 0).mean() + (better == 0).mean() / 2)


def by_item(items: npt.NDArray[np.int64], *_: Any) -> Any:
    return np.where(items % 2, 0.7, 0.1)


def by_item_and_device(items: Any, devices: Any, _: Any) -> Any:
    return np.where((items + devices) % 2, 0.7, 0.1)


def with_labels(chunk: Chunk, labels: F32) -> Chunk:
    values = replace(chunk.values, acted={"click": labels[:, 0] > 0})
    return replace(chunk, values=values, labels=labels)


# Half of the rows click at 0.7, half at 0.1: who knows which is which has an AUC of
# 0.7 / 0.8 * 0.9 / 1.2 + (0.7 / 0.8 * 0.3 / 1.2 + 0.1 / 0.8 * 0.9 / 1.2) / 2 = 0.81.
@pytest.mark.parametrize("name", NAMES)
def test_each_learns_which_items_are_clicked(name: str) -> None:
    chunks = stream(by_item)
    assert auc(chunks, scores(name, settings(), chunks)) > 0.77


@pytest.mark.parametrize(
    ("name", "low", "high"), [("vw", 0.74, 1), ("trees", 0.74, 1), ("rate", 0.4, 0.6)]
)
@pytest.mark.parametrize(("n_chunks", "n_requests"), [(12, 200), (1, 2_400)])
def test_what_depends_on_the_context_is_for_those_that_read_it(
    name: str, low: float, high: float, n_chunks: int, n_requests: int
) -> None:
    chunks = stream(by_item_and_device, n_chunks=n_chunks, n_requests=n_requests)
    assert low < auc(chunks, scores(name, settings(), chunks)) < high


# Which items are clicked changes every forty minutes, or never in half a year.
@pytest.mark.parametrize(("step_ms", "period_ms"), [(4_000, 2_400_000), (7_000_000, 1 << 62)])
@pytest.mark.parametrize(("n_chunks", "n_requests"), [(12, 200), (1, 2_400)])
def test_the_item_rate_finds_how_long_to_remember(
    step_ms: int, period_ms: int, n_chunks: int, n_requests: int
) -> None:
    def chance(items: Any, _: Any, ts_ms: Any) -> Any:
        return np.where((items + ts_ms // period_ms) % 2, 0.7, 0.1)

    chunks = stream(chance, step_ms=step_ms, n_chunks=n_chunks, n_requests=n_requests)
    assert auc(chunks, scores("rate", settings(), chunks)) > 0.7


@pytest.mark.parametrize("name", NAMES)
def test_the_same_stream_gives_the_same_scores(name: str) -> None:
    chunks = stream(by_item)
    first, second = (np.concatenate(scores(name, settings(), chunks)) for _ in range(2))
    assert (first == second).all()


@pytest.mark.parametrize("name", NAMES)
def test_labels_reach_only_later_requests(name: str) -> None:
    chunks = stream(by_item)
    turned = chunks[-1].labels.copy()
    turn = CHUNK_REQUESTS // 2 * N_ITEMS  # the first row whose request has other labels
    turned[turn:] = 1 - turned[turn:]
    others = [*chunks[:-1], with_labels(chunks[-1], turned)]
    changed = scores(name, settings(), chunks)[-1] != scores(name, settings(), others)[-1]
    assert not changed[: turn + N_ITEMS].any()
    assert changed[turn + N_ITEMS :].any()


@pytest.mark.parametrize("name", NAMES)
def test_a_row_of_weight_0_is_scored_and_its_label_is_not_learned(name: str) -> None:
    chunks = stream(by_item, n_chunks=4)
    is_left_out = np.random.default_rng(2).random(chunks[0].labels.shape) < 0.5
    found = []
    for nothing in (np.nan, 1.0):
        holed = [
            replace(
                chunk,
                labels=np.where(is_left_out, np.float32(nothing), chunk.labels),
                weights=np.where(is_left_out, np.float32(0), chunk.weights),
            )
            for chunk in chunks
        ]
        found.append(np.concatenate(scores(name, settings(), holed)))
    assert (found[0] == found[1]).all()
    assert auc(chunks, np.split(found[0], len(chunks))) > 0.7


@pytest.mark.parametrize("name", NAMES)
def test_users_items_and_context_may_be_absent(name: str) -> None:
    chunks = []
    for chunk in stream(by_item, n_chunks=4):
        items = chunk.values.items.tolist()
        holes: dict[str, Any] = {
            "users": [
                None if number % 3 else user for number, user in enumerate(chunk.values.users)
            ],
            "items": [None if number % 4 == 0 else item for number, item in enumerate(items)],
            "shared": {"device": [None] * CHUNK_REQUESTS},
        }
        chunks.append(replace(chunk, values=replace(chunk.values, **holes)))
    found = scores(name, settings(), chunks)
    assert np.isfinite(np.concatenate(found)).all()
    assert auc(chunks, found) > 0.65


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("features", [FIELDS + OTHERS, OTHERS[1:4], FIELDS[2:]])
def test_every_configuration_has_its_baselines(name: str, features: list[dict[str, Any]]) -> None:
    chunks = []
    for chunk in stream(by_item, n_chunks=3):
        items = chunk.values.items.tolist()
        columns = {
            "topic": [f"t{item % 2}" for item in items],
            "words": [["a", "b"][: item % 3] for item in items],
            "price": [item % 2 + 0.5 if item % 5 else None for item in items],
        }
        shared = {**chunk.values.shared, "age": [30.0] * CHUNK_REQUESTS}
        values = replace(chunk.values, columns=columns, shared=shared)
        chunks.append(replace(chunk, values=values))
    found = np.concatenate(scores(name, settings(features), chunks))
    assert ((found > 0) & (found < 1)).all()


@pytest.mark.parametrize(("name", "package"), [("vw", "vowpalwabbit"), ("trees", "lightgbm")])
def test_a_missing_package_names_its_extra(
    name: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=rf"{package} is not .* 'freshrank\[baselines\]'"):
        create(name, settings(), FeatureEncoder(settings()))


def test_an_unknown_baseline_is_told_the_nearest() -> None:
    with pytest.raises(ConfigError, match="'tree'; did you mean 'trees'"):
        create("tree", settings(), FeatureEncoder(settings()))


@pytest.mark.parametrize("name", NAMES)
def test_a_configuration_without_probabilities_has_no_baselines(name: str) -> None:
    own = Settings.model_validate(
        {"features": FIELDS, "tasks": [{"name": "dwell", "event": "dwell", "loss": "huber"}]}
    )
    with pytest.raises(ConfigError, match="logloss"):
        create(name, own, FeatureEncoder(own))


def test_flags_that_vowpal_wabbit_refuses_are_a_mistake() -> None:
    with pytest.raises(ConfigError, match="no_such_flag"):
        VowpalWabbit(settings(), FeatureEncoder(settings()), flags="--no_such_flag")
