"""Keys, scopes, and where the service listens without any."""

import hashlib
from pathlib import Path
from typing import Any

import pytest

from freshrank.errors import ConfigError
from service.auth import Auth, check_listen
from service.routes import live
from tests.unit.service.conftest import MakeClient, MakeWorld
from tests.unit.service.support import TestClient, make_settings

SCOPES = ("rank", "events", "read", "admin")
RANK = {"user": "u", "candidates": []}
FEEDBACK = {"request_id": "r", "item": "a", "event": "click"}

# method, path, body, scopes of which one is enough
ROUTES: list[tuple[str, str, Any, set[str]]] = [
    ("POST", "/v1/rank", RANK, {"rank"}),
    ("POST", "/v1/events", {"events": [{"kind": "feedback", **FEEDBACK}]}, {"events"}),
    ("POST", "/v1/feedback", FEEDBACK, {"events"}),
    ("GET", "/v1/events/ev-x", None, {"events", "read"}),
    ("GET", "/v1/models", None, {"read"}),
    ("GET", "/v1/models/main", None, {"read"}),
    ("GET", "/v1/schema", None, {"read"}),
    ("GET", "/v1/version", None, {"read"}),
    ("GET", "/v1/stats", None, {"read"}),
    ("GET", "/v1/stream", None, {"read"}),
    ("GET", "/v1/embeddings/user_id/u", None, {"read"}),
    ("GET", "/metrics", None, {"read"}),
    ("POST", "/v1/admin/trainer/pause", None, {"admin"}),
    ("POST", "/v1/admin/trainer/resume", {"reason": "done"}, {"admin"}),
    ("POST", "/v1/admin/rollback", {"to": "kept-good"}, {"admin"}),
    ("GET", "/v1/admin/snapshots", None, {"admin"}),
    ("DELETE", "/v1/admin/keys/user_id/u", None, {"admin"}),
]
OPEN = ("/health/live", "/health/ready", "/ui/", "/openapi.json")


def digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


@pytest.fixture
def guarded(
    make_world: MakeWorld,
    make_client: MakeClient,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> TestClient:
    monkeypatch.setattr(live, "STREAM_S_MAX", 0.0)  # this client reads answers to their end
    keys: list[dict[str, Any]] = [
        {"name": scope, "sha256": digest(f"fr_{scope}"), "scopes": [scope]} for scope in SCOPES[:3]
    ]
    (tmp_path / "key").write_text(digest("fr_admin").upper() + "\n")
    keys.append({"name": "admin", "sha256_file": str(tmp_path / "key"), "scopes": ["admin"]})
    world = make_world(settings=make_settings(auth={"keys": keys}))
    world.base()
    return make_client(world)


def status(client: TestClient, method: str, path: str, body: Any, **headers: str) -> int:
    return int(client.request(method, path, json=body, headers=headers).status_code)


def test_every_route_asks_for_its_scope(guarded: TestClient) -> None:
    for method, path, body, wanted in ROUTES:
        for scope in SCOPES:
            got = status(guarded, method, path, body, Authorization=f"Bearer fr_{scope}")
            assert (got != 403) == (scope in wanted), (path, scope, got)
            assert got in ({403} if scope not in wanted else {200, 202, 404}), (path, scope, got)


@pytest.mark.parametrize(
    "header", [None, "", "Bearer", "Bearer ", "Bearer fr_x", "Basic fr_rank", "fr_rank", "Bearer é"]
)
def test_without_a_known_key_the_answer_is_401(guarded: TestClient, header: str | None) -> None:
    for method, path, body, _ in ROUTES:
        headers = {} if header is None else {"Authorization": header.encode()}
        answer = guarded.request(method, path, json=body, headers=headers)
        assert answer.status_code == 401, path
        assert answer.headers["WWW-Authenticate"] == "Bearer"
        assert answer.json()["type"] == "/problems/unauthorized"


def test_the_key_is_asked_before_the_body_is_read(guarded: TestClient) -> None:
    answer = guarded.post("/v1/rank", content=b"{", headers={"Content-Type": "text/plain"})
    assert answer.status_code == 401


def test_probes_and_the_page_need_no_key(guarded: TestClient) -> None:
    assert [guarded.get(path).status_code for path in OPEN] == [200] * len(OPEN)


def test_every_documented_route_stands_in_the_matrix(guarded: TestClient) -> None:
    known = {path.replace("/ev-x", "/{receipt}").replace("/models/main", "/models/{name}")
             for _, path, _, _ in ROUTES}  # fmt: skip
    known = {
        path.rsplit("/", 1)[0] + "/{command}" if "/trainer/" in path else path for path in known
    }
    known = {path.replace("/user_id/u", "/{slot}/{key}") for path in known}
    documented = set(guarded.get("/openapi.json").json()["paths"])
    assert documented == known | {"/health/live", "/health/ready"}


def test_without_configured_keys_nobody_is_asked(client: TestClient) -> None:
    assert status(client, "POST", "/v1/rank", RANK) == 200
    assert status(client, "POST", "/v1/rank", RANK, Authorization="Bearer whatever") == 200


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "127.8.9.1", "localhost"])
def test_loopback_needs_no_keys(host: str) -> None:
    check_listen(make_settings(service={"host": host}))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.org"])  # noqa: S104
def test_anything_else_does(host: str) -> None:
    settings = make_settings(service={"host": host})
    with pytest.raises(ConfigError) as refused:
        check_listen(settings)
    assert str(refused.value) == (
        f"refusing to listen on {host} without auth.keys (add a key or --insecure)"
    )
    check_listen(settings, insecure=True)
    keys = [{"name": "web", "sha256": digest("x"), "scopes": ["rank"]}]
    check_listen(make_settings(service={"host": host}, auth={"keys": keys}))


@pytest.mark.parametrize("content", [None, "fr_secret", "", digest("x")[1:]])
def test_a_key_file_that_holds_no_sha256_is_a_config_error(
    tmp_path: Path, content: str | None
) -> None:
    if content is not None:
        (tmp_path / "key").write_text(content)
    key = {"name": "web", "sha256_file": str(tmp_path / "key"), "scopes": ["rank"]}
    with pytest.raises(ConfigError, match="auth key web"):
        Auth(make_settings(auth={"keys": [key]}))
