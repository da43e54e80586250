"""The joiner's database: SQLite, one transaction per round.

Everything that a restart must know stands here and changes together: input offsets, requests, event
ids, totals, what feature state may lack, records that wait to be appended. Memory only caches.
"""

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np

from embedding_store import hash_strings
from freshrank.errors import SchemaError, TransportError
from trainer.joiner.ledger import Ledger
from trainer.joiner.requests import UNSAVED, Request, decode_extra
from trainer.joiner.sweeper import Sweeper, places_of

FORMAT: Final = 3
# Below SQLite's limit of bound variables in any build (999); a look-up for a full read still takes
# a handful of statements.
_KEYS_MAX: Final = 500
_MARKS: Final = ",".join("?" * _KEYS_MAX)
# A checkpoint writes each page once however often it changed since the last one: a window's pages
# change every round, so one checkpoint per 64 MiB of rounds writes a fraction of one per round.
_CHECKPOINT_PAGES: Final = 16_384

# Requests and parts are numbered in the order of arrival, so that they are written and removed at
# the ends of their tables, and need no index of the time at which they go. Event ids are known by
# 64 bits of a keyed hash: with the 2 million ids of an hour at 500 a second, one event in 10^13
# would be taken for another.
_META: Final = "CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value) WITHOUT ROWID"
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS requests (
    number INTEGER PRIMARY KEY, key INTEGER, request_id TEXT, due_at INTEGER, time INTEGER,
    close_at INTEGER, purge_at INTEGER, forget_at INTEGER, flags INTEGER, status BLOB, extra BLOB);
CREATE INDEX IF NOT EXISTS requests_key ON requests (key);
CREATE INDEX IF NOT EXISTS requests_due ON requests (due_at, request_id) WHERE due_at IS NOT NULL;
CREATE TABLE IF NOT EXISTS parts (place INTEGER PRIMARY KEY, appended_at INTEGER, value BLOB);
CREATE TABLE IF NOT EXISTS seen (key INTEGER PRIMARY KEY, expires_at INTEGER);
CREATE TABLE IF NOT EXISTS feature_updates (number INTEGER PRIMARY KEY, value BLOB);
CREATE TABLE IF NOT EXISTS outbox (
    topic TEXT, sequence INTEGER, value BLOB, PRIMARY KEY (topic, sequence));
"""

_INSERT_REQUEST: Final = "INSERT INTO requests VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
# Naming due_at costs two changes of its index, whether it changed or not.
_UPDATE_STATE: Final = (
    "time = ?, close_at = ?, purge_at = ?, forget_at = ?, flags = ?, status = ?, extra = ?"
)
_UPDATE_REQUEST: Final = f"UPDATE requests SET {_UPDATE_STATE} WHERE number = ?"  # noqa: S608 - constants
_UPDATE_DUE: Final = f"UPDATE requests SET {_UPDATE_STATE}, due_at = ? WHERE number = ?"  # noqa: S608 - constants


class State:
    """The database of one partition.

    Args:
        path: Its file; made with its directory when it is not there.
        is_durable: Commits survive a power cut, not only a killed process.
        fingerprint: What the stored requests depend on.
        salt: Keys the hashes of ids.

    Raises:
        SchemaError: the database was written by a newer version, or for other tasks.
        TransportError: it cannot be opened or written.
    """

    def __init__(self, path: Path, *, is_durable: bool, fingerprint: str, salt: int) -> None:
        self._path = path
        self._salt = salt
        self._relayed: dict[str, int] = {}
        self._features_saved = -1  # the last round of feature updates that is not needed
        with self._errors():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute(f"PRAGMA synchronous = {'FULL' if is_durable else 'NORMAL'}")
            self._db.execute("PRAGMA cache_size = -65536")  # 64 MiB: a window's requests
            self._db.execute(f"PRAGMA wal_autocheckpoint = {_CHECKPOINT_PAGES}")
            self._db.execute(_META)
            self._sweeper = Sweeper(self._db)
        try:
            self._check("format", str(FORMAT))
            self._check("fingerprint", fingerprint)
            with self._errors():
                self._db.executescript(_SCHEMA)
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

    def last_number(self) -> int:
        """The highest number of a request; -1 when there is none."""
        with self._errors():
            number = self._db.execute("SELECT max(number) FROM requests").fetchone()[0]
        return -1 if number is None else number

    def requests(self, request_ids: Sequence[str]) -> Iterator[Request]:
        """Those of these requests that are known, without items and parts."""
        keys = hash_strings(list(request_ids), self._salt).view(np.int64).tolist()
        # Another request with the same key may come along; who asks goes by the id.
        for (
            number,
            _,
            request_id,
            due_at,
            time,
            close_at,
            purge_at,
            forget_at,
            *state,
        ) in self._among("SELECT * FROM requests WHERE key IN", keys):
            flags, status, extra = state
            request = Request(
                number=number,
                request_id=request_id,
                time_ms=time,
                close_at_ms=close_at,
                purge_at_ms=purge_at,
                forget_at_ms=forget_at,
                is_armed=bool(flags & 1),
                is_closed=bool(flags & 2),
                has_first=bool(flags & 4),
                status=bytearray(status or b""),
                saved_due_ms=due_at,
            )
            if extra is not None:
                said = decode_extra(extra)
                request.user, request.served, request.client = said.user, said.served, said.client
                request.named, request.places = said.named, said.places
                request.parked, request.held = said.parked, said.held
            yield request

    def seen(self, keys: Sequence[int]) -> dict[int, int]:
        """Those of these event ids that are known, and when they expire."""
        return dict(self._among("SELECT key, expires_at FROM seen WHERE key IN", keys))

    def parts(self, numbers: Iterable[int]) -> dict[int, list[tuple[int, bytes]]]:
        """The impression records of requests, in order of arrival: when appended, and bytes."""
        sql = "SELECT appended_at, value FROM parts WHERE place BETWEEN ? AND ? ORDER BY place"
        with self._errors():
            return {n: self._db.execute(sql, places_of(n)).fetchall() for n in numbers}

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

    def feature_updates(self) -> list[tuple[int, bytes]]:
        """Number and value of the rounds that feature state may not have saved, in order."""
        with self._errors():
            return self._db.execute(
                "SELECT number, value FROM feature_updates ORDER BY number"
            ).fetchall()

    def features_saved(self, number: int) -> None:
        """Note that feature state keeps the rounds up to here; they leave with the next commit."""
        self._features_saved = number

    def outbox(self) -> list[tuple[str, int, bytes]]:
        """Topic, sequence and value of the records that may not be in the log yet."""
        with self._errors():
            rows = self._db.execute(
                "SELECT topic, sequence, value FROM outbox ORDER BY topic, sequence"
            ).fetchall()
        return [row for row in rows if row[1] > self._relayed.get(row[0], -1)]

    def relayed(self, topic: str, sequence: int) -> None:
        """Note that the log has a topic's outbox up to here; it leaves with the next commit."""
        self._relayed[topic] = sequence

    def commit(self, ledger: Ledger) -> None:
        """Write a round, all of it or nothing.

        Raises:
            TransportError: no space left (code `disk-full`) or another fault of the disk.
        """
        with self._errors():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                self._write(ledger)
                self._sweeper.sweep(ledger.watermark_ms)
                self._db.execute("COMMIT")
                self._sweeper.committed()
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    def _write(self, ledger: Ledger) -> None:
        many = self._db.executemany
        many("DELETE FROM outbox WHERE topic = ? AND sequence <= ?", self._relayed.items())
        many("DELETE FROM feature_updates WHERE number <= ?", [(self._features_saved,)])
        many("INSERT OR REPLACE INTO meta VALUES (?, ?)", ledger.meta.items())
        many("DELETE FROM requests WHERE number = ?", ((number,) for number in ledger.gone))
        many("DELETE FROM parts WHERE place BETWEEN ? AND ?", map(places_of, ledger.gone))
        new, changed, rescheduled = [], [], []
        for r in ledger.changed.values():
            due_at = r.due_at_ms
            flags = r.is_armed | r.is_closed << 1 | r.has_first << 2
            extra = r.extra()
            times = (r.time_ms, r.close_at_ms, r.purge_at_ms, r.forget_at_ms)
            if r.saved_due_ms == UNSAVED:
                new.append((r.number, r.request_id, due_at, *times, flags, r.status, extra))
            elif r.saved_due_ms == due_at:
                changed.append((*times, flags, r.status, extra, r.number))
            else:
                rescheduled.append((*times, flags, r.status, extra, due_at, r.number))
        keys = hash_strings([one[1] for one in new], self._salt).view(np.int64).tolist()
        many(_INSERT_REQUEST, ((n, key, *rest) for (n, *rest), key in zip(new, keys, strict=True)))
        many(_UPDATE_REQUEST, changed)
        many(_UPDATE_DUE, rescheduled)
        many(
            "INSERT INTO parts VALUES (?, ?, ?)",
            ((places_of(number)[0] + part, *record) for number, part, *record in ledger.parts),
        )
        many("INSERT OR REPLACE INTO seen VALUES (?, ?)", ledger.seen.items())
        if ledger.updates is not None:
            self._db.execute("INSERT INTO feature_updates VALUES (?, ?)", ledger.updates)
        many("INSERT INTO outbox VALUES (?, ?, ?)", ledger.outbox)

    def _among(self, select: str, keys: Sequence[str | int]) -> Iterator[tuple[Any, ...]]:
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
