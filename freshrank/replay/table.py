"""A file of labelled rows as chunks of whole requests in event time."""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from freshrank.clock import Clock, SystemClock
from freshrank.errors import DataError
from freshrank.feature_types import TableValues
from freshrank.replay.chunks import Chunk
from freshrank.replay.columns import Columns
from freshrank.replay.rejects import Rejects
from freshrank.replay.sources import ROWS_PER_BATCH, TableFile
from freshrank.settings import Settings

I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]
Bools = npt.NDArray[np.bool_]

# Rows waited for before a chunk is made: encoding costs some milliseconds, however few they are.
_CHUNK_ROWS_MIN: Final = 8_192
# Rows of a request: a column that is the same everywhere would else gather the whole file.
REQUEST_ROWS_MAX: Final = ROWS_PER_BATCH
# Request ids remembered, 8 bytes each: 400 MB. Beyond, the oldest half may come again unnoticed.
_REQUESTS_MAX: Final = 50_000_000


def read_table(
    file: TableFile,
    settings: Settings,
    rejects: Rejects,
    *,
    sort: bool = False,
    limit: int | None = None,
    clock: Clock | None = None,
) -> Iterator[Chunk]:
    """The chunks of a file; every row is in one of them or among the rejects.

    Args:
        file: Parquet, CSV or TSV, each also under gzip.
        settings: `replay` says which column is what.
        rejects: Takes what cannot be used.
        sort: Bring requests into event time first, in memory; rows of a request come together.
        limit: Rows to read; the last request may be cut.
        clock: Says what lies in the future.

    Raises:
        ConfigError: the configuration names what it does not have.
        DataError: the file is empty, lacks a column, breaks off, goes back in time, or has more
            unfit rows than allowed.
    """
    columns = Columns(settings, file, rejects, clock or SystemClock())

    def tables() -> Iterator[pa.Table]:
        for batch, places in file.batches(columns.names, rejects, limit):
            table = columns.convert(batch, places)
            for begin in range(0, table.num_rows, ROWS_PER_BATCH):
                yield table[begin : begin + ROWS_PER_BATCH]
            rejects.check()

    has_requests = settings.replay.columns.request is not None
    cut = _Cut(settings, columns.per_request, rejects, has_requests=has_requests)
    yield from cut.chunks(_sorted(tables()) if sort else tables())
    rejects.check(at_end=True)
    if not cut.n_requests:
        counted = ", ".join(f"{n:,} {reason}" for reason, n in rejects.counts.items())
        listed = "" if rejects.path is None else f", listed in {rejects.path}"
        raise DataError(
            f"{file.path} holds no row that can be used: {counted}{listed}", code="empty"
        )


class _Cut:
    """Cuts typed rows into chunks and judges them by request."""

    def __init__(
        self, settings: Settings, per_request: list[str], rejects: Rejects, *, has_requests: bool
    ) -> None:
        self._tasks = list(settings.tasks)
        self._per_request = per_request
        self._rejects = rejects
        self._seen = _Seen() if has_requests else None
        self.n_requests = 0
        self._last = (-1, 0)  # time and place of the request before

    def chunks(self, tables: Iterator[pa.Table]) -> Iterator[Chunk]:
        """Chunks; where the source breaks off, what came before comes out first."""
        waiting: list[pa.Table] = []
        for table in (source := _Until(tables)):
            waiting.append(table)
            if sum(one.num_rows for one in waiting) >= _CHUNK_ROWS_MIN:
                rows = pa.concat_tables(waiting).combine_chunks()
                n_whole = self._n_whole(rows)
                yield from self._chunk(rows[:n_whole])
                waiting = [rows[n_whole:]]
        if waiting:
            yield from self._chunk(pa.concat_tables(waiting).combine_chunks())
        source.end()

    def _n_whole(self, rows: pa.Table) -> int:
        """Rows before the last request, which may go on."""
        begins, n_items = _groups(_numpy(rows, "request"))
        if n_items[-1] > REQUEST_ROWS_MAX:
            raise DataError(
                f"{self._rejects.unit} {_numpy(rows, 'place')[begins[-1]]}: here begins a request "
                f"of more than {REQUEST_ROWS_MAX:,} rows: is replay.columns.request the right "
                "column?",
                code="request-too-long",
            )
        return int(begins[-1])

    def _chunk(self, rows: pa.Table) -> Iterator[Chunk]:
        rows = self._without_mixed(self._without_split(rows))
        if not rows.num_rows:
            return
        begins, _ = _groups(_numpy(rows, "request"))
        ts_ms, places = _numpy(rows, "ts_ms")[begins], _numpy(rows, "place")[begins]
        before_ms = np.concatenate([[self._last[0]], ts_ms[:-1]])
        is_late = ts_ms < before_ms
        if not is_late.any():
            self._last = int(ts_ms[-1]), int(places[-1])
            yield self._made(rows)
            return
        n = int(is_late.argmax())
        if n:
            yield self._made(rows[: begins[n]])
        unit = self._rejects.unit
        place = places[n - 1] if n else self._last[1]
        raise DataError(
            f"{unit} {places[n]}: {_time(ts_ms[n])} is earlier than {_time(before_ms[n])} of the "
            f"request before, at {unit} {place}. A replay goes forward in time: sort the file, or "
            "give --sort to have it sorted in memory",
            code="unsorted",
        )

    def _made(self, rows: pa.Table) -> Chunk:
        begins, n_items = _groups(_numpy(rows, "request"))
        ts_ms = _numpy(rows, "ts_ms")[begins]
        numbers = np.repeat(self.n_requests + np.arange(len(begins)), n_items)
        self.n_requests += len(begins)
        first = pa.array(begins)
        shared = {name: _array(rows, name).take(first) for name in self._per_request}
        columns = {name: _array(rows, name) for name in rows.column_names if name not in shared}
        labels, weights = (
            np.stack([_numpy(rows, f"{kind}.{t}") for t in range(len(self._tasks))], axis=1)
            for kind in ("label", "weight")
        )
        values = TableValues(
            n_items=n_items,
            ts_ms=ts_ms,
            users=shared.get("user"),
            items=columns.get("item"),
            shared=_features(shared),
            columns=_features(columns),
            acted=self._acted(labels),
        )
        return Chunk(values, labels, weights, numbers, np.repeat(ts_ms, n_items))

    def _without_split(self, rows: pa.Table) -> pa.Table:
        """Less the rows of requests that had ended before."""
        if self._seen is None or not rows.num_rows:
            return rows
        requests = _numpy(rows, "request")
        begins, n_items = _groups(requests)
        ids = requests[begins]
        is_new = np.zeros(len(ids), np.bool_)
        is_new[np.unique(ids, return_index=True)[1]] = True
        is_new &= ~self._seen.holds(ids)
        self._seen.add(ids[is_new])
        detail = "its request had ended before: rows of a request stand together (or give --sort)"
        return self._without(rows, np.repeat(~is_new, n_items), "split-request", detail)

    def _without_mixed(self, rows: pa.Table) -> pa.Table:
        """Less the rows whose user or context is not that of their request's first row."""
        begins, n_items = _groups(_numpy(rows, "request"))
        if len(begins) == rows.num_rows:
            return rows
        first = np.repeat(begins, n_items)
        for name in self._per_request:
            codes = _codes(_array(rows, name))
            if (is_other := codes != codes[first]).any():
                detail = f"{name.replace('.', ' ')} differs from that of its request's first row"
                rows = self._without(rows, is_other, "mixed-request", detail)
                return self._without_mixed(rows)
        return rows

    def _without(self, rows: pa.Table, bad: Bools, reason: str, detail: str) -> pa.Table:
        if not bad.any():
            return rows
        for content in rows.filter(pa.array(bad)).to_pylist():
            self._rejects.add(content.pop("place"), reason, detail, content)
        return rows.filter(pa.array(~bad)).combine_chunks()

    def _acted(self, labels: npt.NDArray[np.float32]) -> dict[str, Bools]:
        """Event -> rows on which it happened: a positive, or any value of a value task."""
        acted: dict[str, Bools] = {}
        for t, task in enumerate(self._tasks):
            label = labels[:, t]
            did = label > 0.5 if task.loss == "logloss" else ~np.isnan(label)
            acted[task.event] = acted[task.event] | did if task.event in acted else did
        return acted


class _Until:
    """Iterates until the source ends or breaks off, which `end` then tells."""

    def __init__(self, tables: Iterator[pa.Table]) -> None:
        self._tables = tables
        self._broken: DataError | None = None

    def __iter__(self) -> Iterator[pa.Table]:
        try:
            yield from self._tables
        except DataError as error:
            self._broken = error

    def end(self) -> None:
        if self._broken is not None:
            raise self._broken


class _Seen:
    """A growing set of `uint64`: sorted arrays, merged when two are of like size."""

    def __init__(self) -> None:
        self._runs: list[U64] = []

    def holds(self, ids: U64) -> Bools:
        found = np.zeros(len(ids), np.bool_)
        for run in self._runs:
            at = np.minimum(np.searchsorted(run, ids), len(run) - 1)
            found |= run[at] == ids
        return found

    def add(self, ids: U64) -> None:
        if not len(ids):
            return
        run = np.sort(ids)
        while self._runs and len(self._runs[-1]) <= 2 * len(run):
            run = np.sort(np.concatenate([self._runs.pop(), run]), kind="stable")
        self._runs.append(run)
        if sum(map(len, self._runs)) > _REQUESTS_MAX:
            del self._runs[0]


def _sorted(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """All rows by time of their request's first row, each request's together."""
    source = _Until(tables)
    if waiting := list(source):
        rows = pa.concat_tables(waiting).combine_chunks()
        requests = _numpy(rows, "request")
        _, first, request = np.unique(requests, return_index=True, return_inverse=True)
        ts_ms = _numpy(rows, "ts_ms")[first]
        rows = rows.take(pa.array(np.lexsort((first[request], ts_ms[request]))))
        for begin in range(0, rows.num_rows, ROWS_PER_BATCH):
            yield rows[begin : begin + ROWS_PER_BATCH]
    source.end()


def _groups(requests: npt.NDArray[Any]) -> tuple[I64, I64]:
    """Where runs of equal values begin, and how long they are."""
    is_begin = np.ones(len(requests), np.bool_)
    is_begin[1:] = requests[1:] != requests[:-1]
    begins = np.flatnonzero(is_begin)
    return begins, np.diff(np.append(begins, len(requests)))


def _codes(column: pa.Array) -> npt.NDArray[Any]:
    """Equal numbers for equal values, null equal to null."""
    if pa.types.is_large_list(column.type):  # as text, which can be compared
        column = pc.binary_join(column.cast(pa.large_list(pa.string())), "\0")
    if pa.types.is_primitive(column.type) and not column.null_count:
        return column.to_numpy()  # type: ignore[no-any-return]
    indices = column.dictionary_encode().indices
    return pc.fill_null(indices, -1).to_numpy()  # type: ignore[no-any-return]


def _array(rows: pa.Table, name: str) -> pa.Array:
    """The column in one piece; `combine_chunks` has made it one."""
    column = rows.column(name)
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _numpy(rows: pa.Table, name: str) -> npt.NDArray[Any]:
    return rows.column(name).to_numpy()  # type: ignore[no-any-return]


def _features(columns: dict[str, pa.Array]) -> dict[str, pa.Array]:
    prefix = "feature."
    return {n.removeprefix(prefix): c for n, c in columns.items() if n.startswith(prefix)}


def _time(ts_ms: int) -> str:
    return datetime.fromtimestamp(int(ts_ms) / 1_000, UTC).isoformat(timespec="milliseconds")
