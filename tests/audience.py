"""A steady load on a service, and what can be wrong with it."""

import contextlib
import itertools
import json
import random
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Final

import httpx

from freshrank.dev.servers import HOST
from tests.roles import Api

N_SHOWN: Final = 10
_N_ITEMS, _N_USERS = 40, 50
# Six visits a second leave most of two cores to the processes that answer them.
_PAUSE_S: Final = 0.15
# A ranking that takes as long is slow on any machine.
SLOW_S: Final = 1.0
# At the figures of a service, a few milliseconds each, until it has seen what was sent.
_LOOKS_MAX: Final = 100


class Audience:
    """Visits a service until closed: ranks ten items and clicks one, mostly the one that is good.

    Args:
        port: Of the service.
        body_bytes: What a request may have.
        in_flight: How many requests it answers at once.
    """

    def __init__(self, port: int, *, body_bytes: int, in_flight: int) -> None:
        self._api = Api(port)
        self._port = port
        self._in_flight = in_flight
        self._too_large = {"events": ["x" * body_bytes]}
        self._habits: set[str] = set()
        self._whims = random.Random(8)
        self._failure: Exception | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="audience")
        self._thread.start()

    @contextmanager
    def doing(self, *habits: str) -> Iterator[None]:
        """While the context lasts it has these habits.

        `quiet` stays away. `flipped` clicks what is bad. `nonsense` sends events that nobody knows,
        more than a tenth of all; `strangers` clicks of requests that never were, more than a fifth;
        `repeating` says a hundred times what it has said. `large` sends what is too large, twice a
        visit; `crowd` shows tags that nobody has seen; `crush` ranks while all places of the
        service are taken; `slow` ranks once more a visit, and takes its time to ask.
        """
        self._habits |= {*habits}
        yield
        self._habits -= {*habits}

    def close(self) -> None:
        """End the visit under way."""
        self._stop.set()
        self._thread.join()
        self._api.close()
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        try:
            for n in itertools.count():
                if self._stop.wait(_PAUSE_S):
                    return
                self._visit(n, frozenset(self._habits))
        except Exception as error:
            self._failure = error

    def _visit(self, n: int, habits: frozenset[str]) -> None:
        if "quiet" in habits:
            return
        items = [str((n + k) % _N_ITEMS) for k in range(N_SHOWN)]
        ranking: dict[str, Any] = {
            "request_id": f"r{n}",
            "user": f"u{n % _N_USERS}",
            "candidates": [{"item": item} for item in items],
        }
        taken = places_taken(self._port, self._in_flight, self._api)
        with taken if "crush" in habits else contextlib.nullcontext():
            self._api.ask("/v1/rank", ranking)
        # One of four is a whim: what is never wrong has no log loss to speak of.
        good = next(item for item in items if int(item) % N_SHOWN == 0)
        chosen = good if self._whims.random() < 0.75 else self._whims.choice(items)
        clicked = [item for item in items if (item == chosen) != ("flipped" in habits)]
        events = [_click(f"r{n}", item) for item in clicked]
        if "nonsense" in habits:
            events += [_click(f"r{n}", "0", "unheard-of")] * 3 * len(clicked)
        if "strangers" in habits:
            events += [_click(f"nobody-{n}", item) for item in items]
        if "repeating" in habits:
            events += [_click(f"r{n}", clicked[0])] * 100
        self._api.ask("/v1/events", {"events": events})
        self._misbehave(n, habits, ranking)

    def _misbehave(self, n: int, habits: frozenset[str], ranking: dict[str, Any]) -> None:
        if "large" in habits:
            for _ in range(2):
                self._api.ask("/v1/events", self._too_large)
        if "slow" in habits:
            httpx.post(
                f"http://{HOST}:{self._port}/v1/rank",
                content=self._late(json.dumps({**ranking, "log_impression": False}).encode()),
                headers={"Content-Type": "application/json"},
                timeout=30.0,
            ).raise_for_status()
        if "crowd" in habits:
            for k in range(2):
                self._api.ask("/v1/rank", _crowd(2 * n + k))

    def _late(self, body: bytes) -> Iterator[bytes]:
        """A body, whose end lets wait for itself."""
        yield body[:-1]
        self._stop.wait(SLOW_S)
        yield body[-1:]


def _click(request_id: str, item: str, event: str = "click") -> dict[str, Any]:
    return {"kind": "feedback", "request_id": request_id, "item": item, "event": event}


def _crowd(n: int) -> dict[str, Any]:
    """Ranks bad items under 256 new tags: half of them once, half often enough for a full table."""
    tags = [f"{n}-{k}" for k in range(128)] + [f"{n // 20} of 20-{k}" for k in range(128)]
    candidates = [{"item": str(k), "features": {"tags": tags}} for k in (1, 2, 3)]
    return {"request_id": f"crowd-{n}", "user": "u0", "candidates": candidates}


@contextmanager
def places_taken(port: int, n: int, api: Api, *, key: str = "") -> Iterator[None]:
    """While the context lasts all places of a service are taken, by requests without their bodies.

    Args:
        port: Of the service.
        n: How many requests it answers at once.
        api: Of the service, to look whether it has seen them.
        key: An API key, where it wants one.
    """
    told = (
        "POST /v1/rank HTTP/1.1\r\nHost: freshrank\r\n"
        f"Content-Type: application/json\r\nAuthorization: Bearer {key}\r\n"
        "Content-Length: 9\r\n\r\n"
    )
    with ExitStack() as stack:
        for _ in range(n):
            one = socket.create_connection((HOST, port))
            stack.enter_context(one).sendall(told.encode())
        full = f"freshrank_http_requests_in_flight {n}.0"
        for _ in range(_LOOKS_MAX):
            if full in api.ask("/metrics").text:
                break
        yield
