"""Frames in Redis: hashes of chunks, which count once all are there and fit length and checksum."""

import contextlib
from functools import partial
from hashlib import blake2b
from typing import Final, NamedTuple

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


def write(server: RedisServer, key: str, frame: bytes) -> StoredFrame:
    """Put the chunks there; they leave again unless somebody makes them stay.

    Raises:
        TransportError: as `RedisServer.ask`.
    """
    view = memoryview(frame)
    n_chunks = max(-(-len(view) // CHUNK_BYTES), 1)
    try:
        for i in range(n_chunks):
            # Both or nothing: a writer that dies between them would leave a chunk for ever.
            with server.redis.pipeline(transaction=True) as pipeline:
                pipeline.hset(key, str(i), view[i * CHUNK_BYTES : (i + 1) * CHUNK_BYTES])
                pipeline.pexpire(key, _STAGED_MS)
                server.ask(pipeline.execute)
    except TransportError as error:
        if error.code == "channel-full":  # they would leave by themselves, later
            with contextlib.suppress(TransportError):
                server.ask(partial(server.redis.unlink, key))
        raise
    digest = blake2b(frame, digest_size=_DIGEST_BYTES).hexdigest()
    return StoredFrame(key, digest, len(frame), n_chunks)


def read(server: RedisServer, stored: StoredFrame) -> bytes | None:
    """The frame; None where a part is missing or damaged.

    Raises:
        TransportError: as `RedisServer.ask`.
    """
    chunks: list[bytes] = []
    for i in range(stored.n_chunks):
        chunk = server.ask(partial(server.redis.hget, stored.key, str(i)))
        if chunk is None:
            return None
        chunks.append(chunk)
    frame = b"".join(chunks)
    digest = blake2b(frame, digest_size=_DIGEST_BYTES).hexdigest()
    is_whole = (len(frame), digest) == (stored.n_bytes, stored.digest)
    return frame if is_whole else None
