"""A Redis server: how long it may take to answer, and what its errors mean."""

from collections.abc import Callable
from typing import Any, Final

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, NoPermissionError, OutOfMemoryError, RedisError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.retry import Retry

from freshrank.errors import TransportError

_REFUSED: Final = (AuthenticationError, NoPermissionError)


class RedisServer:
    """Connections to one server; safe for threads. Making one asks nothing yet.

    Args:
        url: `redis://host:port/db`, `rediss://` with TLS, with user and password if needed.
        setting: Where the url stands in the configuration, for messages.
        code: What the codes of errors begin with: `state-unreachable`.
        timeout_s: To connect, and for an answer.
        block_s: So much longer than that a command may ask the server to wait.

    Raises:
        ValueError: the url is none.

    Attributes:
        redis: The client.
        where: Names the server in messages.
    """

    def __init__(
        self, url: str, *, setting: str, code: str, timeout_s: float, block_s: float = 0.0
    ) -> None:
        # A connection that the server closed is opened again at once; who waited in vain does not
        # wait once more: each caller has its own way to go on.
        retry = Retry(NoBackoff(), 1, supported_errors=(RedisConnectionError,))
        self.redis = Redis.from_url(
            url,
            socket_timeout=timeout_s + block_s,
            socket_connect_timeout=timeout_s,
            retry=retry,
        )
        pool = self.redis.connection_pool.connection_kwargs
        host, port = pool.get("host", "localhost"), pool.get("port", 6379)
        self.where = f"Redis at {pool.get('path') or f'{host}:{port}'}"
        self._setting = setting
        self._code = code

    def ask(self, question: Callable[[], Any]) -> Any:
        """What `question` returns, which asks the client.

        Raises:
            TransportError: the server cannot be reached in time or does not do it (code
                `…-unreachable`), it has no memory left (`…-full`), or this user may not
                (`…-refused`).
        """
        try:
            return question()
        except RedisError as error:
            what, mend = self._meaning(error)
            raise TransportError(
                f"{self.where} {what} ({type(error).__name__} {error}): {mend}",
                code=f"{self._code}-{_slug(error)}",
            ) from error

    def close(self) -> None:
        """End the connections."""
        self.redis.close()

    def _meaning(self, error: RedisError) -> tuple[str, str]:
        slug = _slug(error)
        if slug == "full":
            return "has no memory left", "raise its maxmemory, or lower what is kept in it"
        if slug == "refused":
            return "refuses this user", f"see {self._setting}, and the user's ACL on the server"
        return "does not answer", f"see that it runs and {self._setting} is right"


def _slug(error: RedisError) -> str:
    if isinstance(error, OutOfMemoryError):
        return "full"
    return "refused" if isinstance(error, _REFUSED) else "unreachable"
