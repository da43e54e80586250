"""The OpenAPI document and the decoders accept and refuse the same bodies."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings

from tests.unit.service.support import TestClient
from tests.unit.service.test_service_bad_input import EVENTS, RANKS

jsonschema_rs = pytest.importorskip("jsonschema_rs")

IsValid = Callable[[str, Any], bool]
# What the decoders say; what a body means is checked after them, in other words.
DECODER_WORDS = ("Expected `", "unknown field", "missing required field", "Invalid value")

relaxed = settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture(scope="module")
def is_valid(shared_client: TestClient) -> IsValid:
    """Whether a body is an instance of a named component of the document."""
    components = shared_client.get("/openapi.json").json()["components"]
    validators = {
        name: jsonschema_rs.validator_for(
            {"$ref": f"#/components/schemas/{name}", "components": components}
        )
        for name in ("RankRequest", "EventsRequest")
    }
    return lambda name, body: bool(validators[name].is_valid(body))


def has_whole_float(body: Any) -> bool:
    """JSON Schema calls 1.0 an integer; the decoder does not, lest 1e300 become an id."""
    if isinstance(body, dict):
        return any(map(has_whole_float, body.values()))
    if isinstance(body, list):
        return any(map(has_whole_float, body))
    return isinstance(body, float) and body.is_integer()


def is_decoded(client: TestClient, path: str, body: Any) -> bool:
    headers = {"Content-Type": "application/json"}
    answer = client.post(path, content=json.dumps(body), headers=headers)
    errors = answer.json().get("errors", [])
    return not any(word in error["detail"] for error in errors for word in DECODER_WORDS)


@given(body=RANKS)
@relaxed
def test_the_same_rank_bodies(shared_client: TestClient, is_valid: IsValid, body: Any) -> None:
    assume(not has_whole_float(body))
    assert is_decoded(shared_client, "/v1/rank", body) == is_valid("RankRequest", body)


@given(event=EVENTS)
@relaxed
def test_the_same_events(shared_client: TestClient, is_valid: IsValid, event: Any) -> None:
    assume(not has_whole_float(event))
    body = {"events": [event]}
    assert is_decoded(shared_client, "/v1/events", body) == is_valid("EventsRequest", body)
