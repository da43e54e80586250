"""Feature state in Redis: joiners write it, every service reads a request's part in one round trip.

An entry of a series is 24 bytes under `{prefix}s:<series><key>`, a user's last items a list under
`{prefix}r:<event>:<user>`. What they mean is computed here, by the same native code as in process:
a writer reads the entries of its round, adds to them, and puts them back if nobody wrote meanwhile.
The keys' braces let a Redis cluster keep them together.
"""

import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt

from embedding_store import hash_strings
from freshrank._live import Series
from freshrank.errors import TransportError
from freshrank.feature_series import SeriesSpec
from freshrank.feature_types import U64
from freshrank.feature_updates import Did, FeatureUpdates, Forgotten, StateAnswer, StateQuery
from freshrank.settings import Settings
from freshrank.state_layout import StateLayout
from freshrank.transport.redis_server import RedisServer

# To connect, and for an answer: a hundred times what a large request takes.
_TIMEOUT_S: Final = 0.5
# Each lost race is another writer's round that went in: so many in a row are no races any more.
_TRIES_MAX: Final = 100
_ENTRY: Final = np.dtype([("time", "<i8"), ("x", "<f8"), ("y", "<f8")])
# After so many half-lives a sum reads as 0 (`series.hpp`).
_HALF_LIVES: Final = 40
# Redis refuses an expiry beyond 2^63 - 1 ms of its clock; a century is for ever.
_TTL_MS_MAX: Final = 100 * 365 * 86_400_000

# KEYS: version, marks. ARGV: version expected, number of marks, (log, offset)…, (key, value, ttl)….
# A time to live of 0 is for ever, of -1 deletes. All or nothing, and only if no other writer's
# round came between the read and this.
_WRITE: Final = """
local version = redis.call('GET', KEYS[1]) or '0'
if version ~= ARGV[1] then return 0 end
redis.call('INCR', KEYS[1])
local i = 3
for _ = 1, tonumber(ARGV[2]) do
  redis.call('HSET', KEYS[2], ARGV[i], ARGV[i + 1])
  i = i + 2
end
while i < #ARGV do
  if ARGV[i + 2] == '-1' then redis.call('DEL', ARGV[i])
  elseif ARGV[i + 2] == '0' then redis.call('SET', ARGV[i], ARGV[i + 1])
  else redis.call('SET', ARGV[i], ARGV[i + 1], 'PX', ARGV[i + 2]) end
  i = i + 3
end
return 1
"""

# Of one user, newest first: time, tie, item and its text, empty where the id itself is the text.
_Ring = list[tuple[int, int, int, str]]


class RedisFeatureState:
    """A `FeatureState` for many processes; safe for threads.

    Redis is a cache: what it loses when it dies is lost to features until it is acted on again. Let
    it append to a file each second, and that is a second.

    Args:
        settings: Features and salt are read; all who share a state have the same.
        url: `redis://host:port/db`, `rediss://` with TLS, with user and password if needed.
        prefix: Of every key, so that several deployments share a server.

    Every method but `close` raises `TransportError` when Redis cannot be reached within a second
    (code `state-unreachable`); making one asks nothing yet.

    Raises:
        ValueError: the url is none.
    """

    def __init__(self, settings: Settings, url: str, *, prefix: str = "freshrank") -> None:
        self._layout = StateLayout(settings)
        self._head = b"{%s}" % prefix.encode()
        self._server = RedisServer(url, setting="state.url", code="state", timeout_s=_TIMEOUT_S)
        self._redis, self._ask = self._server.redis, self._server.ask
        self._write = self._redis.register_script(_WRITE)
        self._lock = threading.Lock()  # of this process' writers, which would only race
        self._saved: dict[str, int] | None = None

    @property
    def saved(self) -> Mapping[str, int]:
        """Marks that Redis had when this process last looked."""
        if self._saved is None:
            self._saved = self._marks(self._ask(lambda: self._redis.hgetall(self._head + b"marks")))
        return self._saved

    def close(self) -> None:
        """End the connections."""
        self._server.close()

    def read(self, query: StateQuery) -> StateAnswer:
        """Everything one request asks, in one round trip."""
        names = {name: self._names(name, keys) for name, keys in query.keys.items()}
        events: list[str] = []
        asked = [one for some in names.values() for one in some]
        if query.user is not None and self._layout.ring_lengths:
            events = list(self._layout.ring_lengths)
            user = self._layout.tokens("user_id", [query.user])
            asked += [self._ring_name(event, user.tobytes()) for event in events]
        if query.user is not None and self._layout.pairs:
            user = self._layout.tokens("user_id", [query.user])
            asked.append(self._forgotten_name(user.tobytes()))
        found = iter(self._ask(lambda: self._redis.mget(asked)) if asked else ())
        values = {}
        for name, keys in query.keys.items():
            series = _series(self._layout.series[name], keys, [next(found) for _ in keys])
            values[name] = series.read(keys, np.full(len(keys), query.before_ms, np.int64))
        recent = {
            event: [
                text or str(item)
                for ts_ms, _, item, text in _ring(next(found))
                if ts_ms < query.before_ms
            ]
            for event in events
        }
        if (forgotten_ms := next(found, None)) is not None:
            self._layout.hide(values, query.before_ms, int(forgotten_ms))
        return StateAnswer(values, recent)

    def apply(self, updates: FeatureUpdates) -> None:
        """A round of the joiner, unless all its marks were reached before."""
        series = {
            name: (np.unique(keys), keys, ts_ms)
            for name, (keys, ts_ms) in updates.events.items()
            if name in self._layout.series and len(keys)
        }
        rings = self._done(updates.did)
        names = [one for name, (own, *_) in series.items() for one in self._names(name, own)]
        names += [self._ring_name(event, user) for event, user in rings]
        with self._lock:
            for _ in range(_TRIES_MAX):
                version, marks, old = self._before(names)
                if updates.marks and all(
                    marks.get(log, -1) >= at for log, at in updates.marks.items()
                ):
                    self._saved = marks
                    return
                reached = {log: max(at, marks.get(log, at)) for log, at in updates.marks.items()}
                written = self._forget(updates.forgotten) + self._after(series, rings, iter(old))
                if self._put(version, reached, written):
                    self._saved = marks | reached
                    return
        raise TransportError(
            f"{self._server.where}: {_TRIES_MAX} other writers came between a read and its write; "
            "is something else writing under this prefix?",
            code="state-contended",
        )

    def _before(self, names: Sequence[bytes]) -> tuple[bytes, dict[str, int], list[bytes | None]]:
        """The version, the marks, and what the keys have at that version or later."""
        with self._redis.pipeline(transaction=False) as pipeline:
            pipeline.get(self._head + b"version")
            pipeline.hgetall(self._head + b"marks")
            if names:
                pipeline.mget(names)
            version, marks, *old = self._ask(pipeline.execute)
        return version or b"0", self._marks(marks), old[0] if old else []

    def _after(
        self,
        series: Mapping[str, tuple[U64, U64, npt.NDArray[np.int64]]],
        rings: Mapping[tuple[str, bytes], _Ring],
        old: Iterable[bytes | None],
    ) -> list[bytes | int]:
        """Key, value and time to live of everything the round touches."""
        found = iter(old)
        written: list[bytes | int] = []
        for name, (own, keys, ts_ms) in series.items():
            spec = self._layout.series[name]
            one = _series(spec, own, [next(found) for _ in own])
            one.add(keys, ts_ms)
            entries, ttl_ms = one.entries(), _ttl_ms(spec)
            packed = np.empty(len(entries[0]), _ENTRY)
            packed["time"], packed["x"], packed["y"] = entries[1:]
            raw = packed.tobytes()
            for i, key in enumerate(self._names(name, entries[0])):
                written += (key, raw[i * _ENTRY.itemsize : (i + 1) * _ENTRY.itemsize], ttl_ms)
        for (event, user), new in rings.items():
            value = next(found)
            kept = {one[:2]: one for one in (*reversed(new), *_ring(value))}  # the first one wins
            newest = sorted(kept.values(), reverse=True)[: self._layout.ring_lengths[event]]
            written += (self._ring_name(event, user), msgspec.msgpack.encode(newest), 0)
        return written

    def _forget(self, forgotten: Iterable[Forgotten]) -> list[bytes | int]:
        """As `_after`, of what goes; other users' lists keep an item until newer ones follow."""
        written: list[bytes | int] = []
        for one in forgotten:
            key = np.array([one.id], np.uint64)
            gone = [at for name in self._layout.keyed_by(one.slot) for at in self._names(name, key)]
            if one.slot == "user_id":
                gone += [self._ring_name(e, key.tobytes()) for e in self._layout.ring_lengths]
            for name in gone:
                written += (name, b"", -1)
            if one.slot == "user_id" and self._layout.pairs:
                ttl_ms = min(int(self._layout.pairs_ms) + 1, _TTL_MS_MAX)
                written += (self._forgotten_name(key.tobytes()), str(one.ts_ms).encode(), ttl_ms)
        return written

    def _put(
        self, version: bytes, marks: Mapping[str, int], written: Sequence[bytes | int]
    ) -> bool:
        """False when another writer was faster."""
        arguments: list[Any] = [version, len(marks)]
        for log, at in marks.items():
            arguments += (log, at)
        keys = [self._head + b"version", self._head + b"marks"]
        return bool(self._ask(lambda: self._write(keys=keys, args=[*arguments, *written])))

    def _done(self, did: Sequence[tuple[str, str, Did]]) -> dict[tuple[str, bytes], _Ring]:
        """The actions of a round that some feature reads, by event and user."""
        wanted = [one for one in did if one[0] in self._layout.ring_lengths]
        rings: dict[tuple[str, bytes], _Ring] = {}
        if not wanted:
            return rings
        users = self._layout.tokens("user_id", [user for _, user, _ in wanted])
        items = self._layout.tokens("item_id", [one.item for *_, one in wanted]).tolist()
        ties = hash_strings([one.event_id for *_, one in wanted], self._layout.salt).tolist()
        for (event, _, one), user, item, tie in zip(wanted, users, items, ties, strict=True):
            text = one.item if self._layout.has_text_items else ""
            rings.setdefault((event, user.tobytes()), []).append((one.ts_ms, tie, item, text))
        return rings

    def _names(self, series: str, keys: U64) -> list[bytes]:
        head, raw = self._head + b"s:%s:" % series.encode(), keys.tobytes()
        return [head + raw[i : i + 8] for i in range(0, len(raw), 8)]

    def _ring_name(self, event: str, user: bytes) -> bytes:
        return self._head + b"r:%s:%s" % (event.encode(), user)

    def _forgotten_name(self, user: bytes) -> bytes:
        return self._head + b"f:%s" % user

    @staticmethod
    def _marks(found: Mapping[bytes, bytes]) -> dict[str, int]:
        return {log.decode(): int(at) for log, at in found.items()}


def _series(spec: SeriesSpec, keys: U64, values: Sequence[bytes | None]) -> Series:
    """The entries of some keys, as the native code has them."""
    series = Series(kind=spec.kind, span_ms=spec.span_ms)
    known = np.array([value is not None for value in values], bool)
    entries = np.frombuffer(b"".join(value for value in values if value is not None), _ENTRY)
    fields = (np.ascontiguousarray(entries[name]) for name in ("time", "x", "y"))
    series.restore(keys[known], *fields)
    return series


def _ring(value: bytes | None) -> _Ring:
    return [] if value is None else msgspec.msgpack.decode(value, type=_Ring)


def _ttl_ms(spec: SeriesSpec) -> int:
    """How long an entry can be read after it was written: a writer may replay what is long past."""
    span_ms = spec.span_ms * (_HALF_LIVES if spec.kind == "sum" else 1)
    return min(int(span_ms) + 1, _TTL_MS_MAX)
