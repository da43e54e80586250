"""Errors as RFC 9457 problem documents: one shape for every route."""

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Final

import msgspec
from starlette.responses import Response

MEDIA_TYPE: Final = "application/problem+json"

# slug -> (status, title). The documentation has a heading per slug.
SLUGS: Final[Mapping[str, tuple[int, str]]] = {
    "validation": (422, "The request does not match the schema"),
    "malformed-json": (400, "The body is not JSON"),
    "bad-request": (400, "The request cannot be read"),
    "unauthorized": (401, "An API key is needed"),
    "forbidden": (403, "The API key lacks a scope"),
    "not-found": (404, "There is no such thing"),
    "method": (405, "The route has no such method"),
    "too-large": (413, "The body is too large"),
    "unsupported-media": (415, "The body has an unsupported media type"),
    "internal": (500, "The service failed"),
    "overloaded": (503, "Too many requests at once"),
    "model-not-ready": (503, "No parameters are loaded yet"),
    "broker-unavailable": (503, "The event log cannot be written"),
    "deadline": (504, "Nothing was scored within the deadline"),
}


class FieldError(msgspec.Struct, frozen=True):
    """One thing wrong with a request.

    Attributes:
        pointer: JSON pointer into the body as a URI fragment, e.g. `#/candidates/0/item`.
        detail: What is wrong and what is expected.
    """

    pointer: str
    detail: str


class ProblemDocument(msgspec.Struct, frozen=True):
    """The body of every error answer."""

    type: str
    title: str
    status: int
    detail: str
    instance: str
    errors: list[FieldError] = []


class ProblemError(Exception):
    """An error answer on its way to the client.

    Args:
        slug: One of `SLUGS`.
        detail: What happened and what to do.
        errors: Field by field, where the body is to blame.
        headers: Further headers, such as Retry-After.
        status: Another status than the slug's.
    """

    def __init__(
        self,
        slug: str,
        detail: str,
        *,
        errors: Sequence[FieldError] = (),
        headers: Mapping[str, str] | None = None,
        status: int | None = None,
    ) -> None:
        super().__init__(detail)
        self.slug = slug
        self.detail = detail
        self.errors = list(errors)
        self.headers = dict(headers or {})
        self.status = status or SLUGS[slug][0]


def validation(errors: Sequence[FieldError]) -> ProblemError:
    """422 with one entry per mistake."""
    count = len(errors)
    return ProblemError("validation", f"{count} problem{'s' * (count != 1)}", errors=errors)


def problem_response(error: ProblemError, request_id: str) -> Response:
    """The answer that tells the client."""
    default_status, title = SLUGS[error.slug]
    document = ProblemDocument(
        type=f"/problems/{error.slug}",
        title=title if error.status == default_status else HTTPStatus(error.status).phrase,
        status=error.status,
        detail=error.detail,
        instance=f"urn:request:{request_id}",
        errors=error.errors,
    )
    return Response(
        msgspec.json.encode(document),
        status_code=error.status,
        headers=error.headers,
        media_type=MEDIA_TYPE,
    )
