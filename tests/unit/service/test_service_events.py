"""Events in: checked, appended, acknowledged; and the entity view that reads some of them."""

from typing import Any

import pytest

from freshrank.feature_state import Did, FeatureUpdates, LocalFeatureState
from freshrank.features import FeatureEncoder
from freshrank.messages import (
    VERSION,
    Action,
    Entity,
    Impression,
    Value,
    encode,
    entity_key,
)
from freshrank.transport.base import (
    ACTIONS,
    ENTITIES,
    IMPRESSIONS,
    RECORD_BYTES_MAX,
    NewRecord,
)
from service import ingest as ingest_module
from service.bodies import ItemEvent
from service.core import Service
from service.event_checks import EventChecker, Refusal
from service.known import KnownFeatures, nobody_sent
from tests.unit.service.conftest import MakeClient, MakeWorld
from tests.unit.service.support import (
    NOW_MS,
    TestClient,
    World,
    make_settings,
    service_of,
    until,
)

CLICK = {"kind": "feedback", "request_id": "r", "item": "a", "event": "click"}


def send(client: TestClient, *events: dict[str, Any], status: int = 202) -> dict[str, Any]:
    answer = client.post("/v1/events", json={"events": list(events)})
    assert answer.status_code == status, answer.text
    document: dict[str, Any] = answer.json()
    return document


def actions(world: World) -> list[Action]:
    return [one for one in world.records(ACTIONS) if isinstance(one, Action)]


def test_every_kind_reaches_its_topic_under_its_key(world: World, client: TestClient) -> None:
    answer = send(
        client,
        {
            "kind": "impression",
            "event_id": "e1",
            "request_id": "r",
            "user": "u",
            "ts": "2025-11-21T08:00:00+01:00",
            "items": [
                {"item": "a", "position": 3, "features": {"price": 2.5}},
                {"item": "b", "features": {"tags": ["x"]}},
            ],
        },
        {**CLICK, "event_id": "e2", "user": "u", "value": 2.0, "ts": NOW_MS / 1_000 - 1.5},
        {"kind": "item", "event_id": "e3", "item": "a", "features": {"tags": ["jazz"]}},
        {"kind": "user", "event_id": "e4", "user": "u", "features": {"age": 3}},
    )
    assert (answer["accepted"], answer["duplicates"], answer["rejected"]) == (4, 0, [])
    assert world.records(IMPRESSIONS) == [
        Impression(
            event_id="e1",
            ts_ms=NOW_MS,
            request_id="r",
            user="u",
            items=["a", "b"],
            shared={"last_clicks": []},
            columns={"price": [2.5, None], "tags": [None, ["x"]]},
            positions=[3, 2],
            source="client",
            received_at_ms=NOW_MS,
        )
    ]
    assert world.records(ACTIONS) == [
        Action(
            event_id="e2",
            ts_ms=NOW_MS - 1_500,
            request_id="r",
            item="a",
            event="click",
            user="u",
            value=2.0,
            received_at_ms=NOW_MS,
        )
    ]
    assert world.records(ENTITIES) == [
        Entity(
            event_id="e3",
            ts_ms=NOW_MS,
            received_at_ms=NOW_MS,
            scope="item",
            id="a",
            features={"tags": ["jazz"]},
        ),
        Entity(
            event_id="e4",
            ts_ms=NOW_MS,
            received_at_ms=NOW_MS,
            scope="user",
            id="u",
            features={"age": 3},
        ),
    ]
    keys = [world.log.read(topic, 0, 0)[0].key for topic in (IMPRESSIONS, ACTIONS, ENTITIES)]
    assert keys == [b"r", b"r", b"item:a"]


ENTITY_EVENTS: list[dict[str, Any]] = [
    {"kind": "item", "item": "a", "features": {"tags": ["sent", "before"]}},
    {"kind": "item", "item": "b", "features": {"tags": ["sent"]}},
    {"kind": "user", "user": "u", "features": {"age": 3}},
]
SHOWN: dict[str, Any] = {
    "kind": "impression",
    "request_id": "shown",
    "user": "u",
    "ts": NOW_MS / 1_000 - 2,
    "items": [{"item": "a"}, {"item": "b", "features": {"tags": ["explicit"], "price": 2}}],
}
SHOWN_COLUMNS = {"tags": [["sent", "before"], ["explicit"]], "price": [None, 2]}


def shown(world: World) -> Impression:
    [impression] = [one for one in world.records(IMPRESSIONS) if isinstance(one, Impression)]
    return impression


def test_a_reported_impression_carries_what_a_ranking_would(
    world: World, client: TestClient
) -> None:
    """Features sent before, explicit ones winning, and feature state as of its event time."""
    before, at = Did(NOW_MS - 2_001, "e", "before"), Did(NOW_MS - 2_000, "f", "too late")
    world.state.apply(FeatureUpdates(did=[("click", "u", one) for one in (before, at)]))
    send(client, *ENTITY_EVENTS)
    until(lambda: len(service_of(client).entities) == 3)
    send(client, SHOWN)
    assert shown(world).columns == SHOWN_COLUMNS
    assert shown(world).shared == {"age": 3, "last_clicks": ["before"]}


def test_features_of_the_same_request_reach_its_impressions(
    world: World, client: TestClient
) -> None:
    send(client, *ENTITY_EVENTS, SHOWN)
    assert shown(world).columns == SHOWN_COLUMNS
    assert shown(world).shared == {"age": 3, "last_clicks": []}


def test_a_reported_impression_says_user_and_context_as_a_ranking_does(
    world: World, client: TestClient
) -> None:
    """What it says itself wins over what was sent before, as in a rank request."""
    said = {"user_features": {"age": 4}, "context": {"hour": 9}}
    send(client, *ENTITY_EVENTS, SHOWN | said)
    assert shown(world).shared == {"age": 4, "hour": 9, "last_clicks": []}


def test_without_a_user_an_impression_has_no_user_features(
    world: World, client: TestClient
) -> None:
    send(client, *ENTITY_EVENTS, {**SHOWN, "user": None, "context": {"hour": 9}})
    assert shown(world).columns == SHOWN_COLUMNS
    assert shown(world).shared == {"hour": 9}


def test_a_report_that_only_names_items_is_left_as_it_is(
    make_world: MakeWorld, make_client: MakeClient
) -> None:
    """The joiner takes the features that were served."""
    world = make_world(settings=make_settings(join={"impressions": "reported"}))
    world.base()
    send(make_client(world), *ENTITY_EVENTS, SHOWN)
    assert shown(world).columns == {"tags": [None, ["explicit"]], "price": [None, 2]}
    assert shown(world).shared == {}


def test_ndjson_is_taken_line_by_line(world: World, client: TestClient) -> None:
    lines = b'{"kind":"feedback","request_id":"r","item":"a","event":"click"}\n\n{"kind":"x"}\n'
    answer = client.post(
        "/v1/events", content=lines, headers={"Content-Type": "application/x-ndjson"}
    )
    assert answer.status_code == 202
    assert answer.json()["accepted"] == 1
    assert answer.json()["rejected"][0]["index"] == 1


@pytest.mark.parametrize(
    ("event", "pointer", "words"),
    [
        ({**CLICK, "event": "clik"}, "event", "did you mean 'click'"),
        ({**CLICK, "event": "ship"}, "event", "known: click, dwell"),
        ({**CLICK, "extra": 1}, "extra", "unknown field 'extra'"),
        ({**CLICK, "itme": 1}, "itme", "did you mean 'item'"),
        ({**CLICK, "items": []}, "items", "known: event, event_id, item, kind, request_id, ts, "),
        ({**CLICK, "candidates": []}, "candidates", "unknown field 'candidates'; known: event, "),
        ({"kind": "item", "item": "a", "features": {}, "request_id": "r"}, "request_id", "known: "),
        (
            {"kind": "impression", "request_id": "r", "items": [{"item": "a", "kind": "x"}]},
            "items/0/kind",
            "unknown field 'kind'; known: features, item, position",
        ),
        ({**CLICK, "value": True}, "value", "got `bool`"),
        ({**CLICK, "item": 5}, "item", "expected a string"),
        ({**CLICK, "item": ""}, "item", "length >= 1"),
        ({**CLICK, "user": 7}, "user", "expected a string"),
        ({**CLICK, "request_id": "r" * 257}, "request_id", "length <= 256"),
        ({**CLICK, "ts": "yesterday"}, "ts", "RFC 3339"),
        ({**CLICK, "ts": "2026-01-01T00:00:00"}, "ts", "time zone"),
        ({**CLICK, "ts": "0001-01-01T00:00:00+23:59"}, "ts", "before 1970"),
        ({**CLICK, "ts": -1}, "ts", "before 1970"),
        ({**CLICK, "ts": NOW_MS / 1_000 + 300.01}, "ts", "ahead"),
        ({**CLICK, "ts": NOW_MS}, "ts", "not milliseconds"),
        ({**CLICK, "ts": 10**300}, "ts", "ahead"),
        ({"kind": "order"}, "kind", "Invalid value 'order'"),
        ({"item": "a"}, "", "missing required field `kind`"),
        ({"kind": "item", "item": "a", "features": {"tag": []}}, "features/tag", "mean 'tags'"),
        ({"kind": "item", "item": "a", "features": {"tags": 3}}, "features/tags", "a list"),
        ({"kind": "item", "item": "a", "features": {"a/b~": 3}}, "features/a~1b~0", "unknown"),
        ({"kind": "item", "item": "a", "features": {"price": 1}}, "features/price", "scope"),
        ({"kind": "item", "item": "a", "features": {"tags": {}}}, "features/tags", "object"),
        (
            {"kind": "impression", "request_id": "r", "items": [{"item": "a"}, {"item": "a"}]},
            "items/1/item",
            "the same item as 0",
        ),
        ({"kind": "impression", "request_id": "r", "items": []}, "items", "length >= 1"),
        ({**SHOWN, "context": {"hours": 9}}, "context/hours", "did you mean 'hour'"),
        ({**SHOWN, "user_features": {"hour": 9}}, "user_features/hour", "of scope context"),
    ],
)
def test_a_wrong_event_is_named_and_the_good_one_accepted(
    shared_world: World,
    shared_client: TestClient,
    event: dict[str, Any],
    pointer: str,
    words: str,
) -> None:
    n_before = shared_world.log.end_offset(ACTIONS, 0)
    answer = send(shared_client, CLICK, event)
    assert answer["accepted"] == 1
    [rejection] = answer["rejected"]
    assert rejection["index"] == 1
    assert rejection["pointer"] == "#/events/1" + (pointer and f"/{pointer}")
    assert words in rejection["detail"]
    assert shared_world.log.end_offset(ACTIONS, 0) == n_before + 1


def test_only_wrong_events_are_422_with_all_reasons(world: World, client: TestClient) -> None:
    problem = send(client, {**CLICK, "event": "x"}, {**CLICK, "item": 1}, status=422)
    assert [one["pointer"] for one in problem["errors"]] == ["#/events/0/event", "#/events/1/item"]
    assert actions(world) == []


def test_received_is_accepted_plus_rejected_per_kind(world: World, client: TestClient) -> None:
    send(client, CLICK, {**CLICK, "event": "x"}, {"kind": "item", "item": 3, "features": {}}, CLICK)
    value = world.registry.get_sample_value
    for kind, received, rejected in (("feedback", 3, 1), ("item", 1, 1)):
        labels = {"kind": kind, "source": "http"}
        assert value("freshrank_events_received_total", labels) == received
        reason = "bad-id" if kind == "item" else "unknown-event"
        labels = {"kind": kind, "reason": reason}
        assert value("freshrank_events_rejected_total", labels) == rejected
    totals = service_of(client).ingest.totals()
    assert totals == {"received": 4, "accepted": 2, "rejected": 2, "duplicates": 0}


def test_five_minutes_ahead_is_the_last_moment_taken(world: World, client: TestClient) -> None:
    send(client, {**CLICK, "ts": NOW_MS / 1_000 + 300})
    assert actions(world)[0].ts_ms == NOW_MS + 300_000


def test_a_late_event_is_accepted_for_the_joiner_to_judge(world: World, client: TestClient) -> None:
    send(client, {**CLICK, "ts": 0})
    assert actions(world)[0].ts_ms == 0


def test_the_same_event_id_twice_is_a_duplicate(world: World, client: TestClient) -> None:
    batch = [{**CLICK, "event_id": "e1"}, {**CLICK, "event_id": "e2"}]
    assert send(client, *batch)["duplicates"] == 0
    assert send(client, *batch)["duplicates"] == 2
    assert send(client, {**CLICK, "event_id": "e3"}, {**CLICK, "event_id": "e3"})["duplicates"] == 1
    assert len(actions(world)) == 6


def test_without_event_id_equal_time_means_equal_event(world: World, client: TestClient) -> None:
    timed = {**CLICK, "ts": NOW_MS / 1_000}
    send(client, timed, timed, {**timed, "item": "b"}, CLICK, CLICK)
    ids = [action.event_id for action in actions(world)]
    assert ids[0] == ids[1]
    assert len(set(ids)) == 4


def test_the_memory_of_event_ids_is_bounded(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ingest_module, "RECENT_IDS_MAX", 2)
    for name in ("e1", "e2", "e3"):
        send(client, {**CLICK, "event_id": name})
    assert send(client, {**CLICK, "event_id": "e1"})["duplicates"] == 0
    assert send(client, {**CLICK, "event_id": "e3"})["duplicates"] == 1


def test_a_full_disk_is_503_and_nothing_is_acknowledged(world: World, client: TestClient) -> None:
    world.log.is_full = True
    answer = client.post("/v1/events", json={"events": [{**CLICK, "event_id": "e"}]})
    assert answer.status_code == 503
    assert answer.json()["type"] == "/problems/broker-unavailable"
    assert answer.headers["Retry-After"] == "1"
    assert service_of(client).ingest.totals()["received"] == 0
    assert actions(world) == []
    world.log.is_full = False
    assert send(client, {**CLICK, "event_id": "e"})["duplicates"] == 0
    assert [action.event_id for action in actions(world)] == ["e"]


def test_feedback_is_one_event_in_short(world: World, client: TestClient) -> None:
    answer = client.post("/v1/feedback", json={"request_id": "r", "item": "a", "event": "click"})
    assert answer.status_code == 202
    assert answer.json()["receipt"].startswith("ev-")
    [action] = actions(world)
    assert (action.request_id, action.item, action.event, action.user, action.value) == (
        "r", "a", "click", None, 1.0,
    )  # fmt: skip
    wrong = client.post("/v1/feedback", json={"request_id": "r", "item": 3, "event": "click"})
    assert wrong.status_code == 422
    assert wrong.json()["errors"][0]["pointer"] == "#/item"


@pytest.mark.parametrize("identity", [0, 1 << 63, (1 << 64) - 1])
def test_uint64_ids_are_taken_as_numbers_and_as_text(
    make_world: MakeWorld, make_client: MakeClient, identity: int
) -> None:
    world = make_world(settings=make_settings(item_key="uint64"))
    world.base()
    client = make_client(world)
    send(client, {**CLICK, "item": identity}, {**CLICK, "item": str(identity)})
    assert [action.item for action in actions(world)] == [str(identity)] * 2


def test_an_entity_above_the_record_limit_is_refused() -> None:
    features = [{"name": f"t{i}", "type": "id_list", "scope": "item"} for i in range(10)]
    settings = make_settings(
        features=[{"name": "item_id", "type": "id", "scope": "item"}, *features]
    )
    encoder = FeatureEncoder(settings)
    known = KnownFeatures(settings, encoder, nobody_sent, LocalFeatureState(settings))
    checker = EventChecker(settings, encoder, known)
    text = "x" * 250
    big: dict[str, Value] = {f"t{i}": [text] * 256 for i in range(10)}
    assert RECORD_BYTES_MAX < 10 * 256 * 250
    with pytest.raises(Refusal, match="bytes of features"):
        checker.check(ItemEvent(item="a", features=big), received_at_ms=NOW_MS)


def test_the_simulated_audience_submits_mappings(world: World, client: TestClient) -> None:
    answer = service_of(client).ingest.submit([CLICK, {**CLICK, "nope": 1}])
    assert answer.accepted == 1
    assert answer.rejected[0].pointer == "#/events/1/nope"
    labels = {"kind": "feedback", "source": "simulation"}
    assert world.registry.get_sample_value("freshrank_events_received_total", labels) == 1


def test_the_entity_view_starts_at_the_beginning_of_the_log(
    world: World, make_client: MakeClient
) -> None:
    def entity(features: dict[str, Any]) -> NewRecord:
        message = Entity(
            event_id="e", ts_ms=1, received_at_ms=1, scope="item", id="a", features=features
        )
        return NewRecord(entity_key("item", "a"), encode(message))

    garbage = NewRecord(b"item:b", b"garbage")
    newer = Entity(
        v=VERSION + 1, event_id="e", ts_ms=1, received_at_ms=1, scope="item", id="b", features={}
    )
    world.log.append(ENTITIES, [entity({"tags": ["old"]}), garbage])
    world.log.append(ENTITIES, [NewRecord(entity_key("item", "b"), encode(newer))])
    # Accepted by an earlier configuration: what this one does not take is left out.
    world.log.append(ENTITIES, [entity({"tags": ["new"], "gone": 1, "price": 2})])
    world.base()
    client = make_client(world)
    view = service_of(client).entities
    assert view.features("item", "a") == {"tags": ["new"]}
    assert view.features("item", "b") == {}
    name, unusable = "freshrank_entities_left_out_total", {"reason": "unusable"}
    assert world.registry.get_sample_value(name, unusable) == 4
    assert len(view) == 1


def test_what_an_earlier_configuration_took_never_reaches_a_request(
    world: World, make_client: MakeClient
) -> None:
    """However much of it there is: the check names 20 problems and stops."""
    gone: dict[str, Value] = {f"gone{i}": 1 for i in range(25)}
    features = {**gone, "tags": 3}
    entity = Entity(
        event_id="e", ts_ms=1, received_at_ms=1, scope="item", id="a", features=features
    )
    world.log.append(ENTITIES, [NewRecord(entity_key("item", "a"), encode(entity))])
    world.base()
    client = make_client(world)
    assert service_of(client).entities.features("item", "a") == {}
    answer = client.post("/v1/rank", json={"user": "u", "candidates": [{"item": "a"}]})
    assert answer.status_code == 200, answer.text


def test_the_entity_view_catches_up_before_the_service_is_ready(
    world: World, make_client: MakeClient
) -> None:
    record = NewRecord(
        b"item:a",
        encode(Entity(event_id="e", ts_ms=1, received_at_ms=1, scope="item", id="a", features={})),
    )
    for _ in range(3):
        world.log.append(ENTITIES, [record] * 500)
    world.base()
    service = Service(world.parts)
    ready = {c.name: c.ready for c in service.health.components()}
    assert ready == {"sync": False, "entities": False, "warmup": False}
    while service.entities.step(0.0):
        pass
    assert service.entities.offset(0) == 1_500
    assert {c.name: c.ready for c in service.health.components()}["entities"]
