"""A SQLite file with one writer: its transactions, what is checked when it opens, its errors."""

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from freshrank.errors import SchemaError, TransportError
from freshrank.transport.files import disk_failed, has_failed

# Below SQLite's limit of bound variables in any build (999); a look-up for a full read still takes
# a handful of statements.
_KEYS_MAX: Final = 500
_MARKS: Final = ",".join("?" * _KEYS_MAX)
# A checkpoint writes each page once however often it changed since the last one: a window's pages
# change every round, so one checkpoint per 64 MiB of rounds writes a fraction of one per round.
_CHECKPOINT_PAGES: Final = 16_384

_FAILED: Final = (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY)  # whatever their lower half

_META: Final = "CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value) WITHOUT ROWID"


class Database:
    """The file of one partition.

    Args:
        path: The file; made with its directory when it is not there.
        is_durable: Commits survive a power cut, not only a killed process.
        schema: Statements that make its tables; there is a table `meta` of names and values.
        checks: Name -> text in `meta`; entered the first time, and the same ever after.

    Attributes:
        connection: The open database; changed within `transaction` only.

    Raises:
        SchemaError: a check failed.
        TransportError: it cannot be opened or written.
    """

    def __init__(
        self, path: Path, *, is_durable: bool, schema: str, checks: Mapping[str, str]
    ) -> None:
        self._path = path
        with self.errors():
            path.parent.mkdir(parents=True, exist_ok=True)
            self.connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        try:
            with self.errors():
                execute = self.connection.execute
                execute("PRAGMA journal_mode = WAL")
                execute(f"PRAGMA synchronous = {'FULL' if is_durable else 'NORMAL'}")
                execute("PRAGMA cache_size = -65536")  # 64 MiB: a window's requests
                execute(f"PRAGMA wal_autocheckpoint = {_CHECKPOINT_PAGES}")
                execute(_META)
            for name, text in checks.items():
                self._check(name, text)
            with self.errors():
                self.connection.executescript(schema)
        except BaseException:
            self.connection.close()
            raise

    def close(self) -> None:
        """Release the file."""
        self.connection.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """What is written inside is there together, or not at all.

        Raises:
            TransportError: no space left (code `disk-full`) or another fault of the disk.
        """
        with self.errors():
            self.connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self.connection.execute("COMMIT")
            except BaseException:
                if self.connection.in_transaction:
                    self.connection.execute("ROLLBACK")
                raise

    def among(self, select: str, keys: Sequence[str | int]) -> Iterator[tuple[Any, ...]]:
        """Rows of `SELECT … IN` whose keys are among these."""
        for start in range(0, len(keys), _KEYS_MAX):
            some = keys[start : start + _KEYS_MAX]
            padded = [*some, *[None] * (_KEYS_MAX - len(some))]
            with self.errors():
                rows = self.connection.execute(f"{select} ({_MARKS})", padded).fetchall()
            yield from rows

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Errors of SQLite as `TransportError`; `state-damaged` where the file is no database.

        Raises:
            TransportError: further codes are `disk-full`, `disk-failed` and `joiner-state`.
        """
        try:
            yield
        except (sqlite3.DatabaseError, OSError) as error:
            code = getattr(error, "sqlite_errorcode", 0)
            if code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_SHMSIZE):
                raise TransportError(
                    f"no space left for the joiner's state in {self._path}: free some, the joiner "
                    "goes on by itself",
                    code="disk-full",
                ) from error
            if code & 0xFF in _FAILED or (isinstance(error, OSError) and has_failed(error)):
                what = f"keep the joiner's state in {self._path}"
                raise disk_failed(what, error) from error
            is_damaged = code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
            raise TransportError(
                f"the joiner's state in {self._path} failed: {error}",
                code="state-damaged" if is_damaged else "joiner-state",
            ) from error

    def _check(self, name: str, value: str) -> None:
        with self.errors():
            self.connection.execute("INSERT OR IGNORE INTO meta VALUES (?, ?)", (name, value))
            row = self.connection.execute(
                "SELECT value FROM meta WHERE name = ?", (name,)
            ).fetchone()
        if row[0] != value:
            raise SchemaError(
                f"{self._path} was written for {name} {row[0]!r}, this program and configuration "
                f"have {value!r}: start with the earlier ones until the windows are closed, or "
                "begin with a new data directory",
                code="joiner-state",
            )
