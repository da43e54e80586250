"""The stream of points, one id's state, and the vendored library of the page."""

import hashlib
import json
import threading
from typing import Any

import numpy as np
import pytest

from embedding_store import mix_ids
from freshrank.audience import Audience
from freshrank.commands.demo_drift import drift_router
from service import gate, history
from service.app import UI
from service.gate import Gate
from service.history import POINTS_MAX, History
from service.problems import ProblemError
from service.routes import live
from tests.unit.service.conftest import MakeClient, MakeWorld
from tests.unit.service.support import (
    DIM,
    FEATURES,
    NOW_MS,
    StubLoop,
    TestClient,
    World,
    make_settings,
    service_of,
    table_rows,
    until,
)

# The loop, its world, and what asks for an id.
Seen = tuple[StubLoop, World, Any]
CROSS = {"name": "user_x_tags", "type": "cross", "of": ["user_id", "tags"], "dim": DIM}
NOTHING = {
    "state": "absent", "count": 0, "min_count": 0, "last_seen_s": 0, "expires_s": 0, "born_s": 0,
    "frequency": 0, "version": 0, "weight_norm": 0.0, "state_norm": 0.0,
}  # fmt: skip


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A point each hundredth of a second, and a stream that ends with what there is."""
    monkeypatch.setattr(history, "EVERY_S", 0.01)
    monkeypatch.setattr(live, "STREAM_S_MAX", 0.0)


def events(client: TestClient, **headers: str) -> list[tuple[int, list[Any]]]:
    """Ids and data of a stream that has ended."""
    answer = client.get("/v1/stream", headers=headers)
    assert answer.headers["Content-Type"].startswith("text/event-stream")
    retry, *blocks = answer.text.strip().split("\n\n")
    assert retry == "retry: 1000"
    found = []
    for block in blocks:
        name, data = block.split("\n")
        found.append((int(name.removeprefix("id: ")), json.loads(data.removeprefix("data: "))))
    return found


@pytest.mark.usefixtures("quick")
def test_a_stream_begins_with_the_points_that_were_missed(
    make_world: MakeWorld, make_client: MakeClient
) -> None:
    loop = StubLoop()
    loop.gauges = {"click.auc": 0.75, "auc": 0.75, "dwell.huber": 1.0}
    loop.totals = {"matched": 5, "pending": 2, "examples_written": 9}
    world = make_world(loop=loop)
    world.base({"item_id": table_rows({1: [0.0] * (DIM + 1)})})
    client = make_client(world)
    taken = service_of(client).history
    until(lambda: len(taken.after(-1)) >= 2)

    [(newest, points)] = events(client)
    assert [point["at_ms"] for point in points] == list(range(NOW_MS, newest + 1))
    assert (points[-1]["auc"], points[-1]["lag"]) == ({"click": 0.75}, {})
    assert points[-1]["actions"]["matched"] == 5
    assert points[-1]["rows"]["item_id"] == 1
    assert points[-1]["p50_seconds"] is None

    [(_, later)] = events(client, **{"Last-Event-ID": str(NOW_MS)})
    assert later[0]["at_ms"] == NOW_MS + 1
    [(_, again)] = events(client, **{"Last-Event-ID": str(NOW_MS + 10**9)})
    assert again[0]["at_ms"] == NOW_MS
    [(_, odd)] = events(client, **{"Last-Event-ID": "odd"})
    assert odd[0]["at_ms"] == NOW_MS


@pytest.mark.usefixtures("quick")
def test_what_another_process_knows_is_null(world: World, make_client: MakeClient) -> None:
    world.base(metrics={"click.auc": 0.6})
    client = make_client(world)
    until(lambda: bool(service_of(client).history.after(-1)))
    [(_, points)] = events(client)
    assert points[-1]["auc"] == {"click": 0.6}
    assert (points[-1]["lag"], points[-1]["actions"]) == (None, None)


def test_each_sample_is_told_by_one_point(world: World, client: TestClient) -> None:
    replica = service_of(client).replica
    taken = History(world.settings, replica, None, world.clock)
    replica.action_freshness.add([1.0, 3.0])
    world.delta()
    until(lambda: len(replica.beats) == 1)
    first, second = taken.note(), taken.note()
    assert (first["p50_seconds"], first["beat_seconds"] is not None) == (2.0, True)
    assert (second["p50_seconds"], second["beat_seconds"]) == (None, None)
    assert second["at_ms"] == first["at_ms"] + 1


def test_points_are_bounded(world: World, client: TestClient) -> None:
    taken = History(world.settings, service_of(client).replica, None, world.clock)
    for _ in range(POINTS_MAX + 5):
        taken.note()
    assert len(taken.after(-1)) == POINTS_MAX
    assert taken.after(-1)[0][0] == NOW_MS + 5


def test_one_stream_too_many_is_refused_and_receipts_wait_as_before(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "STREAM_S_MAX", 0.0)
    monkeypatch.setattr(gate, "STREAMS_MAX", 1)
    door: Gate = service_of(client).gate
    with door.streaming():
        assert door.n_working == -1
        answer = client.get("/v1/stream")
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "60")
        with pytest.raises(ProblemError):
            door.check_stream()
    assert client.get("/v1/stream").status_code == 200
    assert door.n_working == 0


def test_a_stopped_service_ends_its_streams(world: World, client: TestClient) -> None:
    service_of(client).stop()
    assert client.get("/v1/stream").text == "retry: 1000\n\n"


@pytest.fixture
def seen(make_world: MakeWorld, make_client: MakeClient) -> Seen:
    """A loop that knows ids, a world with a row for `ann`, and what asks."""
    loop = StubLoop()
    world = make_world(loop=loop, settings=make_settings(features=[*FEATURES, CROSS]))
    [ann] = world.ids("user_id", ["ann"])
    world.base({"user_id": table_rows({ann: [3.0, 0.0, 0.0, 0.0, 4.0]})})
    client = make_client(world)

    def ask(path: str, **known: Any) -> dict[str, Any]:
        for name in ("ann", "bob"):
            loop.ids[world.ids("user_id", [name])[0]] = NOTHING | known
        answer: dict[str, Any] = client.get(f"/v1/embeddings/{path}").json()
        return answer

    return loop, world, ask


def test_an_admitted_id_has_its_vector_and_its_times(seen: Seen) -> None:
    _, world, ask = seen
    known = {"state": "admitted", "frequency": 7, "last_seen_s": 1_763_708_400, "version": 2}
    answer = ask("user_id/ann", **known)
    assert (answer["state"], answer["served"], answer["norm"]) == ("admitted", True, 5.0)
    assert (answer["vector"], answer["first_order"], answer["dim"]) == ([3, 0, 0, 0], 4, DIM)
    assert answer["id"] == str(world.ids("user_id", ["ann"])[0])
    assert answer["trainer"]["last_seen_at"] == "2025-11-21T07:00:00.000Z"
    assert (answer["trainer"]["expires_at"], answer["trainer"]["frequency"]) == (None, 7)


@pytest.mark.parametrize(
    ("known", "words"),
    [
        ({"state": "pending", "count": 2, "min_count": 3}, "seen 2 of 3 times"),
        ({"state": "absent"}, "never seen"),
        ({"state": "expired"}, "out of time"),
        ({"state": "removed"}, "expired, was evicted or forgotten"),
        ({"state": "admitted"}, "until the next sync"),
    ],
)
def test_an_id_without_a_row_says_why(seen: Seen, known: dict[str, Any], words: str) -> None:
    _, _, ask = seen
    answer = ask("user_id/bob", **known)
    assert (answer["state"], answer["served"], answer["vector"]) == (known["state"], False, None)
    assert answer["norm"] == 0.0
    assert words in answer["why"]


def test_a_cross_is_named_by_both_its_ids(seen: Seen) -> None:
    loop, world, ask = seen
    left, right = (
        np.array(world.ids(slot, [key]), np.uint64)
        for slot, key in (("user_id", "ann"), ("tags", "jazz"))
    )
    token = int(mix_ids(left, right, world.settings.salt)[0])
    loop.ids[token] = NOTHING | {"state": "pending", "count": 1, "min_count": 2}
    answer = ask("user_x_tags/ann?with=jazz")
    assert (answer["key"], answer["id"], answer["state"]) == ("ann & jazz", str(token), "pending")
    assert ask("user_x_tags/ann")["errors"][0]["pointer"] == "?with"


def test_without_a_trainer_an_id_without_a_row_is_unknown(
    world: World, make_client: MakeClient
) -> None:
    [ann] = world.ids("user_id", ["a/ä"])
    world.base({"user_id": table_rows({ann: [1.0] * (DIM + 1)})})
    client = make_client(world)
    there = client.get("/v1/embeddings/user_id/a%2F%C3%A4").json()
    assert (there["key"], there["state"], there["trainer"]) == ("a/ä", "admitted", None)
    answer = client.get("/v1/embeddings/user_id/bob").json()
    assert (answer["state"], answer["trainer"]) == (None, None)
    assert "only the trainer knows" in answer["why"]
    assert client.get("/v1/embeddings/price/3").status_code == 404


def test_without_a_base_there_is_no_vector(world: World, make_client: MakeClient) -> None:
    client = make_client(world, wait=False)
    assert client.get("/v1/embeddings/user_id/ann").status_code == 503


def test_a_drift_is_a_route_of_the_demo_alone(client: TestClient) -> None:
    assert client.post("/v1/demo/drift").status_code == 404
    audience, drifted = Audience(seed=1), threading.Event()
    users, items = np.arange(50), np.zeros(50, np.int64)
    before = audience.click_probability(users, items, at_s=0.0)
    client.app.include_router(drift_router(audience, drifted))  # type: ignore[attr-defined]
    foreign = {"Origin": "http://else.example"}
    assert client.post("/v1/demo/drift", headers=foreign).status_code == 403
    assert not drifted.is_set()
    assert client.post("/v1/demo/drift").status_code == 202
    assert drifted.is_set()
    after = audience.click_probability(users, items, at_s=0.0)
    # Of one item the log odds are its quality and the user's taste: a taste turned over cancels.
    odds = [np.log(chance / (1 - chance)) for chance in (before, after)]
    assert np.ptp(odds[0]) > 1.0
    assert np.ptp(odds[0] + odds[1]) < 1e-9


def test_the_vendored_library_is_what_was_published(shared_client: TestClient) -> None:
    """SHA256SUMS was written from the tarball of uplot 1.6.32, whose integrity npm states as
    sha512-KIMVnG68zvu5XXUbC4LQEPnhwOxBuLyW1AHtpm6IKTXImkbLgkMy+jabjLgSLMasNuGGzQm/ep3tOkyTxpiQIw==.
    """
    [library] = (UI / "vendor").iterdir()
    lines = (library / "SHA256SUMS").read_text().splitlines()
    sums = {line.split()[1]: line.split()[0] for line in lines}
    files = {path.name for path in library.iterdir()} - {"SHA256SUMS"}
    assert files == sums.keys() >= {"LICENSE"}
    for name, digest in sums.items():
        served = shared_client.get(f"/ui/vendor/{library.name}/{name}")
        assert hashlib.sha256(served.content).hexdigest() == digest
