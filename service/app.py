"""The HTTP app: routes, errors in one shape, the live page."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import anyio
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import RedirectResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from freshrank import __version__
from freshrank.errors import DataError, TransportError
from service.core import Service, ServiceParts
from service.middleware import Guard
from service.openapi import openapi
from service.problems import FieldError, ProblemError, problem_response, validation
from service.routes import events, info, live, ops, rank

__all__ = ["Service", "ServiceParts", "create_app"]

UI: Final = Path(__file__).parent / "ui"
# The page loads nothing from elsewhere and may be framed by nobody.
CSP: Final = "default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'"
_SLUGS: Final = {404: "not-found", 405: "method", 413: "too-large", 415: "unsupported-media"}


def create_app(parts: ServiceParts) -> FastAPI:
    """The app; `app.state.service` is the `Service` behind it.

    The service starts and stops with the app's lifespan; starting it earlier does no harm.

    Raises:
        ConfigError: a key file cannot be read.
    """
    service = Service(parts)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.threads = anyio.CapacityLimiter(parts.settings.limits.in_flight)
        service.start()
        try:
            yield
        finally:
            service.stop()

    app = FastAPI(
        title="freshrank", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None
    )
    app.state.service = service
    routers = (rank.router, events.router, info.router, live.router, ops.router)
    app.add_middleware(
        Guard,
        routes=[route for router in routers for route in router.routes],
        body_bytes_max=parts.settings.limits.body,
        gate=service.gate,
        metrics=service.metrics,
        clock=parts.clock,
    )
    for router in routers:
        app.include_router(router)
    _handle_errors(app)
    app.add_api_route("/", _to_page, include_in_schema=False)
    app.mount("/ui", Page(directory=UI, html=True))
    document: dict[str, Any] = {}
    app.openapi = lambda: document or document.update(openapi(app)) or document  # type: ignore[method-assign]
    return app


class Page(StaticFiles):
    """The live page's files, with a policy that keeps everything else out."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        """A file."""
        response = await super().get_response(path, scope)
        response.headers["Content-Security-Policy"] = CSP
        response.headers["Cache-Control"] = "no-cache"
        return response


async def _to_page() -> Response:
    return RedirectResponse("/ui/")


def _handle_errors(app: FastAPI) -> None:
    @app.exception_handler(ProblemError)
    async def problem(request: Request, error: ProblemError) -> Response:
        return _answer(request, error)

    @app.exception_handler(TransportError)
    async def transport(request: Request, error: TransportError) -> Response:
        retry = {"Retry-After": "1"}
        return _answer(request, ProblemError("broker-unavailable", str(error), headers=retry))

    @app.exception_handler(DataError)
    async def data(request: Request, error: DataError) -> Response:
        return _answer(request, validation([FieldError("#", str(error))]))

    @app.exception_handler(RequestValidationError)
    async def parameters(request: Request, error: RequestValidationError) -> Response:
        # Only path parameters are typed: what does not fit is a route that does not exist.
        return _answer(request, ProblemError("not-found", f"no route {request.url.path[:256]!r}"))

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        slug = _SLUGS.get(error.status_code, "bad-request")
        details = {
            404: f"no route {request.url.path[:256]!r}",
            405: f"{request.method[:16]} is not a method of this route",
        }
        detail = details.get(error.status_code, str(error.detail))
        status = error.status_code
        headers = dict(error.headers or {})
        return _answer(request, ProblemError(slug, detail, headers=headers, status=status))


def _answer(request: Request, error: ProblemError) -> Response:
    return problem_response(error, request.state.request_id)
