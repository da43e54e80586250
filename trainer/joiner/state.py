"""The joiner's database: SQLite, one transaction per round.

Everything that a restart must know stands here and changes together: input offsets, requests, event
ids, totals, feature state and the records that wait to be appended. Memory only caches.
"""

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from freshrank.errors import SchemaError, TransportError
from freshrank.feature_state import Did
from trainer.joiner import requests
from trainer.joiner.requests import Request

FORMAT: Final = 1
# Below SQLite's limit of bound variables in any build (999); a look-up for a full read still takes
# a handful of statements.
_KEYS_MAX: Final = 500
_MARKS: Final = ",".join("?" * _KEYS_MAX)

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS requests (
    request_id TEXT NOT NULL UNIQUE, due_at INTEGER, purge_at INTEGER, forget_at INTEGER,
    state BLOB);
CREATE INDEX IF NOT EXISTS requests_due ON requests (due_at, request_id) WHERE due_at IS NOT NULL;
CREATE INDEX IF NOT EXISTS requests_purge ON requests (purge_at) WHERE state IS NOT NULL;
CREATE INDEX IF NOT EXISTS requests_forget ON requests (forget_at);
CREATE TABLE IF NOT EXISTS parts (
    request_id TEXT, number INTEGER, value BLOB, PRIMARY KEY (request_id, number));
CREATE TABLE IF NOT EXISTS seen (event_id TEXT PRIMARY KEY, expires_at INTEGER) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS seen_expires ON seen (expires_at);
CREATE TABLE IF NOT EXISTS recent (
    event TEXT, user TEXT, ts INTEGER, event_id TEXT, item TEXT,
    PRIMARY KEY (event, user, ts, event_id)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS outbox (
    topic TEXT, sequence INTEGER, key BLOB, value BLOB, PRIMARY KEY (topic, sequence));
"""

_PUT_REQUEST: Final = """
INSERT INTO requests (request_id, due_at, purge_at, forget_at, state) VALUES (?, ?, ?, ?, ?)
ON CONFLICT (request_id) DO UPDATE SET due_at = excluded.due_at, purge_at = excluded.purge_at,
    forget_at = excluded.forget_at, state = excluded.state
"""
# What the watermark has passed; whether it counts is decided by the times, not by its presence.
_PURGEABLE: Final = "state IS NOT NULL AND purge_at <= ? AND due_at IS NULL"
_SWEEPS: Final = (
    f"DELETE FROM parts WHERE request_id IN (SELECT request_id FROM requests WHERE {_PURGEABLE})",  # noqa: S608 - constants
    f"UPDATE requests SET state = NULL WHERE {_PURGEABLE}",  # noqa: S608 - constants
    "DELETE FROM requests WHERE forget_at <= ? AND due_at IS NULL",
    "DELETE FROM seen WHERE expires_at <= ?",
)
# All but the last n_max by (ts, event_id) of one user and event.
_PRUNE_RECENT: Final = """
DELETE FROM recent WHERE event = ?1 AND user = ?2 AND (ts, event_id) <= (
    SELECT ts, event_id FROM recent WHERE event = ?1 AND user = ?2
    ORDER BY ts DESC, event_id DESC LIMIT 1 OFFSET ?3)
"""


@dataclass(slots=True)
class Changes:
    """What one round writes.

    Attributes:
        meta: Offsets, sequences and totals.
        requests: To be written.
        gone: Requests to be removed.
        parts: (request, number) -> record bytes.
        seen: Event id -> when it is forgotten.
        did: Event, user and action, for feature state.
        outbox: Topic, sequence, key and value of each record to append.
        watermark_ms: What it has passed can be swept.
    """

    meta: dict[str, int] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)
    parts: dict[tuple[str, int], bytes] = field(default_factory=dict)
    seen: dict[str, int] = field(default_factory=dict)
    did: list[tuple[str, str, Did]] = field(default_factory=list)
    outbox: list[tuple[str, int, bytes, bytes]] = field(default_factory=list)
    watermark_ms: int = 0


class State:
    """The database of one partition.

    Args:
        path: Its file; made with its directory when it is not there.
        is_durable: Commits survive a power cut, not only a killed process.
        n_recent_max: Actions kept per user and event in feature state.
        fingerprint: What the stored requests depend on.

    Raises:
        SchemaError: the database was written by a newer version, or for other tasks.
        TransportError: it cannot be opened or written.
    """

    def __init__(
        self, path: Path, *, is_durable: bool, n_recent_max: int, fingerprint: str
    ) -> None:
        self._path = path
        self._n_recent_max = n_recent_max
        self._relayed: dict[str, int] = {}
        with self._errors():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute(f"PRAGMA synchronous = {'FULL' if is_durable else 'NORMAL'}")
            self._db.execute("PRAGMA cache_size = -65536")  # 64 MiB: a window's requests
            self._db.executescript(_SCHEMA)
        try:
            self._check("format", str(FORMAT))
            self._check("fingerprint", fingerprint)
        except BaseException:
            self._db.close()
            raise

    def close(self) -> None:
        """Release the file."""
        self._db.close()

    def meta(self) -> dict[str, int]:
        """Offsets, sequences and totals as last committed."""
        with self._errors():
            rows = self._db.execute("SELECT name, value FROM meta WHERE typeof(value) = 'integer'")
            return dict(rows.fetchall())

    def requests(self, request_ids: Sequence[str]) -> Iterator[Request]:
        """Those of these requests that are known."""
        sql = "SELECT request_id, purge_at, forget_at, state FROM requests WHERE request_id IN"
        for request_id, purge_at_ms, forget_at_ms, state in self._among(sql, request_ids):
            yield (
                Request(request_id, purge_at_ms=purge_at_ms, forget_at_ms=forget_at_ms)
                if state is None
                else requests.decode(state)
            )

    def seen(self, event_ids: Sequence[str]) -> dict[str, int]:
        """Those of these event ids that are known, and when they expire."""
        sql = "SELECT event_id, expires_at FROM seen WHERE event_id IN"
        return dict(self._among(sql, event_ids))

    def parts(self, keys: Iterable[tuple[str, int]]) -> dict[tuple[str, int], bytes]:
        """The impression records of (request, number)."""
        found = {}
        with self._errors():
            for key in keys:
                row = self._db.execute(
                    "SELECT value FROM parts WHERE request_id = ? AND number = ?", key
                ).fetchone()
                if row:
                    found[key] = row[0]
        return found

    def due(self, until_ms: int, n_max: int) -> list[tuple[int, str]]:
        """The first (due time, request) that fall due by `until_ms`, in order."""
        with self._errors():
            return self._db.execute(
                "SELECT due_at, request_id FROM requests WHERE due_at <= ? "
                "ORDER BY due_at, request_id LIMIT ?",
                (until_ms, n_max),
            ).fetchall()

    def last_due_ms(self) -> int | None:
        """The last time at which something falls due; None when nothing waits for time."""
        with self._errors():
            row = self._db.execute(
                "SELECT max(due_at) FROM requests WHERE due_at IS NOT NULL"
            ).fetchone()
            return None if row is None else row[0]

    def recent(self) -> Iterator[tuple[str, str, Did]]:
        """The feature state."""
        with self._errors():
            rows = self._db.execute("SELECT event, user, ts, event_id, item FROM recent").fetchall()
        for event, user, ts_ms, event_id, item in rows:
            yield event, user, Did(ts_ms, event_id, item)

    def outbox(self) -> list[tuple[str, int, bytes, bytes]]:
        """Topic, sequence, key and value of the records that may not be in the log yet."""
        with self._errors():
            rows = self._db.execute(
                "SELECT topic, sequence, key, value FROM outbox ORDER BY topic, sequence"
            ).fetchall()
        return [row for row in rows if row[1] > self._relayed.get(row[0], -1)]

    def relayed(self, topic: str, sequence: int) -> None:
        """Note that the log has a topic's outbox up to here; it leaves with the next commit."""
        self._relayed[topic] = sequence

    def commit(self, changes: Changes) -> None:
        """Write a round, all of it or nothing.

        Raises:
            TransportError: no space left (code `disk-full`) or another fault of the disk.
        """
        with self._errors():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                self._write(changes)
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    def _write(self, changes: Changes) -> None:
        many = self._db.executemany
        many("DELETE FROM outbox WHERE topic = ? AND sequence <= ?", self._relayed.items())
        many("INSERT OR REPLACE INTO meta VALUES (?, ?)", changes.meta.items())
        many("DELETE FROM requests WHERE request_id = ?", ((one,) for one in changes.gone))
        many(
            _PUT_REQUEST,
            (
                (r.request_id, r.due_at_ms, r.purge_at_ms, r.forget_at_ms, requests.encode(r))
                for r in changes.requests
            ),
        )
        many(
            "INSERT OR REPLACE INTO parts VALUES (?, ?, ?)",
            ((*key, value) for key, value in changes.parts.items()),
        )
        many("INSERT OR REPLACE INTO seen VALUES (?, ?)", changes.seen.items())
        many(
            "INSERT OR IGNORE INTO recent VALUES (?, ?, ?, ?, ?)",
            ((event, user, did.ts_ms, did.event_id, did.item) for event, user, did in changes.did),
        )
        touched = {(event, user, self._n_recent_max) for event, user, _ in changes.did}
        many(_PRUNE_RECENT, touched)
        many("INSERT INTO outbox VALUES (?, ?, ?, ?)", changes.outbox)
        for sweep in _SWEEPS:
            self._db.execute(sweep, (changes.watermark_ms,))

    def _among(self, select: str, keys: Sequence[str]) -> Iterator[tuple[Any, ...]]:
        for start in range(0, len(keys), _KEYS_MAX):
            some = keys[start : start + _KEYS_MAX]
            padded = [*some, *[None] * (_KEYS_MAX - len(some))]
            with self._errors():
                rows = self._db.execute(f"{select} ({_MARKS})", padded).fetchall()
            yield from rows

    def _check(self, name: str, value: str) -> None:
        with self._errors():
            self._db.execute("INSERT OR IGNORE INTO meta VALUES (?, ?)", (name, value))
            row = self._db.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
        if row[0] != value:
            raise SchemaError(
                f"{self._path} was written for {name} {row[0]!r}, this program and configuration "
                f"have {value!r}: start with the earlier ones until the windows are closed, or "
                "begin with a new data directory",
                code="joiner-state",
            )

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.DatabaseError, OSError) as error:
            code = getattr(error, "sqlite_errorcode", None)
            if code == sqlite3.SQLITE_FULL:
                raise TransportError(
                    f"no space left for the joiner's state in {self._path}: free some, the joiner "
                    "goes on by itself",
                    code="disk-full",
                ) from error
            raise TransportError(
                f"the joiner's state in {self._path} failed: {error}", code="joiner-state"
            ) from error
