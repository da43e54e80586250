"""A small HTTP client for the command line: standard library only, errors as `Error`s."""

import http.client
import json
import urllib.error
import urllib.request
from typing import Any

from freshrank.errors import DataError, TransportError

TIMEOUT_S = 30.0


def call(
    base: str,
    path: str,
    body: dict[str, Any] | None = None,
    *,
    key: str | None = None,
    method: str | None = None,
    timeout_s: float = TIMEOUT_S,
) -> Any:
    """GET, or POST when there is a body, or another method; returns the decoded JSON.

    Args:
        base: Address of the service, e.g. `http://127.0.0.1:8000`.
        path: Path with its leading slash.
        body: What to post.
        key: API key, sent as a bearer token.
        method: Instead of GET or POST.
        timeout_s: How long to wait for an answer.

    Raises:
        TransportError: nobody answers there.
        DataError: the service refused (the text is its problem document's), something else
            answered, or address or key cannot be sent.
    """
    if not base.startswith(("http://", "https://")):
        raise DataError(f"not an address: {base!r} (write http://127.0.0.1:8000)")
    headers = {"Content-Type": "application/json"}
    if key is not None:
        headers["Authorization"] = f"Bearer {key}"
    data = None if body is None else json.dumps(body).encode()
    url = base.rstrip("/") + path
    request = urllib.request.Request(url, data=data, headers=headers, method=method)  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=timeout_s) as response:  # noqa: S310
            return json.load(response)
    except urllib.error.HTTPError as error:
        raise DataError(_problem(error)) from error
    except (http.client.InvalidURL, UnicodeEncodeError) as error:
        raise DataError(f"{base} with this key cannot be asked: {error}") from error
    except ValueError as error:
        raise DataError(f"{base} does not answer as freshrank does: {error}") from error
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise TransportError(
            f"no answer from {base}: {reason}. Is the service running? Start it with "
            "`freshrank demo` or `freshrank serve`, or pass --url",
            code="unreachable",
        ) from error


def _problem(error: urllib.error.HTTPError) -> str:
    try:
        with error:
            problem = json.load(error)
        details = [f"{e['pointer']}: {e['detail']}" for e in problem.get("errors", [])]
        return "; ".join([f"{error.code} {problem['title']}", problem.get("detail", ""), *details])
    except (AttributeError, KeyError, OSError, TypeError, ValueError):
        return f"{error.code} {error.reason}"
