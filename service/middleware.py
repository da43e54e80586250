"""Around every request: its id, limits that hold before it is read, metrics, last resort."""

import asyncio
import logging
import re
import time
from typing import Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from freshrank.clock import Clock
from freshrank.metrics import Metrics
from service.gate import Gate
from service.problems import ProblemError, problem_response
from service.request_ids import new_request_id

logger = logging.getLogger(__name__)

REQUEST_ID: Final = "X-Request-Id"
# 2 MiB at 200 kB/s. Without it, idle connections would hold every place in `limits.in_flight`.
BODY_S_MAX: Final = 10.0
_LEGAL_ID: Final = re.compile(r"[A-Za-z0-9._:-]{1,128}")
# Probes and scrapes must see an overloaded service, and the page is only files.
_UNGATED: Final = ("/health/", "/metrics", "/ui")


class Guard:
    """ASGI middleware; the outermost that sees requests."""

    def __init__(
        self, app: ASGIApp, *, body_bytes_max: int, gate: Gate, metrics: Metrics, clock: Clock
    ) -> None:
        self._app = app
        self._body_bytes_max = body_bytes_max
        self._gate = gate
        self._metrics = metrics
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start_s = time.perf_counter()
        asked = Headers(scope=scope).get(REQUEST_ID, "")
        request_id = asked if _LEGAL_ID.fullmatch(asked) else new_request_id(self._clock)
        scope.setdefault("state", {})["request_id"] = request_id
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers[REQUEST_ID] = request_id
                headers["X-Content-Type-Options"] = "nosniff"
            await send(message)

        try:
            await self._guarded(scope, receive, send_with_id)
        except ClientDisconnect:
            pass  # nobody is left to answer
        except ProblemError as problem:
            await problem_response(problem, request_id)(scope, receive, send_with_id)
        except Exception:
            logger.exception("request=failed id=%s", request_id)
            if status:
                raise  # the server cuts the connection: the client must not take it for complete
            failure = ProblemError("internal", "the failure is in the service's log, by this id")
            await problem_response(failure, request_id)(scope, receive, send_with_id)
        finally:
            self._observe(scope, status, time.perf_counter() - start_s)

    async def _guarded(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"].startswith(_UNGATED):
            await self._app(scope, self._counted(receive), send)
            return
        try:
            self._gate.enter()
        except ProblemError:
            self._metrics.http_rejected.labels("shed").inc()
            raise
        self._metrics.http_in_flight.set(self._gate.n_working)
        try:
            if _told_length(scope) > self._body_bytes_max:
                raise self._too_large()
            await self._app(scope, self._counted(receive), send)
        finally:
            self._gate.leave()
            self._metrics.http_in_flight.set(self._gate.n_working)

    def _counted(self, receive: Receive) -> Receive:
        """A body without a length is counted as it comes, and every body has to come."""
        n_bytes = 0
        is_whole = False
        end_s = asyncio.get_running_loop().time() + BODY_S_MAX

        async def counting() -> Message:
            nonlocal n_bytes, is_whole
            try:
                async with asyncio.timeout_at(None if is_whole else end_s):
                    message = await receive()
            except TimeoutError:
                detail = f"the body did not come within {BODY_S_MAX:.0f} s"
                raise ProblemError(
                    "bad-request", detail, status=408, headers={"Connection": "close"}
                ) from None
            is_whole = not message.get("more_body", False)
            n_bytes += len(message.get("body", b""))
            if n_bytes > self._body_bytes_max:
                raise self._too_large()
            return message

        return counting

    def _too_large(self) -> ProblemError:
        self._metrics.http_rejected.labels("size").inc()
        return ProblemError("too-large", f"bodies have at most {self._body_bytes_max} bytes")

    def _observe(self, scope: Scope, status: int, seconds: float) -> None:
        if status in (401, 403):
            self._metrics.http_rejected.labels("auth").inc()
        route = getattr(scope.get("route"), "path", None)
        if route is None:
            route = "/ui" if scope["path"].startswith("/ui") else "unmatched"
        self._metrics.http_requests.labels(route, _method(scope), str(status or 499)).inc()
        self._metrics.http_duration.labels(route).observe(seconds)


def _told_length(scope: Scope) -> int:
    """What Content-Length says; 0 when it is absent, and counting decides."""
    text = Headers(scope=scope).get("content-length", "")
    if not (text.isascii() and text.isdigit()):
        return 0
    return int(text[:19])  # whatever is longer is too large already


def _method(scope: Scope) -> str:
    method = str(scope["method"])
    known = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
    return method if method in known else "other"  # a label's values must be few
