"""API keys: who may do what, and where the service may listen without any."""

import hashlib
import hmac
import ipaddress
import re
from collections.abc import Callable, Coroutine
from typing import Any, Final

from starlette.requests import Request

from freshrank.errors import ConfigError
from freshrank.settings import ApiKey, Settings
from service.problems import ProblemError

_SHA256: Final = re.compile(r"[0-9a-f]{64}")


class Auth:
    """Checks bearer keys against the SHA-256 that the configuration keeps of them.

    Raises:
        ConfigError: a `sha256_file` cannot be read or holds something else.
    """

    def __init__(self, settings: Settings) -> None:
        self._keys = [(_digest(key), frozenset(key.scopes)) for key in settings.auth.keys]

    def check(self, header: str | None, scopes: frozenset[str]) -> None:
        """Let a request pass whose key has one of `scopes`.

        Args:
            header: The value of `Authorization`, or None.
            scopes: Any of them is enough.

        Raises:
            ProblemError: 401 without a known key, 403 with one that may not do this.
        """
        if not self._keys:
            return
        scheme, _, token = (header or "").partition(" ")
        digest = hashlib.sha256(token.strip().encode()).hexdigest()
        allowed: frozenset[str] | None = None
        for known, key_scopes in self._keys:  # all of them, so that time tells nothing
            if hmac.compare_digest(known, digest):
                allowed = key_scopes
        if allowed is None or scheme.lower() != "bearer":
            raise ProblemError(
                "unauthorized",
                "send an API key: Authorization: Bearer fr_…",
                headers={"WWW-Authenticate": "Bearer"},
            )
        if not allowed & scopes:
            raise ProblemError(
                "forbidden", f"the key needs the scope {' or '.join(sorted(scopes))}"
            )


def require(*scopes: str) -> Callable[[Request], Coroutine[Any, Any, None]]:
    """A dependency that lets pass who has any of `scopes`, before the body is read."""
    wanted = frozenset(scopes)

    async def dependency(request: Request) -> None:
        auth: Auth = request.app.state.service.auth
        auth.check(request.headers.get("authorization"), wanted)

    return dependency


def check_listen(settings: Settings, *, insecure: bool = False) -> None:
    """Refuse to be reachable from elsewhere without keys.

    Raises:
        ConfigError: the host is not loopback, there are no keys, and nobody insisted.
    """
    if settings.auth.keys or insecure or _is_loopback(settings.service.host):
        return
    raise ConfigError(
        f"refusing to listen on {settings.service.host} without auth.keys (add a key or --insecure)"
    )


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False  # a name may resolve to anything


def _digest(key: ApiKey) -> str:
    if key.sha256 is not None:
        return key.sha256
    if key.sha256_file is None:
        raise ConfigError(f"auth key {key.name}: give either sha256 or sha256_file")
    try:
        text = key.sha256_file.read_text().strip().lower()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"auth key {key.name}: cannot read {key.sha256_file}: {error}") from error
    if not _SHA256.fullmatch(text):
        raise ConfigError(
            f"auth key {key.name}: {key.sha256_file} holds no SHA-256 in hex "
            "(write one with: printf %s KEY | sha256sum | cut -d' ' -f1)"
        )
    return text
