"""One error shape for every route, and the limits that hold before a request is read."""

import asyncio
import re
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest

from freshrank.transport.base import ACTIONS
from service import middleware
from service.gate import WAITING_PER_IN_FLIGHT
from service.problems import SLUGS
from tests.unit.service.conftest import MakeClient, MakeWorld
from tests.unit.service.support import TestClient, World, make_settings, service_of

RANK = {"user": "u", "candidates": [{"item": "a"}]}
ROUTES = {
    "/v1/rank": "POST",
    "/v1/events": "POST",
    "/v1/feedback": "POST",
    "/v1/events/ev-x": "GET",
    "/v1/models": "GET",
    "/v1/models/main": "GET",
    "/v1/schema": "GET",
    "/v1/version": "GET",
    "/v1/stats": "GET",
    "/v1/stream": "GET",
    "/v1/embeddings/user_id/u": "GET",
    "/v1/admin/snapshots": "GET",
    "/v1/admin/trainer/pause": "POST",
    "/v1/admin/rollback": "POST",
    "/v1/admin/keys/user_id/u": "DELETE",
    "/health/live": "GET",
    "/health/ready": "GET",
    "/metrics": "GET",
}


def check_problem(answer: httpx.Response, slug: str) -> dict[str, Any]:
    problem: dict[str, Any] = answer.json()
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert set(problem) == {"type", "title", "status", "detail", "instance", "errors"}
    assert problem["type"] == f"/problems/{slug}"
    assert problem["status"] == answer.status_code == SLUGS[slug][0]
    assert problem["instance"] == f"urn:request:{answer.headers['X-Request-Id']}"
    assert problem["title"]
    assert problem["detail"]
    return problem


@pytest.mark.parametrize(("path", "method"), ROUTES.items())
def test_another_method_is_405_and_names_the_right_one(
    shared_client: TestClient, path: str, method: str
) -> None:
    answer = shared_client.request("PATCH", path)
    check_problem(answer, "method")
    assert method in answer.headers["Allow"].split(", ")


@pytest.mark.parametrize(
    "path", ["/nothing", "/v1", "/v1/rank/x", "/v1/models/x", "/v1/admin/trainer/stop", "/ui/x.js"]
)
def test_what_is_not_there_is_404(shared_client: TestClient, path: str) -> None:
    method = "POST" if "/admin/" in path else "GET"
    check_problem(shared_client.request(method, path), "not-found")


@pytest.mark.parametrize("path", [path for path, method in ROUTES.items() if method == "POST"])
def test_posts_share_their_refusals(shared_client: TestClient, path: str) -> None:
    def post(content: bytes, media_type: str = "application/json", **headers: str) -> Any:
        return shared_client.post(
            path, content=content, headers={"Content-Type": media_type, **headers}
        )

    check_problem(post(b"{"), "malformed-json")
    problem = check_problem(post(b'{"nope": 1}'), "validation")
    assert problem["errors"][0]["pointer"] == "#/nope"
    check_problem(post(b"{}", "text/plain"), "unsupported-media")
    answer = post(b"{}", **{"Content-Encoding": "gzip"})
    check_problem(answer, "unsupported-media")
    assert answer.headers["Accept-Encoding"] == "identity"
    check_problem(post(b"{", **{"Content-Encoding": "Identity"}), "malformed-json")
    check_problem(post(b" " * (3 << 20)), "too-large")
    for origin in ("http://elsewhere.example", "null", "", "http://[", "http://[::1", "http://a]b"):
        check_problem(post(b"{}", Origin=origin), "forbidden")
    form = "application/x-www-form-urlencoded"
    own = "http://testserver"
    check_problem(post(b"{", form, Origin=own), "unsupported-media")
    check_problem(post(b"{", form), "malformed-json")  # as `curl -d` sends it


def test_a_page_of_the_same_origin_may_post(shared_client: TestClient) -> None:
    answer = shared_client.post("/v1/rank", json=RANK, headers={"Origin": "http://testserver"})
    assert answer.status_code == 200


def test_a_failure_of_ours_is_a_problem_too_and_in_the_log(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(service_of(client).ranker, "rank_timed", fail)
    answer = client.post("/v1/rank", json=RANK)
    check_problem(answer, "internal")
    assert "a bug" not in answer.text
    assert answer.headers["X-Request-Id"] in caplog.text
    assert client.get("/health/live").status_code == 200


def no_thread() -> None:
    raise RuntimeError("can't start new thread")


def no_memory() -> None:
    raise MemoryError


@pytest.mark.parametrize("fail", [no_thread, no_memory])
def test_a_machine_without_memory_is_no_bug_but_too_much(
    fail: Callable[[], None],
    client: TestClient,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(service_of(client).ranker, "rank_timed", lambda *_: fail())
    answer = client.post("/v1/rank", json=RANK)
    check_problem(answer, "overloaded")
    assert answer.headers["Retry-After"] == "1"
    assert answer.headers["X-Request-Id"] in caplog.text
    assert "Traceback" not in caplog.text


def sent_to(client: TestClient, receive: Callable[[], Awaitable[Any]]) -> list[Any]:
    """What the application sends to somebody who posts what `receive` gives."""
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/rank",
        "query_string": b"",
        "headers": [(b"content-type", b"application/json")],
    }

    async def call() -> None:
        async with asyncio.timeout(30):
            await client.app(scope, receive, send)

    asyncio.run(call())
    return sent


def test_a_client_that_leaves_is_no_failure(
    client: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    messages = [
        {"type": "http.request", "body": b"{", "more_body": True},
        {"type": "http.disconnect"},
    ]

    async def receive() -> Any:
        return messages.pop(0)

    assert sent_to(client, receive) == []
    assert caplog.text == ""
    assert service_of(client).gate.n_working == 0


def test_a_body_that_does_not_come_gives_its_place_back(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise `limits.in_flight` idle connections would shut everybody else out."""
    monkeypatch.setattr(middleware, "BODY_S_MAX", 0.05)
    messages = [{"type": "http.request", "body": b"{", "more_body": True}]

    async def receive() -> Any:
        if not messages:
            await asyncio.sleep(60)
        return messages.pop()

    start = sent_to(client, receive)[0]
    assert start["status"] == 408
    assert (b"connection", b"close") in start["headers"]
    assert service_of(client).gate.n_working == 0


@pytest.mark.parametrize("length", ["9" * 5_000, "2097153"])
def test_a_length_beyond_the_limit_is_413_before_the_body(
    shared_client: TestClient, length: str
) -> None:
    headers = {"Content-Type": "application/json", "Content-Length": length}
    check_problem(shared_client.post("/v1/rank", content=b"{}", headers=headers), "too-large")


def test_a_request_id_is_kept_if_it_is_one(shared_client: TestClient) -> None:
    def echoed(sent: str | bytes) -> str:
        answer = shared_client.get("/health/live", headers={"X-Request-Id": sent})
        return str(answer.headers["X-Request-Id"])

    assert echoed("abc-1") == "abc-1"
    for bad in ("bad id\t", "a\r\nX-Evil: 1", "a\nb", "x" * 129, "x" * 10_000, "\xe9"):
        made = echoed(bad.encode("latin-1"))
        assert re.fullmatch("[0-9a-f-]{36}", made), made
    assert len({echoed("") for _ in range(5)}) == 5


def test_too_many_at_once_are_shed_before_they_queue(
    make_world: MakeWorld, make_client: MakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_world(settings=make_settings(limits={"in_flight": 3}))
    world.base()
    client = make_client(world)
    go_on = threading.Event()
    ranker = service_of(client).ranker
    real = ranker.rank_timed

    def slow(request: Any) -> Any:
        assert go_on.wait(10)
        return real(request)

    monkeypatch.setattr(ranker, "rank_timed", slow)

    async def ask() -> list[httpx.Response]:
        transport = httpx.ASGITransport(client.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as asked:
            busy = [asyncio.create_task(asked.post("/v1/rank", json=RANK)) for _ in range(3)]
            while service_of(client).gate.n_working < 3:
                await asyncio.sleep(0.005)
            shed = await asked.post("/v1/rank", json=RANK)
            alive = await asked.get("/health/ready")
            go_on.set()
            return [shed, alive, *[await one for one in busy]]

    shed, alive, *busy = asyncio.run(ask())
    check_problem(shed, "overloaded")
    assert shed.headers["Retry-After"] == "1"
    assert alive.status_code == 200
    assert [one.status_code for one in busy] == [200, 200, 200]
    assert service_of(client).gate.n_working == 0
    value = world.registry.get_sample_value
    assert value("freshrank_http_rejected_total", {"reason": "shed"}) == 1
    # The objective of availability goes by the route.
    refused = {"route": "/v1/rank", "method": "POST", "code": "503"}
    assert value("freshrank_http_requests_total", refused) == 1


def test_waiters_are_limited_too(make_world: MakeWorld, make_client: MakeClient) -> None:
    world = make_world(settings=make_settings(limits={"in_flight": 1}))
    world.base()
    client = make_client(world)
    feedback = {"request_id": "r", "item": "a", "event": "click"}
    receipt = client.post("/v1/feedback", json=feedback).json()["receipt"]

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(client.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as asked:
            path = f"/v1/events/{receipt}"
            waiting = []
            for n_waiting in range(1, WAITING_PER_IN_FLIGHT + 1):
                waiting.append(asyncio.create_task(asked.get(path, params={"wait": "20s"})))
                while service_of(client).gate._n_waiting < n_waiting:
                    await asyncio.sleep(0.001)
            refused = await asked.get(path, params={"wait": "20s"})
            world.delta(offsets={f"{ACTIONS}:0": 1})  # which wakes them
            assert [(await one).status_code for one in waiting] == [200] * len(waiting)
            return refused

    check_problem(asyncio.run(ask()), "overloaded")


def test_the_problems_are_counted_by_route(world: World, client: TestClient) -> None:
    client.post("/v1/rank", content=b"{", headers={"Content-Type": "application/json"})
    client.get("/nothing/at/all")
    client.request("BREW", "/v1/rank")
    value = world.registry.get_sample_value
    name = "freshrank_http_requests_total"
    assert value(name, {"route": "/v1/rank", "method": "POST", "code": "400"}) == 1
    assert value(name, {"route": "unmatched", "method": "GET", "code": "404"}) == 1
    assert value(name, {"route": "/v1/rank", "method": "other", "code": "405"}) == 1
