"""The service behind a real server on a port of its own."""

import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import uvicorn

from service.app import create_app
from tests.unit.service.support import World


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    world = World(tmp_path)
    world.base()
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    config = uvicorn.Config(create_app(world.parts), log_level="warning")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    end = time.monotonic() + 10
    while not server.started:
        assert time.monotonic() < end, "the server did not start"
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)
        listening.close()
        names = {one.name for one in threading.enumerate()}
        world.close()
    assert not thread.is_alive()
    assert names.isdisjoint({"replica", "entities"}), "the service's threads outlived its app"


def test_a_click_goes_round_over_real_sockets(address: str) -> None:
    with httpx.Client(base_url=address) as client:
        end = time.monotonic() + 10
        while client.get("/health/ready").status_code != 200:
            assert time.monotonic() < end
            time.sleep(0.02)
        body = {"user": "u", "candidates": [{"item": "b"}, {"item": "a"}]}
        ranked = client.post("/v1/rank", json=body)
        assert [item["item"] for item in ranked.json()["items"]] == ["a", "b"]
        click = {"request_id": ranked.json()["request_id"], "item": "a", "event": "click"}
        receipt = client.post("/v1/feedback", json=click).json()["receipt"]
        assert client.get(f"/v1/events/{receipt}").json()["state"] == "queued"
        too_large = client.post("/v1/rank", content=(b" " * 65_536 for _ in range(64)),
                                headers={"Content-Type": "application/json"})  # fmt: skip
        assert too_large.status_code == 413
        assert client.get("/ui/").status_code == 200
