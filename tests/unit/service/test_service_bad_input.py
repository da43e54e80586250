"""Bad input: a clear 4xx or a degraded answer, never a 5xx, never a loss."""

import gzip
import json
import math
import tracemalloc
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from freshrank.messages import Entity, Impression
from freshrank.transport.base import ACTIONS, ENTITIES, IMPRESSIONS
from tests.unit.service.conftest import MakeClient, MakeWorld
from tests.unit.service.support import DIM, TestClient, World, make_settings, table_rows

JSON = {"Content-Type": "application/json"}


@pytest.fixture(name="world")
def the_world(shared_world: World) -> World:
    return shared_world


@pytest.fixture(name="client")
def the_client(shared_client: TestClient) -> TestClient:
    return shared_client


POSTS = ("/v1/rank", "/v1/events", "/v1/feedback", "/v1/admin/trainer/pause", "/v1/admin/rollback")


def post(client: TestClient, path: str, content: bytes) -> tuple[int, dict[str, Any]]:
    answer = client.post(path, content=content, headers=JSON)
    return answer.status_code, answer.json()


@pytest.mark.parametrize("path", POSTS)
@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"{]",
        b"\xff\xfe",
        b'{"user": NaN}',
        b'{"user": Infinity}',
        b'{"user": -Infinity}',
        b'{"user": "\xff"}',
        b'{"user": "\\ud800"}',
        b'{"user": "\\udc00\\ud800"}',
        b'{"a": 1} 2',
        b'{"user": "u", "x": ' + b"[" * 50_000 + b"]" * 50_000 + b"}",
        b"[" * 100_000,
        b'{"a":' * 100_000,
    ],
)
def test_what_is_not_json_is_400(client: TestClient, path: str, body: bytes) -> None:
    status, problem = post(client, path, body)
    assert status == 400
    assert problem["type"] == "/problems/malformed-json"


@pytest.mark.parametrize(
    "event", [{"kind": "impression", "request_id": "r", "items": []}, {"event_id": "e"}]
)
@pytest.mark.parametrize("is_list", [False, True])
def test_an_event_without_its_wrapper_is_told_where_events_go(
    client: TestClient, event: dict[str, Any], is_list: bool
) -> None:
    content = json.dumps([event] if is_list else event).encode()
    status, problem = post(client, "/v1/events", content)
    assert status == 422
    [error] = problem["errors"]
    assert error["detail"].endswith('events go in {"events": […]}')
    assert "mean" not in error["detail"]


def test_feedback_knows_its_own_fields_alone(client: TestClient) -> None:
    body = b'{"request_id":"r","item":"a","event":"click","candidates":[]}'
    [error] = post(client, "/v1/feedback", body)[1]["errors"]
    assert error == {
        "pointer": "#/candidates",
        "detail": "unknown field 'candidates'; known: event, event_id, item, request_id, ts, user, "
        "value",
    }


@pytest.mark.parametrize("body", [b"null", b"[]", b"3", b'"x"', b"true"])
@pytest.mark.parametrize("path", POSTS)
def test_json_that_is_no_object_is_422(client: TestClient, path: str, body: bytes) -> None:
    assert post(client, path, body)[0] == 422


def candidates(**features: Any) -> dict[str, Any]:
    return {"user": "u", "candidates": [{"item": "a"}, {"item": "b", "features": features}]}


@pytest.mark.parametrize(
    ("change", "pointer", "words"),
    [
        ({"usr": "x"}, "#/usr", "did you mean 'user'"),
        ({"items": []}, "#/items", "unknown field 'items'; known: after, candidates, context, "),
        ({"kind": "rank"}, "#/kind", "unknown field 'kind'; known: after, candidates"),
        ({"candidates": [{"item": "a", "user": 1}]}, "#/candidates/0/user", "; known: features, "),
        ({"user": None}, "#/user", "got `null`"),
        ({"user": 1.5}, "#/user", "got `float`"),
        ({"user": True}, "#/user", "got `bool`"),
        ({"user": ""}, "#/user", "length >= 1"),
        ({"user": "u" * 257}, "#/user", "length <= 256"),
        ({"user": 7}, "#/user", "expected a string"),
        ({"candidates": {}}, "#/candidates", "array"),
        ({"candidates": [3]}, "#/candidates/0", "object"),
        ({"candidates": [{"item": "a", "featurs": {}}]}, "#/candidates/0/featurs", "'features'"),
        ({"candidates": [{"features": {}}]}, "#/candidates/0", "missing required field"),
        ({"candidates": [{"item": "a"}, {"item": "a"}]}, "#/candidates/1/item", "same item"),
        ({"candidates": [{"item": "é"}, {"item": "e\u0301"}]}, "#/candidates/1/item", "same"),
        (candidates(prce=1), "#/candidates/1/features/prce", "did you mean 'price'"),
        (candidates(price="9"), "#/candidates/1/features/price", "a number"),
        (candidates(price=True), "#/candidates/1/features/price", "a number"),
        (candidates(price=-1), "#/candidates/1/features/price", "from 0"),
        (candidates(price=1e300), "#/candidates/1/features/price", "finite"),
        (candidates(price=10**400), "#/candidates/1/features/price", ""),
        (candidates(price={"a": 1}), "#/candidates/1/features/price", "object"),
        (candidates(tags=["x"] * 257), "#/candidates/1/features/tags", "256"),
        (candidates(tags=["x" * 257]), "#/candidates/1/features/tags", "256"),
        (candidates(tags=[{}]), "#/candidates/1/features/tags/0", "object"),
        (candidates(age=1), "#/candidates/1/features/age", "scope user"),
        (candidates(item_id="x"), "#/candidates/1/features/item_id", ""),
        (candidates(last_clicks=["x"]), "#/candidates/1/features/last_clicks", "filled in"),
        (candidates(**{f"f{i}": 1 for i in range(129)}), "#/candidates/1/features", "128"),
        ({"user_features": {"hour": 3}}, "#/user_features/hour", "scope context"),
        ({"context": {"hour": "x"}}, "#/context/hour", "a number"),
        ({"top_k": 0}, "#/top_k", ">= 1"),
        ({"top_k": 1.5}, "#/top_k", "float"),
        ({"exclude": ["ok", 5]}, "#/exclude/1", "expected a string"),
        ({"exclude": "a"}, "#/exclude", "array"),
        ({"model": "other"}, "#/model", "'main'"),
        ({"deadline_ms": 0}, "#/deadline_ms", ">= 1"),
        ({"deadline_ms": 1 << 64}, "#/deadline_ms", ""),
        ({"request_id": ""}, "#/request_id", "length"),
        ({"log_impression": 1}, "#/log_impression", "bool"),
        ({"after": "nothing"}, "#/after", "receipt"),
    ],
)
def test_a_wrong_rank_request_is_422_at_the_right_place(
    world: World, client: TestClient, change: dict[str, Any], pointer: str, words: str
) -> None:
    body = {"user": "u", "candidates": [{"item": "a"}], **change}
    n_before = len(world.records(IMPRESSIONS))
    answer = client.post("/v1/rank", json=body)
    assert answer.status_code == 422, answer.text
    [error] = answer.json()["errors"]
    assert error["pointer"] == pointer
    assert words in error["detail"]
    assert len(world.records(IMPRESSIONS)) == n_before


def test_numbers_beyond_all_bounds_are_422(client: TestClient) -> None:
    for number in (b"1e999", b"-1e999", b"1" * 5_000, b"-" + b"1" * 5_000):
        body = b'{"user":"u","candidates":[{"item":"a","features":{"price":%b}}]}' % number
        assert post(client, "/v1/rank", body)[0] in (400, 422)
        body = b'{"user":%b,"candidates":[]}' % number
        assert post(client, "/v1/rank", body)[0] in (400, 422)
        for field in (b"ts", b"value"):
            body = b'{"request_id":"r","item":"a","event":"click","%b":%b}' % (field, number)
            assert post(client, "/v1/feedback", body)[0] in (400, 422)


@pytest.mark.parametrize("number", [5e-324, 2e-308, 1e-40, -0.0])
def test_the_smallest_numbers_are_taken(client: TestClient, number: float) -> None:
    body = {"user": "u", "candidates": [{"item": "a", "features": {"price": number}}]}
    answer = client.post("/v1/rank", json=body)
    assert answer.status_code == 200, answer.text
    assert math.isfinite(answer.json()["items"][0]["score"])


def test_ids_of_any_characters_are_items_of_their_own(client: TestClient, world: World) -> None:
    ids = [
        "a",
        "a\0",
        "\0a",
        "a\u202e",
        "\u2066a\u2069",
        "a\u200b",
        "\x1b[2Ja",
        "a\u2028",
        "\uff41",
    ]
    body = {"request_id": "any", "user": "u\0", "candidates": [{"item": one} for one in ids]}
    answer = client.post("/v1/rank", json=body)
    assert answer.status_code == 200, answer.text
    assert sorted(one["item"] for one in answer.json()["items"]) == sorted(ids)
    impression = world.records(IMPRESSIONS)[-1]
    assert isinstance(impression, Impression)
    assert (impression.user, sorted(impression.items)) == ("u\0", sorted(ids))
    assert len(set(world.ids("item_id", ids))) == len(ids)


def test_all_mistakes_are_told_up_to_twenty(client: TestClient) -> None:
    wrong = [{"item": f"i{i}", "features": {"nope": 1}} for i in range(30)]
    answer = client.post("/v1/rank", json={"user": "u", "candidates": wrong})
    errors = answer.json()["errors"]
    assert [error["pointer"] for error in errors] == [
        f"#/candidates/{i}/features/nope" for i in range(20)
    ]
    assert answer.json()["detail"] == "20 problems"


def test_a_hundred_thousand_candidates_are_422(client: TestClient) -> None:
    body = b'{"user":"u","candidates":[' + b",".join([b'{"item":"a"}'] * 100_000) + b"]}"
    status, problem = post(client, "/v1/rank", body)
    assert status == 422
    assert problem["errors"] == [
        {"pointer": "#/candidates", "detail": "100000 candidates, at most 1000 are allowed"}
    ]


def test_too_many_events_are_422(world: World, client: TestClient) -> None:
    event = {"kind": "feedback", "request_id": "r", "item": "a", "event": "click"}
    n_before = world.log.end_offset(ACTIONS, 0)
    for events, words in (([event] * 1_001, "at most 1000"), ([], "at least one")):
        answer = client.post("/v1/events", json={"events": events})
        assert answer.status_code == 422
        assert words in answer.json()["errors"][0]["detail"]
    assert world.log.end_offset(ACTIONS, 0) == n_before


@pytest.mark.parametrize("path", POSTS)
def test_ten_megabytes_are_413(client: TestClient, path: str) -> None:
    status, problem = post(client, path, b" " * (10 << 20))
    assert status == 413
    assert problem["type"] == "/problems/too-large"


@pytest.mark.parametrize("path", POSTS)
def test_what_unpacks_to_a_gigabyte_is_not_unpacked(client: TestClient, path: str) -> None:
    bomb = gzip.compress(bytes(1 << 20)) * 1_024  # members one after the other are a file, too
    assert len(bomb) < 2 << 20
    tracemalloc.start()
    try:
        answer = client.post(path, content=bomb, headers={**JSON, "Content-Encoding": "gzip"})
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert answer.status_code == 415
    assert answer.headers["Accept-Encoding"] == "identity"
    assert "Content-Encoding is 'gzip'" in answer.json()["detail"]
    assert peak_bytes < 32 << 20
    assert post(client, path, bomb)[0] == 400  # without the header it is no JSON


@pytest.mark.parametrize("path", POSTS)
def test_a_body_without_length_is_counted(client: TestClient, path: str) -> None:
    n_sent = 0

    def endless() -> Any:
        nonlocal n_sent
        while n_sent < 64:
            n_sent += 1
            yield b" " * (1 << 20)

    answer = client.post(path, content=endless(), headers=JSON)
    assert answer.status_code == 413


UINT64S = [0, 1, 1 << 63, (1 << 63) - 1, (1 << 53) + 1, 1 << 53, (1 << 64) - 1]


@pytest.mark.parametrize("form", [int, str])
def test_every_uint64_is_an_item_of_its_own(
    make_world: MakeWorld, make_client: MakeClient, form: type[int] | type[str]
) -> None:
    """Each has a row of its own, so each has a score of its own, however it is written."""
    world = make_world(settings=make_settings(item_key="uint64"))
    rows = {identity: [rank * 0.1] * (DIM + 1) for rank, identity in enumerate(UINT64S)}
    world.base({"item_id": table_rows(rows)})
    client = make_client(world)
    candidates = [{"item": form(identity)} for identity in UINT64S]
    answer = client.post("/v1/rank", json={"user": "u", "candidates": candidates}).json()
    assert [item["item"] for item in answer["items"]] == [str(one) for one in reversed(UINT64S)]
    assert len({item["score"] for item in answer["items"]}) == len(UINT64S)
    assert all(item["known"] for item in answer["items"])
    for identity in UINT64S:
        body = {"user": "u", "candidates": candidates, "exclude": [form(identity)]}
        kept = [item["item"] for item in client.post("/v1/rank", json=body).json()["items"]]
        assert kept == [str(one) for one in reversed(UINT64S) if one != identity]
    items = {"kind": "impression", "request_id": "r", "items": candidates}
    features: list[dict[str, Any]] = [
        {"kind": "item", "item": form(one), "features": {}} for one in UINT64S
    ]
    sent = client.post("/v1/events", json={"events": [items, *features]})
    assert sent.json()["accepted"] == 1 + len(UINT64S)
    impression = world.records(IMPRESSIONS)[-1]
    assert isinstance(impression, Impression)
    assert impression.items == [str(one) for one in UINT64S]
    entities = [one.id for one in world.records(ENTITIES) if isinstance(one, Entity)]
    assert sorted(entities) == sorted(map(str, UINT64S))


NO_UINT64S = (-1, 1 << 64, 1e30, 1.5, "-1", "18446744073709551616", "1e30", "007", "x", "")


@pytest.mark.parametrize("identity", NO_UINT64S)
def test_what_is_no_uint64_is_422(
    make_world: MakeWorld, make_client: MakeClient, identity: float | str
) -> None:
    world = make_world(settings=make_settings(item_key="uint64"))
    world.base()
    client = make_client(world)
    ranked = client.post("/v1/rank", json={"user": "u", "candidates": [{"item": identity}]})
    assert ranked.status_code == 422
    assert ranked.json()["errors"][0]["pointer"] == "#/candidates/0/item"
    event = {"request_id": "r", "item": identity, "event": "click"}
    fed = client.post("/v1/feedback", json=event)
    assert fed.status_code == 422
    assert fed.json()["errors"][0]["pointer"] == "#/item"
    shown = {"kind": "impression", "request_id": "r", "items": [{"item": 1}, {"item": identity}]}
    sent = client.post("/v1/events", json={"events": [shown, {**event, "kind": "feedback"}]})
    assert sent.status_code == 422
    pointers = [error["pointer"] for error in sent.json()["errors"]]
    assert pointers == ["#/events/0/items/1/item", "#/events/1/item"]
    body = {"user": "u", "candidates": [], "exclude": [identity]}
    assert client.post("/v1/rank", json=body).status_code == 422
    assert [world.records(topic) for topic in (ACTIONS, IMPRESSIONS)] == [[], []]


NAMES = st.sampled_from(
    ["user", "candidates", "item", "features", "price", "tags", "hour", "age", "events", "kind",
     "request_id", "event", "items", "ts", "value", "context", "user_features", "top_k", "exclude",
     "after", "reason", "last_clicks", "user_id", "item_id", "", "\x00"]
)  # fmt: skip
WORDS = st.sampled_from(["u", "a", "click", "feedback", "impression", "item", "user", "main"])
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | WORDS
    | st.text(max_size=8)
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=12,
)
FEATURES = st.dictionaries(NAMES, VALUES, max_size=3)
ITEMS = st.fixed_dictionaries({"item": LEAVES}, optional={"features": FEATURES})
RANKS = st.fixed_dictionaries(
    {"user": WORDS | LEAVES, "candidates": st.lists(ITEMS, max_size=4) | VALUES},
    optional={
        "context": FEATURES,
        "user_features": FEATURES,
        "top_k": LEAVES,
        "exclude": st.lists(LEAVES, max_size=2),
        "deadline_ms": LEAVES,
        "after": LEAVES,
    },
)
EVENTS = st.fixed_dictionaries(
    {"kind": WORDS},
    optional={
        "request_id": WORDS,
        "item": LEAVES,
        "user": LEAVES,
        "event": WORDS,
        "features": FEATURES,
        "items": st.lists(ITEMS, max_size=3),
        "ts": LEAVES,
        "value": LEAVES,
    },
)
BODIES = (
    RANKS
    | st.fixed_dictionaries({"events": st.lists(EVENTS | VALUES, max_size=3) | VALUES})
    | EVENTS
    | VALUES
)


@given(path=st.sampled_from(POSTS), body=BODIES)
@settings(
    max_examples=400,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_no_body_is_answered_with_5xx(client: TestClient, path: str, body: Any) -> None:
    status, answer = post(client, path, json.dumps(body).encode())
    assert status in (200, 202, 400, 422)
    if status >= 400:
        assert answer["status"] == status
        assert answer["detail"]


@given(path=st.sampled_from(POSTS), body=st.binary(max_size=64))
@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_no_bytes_are_answered_with_5xx(client: TestClient, path: str, body: bytes) -> None:
    assert client.post(path, content=body, headers=JSON).status_code in (200, 202, 400, 422)


def test_what_was_accepted_can_be_read_back(world: World, client: TestClient) -> None:
    """Values at their bounds survive the log: 64-bit integers, long texts, empty lists."""
    tags = ["x" * 256, "\U0001f600", ""]
    event = {"kind": "item", "item": "x" * 256, "features": {"tags": tags}}
    answer = client.post("/v1/events", json={"events": [event]})
    assert answer.status_code == 202
    entity = world.records(ENTITIES)[-1]
    assert isinstance(entity, Entity)
    assert entity.features == {"tags": tags}
    body = {
        "user": "\U0001f600" * 256,
        "candidates": [{"item": "i", "features": {"tags": [], "price": (1 << 64) - 1}}],
        "user_features": {"age": -(1 << 63)},
    }
    answer = client.post("/v1/rank", json=body)
    assert answer.status_code == 200, answer.text
    impression = world.records(IMPRESSIONS)[-1]
    assert isinstance(impression, Impression)
    assert impression.columns == {"tags": [[]], "price": [(1 << 64) - 1]}
    assert impression.shared["age"] == -(1 << 63)
