"""What the live page watches: points as they come, one id's state."""

import time
from collections.abc import AsyncIterator
from typing import Final

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response, StreamingResponse

from service.auth import require
from service.core import Service
from service.inspection import inspect, parse
from service.routes.common import answers, in_thread, json_response, service_of

# Then the client comes back by itself, if its key is still good.
STREAM_S_MAX: Final = 300.0
RETRY_MS: Final = 1_000

router = APIRouter(tags=["models"], dependencies=[Depends(require("read"))])


@router.get(
    "/v1/stream",
    operation_id="stream",
    responses=answers(401, 403, 503),
    openapi_extra={
        "parameters": [
            {
                "name": "Last-Event-ID",
                "in": "header",
                "description": "Only points behind this one; else those of a quarter of an hour.",
                "schema": {"type": "string", "pattern": r"^\d{1,15}$"},
            }
        ]
    },
)
async def stream(request: Request) -> Response:
    """Server-sent events, each an array of points: first those there are, then each as it comes."""
    service, after = service_of(request), request.headers.get("last-event-id", "")
    service.gate.check_stream()
    return StreamingResponse(
        _events(service, int(after[:15]) if after.isascii() and after.isdigit() else -1),
        media_type="text/event-stream",
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
    )


@router.get(
    "/v1/embeddings/{slot}/{key:path}",
    operation_id="embedding",
    responses=answers(401, 403, 404, 422, 503),
    openapi_extra={
        "parameters": [
            {
                "name": "with",
                "in": "query",
                "description": "Of a cross: the id of its second part; `key` is the first one's.",
                "schema": {"type": "string"},
            }
        ]
    },
)
async def embedding(request: Request, slot: str, key: str) -> Response:
    """One id: its vector, and whether it waits for a row, has one or has lost it."""
    service = service_of(request)
    named = parse(service, slot, key, request.query_params.get("with"))
    return json_response(await in_thread(request, inspect, service, named))


async def _events(service: Service, after_ms: int) -> AsyncIterator[bytes]:
    history, end_s = service.history, time.monotonic() + STREAM_S_MAX
    with service.gate.streaming():
        yield b"retry: %d\n\n" % RETRY_MS
        while not history.is_over:
            if points := history.after(after_ms):
                after_ms = points[-1][0]
                yield b"id: %d\ndata: [%b]\n\n" % (after_ms, b",".join(one for _, one in points))
            left_s = end_s - time.monotonic()
            if left_s <= 0:
                return
            await history.wait(after_ms, timeout_s=left_s)
