"""What routes share: reading bodies, waiting, answering, telling OpenAPI."""

import re
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

import anyio
import msgspec
from starlette.requests import Request
from starlette.responses import Response

from freshrank.errors import DataError
from service.core import Service
from service.problems import FieldError, ProblemError, validation
from service.receipts import Receipt

T = TypeVar("T")

_WAIT: Final = re.compile(r"(\d{1,6}(?:\.\d{1,3})?)(ms|s|)")
_PREFER_WAIT: Final = re.compile(r"(?:^|[,;]\s*)wait=(\d{1,6})", re.IGNORECASE)
# What `curl -d` sends when it is not told otherwise; from a browser it could come from any page.
_CURL_DEFAULT: Final = "application/x-www-form-urlencoded"

PROBLEM_REF: Final = {"$ref": "#/components/schemas/ProblemDocument"}


def service_of(request: Request) -> Service:
    """The service that the app was made for."""
    service: Service = request.app.state.service
    return service


async def in_thread(request: Request, work: Callable[..., T], *args: object) -> T:
    """Run blocking work; there are as many threads as requests are let in."""
    return await anyio.to_thread.run_sync(work, *args, limiter=request.app.state.threads)


async def json_body(request: Request, *, also: tuple[str, ...] = ()) -> bytes:
    """The body, if it calls itself JSON.

    Raises:
        ProblemError: 415 for another media type or a coding, 413 for too many bytes, 403 for
            another origin.
    """
    refuse_foreign(request)
    _refuse_packed(request)
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    allowed = ("application/json", *also)
    from_curl = media_type == _CURL_DEFAULT and "origin" not in request.headers
    if media_type not in allowed and not from_curl:
        raise ProblemError(
            "unsupported-media",
            f"Content-Type is {media_type[:64] or 'absent'!r}, expected {' or '.join(allowed)}",
            headers={"Accept-Post": ", ".join(allowed)},
        )
    return await request.body()


def _refuse_packed(request: Request) -> None:
    """Nothing is unpacked here: 1 MB of gzip may hold 1 GB, and a body has a limit as it comes.

    Raises:
        ProblemError: 415, with what is taken instead (RFC 9110, section 15.5.16).
    """
    coding = ", ".join(request.headers.getlist("content-encoding")).strip()
    if coding.lower() not in ("", "identity"):
        raise ProblemError(
            "unsupported-media",
            f"Content-Encoding is {coding[:64]!r}: send the body as it is, without it",
            headers={"Accept-Encoding": "identity"},
        )


def refuse_foreign(request: Request) -> None:
    """Refuse what a page of another site sends: without keys, a browser could do harm here.

    Raises:
        ProblemError: 403, `Origin` names another host than the request.
    """
    origin = request.headers.get("origin")
    # Compared as text: not everything that a client calls an origin can be parsed.
    if origin is not None and origin.partition("://")[2] != request.headers.get("host"):
        raise ProblemError("forbidden", f"requests from pages of {origin[:256]!r} are refused")


def json_response(
    content: object, *, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """An answer; NaN and infinity, which JSON lacks, become null."""
    return Response(
        msgspec.json.encode(content),
        status_code=status,
        headers=headers,
        media_type="application/json",
    )


async def read_receipt(request: Request, text: str) -> Receipt:
    """The receipt in a path; 404 when there is none such."""
    receipts = service_of(request).receipts
    try:
        receipt = receipts.parse(text)
        if not receipts.is_known(receipt):  # another service issued it, or this one before
            await in_thread(request, receipts.check, receipt)
        return receipt
    except DataError as error:
        raise ProblemError("not-found", str(error)) from error


def parse_bool(request: Request, name: str) -> bool:
    """`true` or `false` in the query; false when absent.

    Raises:
        ProblemError: 422, neither.
    """
    text = request.query_params.get(name, "false")
    if text not in ("true", "false"):
        raise validation([FieldError(f"?{name}", f"not true or false: {text[:64]!r}")])
    return text == "true"


def parse_wait(text: str | None, *, max_s: float) -> float:
    """Seconds in `5s`, `500ms` or `5`, at most `max_s`; 0 when absent.

    Raises:
        ProblemError: 422, not a duration.
    """
    if text is None:
        return 0.0
    match = _WAIT.fullmatch(text)
    if match is None:
        detail = f"not a duration: {text[:64]!r} (write 500ms or 5s)"
        raise validation([FieldError("?wait", detail)])
    return min(float(match[1]) / (1_000 if match[2] == "ms" else 1), max_s)


def preferred_wait(request: Request, *, max_s: float) -> float:
    """Seconds in `Prefer: wait=2` (RFC 7240), at most `max_s`; what is not understood is 0."""
    match = _PREFER_WAIT.search(request.headers.get("prefer", ""))
    return min(float(match[1]), max_s) if match else 0.0


def answers(*statuses: int, success: type | None = None, code: int = 200) -> dict[int | str, Any]:
    """OpenAPI responses of a route: its success, and problems by status."""
    problem = {"content": {"application/problem+json": {"schema": PROBLEM_REF}}}
    documented: dict[int | str, Any] = {
        status: {"description": "Problem", **problem} for status in statuses
    }
    documented[code] = {"description": "Success"}
    if success is not None:
        schema = {"$ref": f"#/components/schemas/{success.__name__}"}
        documented[code]["content"] = {"application/json": {"schema": schema}}
    return documented


def asks_bool(name: str, description: str) -> dict[str, Any]:
    """OpenAPI of a query parameter that is false by default."""
    schema = {"type": "boolean", "default": False}
    return {
        "parameters": [{"name": name, "in": "query", "description": description, "schema": schema}]
    }


def takes(body: type, *, also: tuple[str, ...] = (), required: bool = True) -> dict[str, Any]:
    """OpenAPI request body of a route."""
    schema = {"$ref": f"#/components/schemas/{body.__name__}"}
    content: dict[str, Any] = {"application/json": {"schema": schema}}
    content |= {media_type: {"schema": {"type": "string"}} for media_type in also}
    return {"requestBody": {"required": required, "content": content}}
