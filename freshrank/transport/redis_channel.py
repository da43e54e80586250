"""The parameter channel in Redis: for trainers and replicas on many machines.

```
{prefix}sync:head              what is opened, published, asked for; and when the writer last beat
{prefix}sync:log               a stream with an entry <epoch>-<seq> for each step of the head
{prefix}sync:frame:<…>:<name>  the chunks of a base or a delta
```
A frame's chunks are put there first, under a name of their own; then one script checks the epoch,
names the frame and moves the head. So whatever is named is complete, and what a writer leaves
behind half-done goes by itself. The braces let a Redis cluster keep the keys together. Redis need
not keep anything over a restart: a trainer whose epoch is gone opens another one and publishes a
base.
"""

import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final
from uuid import uuid4

from freshrank.clock import Clock
from freshrank.errors import TransportError
from freshrank.transport import redis_channel_frames as stored_frames
from freshrank.transport import redis_channel_scripts as scripts
from freshrank.transport import refusals
from freshrank.transport.base import Head
from freshrank.transport.redis_channel_frames import StoredFrame
from freshrank.transport.redis_server import RedisServer

# To connect, and for an answer. A script that drops a whole log takes some 10 ms; more is a network
# or a server in trouble, and a trainer learns nothing while it waits.
_TIMEOUT_S: Final = 1.0
# How long one command waits for news: the longest that `close` waits for a reader.
_BLOCK_S: Final = 0.5
# The base before the last one stays for who is reading it: 5 min are 30 GB at 100 MB/s.
_BASE_BEFORE_MS: Final = 300_000
# Each try of `base` loses only to a newer base published meanwhile; ten in a row is no accident.
_N_TRIES: Final = 10
# Redis drops a log in one go, with 36,000 steps (an hour at ten a second) in some 50 ms.
_STEPS_MAX: Final = 36_000


class RedisChannel:
    """A `ParameterChannel` in Redis. Making one asks nothing yet.

    Args:
        url: `redis://host:port/db`, `rediss://` with TLS, with user and password if needed.
        prefix: Of every key, so that several deployments share a server.
        retention_bytes: Of deltas. Beyond it those that the base covers leave; where the others
            alone are more, a base is wanted.
        clock: Tells `published_at_ms`. Waiting is in real time, always.

    Every method but `close` raises `TransportError` when Redis does not answer in time (code
    `channel-unreachable`), has no memory left (`channel-full`) or refuses the user
    (`channel-refused`).

    Raises:
        ValueError: the url is none.
    """

    def __init__(
        self, url: str, *, clock: Clock, prefix: str = "freshrank", retention_bytes: int = 512 << 20
    ) -> None:
        self._clock = clock
        self._retention_bytes = retention_bytes
        self._prefix = f"{{{prefix}}}sync:"
        self._head_key, self._log_key = self._prefix + "head", self._prefix + "log"
        options: dict[str, Any] = {"setting": "sync.channel.url", "code": "channel"}
        self._server = RedisServer(url, timeout_s=_TIMEOUT_S, **options)
        self._waiting = RedisServer(url, timeout_s=_TIMEOUT_S, block_s=_BLOCK_S, **options)
        self._closed = threading.Event()
        redis = self._server.redis
        self._scripts = {
            name: redis.register_script(getattr(scripts, name))
            for name in ("OPEN", "BASE", "DELTA", "BEAT", "WANT")
        }

    def open_epoch(self, *, above: int = 0) -> int:
        """Claim the next epoch: where none is known, the server's time in ms and one."""
        return int(self._run("OPEN", above)[0])

    def publish_base(self, epoch: int, seq: int, frame: bytes) -> None:
        """Publish a complete base, not older than the last; see `ParameterChannel`."""
        self._publish("BASE", epoch, seq, frame)

    def publish_delta(self, epoch: int, seq: int, frame: bytes) -> None:
        """Publish the delta that leads from seq - 1 to seq; see `ParameterChannel`."""
        self._publish("DELTA", epoch, seq, frame)

    def beat(self, epoch: int) -> None:
        """Say that the writer of this epoch is there; see `ParameterChannel`."""
        self._run("BEAT", epoch)

    def beat_age_s(self) -> float | None:
        """Seconds since the writer was last heard, by the server's clock."""
        with self._server.redis.pipeline(transaction=False) as pipeline:
            pipeline.hget(self._head_key, "beat_at_ms")
            pipeline.time()
            beat_at_ms, (seconds, microseconds) = self._server.ask(pipeline.execute)
        if beat_at_ms is None:
            return None
        age_ms = seconds * 1_000 + microseconds // 1_000 - int(beat_at_ms)
        return max(int(age_ms), 0) / 1_000

    def head(self) -> Head | None:
        """The newest published state; None before the first base."""
        found = self._fields("epoch", "seq", "base_seq", "published_at_ms")
        return None if found[0] is None else Head(*map(int, found))

    def base(self) -> tuple[int, int, bytes] | None:
        """(epoch, seq, frame) of the newest base."""
        return self._base(stored_frames.read)

    def base_beginning(self, n_bytes: int) -> bytes | None:
        """The first bytes of the newest base, in whole chunks; see `ParameterChannel`."""
        base = self._base(partial(stored_frames.read_beginning, n_bytes=n_bytes))
        return None if base is None else base[2]

    def _base(
        self, read: Callable[[RedisServer, StoredFrame], bytes | None]
    ) -> tuple[int, int, bytes] | None:
        names = ("base", "base_digest", "base_bytes", "base_chunks")
        lacking = None
        for _ in range(_N_TRIES):
            epoch, seq, *where = self._fields("epoch", "base_seq", *names)
            if epoch is None:
                return None
            if where == lacking:
                break
            frame = read(self._server, _stored(where))
            if frame is not None:
                return int(epoch), int(seq), frame
            lacking = where  # replaced while it was read, if the head names another one by now
        raise TransportError(
            f"{self._server.where} lacks the base that its head names, or has it damaged: "
            "the trainer publishes another one when it is asked to, or at a restart",
            code="channel-damaged",
        )

    def delta(self, epoch: int, seq: int) -> bytes | None:
        """One delta; None if it is not there whole."""
        place = f"{epoch}-{seq}"
        entries = self._ask("xrange", self._log_key, place, place)
        if not entries or not entries[0][1][b"frame"]:
            return None
        fields = entries[0][1]
        where = [fields[name] for name in (b"frame", b"digest", b"bytes", b"chunks")]
        return stored_frames.read(self._server, _stored(where))

    def request_base(self, epoch: int, seq: int) -> None:
        """Ask for a base newer than (epoch, seq); see `ParameterChannel`."""
        self._run("WANT", epoch, seq)

    def wanted_base(self) -> bool:
        """Whether a replica asked for a base newer than the newest one, or the log is too long."""
        names = ("epoch", "base_seq", "wanted_epoch", "wanted_seq", "log_bytes", "seq")
        found = [None if one is None else int(one) for one in self._fields(*names)]
        epoch, base_seq, wanted_epoch, wanted_seq, log_bytes, seq = found
        if epoch is None or base_seq is None or seq is None:
            return False
        is_long = (log_bytes or 0) > self._retention_bytes or seq - base_seq > _STEPS_MAX
        if wanted_epoch is None or wanted_seq is None:
            return is_long
        return is_long or (epoch, base_seq) <= (wanted_epoch, wanted_seq)

    def wait(self, epoch: int, seq: int, *, timeout_s: float) -> bool:
        """Block until the head differs from (epoch, seq); False when time ran out."""
        deadline_s = time.monotonic() + timeout_s
        after: dict[Any, Any] = {self._log_key: f"{max(epoch, 0)}-{max(seq, 0)}"}
        try:
            head = self.head()
            while not self._closed.is_set():
                if head is not None and (head.epoch, head.seq) != (epoch, seq):
                    return True
                left_s = min(deadline_s - time.monotonic(), _BLOCK_S)
                if left_s <= 0:
                    return False
                read = partial(self._waiting.redis.xread, after, count=1, block=_ms(left_s))
                has_news, before, head = bool(self._waiting.ask(read)), head, self.head()
                if has_news and head == before:
                    self._closed.wait(left_s)  # a log ahead of its head: damaged, and no news
        except TransportError:
            if not self._closed.is_set():
                raise
        finally:
            if self._closed.is_set():
                self.close()  # once more: this may have connected after the other
        return False

    def close(self) -> None:
        """End the connections. Waiting readers return."""
        self._closed.set()
        self._server.close()
        self._waiting.close()

    def _publish(self, script: str, epoch: int, seq: int, frame: bytes) -> None:
        key = f"{self._prefix}frame:{script.lower()}-{epoch}-{seq}:{uuid4().hex}"
        stored = stored_frames.write(self._server, key, frame)
        self._run(
            script,
            epoch,
            seq,
            *stored[1:],
            self._clock.now_ms(),
            self._retention_bytes,
            _BASE_BEFORE_MS,
            frame_key=key,
        )

    def _run(
        self,
        script: str,
        epoch: int = 0,
        seq: int = 0,
        *more: str | int,
        frame_key: str | None = None,
    ) -> list[str]:
        """What the script says behind `ok`."""
        keys = [self._head_key, self._log_key, *([frame_key] if frame_key else [])]
        call = partial(self._scripts[script], keys=keys, args=[epoch, seq, *more])
        word, *about = (one.decode() for one in self._server.ask(call))
        match word:
            case "epoch":
                raise refusals.wrong_epoch(epoch, int(about[0]))
            case "older":
                raise refusals.older_base(epoch, seq, int(about[0]))
            case "gap":
                raise refusals.no_successor(epoch, seq, about[0])
            case "partial":
                raise TransportError(
                    f"{self._server.where} has lost parts of frame {epoch}-{seq} before all were "
                    "there: it took too long, or was emptied meanwhile; publish it again",
                    code="channel-unreachable",
                )
        return about

    def _fields(self, *names: str) -> list[Any]:
        """Each as bytes; None where the head has it not."""
        found: list[Any] = self._ask("hmget", self._head_key, names)
        return found

    def _ask(self, command: str, *arguments: object) -> Any:
        return self._server.ask(partial(getattr(self._server.redis, command), *arguments))


def _stored(where: Sequence[bytes]) -> StoredFrame:
    key, digest, n_bytes, n_chunks = where
    return StoredFrame(key.decode(), digest.decode(), int(n_bytes), int(n_chunks))


def _ms(seconds: float) -> int:
    return max(round(seconds * 1_000), 1)  # 0 would wait for ever
