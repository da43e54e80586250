"""POST /v1/rank: what is scored, ordered, said and logged."""

import math
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import pytest

from freshrank.errors import TransportError
from freshrank.feature_state import Did, FeatureUpdates, LocalFeatureState
from freshrank.features import RequestValues
from freshrank.live import LiveFeatures
from freshrank.messages import Impression, Tick, encode
from freshrank.transport.base import ACTIONS, IMPRESSIONS, NewRecord
from service.replica import Replica
from tests.unit.service.conftest import MakeClient, MakeWorld
from tests.unit.service.support import (
    DIM,
    FEATURES,
    NOW_MS,
    TestClient,
    World,
    linear_net,
    make_settings,
    service_of,
    table_rows,
    until,
)


def sigmoid(z: float) -> float:
    return 1.0 / (1.0 + math.exp(-z))


def rank(client: TestClient, **body: Any) -> dict[str, Any]:
    items = body.pop("items", None)
    if items is not None:
        body["candidates"] = [{"item": item} for item in items]
    answer = client.post("/v1/rank", json={"user": "u", **body})
    assert answer.status_code == 200, answer.text
    document: dict[str, Any] = answer.json()
    return document


def impressions(world: World) -> list[Impression]:
    return [one for one in world.records(IMPRESSIONS) if isinstance(one, Impression)]


def clicked(world: World, *did: Did) -> None:
    """Let feature state know of clicks of the user `u`."""
    world.state.apply(FeatureUpdates(did=[("click", "u", one) for one in did]))


def test_scores_are_what_numpy_says(world: World, make_client: MakeClient) -> None:
    """Every kind of feature: pooled mean, bucket, transformed dense, default, recent clicks."""
    encoder = world.encoder
    rng = np.random.default_rng(7)
    width = DIM + 1
    n_slots = len(encoder.slots)
    weights = rng.normal(size=(n_slots * width, 2)).astype(np.float32)
    dense_weights = rng.normal(size=(2, 2)).astype(np.float32)
    vector: dict[str, dict[int, np.ndarray]] = {}
    for table, raw in (
        ("user_id", ["u"]),
        ("item_id", ["a", "b", "seen"]),
        ("tags", ["x", "y"]),
        ("hour", [7]),
    ):
        vector[table] = {k: rng.normal(size=width) for k in world.ids(table, raw)}
    world.base(
        {
            name: table_rows({k: v.tolist() for k, v in rows.items()})
            for name, rows in vector.items()
        },
        dense=linear_net(world.settings, weights, dense_weights),
    )
    clicked(world, Did(NOW_MS - 5, "e", "seen"), Did(NOW_MS, "f", "too late"))
    client = make_client(world)

    answer = rank(
        client,
        candidates=[
            {"item": "a", "features": {"tags": ["x", "y"], "price": 3.0}},
            {"item": "b", "features": {"tags": ["x", "unknown"]}},
        ],
        context={"hour": 7},
    )

    def row(table: str, raw: Any) -> np.ndarray:
        return vector[table].get(world.ids(table, [raw])[0], np.zeros(width))

    expected = {}
    for item, tags, price in (("a", ["x", "y"], 3.0), ("b", ["x", "unknown"], 0.0)):
        by_slot = {
            "user_id": row("user_id", "u"),
            "item_id": row("item_id", item),
            "tags": np.mean([row("tags", tag) for tag in tags], axis=0),
            "hour": row("hour", 7),
            "last_clicks": row("item_id", "seen"),
        }
        flat = np.concatenate([by_slot[slot.name] for slot in encoder.slots])
        z = flat @ weights + np.array([np.log1p(price), 30.0]) @ dense_weights
        expected[item] = (sigmoid(z[0]), z[1])
    assert encoder.dense_names == ("price", "age")
    for item in answer["items"]:
        click, dwell = expected[item["item"]]
        assert item["score"] == pytest.approx(click, rel=1e-4)
        assert item["task_scores"] == pytest.approx({"click": click, "dwell": dwell}, rel=1e-4)
    scores = [item["score"] for item in answer["items"]]
    assert scores == sorted(scores, reverse=True)
    assert answer["missing"] == {"user": False, "items": [], "features": ["age", "price"]}


def test_a_logistic_model_reads_one_weight_per_id(
    make_world: MakeWorld, make_client: MakeClient
) -> None:
    features = [
        {"name": "item_id", "type": "id", "scope": "item"},
        {"name": "user_id", "type": "id", "scope": "user"},
    ]
    world = make_world(settings=make_settings(features=features, model={"kind": "logistic"}))
    [a], [u] = world.ids("item_id", ["a"]), world.ids("user_id", ["u"])
    world.base({"item_id": table_rows({a: [1.5]}), "user_id": table_rows({u: [-1.0]})})
    answer = rank(make_client(world), items=["b", "a"])
    assert [(i["item"], i["known"]) for i in answer["items"]] == [("a", True), ("b", False)]
    assert answer["items"][0]["score"] == pytest.approx(sigmoid(0.5))
    assert answer["items"][1]["score"] == pytest.approx(sigmoid(-1.0))


def test_equal_scores_go_by_item_id_every_time(client: TestClient) -> None:
    body = {"user": "u", "candidates": [{"item": i} for i in ("c", "a", "b")], "request_id": "r"}
    orders = {
        tuple(item["item"] for item in client.post("/v1/rank", json=body).json()["items"])
        for _ in range(100)
    }
    assert orders == {("a", "b", "c")}


def test_unknown_user_and_items_get_an_answer_that_says_so(client: TestClient) -> None:
    answer = rank(client, items=["i9"])
    assert answer["items"][0]["known"] is False
    assert answer["missing"]["user"] is True
    assert answer["missing"]["items"] == ["i9"]
    assert set(answer["missing"]["features"]) == {"hour", "age", "tags", "price"}


def test_known_speaks_of_the_item_whatever_else_reads_its_table(
    make_world: MakeWorld, make_client: MakeClient
) -> None:
    """The recent clicks stand before the item in the configuration and share its table."""
    world = make_world(settings=make_settings(features=FEATURES[::-1]))
    [seen] = world.ids("item_id", ["seen"])
    world.base({"item_id": table_rows({seen: [0.0] * (DIM + 1)})})
    clicked(world, Did(NOW_MS - 1, "e", "seen"))
    answer = rank(make_client(world), items=["seen", "a"])
    assert {item["item"]: item["known"] for item in answer["items"]} == {"a": False, "seen": True}


def test_top_k_and_exclude_shape_the_answer_and_the_impression(
    world: World, client: TestClient
) -> None:
    answer = rank(client, items=["d", "c", "b", "a"], top_k=2, exclude=["a"])
    assert [(item["item"], item["rank"]) for item in answer["items"]] == [("b", 1), ("c", 2)]
    [impression] = impressions(world)
    assert impression.items == ["b", "c"]
    assert impression.positions == [1, 2]


def test_the_impression_holds_the_values_that_scored(world: World, make_client: MakeClient) -> None:
    [a] = world.ids("item_id", ["a"])
    world.base({"item_id": table_rows({a: [0.5] * 5})}, seq=3, dense_version=2)
    clicked(world, Did(NOW_MS - 1, "e", "seen"), Did(NOW_MS, "f", "now"))
    client = make_client(world)
    events = [
        {"kind": "item", "item": "a", "features": {"tags": ["jazz"]}},
        {"kind": "item", "item": "b", "features": {"tags": ["chess"]}},
        {"kind": "user", "user": "u", "features": {"age": 40}},
    ]
    client.post("/v1/events", json={"events": events})
    until(lambda: len(service_of(client).entities) == 3)
    answer = rank(
        client,
        request_id="r1",
        candidates=[
            {"item": "b", "features": {"price": 2}},
            {"item": "a", "features": {"tags": ["rock"], "price": None}},
        ],
        context={"hour": 9},
    )
    [impression] = impressions(world)
    assert impression.request_id == answer["request_id"] == "r1"
    assert (impression.user, impression.source) == ("u", "rank")
    assert impression.version == answer["model"]["version"] == "d2-s3"
    assert impression.items == ["a", "b"]
    assert impression.shared == {"age": 40, "hour": 9, "last_clicks": ["seen"]}
    assert impression.columns == {"tags": [["rock"], ["chess"]], "price": [None, 2]}
    assert impression.served["click"] == [item["score"] for item in answer["items"]]
    assert impression.ts_ms == impression.received_at_ms == NOW_MS


def test_explicit_user_features_win_over_sent_ones(world: World, client: TestClient) -> None:
    client.post("/v1/events", json={"events": [
        {"kind": "user", "user": "u", "features": {"age": 40}}
    ]})  # fmt: skip
    until(lambda: len(service_of(client).entities) == 1)
    rank(client, items=["a"], user_features={"age": 41})
    rank(client, items=["a"])
    first, second = impressions(world)
    assert (first.shared["age"], second.shared["age"]) == (41, 40)


LIVE: list[dict[str, Any]] = [
    {"name": "ctr", "type": "rate", "event": "click", "prior": 0.2, "by": "hour"},
    {"name": "shown", "type": "count"},
    {"name": "ago", "type": "seen", "event": "click", "value": "ago"},
]


def test_live_features_are_read_once_and_stand_in_the_impression(
    make_world: MakeWorld, make_client: MakeClient
) -> None:
    """In a ranking and in a reported impression alike: as raw numbers, strictly before its time."""
    world = make_world(settings=make_settings(features=[*FEATURES, *LIVE]))
    world.state = LocalFeatureState(world.settings)
    live = LiveFeatures(world.settings, world.encoder)
    earlier = RequestValues(["a", "b"], "u", {"hour": 9})
    slots = world.encoder.encode([earlier]).slots
    times = np.array([NOW_MS - 2_000, NOW_MS - 2_000])
    done = live.updates_of_actions(
        slots, ["click", "buy"], times, ["e1", "e2"], ["u", "u"], ["a", "b"]
    )
    at_once = live.updates_of_impressions(slots, np.full(2, NOW_MS))
    parts = [live.updates_of_impressions(slots, times), done, at_once]
    world.state.apply(FeatureUpdates.together(parts, {"freshrank.actions:0": 1}))
    world.base()
    client = make_client(world)
    rank(client, items=["a", "b", "c"], context={"hour": 8}, top_k=3)
    report = {
        "kind": "impression", "request_id": "own", "user": "u", "context": {"hour": 8},
        "items": [{"item": "a"}, {"item": "b"}, {"item": "c"}],
    }  # fmt: skip
    client.post("/v1/events", json={"events": [report]})
    decay = 0.5 ** (2 / 3_600)
    ctr = {"a": (decay + 2) / (decay + 10), "b": 2 / (decay + 10), "c": 0.2}
    for impression in impressions(world):
        columns = {name: dict(zip(impression.items, impression.columns[name], strict=True))
                   for name in ("ctr", "shown", "ago")}  # fmt: skip
        assert columns["ctr"] == pytest.approx(ctr)
        assert columns["shown"] == pytest.approx({"a": decay, "b": decay, "c": 0})
        assert columns["ago"] == {"a": 2.0, "b": None, "c": None}
        assert impression.shared["last_clicks"] == ["a"]
    assert len(impressions(world)) == 2


def test_without_its_context_a_live_value_is_none(
    make_world: MakeWorld, make_client: MakeClient
) -> None:
    world = make_world(settings=make_settings(features=[*FEATURES, *LIVE]))
    world.state = LocalFeatureState(world.settings)
    world.base()
    rank(make_client(world), items=["a"])
    [impression] = impressions(world)
    assert impression.columns == {"ctr": [None], "shown": [0.0], "ago": [None]}


def test_log_impression_false_leaves_no_trace(world: World, client: TestClient) -> None:
    rank(client, items=["a"], log_impression=False)
    assert impressions(world) == []


@pytest.mark.parametrize("body", [{"items": []}, {"items": ["a"], "exclude": ["a"]}])
def test_nothing_to_rank_is_an_empty_answer(
    world: World, client: TestClient, body: dict[str, Any]
) -> None:
    answer = rank(client, **body)
    assert answer["items"] == []
    assert answer["model"]["version"] == "d0-s0"
    assert impressions(world) == []


def test_a_large_impression_is_split_below_the_record_limit(
    world: World, client: TestClient
) -> None:
    tags = [f"{i:0>200}" for i in range(32)]
    items = [f"i{i:03}" for i in range(200)]
    answer = rank(
        client,
        request_id="big",
        candidates=[{"item": item, "features": {"tags": tags}} for item in items],
    )
    parts = impressions(world)
    assert len(parts) > 1
    assert [(one.part, one.parts) for one in parts] == [(i, len(parts)) for i in range(len(parts))]
    assert [item for one in parts for item in one.items] == items
    assert [p for one in parts for p in one.positions] == list(range(1, 201))
    assert len({one.event_id for one in parts}) == 1
    served = [p for one in parts for p in one.served["click"]]
    assert served == [item["score"] for item in answer["items"]]


def test_a_full_disk_degrades_the_answer_and_nothing_else(world: World, client: TestClient) -> None:
    world.log.is_full = True
    answer = rank(client, items=["a"])
    assert answer["degraded"] == ["broker"]
    assert [item["item"] for item in answer["items"]] == ["a"]


def test_an_untrained_base_says_so(world: World, make_client: MakeClient) -> None:
    world.base(untrained=True)
    assert rank(make_client(world), items=["a"])["degraded"] == ["untrained"]


@pytest.fixture
def trainer_beats(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """However the clock jumps, the trainer has just been heard."""
    monkeypatch.setattr(world.channel, "beat_age_s", lambda: 0.0)


@pytest.mark.usefixtures("trainer_beats")
def test_an_idle_stream_is_never_stale(world: World, client: TestClient) -> None:
    world.clock.advance(ms=3_600_000)
    answer = rank(client, items=["a"], log_impression=False)
    assert answer["degraded"] == []
    assert answer["freshness"]["sparse_age_seconds"] == 3_600.0


@pytest.mark.usefixtures("trainer_beats")
def test_ticks_that_nobody_decides_are_no_backlog(world: World, client: TestClient) -> None:
    tick = encode(Tick(event_id="t", ts_ms=NOW_MS, received_at_ms=NOW_MS))
    for topic in (ACTIONS, IMPRESSIONS):
        world.log.append(topic, [NewRecord(b"", tick)], partition=0)
    world.clock.advance(ms=3_600_000)
    assert rank(client, items=["a"], log_impression=False)["degraded"] == []


@pytest.mark.usefixtures("trainer_beats")
def test_unlearned_events_without_frames_mean_that_the_trainer_is_away(
    world: World, client: TestClient
) -> None:
    rank(client, items=["a"])
    assert rank(client, items=["a"], log_impression=False)["degraded"] == []
    world.clock.advance(ms=42_000)  # the window, its slack, and ten frames
    assert rank(client, items=["a"])["degraded"] == []
    world.clock.advance(ms=501)
    assert rank(client, items=["a"])["degraded"] == ["trainer_away"]
    world.clock.advance(ms=300_000)
    assert rank(client, items=["a"])["degraded"] == ["stale_sparse", "trainer_away"]
    ends = {f"{topic}:0": world.log.end_offset(topic, 0) for topic in (ACTIONS, IMPRESSIONS)}
    world.delta(offsets=ends)
    until(lambda: rank(client, items=["a"], log_impression=False)["degraded"] == [])


def test_a_refused_dense_net_is_told(world: World, client: TestClient) -> None:
    world.delta(dense=b"no graph", dense_version=1)
    until(lambda: service_of(client).replica.refusals == {"dense": 1})
    until(lambda: rank(client, items=["a"])["degraded"] == ["stale_dense"])


@pytest.mark.usefixtures("trainer_beats")
def test_a_log_that_cannot_be_asked_is_told(
    world: World, client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(topic: str, partition: int) -> int:
        raise TransportError("gone", code="gone")

    world.clock.advance(ms=60_000)
    world.log.is_full = True
    monkeypatch.setattr(world.log, "start_offset", fail)
    assert rank(client, items=["a"])["degraded"] == ["broker"]


def test_freshness_tells_ages_and_sequence(world: World, make_client: MakeClient) -> None:
    world.base(watermark_ms=NOW_MS - 1_500)
    client = make_client(world)
    world.clock.advance(ms=2_000)
    world.delta(watermark_ms=NOW_MS + 1_000)
    until(lambda: rank(client, items=["a"])["freshness"]["sparse_seq"] == 1)
    assert rank(client, items=["a"])["freshness"] == {
        "sparse_age_seconds": 0.0,
        "dense_age_seconds": 2.0,
        "newest_event_age_seconds": 1.0,
        "sparse_seq": 1,
        "after_satisfied": None,
    }


def test_a_deadline_leaves_the_rest_unscored_and_last(
    world: World, client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The net takes 10 ms per piece of 256: with 15 ms two pieces of 600 items are scored."""
    model = service_of(client).replica.model
    assert model is not None
    net = model.current.net
    real = net.predict

    def slow(rows: Any, dense: Any) -> Any:
        world.clock.advance(ms=10)
        return real(rows, dense)

    monkeypatch.setattr(net, "predict", slow)
    items = [f"i{i:03}" for i in range(600)]
    answer = rank(client, items=items, deadline_ms=15)
    scores = [item["score"] for item in answer["items"]]
    assert scores == [0.5] * 512 + [None] * 88
    assert answer["items"][599]["task_scores"] == {}
    assert answer["degraded"] == ["deadline"]


@pytest.mark.parametrize(("age", "others"), [(3e38, 0.0), (-3e38, 0.0), (3e38, -3e38)])
def test_features_that_overflow_the_net_leave_the_item_last_without_score(
    world: World, make_client: MakeClient, age: float, others: float
) -> None:
    """Infinity, minus infinity, and their sum, which is not a number."""
    [a] = world.ids("item_id", ["a"])
    dense_weights = np.full((2, 2), 10.0, np.float32)
    world.base(
        {"item_id": table_rows({a: [others] * 5})},
        dense=linear_net(world.settings, dense=dense_weights),
    )
    answer = rank(make_client(world), items=["a"], user_features={"age": age})
    assert answer["items"][0]["score"] is None
    assert answer["items"][0]["task_scores"] == {}
    assert answer["degraded"] == []
    [impression] = impressions(world)
    assert math.isnan(impression.served["click"][0])


def test_nothing_scored_in_time_is_504(
    world: World, client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = service_of(client)
    model = service.replica.model
    assert model is not None
    real = model.read

    def slow(ids: Any) -> Any:
        world.clock.advance(ms=60)
        return real(ids)

    monkeypatch.setattr(model, "read", slow)
    body = {"user": "u", "candidates": [{"item": "a"}], "deadline_ms": 50}
    answer = client.post("/v1/rank", json=body)
    assert answer.status_code == 504
    assert answer.json()["type"] == "/problems/deadline"
    assert impressions(world) == []


def test_answers_during_base_swaps_are_each_of_one_version(
    world: World, make_client: MakeClient
) -> None:
    [known] = world.ids("item_id", ["a"])
    last_seq = 8

    def publish(seq: int) -> None:
        world.base({"item_id": table_rows({known: [seq / 10] * (DIM + 1)})}, seq=seq)

    def seqs_until_the_last(client: TestClient) -> list[int]:
        seqs = []
        while last_seq not in seqs:
            answer = rank(client, items=["a"])
            seq = answer["freshness"]["sparse_seq"]
            expected = sigmoid(seq / 10 * (DIM + 1))
            assert answer["items"][0]["score"] == pytest.approx(expected, abs=1e-6)
            assert answer["model"]["version"] == f"d0-s{seq}"
            assert answer["degraded"] == []
            seqs.append(seq)
        return seqs

    publish(0)
    client = make_client(world)
    replica = service_of(client).replica
    with ThreadPoolExecutor(2) as pool:
        asking = [pool.submit(seqs_until_the_last, client) for _ in range(2)]
        for seq in range(1, last_seq + 1):
            publish(seq)
            until(partial(serves, replica, seq))
        assert all(one.result(10) == sorted(one.result()) for one in asking)


def serves(replica: Replica, seq: int) -> bool:
    model = replica.model
    return model is not None and model.current.info.seq == seq


def test_without_a_base_the_answer_is_503(world: World, make_client: MakeClient) -> None:
    client = make_client(world, wait=False)
    answer = client.post("/v1/rank", json={"user": "u", "candidates": []})
    assert answer.status_code == 503
    assert answer.json()["type"] == "/problems/model-not-ready"
    assert "Retry-After" in answer.headers


def test_server_timing_names_the_stages(client: TestClient) -> None:
    answer = client.post("/v1/rank", json={"user": "u", "candidates": [{"item": "a"}]})
    stages = dict(part.split(";dur=") for part in answer.headers["Server-Timing"].split(", "))
    assert set(stages) == {"parse", "lookup", "forward"}
    assert all(float(duration) > 0 for duration in stages.values())
