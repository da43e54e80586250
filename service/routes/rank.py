"""POST /v1/rank."""

import time
from typing import Final

import msgspec
from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from freshrank.errors import DataError
from service.auth import require
from service.bodies import RankRequest, RankResponse
from service.decoding import decode
from service.routes.common import (
    answers,
    in_thread,
    json_body,
    json_response,
    preferred_wait,
    service_of,
    takes,
)

# Longer waits belong to the receipt's own route: a rank request has a user waiting.
WAIT_MAX_S: Final = 5.0

router = APIRouter(tags=["rank"], dependencies=[Depends(require("rank"))])
_decoder = msgspec.json.Decoder(RankRequest)


@router.post(
    "/v1/rank",
    operation_id="rank",
    summary="Order candidates for a user",
    responses=answers(400, 401, 403, 408, 413, 415, 422, 503, 504, success=RankResponse),
    openapi_extra=takes(RankRequest),
)
async def rank(request: Request) -> Response:
    """Order candidates; with `after` and `Prefer: wait=5` first wait for those events."""
    service = service_of(request)
    body = await json_body(request)
    start_s = time.perf_counter()
    asked = decode(_decoder, body)
    parse_ms = (time.perf_counter() - start_s) * 1_000
    headers: dict[str, str] = {}
    wait_s = preferred_wait(request, max_s=WAIT_MAX_S)
    if wait_s and asked.after is not None:
        try:
            receipt = service.receipts.read(asked.after)
        except DataError:
            pass  # the ranker says what is wrong with it, where it belongs
        else:
            await service.wait_servable(receipt, wait_s)
            headers["Preference-Applied"] = f"wait={wait_s:.0f}"  # what was granted, maybe less
    ranked = await in_thread(request, service.ranker.rank_timed, asked)
    timing = (
        f"parse;dur={parse_ms:.3f}, lookup;dur={ranked.lookup_s * 1_000:.3f}, "
        f"forward;dur={ranked.forward_s * 1_000:.3f}"
    )
    return json_response(ranked.response, headers={**headers, "Server-Timing": timing})
