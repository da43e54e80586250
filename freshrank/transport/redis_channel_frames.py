"""Frames in Redis: hashes of chunks, which count once all are there and fit length and checksum."""

import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from hashlib import blake2b
from typing import Final, NamedTuple, Self

from freshrank.errors import TransportError
from freshrank.transport.redis_server import RedisServer

# Redis answers one command after another: a chunk takes it about a millisecond.
CHUNK_BYTES: Final = 1 << 20
# A frame that is not published so long after its last chunk never will be: its writer is gone.
_STAGED_MS: Final = 60_000
_DIGEST_BYTES: Final = 16


class StoredFrame(NamedTuple):
    """Where a frame lies, and what makes it whole."""

    key: str
    digest: str  # blake2b-128 of the frame, hexadecimal
    n_bytes: int
    n_chunks: int


class _Digest:
    """Of a frame's chunks; of many, in a thread of its own, while others are on their way.

    Attributes:
        value: Of all that were added; there at the end of the context.
    """

    def __init__(self, n_chunks: int) -> None:
        self._hasher = blake2b(digest_size=_DIGEST_BYTES)
        self._thread = ThreadPoolExecutor(1, "digest") if n_chunks > 1 else None
        self.value = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._thread is not None:
            self._thread.shutdown()
        self.value = self._hasher.hexdigest()

    def add(self, chunk: bytes | memoryview) -> None:
        """The next chunk."""
        if self._thread is None:
            self._hasher.update(chunk)
        else:
            self._thread.submit(self._hasher.update, chunk)


def write(server: RedisServer, key: str, frame: bytes) -> StoredFrame:
    """Put the chunks there; they leave again unless somebody makes them stay.

    Raises:
        TransportError: as `RedisServer.ask`.
    """
    view = memoryview(frame)
    n_chunks = max(-(-len(view) // CHUNK_BYTES), 1)
    try:
        with _Digest(n_chunks) as digest:
            for i in range(n_chunks):
                chunk = view[i * CHUNK_BYTES : (i + 1) * CHUNK_BYTES]
                digest.add(chunk)
                _write_chunk(server, key, i, chunk)
    except TransportError as error:
        if error.code == "channel-full":  # they would leave by themselves, later
            with contextlib.suppress(TransportError):
                server.ask(partial(server.redis.unlink, key))
        raise
    return StoredFrame(key, digest.value, len(frame), n_chunks)


def _write_chunk(server: RedisServer, key: str, i: int, chunk: memoryview) -> None:
    # Both or nothing: a writer that dies between them would leave a chunk for ever.
    with server.redis.pipeline(transaction=True) as pipeline:
        pipeline.hset(key, str(i), chunk)
        pipeline.pexpire(key, _STAGED_MS)
        server.ask(pipeline.execute)


def read(server: RedisServer, stored: StoredFrame) -> bytes | None:
    """The frame; None where a part is missing or damaged.

    Raises:
        TransportError: as `RedisServer.ask`.
    """
    chunks = []
    with _Digest(stored.n_chunks) as digest:
        for chunk in _chunks(server, stored):
            if chunk is None:
                return None
            digest.add(chunk)
            chunks.append(chunk)
        frame = b"".join(chunks)
    is_whole = (len(frame), digest.value) == (stored.n_bytes, stored.digest)
    return frame if is_whole else None


def read_beginning(server: RedisServer, stored: StoredFrame, *, n_bytes: int) -> bytes | None:
    """Chunks that hold the first `n_bytes` of the frame; None where one of them is missing.

    Raises:
        TransportError: as `RedisServer.ask`.
    """
    beginning = b""
    for chunk in _chunks(server, stored):
        if chunk is None:
            return None
        beginning += chunk
        if len(beginning) >= n_bytes:
            break
    return beginning


def _chunks(server: RedisServer, stored: StoredFrame) -> Iterator[bytes | None]:
    for i in range(stored.n_chunks):
        chunk: bytes | None = server.ask(partial(server.redis.hget, stored.key, str(i)))
        yield chunk
