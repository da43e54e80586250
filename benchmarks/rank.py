"""Latency of a rank request: 200 candidates with 5 features each, dim 16, over a real socket.

    python -m benchmarks.rank [--json]

Milliseconds, p50 and p99, of the ranker alone and of HTTP from one client. The impression is logged
in both, as in service.
"""

import http.client
import socket
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

import msgspec
import numpy as np
import uvicorn

from benchmarks import report
from benchmarks.report import Row, row
from freshrank.clock import ManualClock, SystemClock
from freshrank.frames import TableRows
from service.app import create_app
from service.bodies import RankRequest
from service.core import Service
from tests.unit.service.support import FEATURES, World, make_settings, until

DIM = 16
N_ITEMS, N_CANDIDATES, N_REQUESTS = 5_000, 200, 500


def run() -> list[Row]:
    """The ranker alone, then the same requests over HTTP."""
    rng = np.random.default_rng(0)
    more = [{"name": f"f{i}", "type": "id", "scope": "candidate"} for i in range(3)]
    features = [{**f, "dim": DIM} if "dim" in f else f for f in FEATURES] + more
    with tempfile.TemporaryDirectory() as directory:
        wall = cast(ManualClock, SystemClock())  # nobody moves it here
        world = World(Path(directory), settings=make_settings(features=features), clock=wall)
        names = [f"item-{i}" for i in range(N_ITEMS)]
        keys = np.unique(np.array(world.ids("item_id", names), np.uint64))
        rows = rng.normal(size=(len(keys), DIM + 1)).astype(np.float32)
        world.base({"item_id": TableRows(keys, rows, np.empty(0, np.uint64))})
        bodies = [body(rng, names) for _ in range(N_REQUESTS)]
        found = measure(world, bodies)
        world.close()
    return found


def body(rng: np.random.Generator, names: list[str]) -> bytes:
    """One request."""
    chosen = rng.choice(len(names), N_CANDIDATES, replace=False).tolist()
    candidates: list[dict[str, Any]] = [
        {
            "item": names[i],
            "features": {
                "price": float(i),
                "tags": ["a", "b"],
                "f0": "x",
                "f1": f"y{i}",
                "f2": "z",
            },
        }
        for i in chosen
    ]
    request = {"user": "u", "context": {"hour": 3}, "candidates": candidates, "top_k": 20}
    return msgspec.json.encode(request)


def measure(world: World, bodies: list[bytes]) -> list[Row]:
    """Both ways, the same requests."""
    app = create_app(world.parts)
    service: Service = app.state.service
    service.start()
    until(lambda: service.replica.model is not None)
    requests = [msgspec.json.decode(one, type=RankRequest) for one in bodies]
    found = timed("ranker", [partial(service.ranker.rank, one) for one in requests])

    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    until(lambda: server.started)
    client = http.client.HTTPConnection("127.0.0.1", listening.getsockname()[1])

    def post(one: bytes) -> None:
        client.request("POST", "/v1/rank", one, {"Content-Type": "application/json"})
        answer = client.getresponse()
        answer.read()
        if answer.status != 200:
            raise SystemExit(f"status {answer.status}")

    found += timed("http", [partial(post, one) for one in bodies])
    client.close()
    server.should_exit = True
    thread.join()
    return found


def timed(name: str, calls: list[Callable[[], object]]) -> list[Row]:
    """Time each call; the first tenth only warms up."""
    times_ms = []
    for call in calls:
        start_s = time.perf_counter()
        call()
        times_ms.append((time.perf_counter() - start_s) * 1_000)
    p50, p99 = np.percentile(times_ms[len(times_ms) // 10 :], [50, 99])
    return [
        row(f"{name}_200_candidates_p50", p50, "ms"),
        row(f"{name}_200_candidates_p99", p99, "ms"),
    ]


if __name__ == "__main__":
    report.main(run)
