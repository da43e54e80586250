"""Probes, metrics and the operator's commands."""

from typing import Literal
from uuid import uuid4

import msgspec
from fastapi import APIRouter, Depends, Request
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from starlette.responses import Response

from freshrank.messages import Control, encode
from freshrank.transport.base import CONTROL, NewRecord
from service.auth import require
from service.bodies import ControlRequest
from service.core import Service
from service.decoding import decode
from service.routes.common import (
    answers,
    in_thread,
    json_body,
    json_response,
    refuse_foreign,
    service_of,
    takes,
)

router = APIRouter()
_control_decoder = msgspec.json.Decoder(ControlRequest)


@router.get("/health/live", operation_id="live", tags=["ops"], responses=answers())
async def live(request: Request) -> Response:
    """Answer as long as the process does."""
    return json_response({"live": True})


@router.get("/health/ready", operation_id="ready", tags=["ops"], responses=answers(503))
async def ready(request: Request) -> Response:
    """200 when requests may come; 503 with what is missing."""
    service = service_of(request)
    components = service.health.components()
    is_ready = all(component.ready for component in components)
    model = service.replica.model
    document = {
        "ready": is_ready,
        "components": components,
        "degraded": service.health.degraded(model.current) if model else [],
    }
    return json_response(document, status=200 if is_ready else 503)


@router.get(
    "/metrics",
    operation_id="metrics",
    tags=["ops"],
    dependencies=[Depends(require("read"))],
    responses=answers(401, 403),
)
async def metrics(request: Request) -> Response:
    """Metrics in Prometheus' text format."""
    text = await in_thread(request, generate_latest, service_of(request).parts.registry)
    return Response(text, headers={"Content-Type": CONTENT_TYPE_PLAIN_0_0_4})


@router.post(
    "/v1/admin/trainer/{command}",
    operation_id="trainer_control",
    tags=["admin"],
    status_code=202,
    dependencies=[Depends(require("admin"))],
    responses=answers(400, 401, 403, 404, 408, 413, 415, 422, 503, code=202),
    openapi_extra=takes(ControlRequest, required=False),
)
async def trainer_control(request: Request, command: Literal["pause", "resume"]) -> Response:
    """Pause or resume learning; serving goes on with what was learned."""
    refuse_foreign(request)
    reason = ""
    if await request.body():
        reason = decode(_control_decoder, await json_body(request)).reason
    offset = await in_thread(request, _append, service_of(request), command, reason)
    return json_response({"command": command, "reason": reason, "offset": offset}, status=202)


def _append(service: Service, command: Literal["pause", "resume"], reason: str) -> int:
    now_ms = service.parts.clock.now_ms()
    control = Control(
        event_id=uuid4().hex,
        ts_ms=now_ms,
        received_at_ms=now_ms,
        command=command,
        reason=reason,
    )
    [(_, offset)] = service.parts.log.append(CONTROL, [NewRecord(b"trainer", encode(control))])
    return offset
