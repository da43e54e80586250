"""Around every request: its id, limits that hold before it is read, metrics, last resort."""

import asyncio
import logging
import re
import time
from collections.abc import Sequence
from typing import Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from structlog.contextvars import bound_contextvars

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
_NO_THREAD: Final = "can't start new thread"  # what Python says where memory does not suffice
# Probes and scrapes must see an overloaded service, and the page is only files.
_UNGATED: Final = ("/health/", "/metrics", "/ui")


class Guard:
    """ASGI middleware; the outermost that sees requests.

    Args:
        app: Answers them.
        routes: By which those are counted that are refused here.
        body_bytes_max: Limit of a body.
        gate: Limit of requests at once.
        metrics: Counts them.
        clock: Makes request ids.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        routes: Sequence[BaseRoute],
        body_bytes_max: int,
        gate: Gate,
        metrics: Metrics,
        clock: Clock,
    ) -> None:
        self._app = app
        self._routes = routes
        self._body_bytes_max = body_bytes_max
        self._gate = gate
        self._metrics = metrics
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        asked = Headers(scope=scope).get(REQUEST_ID, "")
        request_id = asked if _LEGAL_ID.fullmatch(asked) else new_request_id(self._clock)
        scope.setdefault("state", {})["request_id"] = request_id
        with bound_contextvars(http_request_id=request_id):
            await self._answer(scope, receive, send, request_id)

    async def _answer(self, scope: Scope, receive: Receive, send: Send, request_id: str) -> None:
        start_s = time.perf_counter()
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
        except Exception as error:
            is_short = isinstance(error, MemoryError) or str(error) == _NO_THREAD
            if is_short:  # each would tell its whole stack, and there is no more to learn from it
                logger.error("request=refused http_request_id=%s error=%r", request_id, error)
            else:
                logger.exception("request=failed http_request_id=%s", request_id)
            if status:
                raise  # the server cuts the connection: the client must not take it for complete
            await problem_response(_failure(is_short=is_short), request_id)(
                scope, receive, send_with_id
            )
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
        route = self._route(scope)
        self._metrics.http_requests.labels(route, _method(scope), str(status or 499)).inc()
        self._metrics.http_duration.labels(route).observe(seconds)
        logger.debug("http=answered route=%s status=%d ms=%.1f", route, status, seconds * 1_000)

    def _route(self, scope: Scope) -> str:
        """Template of the path, also where the request was refused before it came to its route."""
        if scope["path"].startswith("/ui"):
            return "/ui"
        found = scope.get("route") or next(
            (one for one in self._routes if one.matches(scope)[0] is Match.FULL), None
        )
        return getattr(found, "path", "unmatched")


def _failure(*, is_short: bool) -> ProblemError:
    if is_short:
        told = "this machine has no memory left for the request"
        return ProblemError("overloaded", told, headers={"Retry-After": "1"})
    return ProblemError("internal", "the failure is in the service's log, by this id")


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
