"""Feature state that is in Redis, in a file and back: its keys, and when each expires.

```
FRSTATE1 | length u32 | msgpack of ["keys", [[key, value, when it expires, in ms, 0: never], …]] …
         | length u32 | msgpack of ["marks", [[log, offset], …]]
```
Keys are read one after another while joiners write. The marks are read last: a round that is partly
in the file is never applied again, so what happened in those seconds may be missing, not doubled.
"""

import struct
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Final

import msgspec

from freshrank.errors import SchemaError
from freshrank.settings import Settings
from freshrank.transport.redis_server import RedisServer

_MAGIC: Final = b"FRSTATE1"
_LENGTH: Final = struct.Struct("<I")
# Series, recent items, and who was forgotten: as `RedisFeatureState` names them.
_KINDS: Final = (b"s:", b"r:", b"f:")
_BATCH: Final = 1_000
_TIMEOUT_S: Final = 10.0


class RedisStateCopy:
    """The keys of a feature state in Redis; to be closed.

    Every method raises `TransportError` when Redis cannot be reached (code `state-unreachable`).

    Args:
        settings: Where it is.

    Raises:
        ConfigError: the extra `redis` is not installed, or its url cannot be read.
    """

    def __init__(self, settings: Settings) -> None:
        state = settings.state
        with state.opening("state") as url:
            self._server = RedisServer(url, setting="state.url", code="state", timeout_s=_TIMEOUT_S)
        self._redis, self._ask = self._server.redis, self._server.ask
        self._head = b"{%s}" % state.prefix.encode()
        self._marks, self._version = self._head + b"marks", self._head + b"version"
        self._begun = self._head + b"restoring"

    def close(self) -> None:
        """End the connections."""
        self._server.close()

    def is_taken(self) -> bool:
        """Whether there is a state, but for one whose `load` was cut short."""
        found = self._ask(lambda: self._redis.exists(self._version, self._marks))
        return bool(found) and not self._ask(lambda: self._redis.exists(self._begun))

    def save(self, path: Path) -> None:
        """Write all into a new file."""
        with path.open("xb") as file:
            file.write(_MAGIC)
            for keys in self._batches():
                now_ms = time.time_ns() // 1_000_000
                with self._redis.pipeline(transaction=False) as pipeline:
                    for key in keys:
                        pipeline.pttl(key)
                    pipeline.mget(keys)
                    *lives_ms, values = self._ask(pipeline.execute)
                entries = [
                    (key, value, now_ms + life_ms if life_ms > 0 else 0)
                    for key, value, life_ms in zip(keys, values, lives_ms, strict=True)
                    if value is not None  # else expired since
                ]
                _write(file, "keys", entries)
            marks = self._ask(lambda: self._redis.hgetall(self._marks))
            _write(file, "marks", list(marks.items()))

    def clear(self) -> None:
        """Remove all of its keys."""
        for keys in self._batches():
            self._ask(partial(self._redis.unlink, *keys))
        self._ask(lambda: self._redis.delete(self._marks, self._version))

    def load(self, path: Path) -> None:
        """Put what `save` wrote in place of all that is there; until `done` it is cut short."""
        self._ask(lambda: self._redis.set(self._begun, b"1"))
        self.clear()
        now_ms = time.time_ns() // 1_000_000
        for kind, some in _read(path):
            with self._redis.pipeline() as pipeline:
                for key, value, *expires_at_ms in some:
                    if kind == "marks":
                        pipeline.hset(self._marks, key, value)
                    elif not expires_at_ms[0]:
                        pipeline.set(key, value)
                    elif expires_at_ms[0] > now_ms:
                        pipeline.set(key, value, px=expires_at_ms[0] - now_ms)
                self._ask(pipeline.execute)
        self._ask(lambda: self._redis.incr(self._version))

    def done(self) -> None:
        """What was loaded is whole, and what belongs to it is in place."""
        self._ask(lambda: self._redis.delete(self._begun))

    def _batches(self) -> Iterator[list[bytes]]:
        keys: list[bytes] = []
        for kind in _KINDS:
            cursor: Any = 0
            while True:
                cursor, found = self._ask(
                    partial(self._redis.scan, cursor, match=self._head + kind + b"*", count=_BATCH)
                )
                keys += found
                if keys and (len(keys) >= _BATCH or not cursor):
                    yield keys
                    keys = []
                if not cursor:
                    break


def _write(file: BinaryIO, kind: str, some: list[Any]) -> None:
    data = msgspec.msgpack.encode([kind, some])
    file.write(_LENGTH.pack(len(data)) + data)


def _read(path: Path) -> Iterator[tuple[str, list[Any]]]:
    with path.open("rb") as file:
        if file.read(len(_MAGIC)) != _MAGIC:
            raise SchemaError(f"{path} is of a newer version: use that", code="newer-version")
        while head := file.read(_LENGTH.size):
            yield msgspec.msgpack.decode(
                file.read(*_LENGTH.unpack(head)), type=tuple[str, list[Any]]
            )
