"""POST /v1/events, POST /v1/feedback, GET /v1/events/{receipt}."""

from collections.abc import Mapping, Sequence
from typing import Final

import msgspec
from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from service.auth import require
from service.bodies import (
    EventBody,
    EventsRequest,
    EventsResponse,
    Feedback,
    FeedbackEvent,
    RawEvents,
    ReceiptResponse,
    Rejection,
)
from service.decoding import decode
from service.problems import FieldError, ProblemError, validation
from service.routes.common import (
    answers,
    in_thread,
    json_body,
    json_response,
    parse_wait,
    read_receipt,
    service_of,
    takes,
)

NDJSON: Final = "application/x-ndjson"
WAIT_MAX_S: Final = 30.0

router = APIRouter(tags=["events"])
_raw_decoder = msgspec.json.Decoder(RawEvents)
_feedback_decoder = msgspec.json.Decoder(Feedback)

_POST_PROBLEMS: Final = (400, 401, 403, 408, 413, 415, 422, 503)


@router.post(
    "/v1/events",
    operation_id="events",
    summary="Send impressions, feedback, and features of items and users",
    status_code=202,
    dependencies=[Depends(require("events"))],
    responses=answers(*_POST_PROBLEMS, success=EventsResponse, code=202),
    openapi_extra=takes(EventsRequest, also=(NDJSON,)),
)
async def events(request: Request) -> Response:
    """Accept what is right and name what is wrong; 202 if anything was accepted."""
    service = service_of(request)
    body = await json_body(request, also=(NDJSON,))
    if request.headers.get("content-type", "").lower().startswith(NDJSON):
        raws = [msgspec.Raw(line) for line in body.splitlines() if line.strip()]
    else:
        raws = decode(_raw_decoder, body).events
    n_max = service.parts.settings.limits.events
    if len(raws) > n_max:
        raise validation([FieldError("#/events", f"{len(raws)} events, at most {n_max} are taken")])
    if not raws:
        raise validation([FieldError("#/events", "no events: send at least one")])
    return await _submit(request, raws)


@router.post(
    "/v1/feedback",
    operation_id="feedback",
    summary="Send one feedback event",
    status_code=202,
    dependencies=[Depends(require("events"))],
    responses=answers(*_POST_PROBLEMS, success=EventsResponse, code=202),
    openapi_extra=takes(Feedback),
)
async def feedback(request: Request) -> Response:
    """Accept one feedback event in its shortest form."""
    body = decode(_feedback_decoder, await json_body(request))
    fields = {name: getattr(body, name) for name in body.__struct_fields__}
    return await _submit(request, [FeedbackEvent(**fields)], prefix="#/events/0")


@router.get(
    "/v1/events/{receipt}",
    operation_id="receipt",
    summary="What became of events",
    dependencies=[Depends(require("events", "read"))],
    responses=answers(401, 403, 404, 422, 503, success=ReceiptResponse),
    openapi_extra={
        "parameters": [
            {
                "name": "wait",
                "in": "query",
                "required": False,
                "description": f"Wait until servable, e.g. 5s; at most {WAIT_MAX_S:.0f}s.",
                "schema": {"type": "string", "pattern": r"^\d{1,6}(\.\d{1,3})?(ms|s)?$"},
            }
        ]
    },
)
async def receipt(request: Request, receipt: str) -> Response:
    """Tell how far the events have come, after waiting for `servable` if asked."""
    service = service_of(request)
    wait_s = parse_wait(request.query_params.get("wait"), max_s=WAIT_MAX_S)
    named = await read_receipt(request, receipt)
    await service.wait_servable(named, wait_s)
    return json_response(service.receipts.status(receipt, named))


async def _submit(
    request: Request,
    batch: Sequence[msgspec.Raw | EventBody | Mapping[str, object]],
    *,
    prefix: str = "#",
) -> Response:
    """Submit; `prefix` is where the request's own body stands among the pointers."""
    ingest = service_of(request).ingest
    answer = await in_thread(request, lambda: ingest.submit(batch, source="http"))
    if not answer.accepted:
        errors = [_field_error(rejection, prefix) for rejection in answer.rejected]
        detail = f"none of {len(errors)} events was accepted" if len(errors) > 1 else "1 problem"
        raise ProblemError("validation", detail, errors=errors)
    return json_response(answer, status=202)


def _field_error(rejection: Rejection, prefix: str) -> FieldError:
    if prefix == "#":
        return FieldError(rejection.pointer, rejection.detail)
    return FieldError("#" + rejection.pointer.removeprefix(prefix), rejection.detail)
