"""`POST /v1/demo/drift`: a route of the demo alone, which turns its simulated world over."""

import threading

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from freshrank.audience import Audience
from service.auth import require
from service.routes.common import json_response, refuse_foreign


def drift_router(audience: Audience, drifted: threading.Event) -> APIRouter:
    """The route; it flips what the audience likes and sets `drifted`."""
    router = APIRouter(dependencies=[Depends(require("admin"))], include_in_schema=False)

    @router.post("/v1/demo/drift", status_code=202)
    async def drift(request: Request) -> Response:
        """Let every cohort like what it disliked: what was learned of tastes is wrong at once."""
        refuse_foreign(request)
        audience.flip()
        drifted.set()
        return json_response({"drifted": True}, status=202)

    return router
