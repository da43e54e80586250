"""Probes, metrics and the operator's commands."""

from typing import Any, Literal
from uuid import uuid4

import anyio.to_thread
import msgspec
from fastapi import APIRouter, Depends, Request
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from starlette.responses import Response

from freshrank.messages import Control, encode
from freshrank.transport.base import CONTROL, NewRecord
from service import forgetting
from service.auth import require
from service.bodies import ControlRequest, RollbackRequest
from service.core import Service
from service.decoding import decode
from service.problems import ProblemError
from service.routes.common import (
    answers,
    asks_bool,
    in_thread,
    json_body,
    json_response,
    parse_bool,
    refuse_foreign,
    service_of,
    takes,
)
from service.stats import describe

router = APIRouter()
_control_decoder = msgspec.json.Decoder(ControlRequest)
_rollback_decoder = msgspec.json.Decoder(RollbackRequest)


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
    # Not in the threads of requests: a probe must see an overloaded service.
    degraded = (
        await anyio.to_thread.run_sync(service.health.degraded, model.current) if model else []
    )
    document = {"ready": is_ready, "components": components, "degraded": degraded}
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
    service, reason = service_of(request), ""
    if await request.body():
        reason = decode(_control_decoder, await json_body(request)).reason
    control = Control(command=command, reason=reason, **_now(service))
    offset = await in_thread(request, _append, service, control)
    return json_response({"command": command, "reason": reason, "offset": offset}, status=202)


@router.post(
    "/v1/admin/rollback",
    operation_id="rollback",
    tags=["admin"],
    status_code=202,
    dependencies=[Depends(require("admin"))],
    responses=answers(400, 401, 403, 408, 413, 415, 422, 503, code=202),
    openapi_extra=takes(RollbackRequest),
)
async def rollback(request: Request) -> Response:
    """Send the trainer back to a checkpoint: what it learned since is no longer served.

    The answer says what is served until then: the trainer obeys within its next step, and opens the
    next epoch. What it refuses is a dead letter of the control topic. With `dry_run` it says with a
    200 how many rows would be taken back, and nothing is done.
    """
    refuse_foreign(request)
    service = service_of(request)
    body = decode(_rollback_decoder, await json_body(request))
    model = service.replica.model
    document = {
        "command": "rollback",
        "to": body.to,
        "reason": body.reason,
        "relearn": body.relearn,
        "dry_run": body.dry_run,
        "offset": None,
        "from": None if model is None else describe(service, model.current),
    }
    if body.dry_run:
        document |= await in_thread(request, _undone, service, body.to)
        return json_response(document)
    control = Control(
        command="rollback", to=body.to, reason=body.reason, relearn=body.relearn, **_now(service)
    )
    document["offset"] = await in_thread(request, _append, service, control)
    return json_response(document, status=202)


@router.get(
    "/v1/admin/snapshots",
    operation_id="snapshots",
    tags=["admin"],
    dependencies=[Depends(require("admin"))],
    responses=answers(401, 403),
)
async def snapshots(request: Request) -> Response:
    """List the checkpoints that one can go back to; null where the trainer is another process."""
    loop = service_of(request).parts.loop
    found = await in_thread(request, loop.snapshots) if loop else None
    return json_response({"snapshots": found})


@router.delete(
    "/v1/admin/keys/{slot}/{key:path}",
    operation_id="forget",
    tags=["admin"],
    status_code=202,
    dependencies=[Depends(require("admin"))],
    responses=answers(401, 403, 404, 422, 503, code=202),
    openapi_extra=asks_bool("dry_run", "Only say what is known of the id."),
)
async def forget(request: Request, slot: str, key: str) -> Response:
    """Forget an id: its row, what waits to be joined, feature state, and what old records say.

    The answer says what this service knows until then, and what is not undone. With `dry_run` it
    says so with a 200, and nothing is done.
    """
    refuse_foreign(request)
    service = service_of(request)
    is_dry = parse_bool(request, "dry_run")
    named = forgetting.parse_key(service, slot, key)
    document = {
        "slot": named.slot,
        "known": await in_thread(request, forgetting.known, service, named),
        "remains": forgetting.remains(service),
        "dry_run": is_dry,
        "offset": None,
    }
    if not is_dry:
        document["offset"] = await in_thread(request, forgetting.command, service, named)
    return json_response(document, status=200 if is_dry else 202)


def _undone(service: Service, name: str) -> dict[str, Any]:
    """What a roll-back would take back; nulls where the trainer is another process.

    Raises:
        ProblemError: 404, its trainer has no such checkpoint.
    """
    loop = service.parts.loop
    if loop is None:
        return {"snapshot": None, "rows_taken_back": None}
    snapshot = next((one for one in loop.snapshots() if one["name"] == name), None)
    if snapshot is None:
        raise ProblemError("not-found", f"no checkpoint {name!r}: see /v1/admin/snapshots")
    n_rows, n_then = loop.accounting().get("rows_learned", 0), snapshot.get("rows_learned")
    taken_back = None if n_then is None else max(n_rows - n_then, 0)
    return {"snapshot": snapshot, "rows_taken_back": taken_back}


def _now(service: Service) -> dict[str, Any]:
    """Id and times of a command that is given now."""
    now_ms = service.parts.clock.now_ms()
    return {"event_id": uuid4().hex, "ts_ms": now_ms, "received_at_ms": now_ms}


def _append(service: Service, control: Control) -> int:
    [(_, offset)] = service.parts.log.append(CONTROL, [NewRecord(b"trainer", encode(control))])
    return offset
