"""What the service says of itself: models, schema, version, stats."""

import importlib.metadata
import platform
from typing import Any

import numpy as np
from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from freshrank import __version__
from freshrank.config import digest
from service.auth import require
from service.bodies import FEATURES_MAX, ITEMS_MAX, TEXT_CHARACTERS_MAX
from service.problems import ProblemError
from service.request_values import MODEL_NAME
from service.routes.common import answers, in_thread, json_response, service_of
from service.stats import describe, stats

router = APIRouter(tags=["models"], dependencies=[Depends(require("read"))])


@router.get("/v1/models", operation_id="models", responses=answers(401, 403))
async def models(request: Request) -> Response:
    """List the models that answer now."""
    service = service_of(request)
    model = service.replica.model
    return json_response({"models": [describe(service, model.current)] if model else []})


@router.get("/v1/models/{name}", operation_id="model", responses=answers(401, 403, 404, 503))
async def model(request: Request, name: str) -> Response:
    """Describe one model: version, tasks, progressive metrics."""
    service = service_of(request)
    if name != MODEL_NAME:
        raise ProblemError("not-found", f"no model {name[:64]!r}; there is {MODEL_NAME!r}")
    loaded = service.replica.model
    if loaded is None:
        raise ProblemError("model-not-ready", "no base is loaded yet", headers={"Retry-After": "1"})
    return json_response(describe(service, loaded.current))


@router.get("/v1/schema", operation_id="schema", responses=answers(401, 403))
async def schema(request: Request) -> Response:
    """Features, tasks and limits of this configuration."""
    parts = service_of(request).parts
    limits = parts.settings.limits
    document: dict[str, Any] = {
        "schema_hash": parts.encoder.schema_hash,
        "features": [f.model_dump(mode="json") for f in parts.settings.features],
        "tasks": [t.model_dump(mode="json", by_alias=True) for t in parts.settings.tasks],
        "limits": {
            "candidates": limits.candidates,
            "events": limits.events,
            "body_bytes": limits.body,
            "in_flight": limits.in_flight,
            "features_per_candidate": FEATURES_MAX,
            "items_per_impression": ITEMS_MAX,
            "id_characters": TEXT_CHARACTERS_MAX,
        },
    }
    return json_response(document)


@router.get("/v1/version", operation_id="version", responses=answers(401, 403))
async def version(request: Request) -> Response:
    """Which program runs, with which configuration."""
    settings = service_of(request).parts.settings
    return json_response(
        {
            "version": __version__,
            "config_hash": digest(settings),
            "build": {
                "python": platform.python_version(),
                "numpy": np.__version__,
                "onnxruntime": importlib.metadata.version("onnxruntime"),
            },
        }
    )


@router.get("/v1/stats", operation_id="stats", tags=["ops"], responses=answers(401, 403))
async def statistics(request: Request) -> Response:
    """The state of the whole loop, as the live page shows it."""
    return json_response(await in_thread(request, stats, service_of(request)))
