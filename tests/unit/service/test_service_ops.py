"""Probes, metrics, stats, models, the operator's commands, the page and the OpenAPI document."""

import re
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from freshrank.messages import Control
from freshrank.metrics import Reading
from freshrank.transport.base import CONTROL
from service import openapi
from tests.conftest import Golden
from tests.unit.service.conftest import MakeClient, MakeWorld
from tests.unit.service.support import (
    DIM,
    NOW_MS,
    StubLoop,
    TestClient,
    World,
    make_settings,
    service_of,
    table_rows,
    until,
)


def test_readiness_names_what_is_missing(world: World, make_client: MakeClient) -> None:
    client = make_client(world, wait=False)
    assert client.get("/health/live").json() == {"live": True}
    answer = client.get("/health/ready")
    assert answer.status_code == 503
    [sync] = [c for c in answer.json()["components"] if c["name"] == "sync"]
    assert sync == {"name": "sync", "ready": False, "reason": "no base loaded"}
    world.base()
    until(lambda: client.get("/health/ready").status_code == 200)
    assert client.get("/health/ready").json()["ready"] is True


def test_readiness_tells_why_a_base_was_refused(world: World, make_client: MakeClient) -> None:
    world.base(schema_hash="0" * 16)
    client = make_client(world, wait=False)
    until(lambda: service_of(client).replica.refusals == {"schema": 1})
    assert "schema" in client.get("/health/ready").text


def test_pause_and_resume_become_control_records(world: World, client: TestClient) -> None:
    answer = client.post("/v1/admin/trainer/pause", json={"reason": "drift"})
    assert answer.status_code == 202
    assert answer.json() == {"command": "pause", "reason": "drift", "offset": 0}
    assert client.get("/v1/stats").json()["trainer"]["paused"] is True
    assert client.post("/v1/admin/trainer/resume").status_code == 202
    assert client.get("/v1/stats").json()["trainer"]["paused"] is False
    controls = [one for one in world.records(CONTROL) if isinstance(one, Control)]
    assert [(one.command, one.reason) for one in controls] == [("pause", "drift"), ("resume", "")]
    world.log.is_full = True
    assert client.post("/v1/admin/trainer/pause").status_code == 503


def test_a_roll_back_becomes_a_control_record_and_says_what_is_served(
    world: World, make_client: MakeClient
) -> None:
    world.base(seq=4, dense_version=2)
    client = make_client(world)
    client.post("/v1/admin/trainer/pause")
    body = {"to": "kept-good", "reason": "poison", "relearn": True}
    answer = client.post("/v1/admin/rollback", json=body)
    assert answer.status_code == 202
    model = client.get("/v1/models/main").json()
    told = {"command": "rollback", **body, "dry_run": False, "offset": 1, "from": model}
    assert answer.json() == told
    said = world.records(CONTROL)[-1]
    assert isinstance(said, Control)
    assert (said.command, said.to, said.relearn) == ("rollback", "kept-good", True)
    assert client.get("/v1/stats").json()["trainer"]["paused"] is True


def test_a_dry_roll_back_says_what_would_be_undone_and_does_nothing(
    make_world: MakeWorld, make_client: MakeClient
) -> None:
    loop = StubLoop()
    loop.totals = {"rows_learned": 70}
    loop.checkpoints = [{"name": "kept-good", "rows_learned": 50}, {"name": "kept-torn"}]
    world = make_world(loop=loop)
    world.base()
    client = make_client(world)

    def undone(to: str) -> Any:
        return client.post("/v1/admin/rollback", json={"to": to, "dry_run": True})

    answer = undone("kept-good")
    assert (answer.status_code, answer.json()["offset"]) == (200, None)
    assert answer.json()["snapshot"] == loop.checkpoints[0]
    assert answer.json()["rows_taken_back"] == 20
    assert undone("kept-torn").json()["rows_taken_back"] is None
    assert undone("kept-else").status_code == 404
    assert world.records(CONTROL) == []
    assert client.get("/v1/admin/snapshots").json() == {"snapshots": loop.checkpoints}


def test_without_a_trainer_nobody_knows_the_checkpoints(client: TestClient) -> None:
    assert client.get("/v1/admin/snapshots").json() == {"snapshots": None}
    answer = client.post("/v1/admin/rollback", json={"to": "kept-good", "dry_run": True})
    assert answer.status_code == 200
    assert (answer.json()["snapshot"], answer.json()["rows_taken_back"]) == (None, None)


@pytest.mark.parametrize(
    ("body", "pointer"),
    [({}, "#"), ({"to": ""}, "#/to"), ({"to": 7}, "#/to"), ({"to": "x" * 81}, "#/to")],
)
def test_a_roll_back_to_nowhere_is_refused(
    world: World, client: TestClient, body: dict[str, Any], pointer: str
) -> None:
    answer = client.post("/v1/admin/rollback", json=body)
    assert answer.status_code == 422
    assert [one["pointer"] for one in answer.json()["errors"]] == [pointer]
    assert world.records(CONTROL) == []


def test_models_describe_what_answers(world: World, make_client: MakeClient) -> None:
    world.base(seq=4, dense_version=2, examples=10, metrics={"click.auc": 0.75})
    client = make_client(world)
    model = client.get("/v1/models/main").json()
    assert client.get("/v1/models").json() == {"models": [model]}
    assert model["version"] == "d2-s4"
    assert (model["epoch"], model["sparse_seq"], model["dense_version"]) == (1, 4, 2)
    assert model["tasks"][0] == {"name": "click", "event": "click", "loss": "logloss"}
    assert (model["examples"], model["metrics"]) == (10, {"click.auc": 0.75})
    assert model["created_at"] == "2025-11-21T07:00:00.000Z"


def test_models_without_a_base(world: World, make_client: MakeClient) -> None:
    client = make_client(world, wait=False)
    assert client.get("/v1/models").json() == {"models": []}
    assert client.get("/v1/models/main").status_code == 503
    assert client.get("/v1/stats").json()["model"] is None


def test_schema_shows_features_and_limits(world: World, client: TestClient) -> None:
    document = client.get("/v1/schema").json()
    assert document["schema_hash"] == world.encoder.schema_hash
    assert [feature["name"] for feature in document["features"]] == [
        feature.name for feature in world.settings.features
    ]
    assert document["limits"]["candidates"] == 1_000
    assert document["limits"]["body_bytes"] == 2 << 20


def test_version_changes_with_the_configuration_but_not_with_keys(
    make_world: MakeWorld, make_client: MakeClient
) -> None:
    key = {"name": "web", "sha256": "0" * 64, "scopes": ["rank"]}
    hashes = []
    for changes in ({}, {"salt": 5}, {"auth": {"keys": [key]}}):
        client = make_client(make_world(settings=make_settings(**changes)), wait=False)
        answer = client.get("/v1/version")
        hashes.append(answer.json().get("config_hash", "guarded"))
    assert hashes[0] != hashes[1]
    assert re.fullmatch(r"[0-9a-f]{16}", hashes[0])
    assert hashes[2] == "guarded"


def test_stats_show_the_whole_loop(make_world: MakeWorld, make_client: MakeClient) -> None:
    loop = StubLoop()
    loop.totals = {"matched": 3}
    loop.gauges = {"auc": 0.8, "rows": 12, "filtered": 4}
    loop.gauges |= {"tables.item_id.rows": 9.0, "tables.item_id.evicted": 2.0}
    world = make_world(loop=loop)
    world.base({"item_id": table_rows({1: [0.0] * (DIM + 1)})})
    client = make_client(world)
    client.post("/v1/rank", json={"user": "ranked", "candidates": [{"item": "seen"}]})
    events: list[dict[str, Any]] = [
        {"kind": "user", "user": "known", "features": {"age": 5}},
        {"kind": "item", "item": "jazz-1", "features": {"tags": ["jazz"]}},
    ]
    client.post("/v1/events", json={"events": events})
    world.delta(action_appended_at_ms=[NOW_MS - 800])
    service = service_of(client)
    until(lambda: len(service.entities) == 2 and len(service.replica.action_freshness) == 1)
    world.clock.advance(ms=2_500)
    stats = client.get("/v1/stats").json()
    assert stats["simulated"] is False
    assert stats["model"]["version"] == "d0-s1"
    assert stats["freshness"]["p50_seconds"] == stats["freshness"]["p99_seconds"] == 0.8
    assert stats["freshness"]["sparse_age_seconds"] == 2.5
    assert stats["freshness"]["sparse_seq"] == 1
    assert (stats["auc"], stats["rows"], stats["filtered"], stats["events"]) == (0.8, 12, 4, 2)
    assert stats["accounting"] == {"matched": 3}
    assert stats["ingest"]["accepted"] == 2
    assert {key: value for key, value in stats["tables"][1].items() if key != "bytes"} == {
        "name": "item_id",
        "rows": 1,
        "trainer": {"rows": 9, "evicted": 2},
    }
    assert stats["tables"][0]["trainer"] is None
    assert stats["uptime_seconds"] == 2.5
    assert stats["sample"] == {
        "users": [{"id": "known", "features": {"age": 5}}, {"id": "ranked", "features": {}}],
        "items": [{"id": "jazz-1", "features": {"tags": ["jazz"]}}, {"id": "seen", "features": {}}],
    }


def test_a_loop_that_stopped_is_away_at_once(
    make_world: MakeWorld, make_client: MakeClient
) -> None:
    loop = StubLoop()
    world = make_world(loop=loop)
    world.base()
    client = make_client(world)
    assert client.get("/v1/stats").json()["degraded"] == []
    loop.learning = False
    assert client.get("/v1/stats").json()["degraded"] == ["trainer_away"]
    answer = client.post("/v1/rank", json={"user": "u", "candidates": [{"item": "a"}]})
    assert answer.json()["degraded"] == ["trainer_away"]
    loop.learning = True
    assert client.get("/v1/stats").json()["degraded"] == []


@pytest.mark.parametrize(("gauge", "told"), [("held_back", "held_back"), ("unsaved", "checkpoint")])
def test_what_the_trainer_of_the_process_lacks_is_told(
    gauge: str, told: str, make_world: MakeWorld, make_client: MakeClient
) -> None:
    loop = StubLoop()
    world = make_world(loop=loop)
    world.base()
    client = make_client(world)
    loop.gauges = {gauge: 1.0}
    answer = client.post("/v1/rank", json={"user": "u", "candidates": [{"item": "a"}]})
    assert answer.json()["degraded"] == [told]
    assert client.get("/health/ready").json()["degraded"] == [told]
    loop.gauges = {gauge: 0.0}
    assert client.get("/v1/stats").json()["degraded"] == []


def test_samples_are_small(world: World, client: TestClient) -> None:
    candidates = [{"item": f"i{i}"} for i in range(40)]
    for user in range(12):
        client.post("/v1/rank", json={"user": f"u{user}", "candidates": candidates})
    sample = client.get("/v1/stats").json()["sample"]
    assert (len(sample["users"]), len(sample["items"])) == (8, 12)


def test_metrics_are_prometheus_text(make_world: MakeWorld, make_client: MakeClient) -> None:
    loop = StubLoop()
    loop.found = [Reading("joiner_examples", 7, {"partition": "0", "outcome": "matched"})]
    world = make_world(loop=loop)
    world.base({"item_id": table_rows({1: [0.0] * (DIM + 1)})})
    world.delta(action_appended_at_ms=[NOW_MS - 800])
    client = make_client(world)
    client.post("/v1/rank", json={"user": "u", "candidates": []})
    families = {f.name: f for f in text_string_to_metric_families(client.get("/metrics").text)}
    ours = {name for name in families if name.startswith("freshrank_")}
    assert ours == {
        "freshrank_build_info",
        "freshrank_entities_left_out",
        "freshrank_events_received",
        "freshrank_events_rejected",
        "freshrank_freshness_event_to_servable_seconds",
        "freshrank_http_rejected",
        "freshrank_http_request_duration_seconds",
        "freshrank_http_requests",
        "freshrank_http_requests_in_flight",
        "freshrank_http_requests_limit",
        "freshrank_joiner_examples",
        "freshrank_log_unacknowledged_bytes",
        "freshrank_serving_feature_state_up",
        "freshrank_serving_sync_epoch",
        "freshrank_serving_sync_seq",
        "freshrank_store_bytes",
        "freshrank_store_rows",
        "freshrank_sync_batches",
        "freshrank_sync_last_success_timestamp_seconds",
    }
    assert "process_resident_memory_bytes" in families
    value = world.registry.get_sample_value
    assert value("freshrank_http_requests_limit") == 64
    assert value("freshrank_log_unacknowledged_bytes") == 0
    labels = {"partition": "0", "outcome": "matched"}
    assert value("freshrank_joiner_examples_total", labels) == 7
    assert value("freshrank_store_rows", {"side": "serving", "slot": "item_id"}) == 1
    age_name = "freshrank_sync_last_success_timestamp_seconds"
    assert value(age_name, {"kind": "sparse"}) == NOW_MS / 1_000
    labels = {"route": "/v1/rank", "method": "POST", "code": "200"}
    assert value("freshrank_http_requests_total", labels) == 1


def test_the_page_loads_nothing_from_elsewhere(shared_client: TestClient) -> None:
    assert shared_client.get("/", follow_redirects=False).headers["Location"] == "/ui/"
    page = shared_client.get("/")
    assert page.status_code == 200
    assert page.headers["Content-Security-Policy"].startswith("default-src 'self'")
    assert not re.findall(r"(?:src|href)=\"(?:https?:)?//", page.text)
    assert page.headers["X-Content-Type-Options"] == "nosniff"


def test_the_openapi_document_is_the_golden_one(shared_client: TestClient, golden: Golden) -> None:
    golden("openapi.json", shared_client.get("/openapi.json").json())


def test_operation_ids_are_stable_names(shared_client: TestClient) -> None:
    paths = shared_client.get("/openapi.json").json()["paths"]
    ids = [operation["operationId"] for path in paths.values() for operation in path.values()]
    assert len(ids) == len(set(ids))
    assert all(re.fullmatch(r"[a-z_]+", one) for one in ids)


def test_every_response_struct_is_documented() -> None:
    assert {body.__name__ for body in openapi.BODIES} >= {
        "RankResponse", "EventsResponse", "ReceiptResponse", "ProblemDocument",
    }  # fmt: skip
