"""Receipts: states, outcomes, waiting, and texts that nobody issued."""

import asyncio
import base64
import threading
import time
from functools import partial
from typing import Any

import httpx
import msgspec
import pytest
from prometheus_client import CollectorRegistry

from freshrank.transport.base import ACTIONS, IMPRESSIONS
from service.receipts import Receipts
from service.signal import Signal
from tests.unit.service.conftest import MakeClient, MakeWorld
from tests.unit.service.support import (
    NOW_MS,
    TestClient,
    World,
    make_settings,
    outcome,
    service_of,
    until,
)

CLICK = {"kind": "feedback", "request_id": "r", "item": "a", "event": "click"}
LOG = f"{ACTIONS}:0"


def click(client: TestClient, n: int = 1) -> str:
    answer = client.post("/v1/events", json={"events": [CLICK] * n})
    receipt: str = answer.json()["receipt"]
    return receipt


def status(client: TestClient, receipt: str, query: str = "") -> dict[str, Any]:
    answer = client.get(f"/v1/events/{receipt}{query}")
    assert answer.status_code == 200, answer.text
    document: dict[str, Any] = answer.json()
    return document


def test_a_receipt_walks_through_its_states(world: World, client: TestClient) -> None:
    receipt = click(client)
    assert status(client, receipt) == {
        "receipt": receipt,
        "state": "queued",
        "outcomes": [{"topic": ACTIONS, "partition": 0, "offset": 0, "outcome": "queued"}],
        "queued_at": "2025-11-21T07:00:00.000Z",
        "trained_at": None,
        "servable_at": None,
        "event_to_servable_seconds": None,
    }
    world.progress.reach("joined", {LOG: 1})
    assert status(client, receipt)["state"] == "joined"
    world.progress.reach("trained", {LOG: 1})
    assert status(client, receipt)["state"] == "trained"
    world.clock.advance(ms=900)
    world.delta(offsets={LOG: 1}, published_at_ms=NOW_MS + 700)
    servable = status(client, receipt, "?wait=5s")
    assert servable["state"] == "servable"
    assert servable["outcomes"][0]["outcome"] == "trained"
    assert servable["trained_at"] == "2025-11-21T07:00:00.700Z"
    assert servable["servable_at"] == "2025-11-21T07:00:00.900Z"
    assert servable["event_to_servable_seconds"] == 0.9


def test_frames_alone_are_enough(make_world: MakeWorld, make_client: MakeClient) -> None:
    """Any replica can answer: without joiner and trainer in the process, too."""
    world = make_world()
    world.base()
    client = make_client(world)
    receipt = click(client, 2)
    world.delta(offsets={LOG: 1})
    until(lambda: service_of(client).replica.learned.offset(ACTIONS, 0) == 1)
    answer = status(client, receipt)
    assert answer["state"] == "queued"
    assert [one["outcome"] for one in answer["outcomes"]] == ["trained", "queued"]
    world.delta(offsets={LOG: 2})
    assert status(client, receipt, "?wait=5")["state"] == "servable"


def test_outcomes_are_told_per_event(world: World, client: TestClient) -> None:
    receipt = click(client, 3)
    world.delta(offsets={LOG: 3}, outcomes=[outcome(1, "unmatched"), outcome(2, "late")])
    answer = status(client, receipt, "?wait=5s")
    assert answer["state"] == "servable"
    assert [one["outcome"] for one in answer["outcomes"]] == ["trained", "unmatched", "late"]


def test_a_parked_event_keeps_the_receipt_at_joined(world: World, client: TestClient) -> None:
    receipt = click(client)
    world.delta(offsets={LOG: 1}, outcomes=[outcome(0, "pending")])
    until(lambda: status(client, receipt)["state"] == "joined")
    assert status(client, receipt)["outcomes"][0]["outcome"] == "pending"
    world.delta(offsets={LOG: 1}, outcomes=[outcome(0, "trained")])
    answer = status(client, receipt, "?wait=5s")
    assert answer["state"] == "servable"
    assert answer["outcomes"][0]["outcome"] == "trained"


def test_the_least_of_several_logs_counts(world: World, client: TestClient) -> None:
    impression = {"kind": "impression", "request_id": "r", "items": [{"item": "a"}]}
    answer = client.post("/v1/events", json={"events": [impression, CLICK]})
    receipt = answer.json()["receipt"]
    world.delta(offsets={LOG: 1})
    until(lambda: service_of(client).replica.learned.offset(ACTIONS, 0) == 1)
    assert status(client, receipt)["state"] == "queued"
    world.progress.reach("joined", {f"{IMPRESSIONS}:0": 1})
    assert status(client, receipt)["state"] == "joined"
    world.delta(offsets={f"{IMPRESSIONS}:0": 1})
    assert status(client, receipt, "?wait=5s")["state"] == "servable"


def test_entities_are_servable_once_they_were_read(client: TestClient) -> None:
    item = {"kind": "item", "item": "a", "features": {}}
    receipt = client.post("/v1/events", json={"events": [item]}).json()["receipt"]
    answer = status(client, receipt, "?wait=5s")
    assert answer["state"] == "servable"
    assert answer["outcomes"] == []
    assert answer["event_to_servable_seconds"] == 0.0


def test_a_restart_still_knows_the_state_but_not_the_time(
    world: World, make_client: MakeClient, make_world: MakeWorld
) -> None:
    world.base()
    receipt = click(make_client(world))
    world.base(offsets={LOG: 1})
    world.registry = CollectorRegistry()
    answer = status(make_client(world), receipt)
    assert answer["state"] == "servable"
    assert answer["servable_at"] is None
    assert answer["event_to_servable_seconds"] is None


def test_a_restart_makes_no_outcome_up(world: World, make_client: MakeClient) -> None:
    """What was decided while nobody here listened may have been late, unmatched or a duplicate."""
    world.base()
    old = make_client(world)
    receipt = click(old, 3)
    world.delta(offsets={LOG: 1}, outcomes=[outcome(0, "late")])
    assert [one["outcome"] for one in status(old, receipt)["outcomes"]][2] == "queued"
    world.base(offsets={LOG: 2}, outcomes=[outcome(1, "duplicate")])
    world.registry = CollectorRegistry()
    new = make_client(world)
    answer = status(new, receipt)
    assert answer["state"] == "queued"
    assert [one["outcome"] for one in answer["outcomes"]] == ["unknown", "duplicate", "queued"]
    world.delta(offsets={LOG: 3})
    answer = status(new, receipt, "?wait=5s")
    assert answer["state"] == "servable"
    assert [one["outcome"] for one in answer["outcomes"]] == ["unknown", "duplicate", "trained"]


def test_a_base_instead_of_missed_deltas_makes_no_outcome_up(
    world: World, client: TestClient
) -> None:
    receipt = click(client, 2)
    world.seq += 1  # a delta that never came, with an outcome that nobody will tell
    world.rebase(offsets={LOG: 1}, seq=1)
    world.delta(offsets={LOG: 2})
    answer = status(client, receipt, "?wait=5s")
    assert answer["state"] == "servable"
    assert [one["outcome"] for one in answer["outcomes"]] == ["unknown", "trained"]


def test_a_trainer_that_lost_its_last_minute_takes_servable_back(
    world: World, client: TestClient
) -> None:
    receipt = click(client)
    world.delta(offsets={LOG: 1})
    assert status(client, receipt, "?wait=5s")["state"] == "servable"
    world.base(offsets={LOG: 0})
    until(lambda: status(client, receipt)["state"] != "servable")


def test_many_waiters_cost_no_threads(world: World, client: TestClient) -> None:
    """40 requests wait at once; the frame wakes them all."""
    receipt = click(client)
    before = threading.active_count()
    answers: list[str] = []

    async def ask_all() -> None:
        transport = httpx.ASGITransport(client.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as asked:
            tasks = [
                asyncio.create_task(asked.get(f"/v1/events/{receipt}?wait=20s")) for _ in range(40)
            ]
            while service_of(client).gate._n_waiting < 40:
                await asyncio.sleep(0.01)
            assert threading.active_count() <= before + 3
            assert service_of(client).gate.n_working == 0
            world.delta(offsets={LOG: 1})
            answers.extend([(await task).json()["state"] for task in tasks])

    start_s = time.monotonic()
    asyncio.run(ask_all())
    assert answers == ["servable"] * 40
    assert time.monotonic() - start_s < 10


def test_stopping_ends_all_waits(client: TestClient) -> None:
    """A server that shall exit waits for its requests, so these must not wait on."""
    receipt = click(client)
    service = service_of(client)
    threading.Timer(0.2, service.stop).start()
    start_s = time.monotonic()
    assert status(client, receipt, "?wait=20s")["state"] == "queued"
    assert time.monotonic() - start_s < 10


def test_waiting_ends_in_time(client: TestClient) -> None:
    receipt = click(client)
    start_s = time.monotonic()
    assert status(client, receipt, "?wait=150ms")["state"] == "queued"
    assert 0.1 < time.monotonic() - start_s < 3


@pytest.mark.parametrize("wait", ["soon", "-1s", "5h", "1e3s", "", "5 s"])
def test_a_wait_that_is_no_duration_is_422(shared_client: TestClient, wait: str) -> None:
    answer = shared_client.get(f"/v1/events/{click(shared_client)}", params={"wait": wait})
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["pointer"] == "?wait"


@pytest.mark.parametrize(
    "text",
    ["ev-", "ev-AAAA", "nonsense", "ev-é", "ev-" + "A" * 4_000, "ev-_____w", "ev-%00", "EV-AA"],
)
def test_a_text_nobody_issued_is_404(shared_client: TestClient, text: str) -> None:
    answer = shared_client.get(f"/v1/events/{text}")
    assert answer.status_code == 404
    assert answer.json()["type"] == "/problems/not-found"


def test_a_changed_receipt_is_404(client: TestClient) -> None:
    receipt = click(client)
    for place in range(3, len(receipt)):
        other = "A" if receipt[place] != "A" else "B"
        changed = receipt[:place] + other + receipt[place + 1 :]
        answer = client.get(f"/v1/events/{changed}")
        # The last character may carry unused bits: the same bytes are the same receipt.
        assert answer.status_code == 404 or place == len(receipt) - 1


def test_receipts_of_another_configuration_or_log_are_404(
    make_world: MakeWorld, make_client: MakeClient
) -> None:
    clients = []
    for salt in (0, 1, 0):
        world = make_world(settings=make_settings(salt=salt))
        world.base()
        clients.append(make_client(world))
    mine, salted, empty = clients
    receipt = click(mine)
    assert mine.get(f"/v1/events/{receipt}").status_code == 200
    assert salted.get(f"/v1/events/{receipt}").status_code == 404
    assert empty.get(f"/v1/events/{receipt}").status_code == 404


@pytest.mark.parametrize(
    "spans",
    [
        [],
        [(1, 0, 0, 99_999)],
        [(1, 9, 0, 0)],
        [(1, -1, 0, 0)],
        [(1, 0, 1, 0)],
        [(1, 0, -1, 0)],
        [(7, 0, 0, 0)],
        [(1, 0, 0, 1 << 40)],
        [(-9, 0, 0, 0)],
        [(1, 0, 0)],
    ],
)
def test_a_forged_receipt_with_a_right_checksum_is_404(
    shared_client: TestClient, spans: Any
) -> None:
    """Whoever knows the salt can still name no record that is not there."""
    click(shared_client)
    receipts: Receipts = service_of(shared_client).receipts
    data = msgspec.msgpack.encode([NOW_MS, spans])
    text = base64.urlsafe_b64encode(receipts._digest(data) + data).decode().rstrip("=")
    assert shared_client.get(f"/v1/events/ev-{text}").status_code == 404


def test_after_tells_whether_the_answer_holds_the_events(world: World, client: TestClient) -> None:
    receipt = click(client)
    body = {"user": "u", "candidates": [{"item": "a"}], "after": receipt}

    def satisfied(**headers: str) -> bool:
        answer = client.post("/v1/rank", json=body, headers=headers)
        return bool(answer.json()["freshness"]["after_satisfied"])

    assert satisfied() is False
    thread = threading.Timer(0.2, lambda: world.delta(offsets={LOG: 1}))
    thread.start()
    assert satisfied(Prefer="respond-async, wait=2") is True
    thread.join()
    wrong = client.post(
        "/v1/rank", json={**body, "after": "ev-nothing"}, headers={"Prefer": "wait=2"}
    )
    assert wrong.status_code == 422
    assert wrong.json()["errors"][0]["pointer"] == "#/after"


@pytest.mark.parametrize(
    ("preferred", "applied"), [("wait=1", "wait=1"), ("wait=5", "wait=5"), ("wait=9", "wait=5")]
)
def test_the_wait_granted_is_named(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, preferred: str, applied: str
) -> None:
    waited: list[float] = []

    async def wait(_receipt: object, timeout_s: float) -> None:
        waited.append(timeout_s)

    monkeypatch.setattr(service_of(client), "wait_servable", wait)
    body = {"user": "u", "candidates": [{"item": "a"}], "after": click(client)}
    answer = client.post("/v1/rank", json=body, headers={"Prefer": preferred})
    assert answer.headers["Preference-Applied"] == applied
    assert applied == f"wait={waited[0]:.0f}"
    assert "Preference-Applied" not in client.post("/v1/rank", json=body).headers
    del body["after"]
    answer = client.post("/v1/rank", json=body, headers={"Prefer": preferred})
    assert "Preference-Applied" not in answer.headers


def test_after_speaks_of_the_version_that_answered(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A frame applied while the request was scored is not in its answer."""
    receipt = click(client)
    learned = service_of(client).replica.learned
    monkeypatch.setattr(learned, "offset", lambda topic, partition: 1)
    assert status(client, receipt)["state"] == "servable"
    body = {"user": "u", "candidates": [{"item": "a"}], "after": receipt}
    answer = client.post("/v1/rank", json=body).json()
    assert answer["freshness"]["after_satisfied"] is False


def test_a_signal_is_never_lost_between_look_and_wait() -> None:
    signal = Signal()
    value = 0

    def count() -> None:
        nonlocal value
        for _ in range(500):
            value += 1
            signal.notify()
            time.sleep(0.0005)

    def grown(last: int) -> bool:
        return value > last

    async def follow() -> int:
        seen = 0
        while seen < 500:
            last = seen
            assert await signal.wait_for(partial(grown, last), timeout_s=5)
            seen = value
        return seen

    thread = threading.Thread(target=count)
    thread.start()
    assert asyncio.run(follow()) == 500
    thread.join()
