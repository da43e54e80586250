"""The OpenAPI document: routes from FastAPI, bodies from the structs that decode them."""

from typing import Any

import msgspec
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from freshrank import __version__
from service import bodies
from service.problems import ProblemDocument

BODIES = (
    bodies.ControlRequest,
    bodies.EventsRequest,
    bodies.EventsResponse,
    bodies.Feedback,
    bodies.RankRequest,
    bodies.RankResponse,
    bodies.ReceiptResponse,
    bodies.RollbackRequest,
    ProblemDocument,
)


def openapi(app: FastAPI) -> dict[str, Any]:
    """The document."""
    document = get_openapi(
        title="freshrank",
        version=__version__,
        summary="A ranking service that learns from the click you just made.",
        routes=app.routes,
    )
    _, schemas = msgspec.json.schema_components(BODIES, ref_template="#/components/schemas/{name}")
    components = document.setdefault("components", {})
    # FastAPI documents a validation error of its own that no route of ours answers with.
    components["schemas"] = dict(sorted(schemas.items()))
    components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    document["security"] = [{}, {"key": []}]
    for path in document["paths"].values():
        for operation in path.values():
            fastapi_own = operation["responses"].get("422", {}).get("content", {})
            if "application/json" in fastapi_own:
                del fastapi_own["application/json"]
    return document
