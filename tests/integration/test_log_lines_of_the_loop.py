"""One request is followed through the lines of the whole loop, and none tells who asked what."""

import io
import json
import logging
import re
from pathlib import Path
from typing import Any

from freshrank.config import loads
from freshrank.embedded import Embedded
from freshrank.log_lines import handler
from freshrank.logging_settings import LoggingSettings
from freshrank.messages import Action, Impression, encode
from freshrank.transport.base import ACTIONS, IMPRESSIONS, NewRecord
from tests.integration.transport.log_checks import eventually
from tests.unit.service.support import TestClient

CONFIG = """
features:
  - {name: user_id, type: id, scope: user, dim: 4}
  - {name: item_id, type: id, scope: item, dim: 4}
  - {name: category, type: id, scope: item, dim: 4}
  - {name: price, type: dense, scope: item, transform: log1p}
  - {name: last, type: recent, event: click}
tasks:
  - {name: click, event: click, negative: {from: shown}}
join: {window: 1s, max_out_of_order: 100ms}
sync: {sparse_every: 100ms}
"""
# In every id and value of the test; 31337 stands for numbers.
MARK = re.compile(r"private|31337")
RANKING: dict[str, Any] = {
    "request_id": "r1",
    "user": "private-user",
    "candidates": [
        {"item": "private-item", "features": {"category": "private-jazz", "price": 31337.5}},
        {"item": "private-other"},
    ],
}
CLICK = {"request_id": "r1", "user": "private-user", "item": "private-item", "event": "click"}


def use(client: TestClient) -> None:
    """Good requests, and every kind of bad one."""
    answer = client.post("/v1/rank", json=RANKING, headers={"X-Request-Id": "h1"})
    assert answer.status_code == 200
    receipt = client.post("/v1/feedback", json=CLICK).json()["receipt"]
    status = client.get(f"/v1/events/{receipt}?wait=30s").json()
    assert status["state"] == "servable", status
    bad = {**RANKING["candidates"][0], "features": {"price": "private-text", "private-name": 1}}
    assert client.post("/v1/rank", json={**RANKING, "candidates": [bad]}).status_code == 422
    assert client.post("/v1/rank", content=b'{"user": "private', headers=JSON).status_code == 400
    assert client.post("/v1/feedback", json={**CLICK, "event": "private-event"}).status_code == 422
    assert client.get("/v1/models/private-model").status_code == 404
    assert client.get("/private/path?user=private").status_code == 404


JSON = {"Content-Type": "application/json"}


def spoil(loop: Embedded, now_ms: int) -> None:
    """Records that the service would never have let in."""
    head: dict[str, Any] = {"ts_ms": now_ms, "received_at_ms": now_ms, "request_id": "r2"}
    head["user"] = "private-user"
    impression = Impression(
        event_id="private-e1", items=["private-item"], columns={"price": ["private-price"]}, **head
    )
    action = Action(event_id="private-e2", item="private-item", event="private-event", **head)
    records = {IMPRESSIONS: [encode(impression), b"private-bytes"], ACTIONS: [encode(action)]}
    for topic, values in records.items():
        loop.log.append(topic, [NewRecord(b"r2", value) for value in values])


def test_a_request_is_in_the_lines_of_every_part_and_its_user_in_none(tmp_path: Path) -> None:
    environ = {"FRESHRANK__SERVICE__DATA_DIR": str(tmp_path)}
    settings = loads(CONFIG, name="test.yaml", environ=environ)
    stream, root = io.StringIO(), logging.getLogger()
    ours = handler(LoggingSettings(), role="serve", stream=stream)
    ours.addFilter(lambda record: not record.name.startswith("httpx"))  # the test's own client
    level = root.level
    root.addHandler(ours)
    root.setLevel(logging.DEBUG)
    loop = Embedded(settings, learn=True)
    try:
        with TestClient(loop.app) as client:
            loop.start()
            eventually(lambda: client.get("/health/ready").status_code == 200)
            use(client)
            spoil(loop, loop.log.read(IMPRESSIONS, 0, 0, n_max=1)[0].appended_at_ms)
            eventually(lambda: stream.getvalue().count("record=refused") == 3)
    finally:
        loop.close()
        root.removeHandler(ours)
        root.setLevel(level)
    assert loop.failures == []
    text = stream.getvalue()
    lines = [json.loads(line) for line in text.splitlines()]
    said = {(line["logger"], line["event"]) for line in lines if line.get("request_id") == "r1"}
    assert said >= {
        ("service.ranker", "request=ranked"),
        ("service.ingest", "event=accepted"),
        ("trainer.joiner.watch", "request=joined"),
        ("trainer.lesson", "request=learned"),
    }
    [ranked] = [line for line in lines if line["event"] == "request=ranked"]
    assert ranked["http_request_id"] == "h1"
    assert {line["status"] for line in lines if line["event"] == "http=answered"} >= {200, 404, 422}
    assert [line for line in text.splitlines() if MARK.search(line)] == []
