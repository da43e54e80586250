"""The joiner's database: SQLite, one transaction per round.

Everything that a restart must know stands here and changes together: input offsets, requests, event
ids, totals, what feature state may lack, records that wait to be appended. Memory only caches.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import numpy as np

from embedding_store import hash_strings
from trainer.joiner.changes import TABLES, Changes, Row, Rows, changes_of
from trainer.joiner.database import Database
from trainer.joiner.ledger import Ledger
from trainer.joiner.requests import Request, decode_extra
from trainer.joiner.sweeper import Sweeper, places_of
from trainer.joiner.users import AreUser, requests_of

FORMAT: Final = 3
_NUMBER_BYTES: Final = 5  # of an integer, on average
# Requests and parts are numbered in the order of arrival, so that they are written and removed at
# the ends of their tables, and need no index of the time at which they go. Event ids are known by
# 64 bits of a keyed hash: with the 2 million ids of an hour at 500 a second, one event in 10^13
# would be taken for another.
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
        self._salt = salt
        self._relayed: dict[str, int] = {}
        self._features_saved = -1  # the last round of feature updates that is not needed
        self._database = Database(
            path,
            is_durable=is_durable,
            schema=_SCHEMA,
            checks={"format": str(FORMAT), "fingerprint": fingerprint},
        )
        self._db = self._database.connection
        self._sweeper = Sweeper(self._db)

    def close(self) -> None:
        """Release the file."""
        self._database.close()

    def meta(self) -> dict[str, int]:
        """Offsets, sequences and totals as last committed."""
        with self._database.errors():
            rows = self._db.execute("SELECT name, value FROM meta WHERE typeof(value) = 'integer'")
            return dict(rows.fetchall())

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
        ) in self._database.among("SELECT * FROM requests WHERE key IN", keys):
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
        return dict(self._database.among("SELECT key, expires_at FROM seen WHERE key IN", keys))

    def parts(self, numbers: Iterable[int]) -> dict[int, list[tuple[int, bytes]]]:
        """The impression records of requests, in order of arrival: when appended, and bytes."""
        sql = "SELECT appended_at, value FROM parts WHERE place BETWEEN ? AND ? ORDER BY place"
        with self._database.errors():
            return {n: self._db.execute(sql, places_of(n)).fetchall() for n in numbers}

    def requests_of_user(self, are_user: AreUser) -> list[str]:
        """Requests that name a user; see `users.requests_of`."""
        with self._database.errors():
            return requests_of(self._db, are_user)

    def due(self, until_ms: int, n_max: int) -> list[tuple[int, str]]:
        """The first (due time, request) that fall due by `until_ms`, in order."""
        with self._database.errors():
            return self._db.execute(
                "SELECT due_at, request_id FROM requests WHERE due_at <= ? "
                "ORDER BY due_at, request_id LIMIT ?",
                (until_ms, n_max),
            ).fetchall()

    def last_due_ms(self) -> int | None:
        """The last time at which something falls due; None when nothing waits for time."""
        with self._database.errors():
            row = self._db.execute(
                "SELECT max(due_at) FROM requests WHERE due_at IS NOT NULL"
            ).fetchone()
            return None if row is None else row[0]

    def feature_updates(self) -> list[tuple[int, bytes]]:
        """Number and value of the rounds that feature state may not have saved, in order."""
        with self._database.errors():
            return self._db.execute(
                "SELECT number, value FROM feature_updates ORDER BY number"
            ).fetchall()

    def features_saved(self, number: int) -> None:
        """Note that feature state keeps the rounds up to here; they leave with the next commit."""
        self._features_saved = number

    def outbox(self) -> list[tuple[str, int, bytes]]:
        """Topic, sequence and value of the records that may not be in the log yet."""
        with self._database.errors():
            rows = self._db.execute(
                "SELECT topic, sequence, value FROM outbox ORDER BY topic, sequence"
            ).fetchall()
        return [row for row in rows if row[1] > self._relayed.get(row[0], -1)]

    def relayed(self, topic: str, sequence: int) -> None:
        """Note that the log has a topic's outbox up to here; it leaves with the next commit."""
        self._relayed[topic] = sequence

    def changes(self, ledger: Ledger) -> Changes:
        """What a round that is decided will change."""
        return changes_of(ledger, self._features_saved)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """What is written inside is there together, or not at all.

        Raises:
            TransportError: no space left (code `disk-full`) or another fault of the disk.
        """
        with self._database.transaction():
            yield
        self._sweeper.committed()

    def write(
        self,
        changes: Changes,
        *,
        watermark_ms: int,
        outbox: Iterable[tuple[str, int, bytes]] = (),
    ) -> None:
        """Write a round within a transaction.

        Args:
            changes: Of the round.
            watermark_ms: What it has passed is swept.
            outbox: Topic, sequence and value of each record to be appended.
        """
        many = self._db.executemany
        many("DELETE FROM outbox WHERE topic = ? AND sequence <= ?", self._relayed.items())
        self._write(changes)
        many("INSERT INTO outbox VALUES (?, ?, ?)", outbox)
        self._sweeper.sweep(watermark_ms)

    def note(self, name: str, number: int) -> None:
        """Write a number into `meta` within a transaction."""
        self._db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (name, number))

    def replay(self, rounds: Iterable[tuple[Rows, Changes]]) -> None:
        """Write what was sent of rounds, in order, all of it or nothing; what is there stays.

        Nothing is swept: until the last row is back nobody knows what time has passed.

        Raises:
            TransportError: as `transaction`.
        """
        with self._database.transaction():
            for rows, changes in rounds:
                for table in TABLES.keys() & rows.keys():
                    marks = ", ".join("?" * len(rows[table][0]))
                    sql = f"INSERT OR REPLACE INTO {table} VALUES ({marks})"  # noqa: S608 - constants
                    self._db.executemany(sql, rows[table])
                self._write(changes)

    def last_key(self, table: str) -> int:
        """The highest key in a table; -1 when it is empty."""
        with self._database.errors():
            sql = f"SELECT max({TABLES[table]}) FROM {table}"  # noqa: S608 - constants
            key = self._db.execute(sql).fetchone()[0]
        return -1 if key is None else key

    def rows_between(
        self, table: str, after: int, last: int, n_bytes: int
    ) -> tuple[list[Row], int]:
        """Rows of a table behind one key and up to another; it stands first in them.

        Returns:
            So many, by their keys, that they take `n_bytes` or a bit more, or all; and about how
            many bytes they take.
        """
        rows: list[Row] = []
        n_taken = 0
        with self._database.errors():
            key = TABLES[table]
            sql = f"SELECT * FROM {table} WHERE {key} > ? AND {key} <= ? ORDER BY {key}"  # noqa: S608 - constants
            for row in self._db.execute(sql, (after, last)):
                rows.append(row)
                n_taken += sum(len(v) if isinstance(v, bytes | str) else _NUMBER_BYTES for v in row)
                if n_taken >= n_bytes:
                    break
        return rows, n_taken

    def bind(self, log: str) -> None:
        """Keep what is here if it is of this log, else forget it."""
        with self._database.errors():
            row = self._db.execute("SELECT value FROM meta WHERE name = 'log'").fetchone()
        if row is None or row[0] != log:
            self.clear()
            with self._database.errors():
                self._db.execute("INSERT OR REPLACE INTO meta VALUES ('log', ?)", (log,))

    def clear(self) -> None:
        """Forget all but whose state this is."""
        with self._database.transaction():
            for table in TABLES:
                self._db.execute(f"DELETE FROM {table}")  # noqa: S608 - constants
            self._db.execute("DELETE FROM meta WHERE typeof(value) = 'integer'")

    def _write(self, changes: Changes) -> None:
        many = self._db.executemany
        many("DELETE FROM feature_updates WHERE number <= ?", [(changes.features_saved,)])
        many("INSERT OR REPLACE INTO meta VALUES (?, ?)", changes.meta.items())
        many("DELETE FROM requests WHERE number = ?", ((number,) for number in changes.gone))
        many("DELETE FROM parts WHERE place BETWEEN ? AND ?", map(places_of, changes.gone))
        keys = hash_strings([one[1] for one in changes.new], self._salt).view(np.int64).tolist()
        new = zip(changes.new, keys, strict=True)
        many(_INSERT_REQUEST, ((n, key, *rest) for (n, *rest), key in new))
        many(_UPDATE_REQUEST, changes.changed)
        many(_UPDATE_DUE, changes.rescheduled)
        many("INSERT INTO parts VALUES (?, ?, ?)", changes.parts)
        many("INSERT OR REPLACE INTO seen VALUES (?, ?)", changes.seen.items())
        if changes.updates is not None:
            self._db.execute("INSERT INTO feature_updates VALUES (?, ?)", changes.updates)
