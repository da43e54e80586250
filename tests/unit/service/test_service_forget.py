"""`DELETE /v1/admin/keys/{slot}/{key}`: what it tells the loop, and what it answers."""

from typing import Any
from urllib.parse import quote

import pytest

from freshrank.feature_updates import Did, FeatureUpdates
from freshrank.messages import Control, Entity
from freshrank.transport.base import ACTIONS, CONTROL, ENTITIES
from service.forgetting import parse_key
from tests.unit.service.conftest import MakeClient, MakeWorld
from tests.unit.service.support import (
    DIM,
    NOW_MS,
    TestClient,
    World,
    make_settings,
    service_of,
    table_rows,
    until,
)


def told(world: World, topic: str) -> list[Control]:
    return [one for one in world.records(topic) if isinstance(one, Control)]


def delete(client: TestClient, slot: str, key: str, query: str = "") -> Any:
    return client.delete(f"/v1/admin/keys/{slot}/{quote(key, safe='')}{query}")


def test_the_command_stands_in_every_partition_of_actions_and_names_them(
    make_world: MakeWorld, make_client: MakeClient
) -> None:
    world = make_world(settings=make_settings(log={"partitions": 3}))
    world.base()
    client = make_client(world)
    answer = delete(client, "user_id", "ann/ä ?")
    assert answer.status_code == 202
    [control] = told(world, CONTROL)
    assert (control.command, control.slot) == ("forget", "user_id")
    assert control.id == world.ids("user_id", ["ann/ä ?"])[0]
    assert control.marks == {f"{ACTIONS}:{partition}": 0 for partition in range(3)}
    marks = told(world, ACTIONS)
    assert [(one.slot, one.id) for one in marks] == [(control.slot, control.id)] * 3
    assert {one.ts_ms for one in [control, *marks]} == {NOW_MS + 1}
    assert "ann" not in str([control, *marks])
    assert answer.json() == {
        "slot": "user_id",
        "known": {"row": False, "recent": 0, "features": 0},
        "remains": ["dense_net", "rows_of_others", "counters_of_others", "log"],
        "dry_run": False,
        "offset": 0,
    }


def test_what_is_known_is_told_and_a_dry_run_does_nothing(
    world: World, make_client: MakeClient
) -> None:
    [ann] = world.ids("user_id", ["ann"])
    world.base({"user_id": table_rows({ann: [0.5] * (DIM + 1)})})
    world.state.apply(FeatureUpdates(did=[("click", "ann", Did(1, "e", "i"))]))
    client = make_client(world)
    event = {"kind": "user", "user": "ann", "features": {"age": 40}}
    receipt = client.post("/v1/events", json={"events": [event]}).json()["receipt"]
    until(lambda: client.get(f"/v1/events/{receipt}").json()["state"] == "servable")
    answer = delete(client, "user_id", "ann", "?dry_run=true")
    assert answer.status_code == 200
    known = {"row": True, "recent": 1, "features": 1}
    assert (answer.json()["known"], answer.json()["offset"]) == (known, None)
    assert told(world, CONTROL) == told(world, ACTIONS) == []

    assert delete(client, "user_id", "ann").json()["known"] == known
    last = world.records(ENTITIES)[-1]
    assert isinstance(last, Entity)
    assert (last.id, last.features) == ("ann", {})
    until(lambda: not delete(client, "user_id", "ann", "?dry_run=true").json()["known"]["features"])


def test_features_that_share_a_table_are_one(world: World, client: TestClient) -> None:
    assert delete(client, "last_clicks", "i1").json()["slot"] == "item_id"
    assert told(world, CONTROL)[0].id == world.ids("item_id", ["i1"])[0]


def test_ids_of_lists_and_numbers(make_world: MakeWorld, make_client: MakeClient) -> None:
    for key in ("string", "uint64"):
        world = make_world(settings=make_settings(item_key=key))
        world.base()
        service = service_of(make_client(world))
        if key == "string":
            assert parse_key(service, "tags", "jazz").id == world.ids("tags", ["jazz"])[0]
        else:
            assert parse_key(service, "item_id", str(2**64 - 1)).id == 2**64 - 1


@pytest.mark.parametrize(
    ("slot", "key", "status"),
    [
        ("user", "ann", 404),
        ("hour", "7", 404),
        ("price", "7", 404),
        ("user_id", "x" * 257, 422),
        ("user_id", "", 422),
    ],
)
def test_what_cannot_be_forgotten_is_refused(
    world: World, client: TestClient, slot: str, key: str, status: int
) -> None:
    answer = delete(client, slot, key)
    assert answer.status_code == status
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert told(world, ACTIONS) == told(world, CONTROL) == []


def test_unknown_slots_are_told_what_they_may_mean(client: TestClient) -> None:
    assert "did you mean 'user_id'" in delete(client, "userid", "ann").json()["detail"]
    assert delete(client, "user_id", "ann", "?dry_run=yes").status_code == 422


def test_a_log_that_takes_nothing_is_503_and_it_can_be_asked_again(
    world: World, client: TestClient
) -> None:
    world.log.is_full = True
    assert delete(client, "user_id", "ann").status_code == 503
    world.log.is_full = False
    assert delete(client, "user_id", "ann").status_code == 202
    assert len(told(world, CONTROL)) == 1


def test_the_key_is_not_logged(client: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("DEBUG", "service"):
        delete(client, "user_id", "ann-from-the-moon")
    assert "admin=forget slot=user_id" in caplog.text
    assert "ann-from-the-moon" not in caplog.text
