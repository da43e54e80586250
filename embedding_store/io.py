"""A table's rows as a Parquet file and back, a slice at a time; needs pyarrow, the extra `io`.

| column | type | content |
|---|---|---|
| `id` | uint64 | |
| `weights` | fixed_size_list<float32>[width] | the vector, then the first-order weight |
| `state` | fixed_size_list<float32>[n] | the optimizer's, as in FORMAT.md; left out where n is 0 |
| `version` | uint64 | of the last change |
| `last_seen_s`, `born_s` | uint32 | event time in seconds |
| `frequency` | uint32 | occurrences counted |

The file's metadata hold, as JSON under `embedding_store`, what rows mean (`dim`, `first_order`,
and of each optimizer what its state rests on) and the table's `version` and
`clock_s`. Pending counts, tombstones and hyper-parameters are not in
it: `Table.snapshot` is the whole table, this file is for other people's tools.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from embedding_store._native import StoreError, Table
from embedding_store.optimizer import Optimizer

METADATA_KEY: Final = b"embedding_store"
# 65,536 rows of 16 weights and 16 floats of state are 10 MB, twice: as arrays and as Parquet pages.
BATCH_ROWS: Final = 65_536


def export_parquet(table: Table, path: str | Path, *, batch_rows: int = BATCH_ROWS) -> int:
    """Write every row of a table to a file, which appears when it is whole.

    Each slice is of one instant. For a file that is of one instant altogether, export while nothing
    writes to the table, or a table restored from a snapshot.

    Args:
        table: Read only.
        path: A regular file there is replaced; of a symbolic link, the file that it leads to.
        batch_rows: Rows read at a time, and per row group: what bounds memory here and in readers.

    Returns:
        Rows written.

    Raises:
        ImportError: pyarrow is not installed.
        StoreError: at `path` is a directory, a device or a pipe; it is as it was.
        ValueError: `batch_rows` is not positive.
    """
    pa, pq = _pyarrow()
    _check_arguments(table, batch_rows)
    target = _replaceable(Path(path))
    clock_s = table.statistics()["clock_s"]
    layout = {**_layout(table), "version": table.version, "clock_s": clock_s}
    schema = _schema(pa, table).with_metadata({METADATA_KEY: json.dumps(layout)})
    partial = Path(f"{target}.partial")
    n_rows = 0
    try:
        with pq.ParquetWriter(partial, schema, use_dictionary=False, compression="zstd") as writer:
            for columns in _slices(table, batch_rows):
                keys, values, *metadata = columns
                floats = [values[:, : table.width], values[:, table.width :]]
                lists = [_as_lists(pa, own) for own in floats if own.shape[1] > 0]
                arrays = [pa.array(own) for own in (keys, *metadata)]
                writer.write_batch(pa.record_batch([arrays[0], *lists, *arrays[1:]], schema=schema))
                n_rows += len(keys)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
    return n_rows


def import_parquet(
    path: str | Path, table: Table | Mapping[str, Any], *, batch_rows: int = BATCH_ROWS
) -> Table:
    """Read rows that `export_parquet` wrote.

    Args:
        path: The file.
        table: A table that is there already: rows of the same ids are replaced, and all rows of the
            file count as changed now, so that the next delta carries them. Or the arguments of a
            new `Table`: its rows keep their versions, and its version goes on from the file's.
        batch_rows: Rows read at a time.

    Returns:
        The table.

    Raises:
        ImportError: pyarrow is not installed.
        StoreError: not such a file, or its dim, optimizer or columns are not the table's, and no
            row was put in; or the budget has no room for a slice, and those before it are in.
        ValueError: `batch_rows` is not positive.
    """
    pa, pq = _pyarrow()
    keeps_versions = isinstance(table, Mapping)
    target = Table(**table) if isinstance(table, Mapping) else table
    _check_arguments(target, batch_rows)
    try:
        with pq.ParquetFile(path) as file:
            theirs = _check(pa, file, target, str(path))
            # One group at a time: pyarrow holds on to groups it has read while it reads on.
            for group in range(file.num_row_groups):
                for batch in file.iter_batches(batch_rows, row_groups=[group]):
                    _put(target, batch, theirs, keeps_versions)
    except pa.ArrowInvalid as error:
        raise StoreError(f"{path} cannot be read as Parquet: {error}") from error
    return target


def _check_arguments(table: object, batch_rows: int) -> None:
    if not isinstance(table, Table):
        raise TypeError(f"rows with their state are those of a Table, not of {table!r:.80}")
    if batch_rows < 1:
        raise ValueError(f"batch_rows is {batch_rows}; it must be at least 1")


def _replaceable(path: Path) -> Path:
    """Where a file for `path` goes: links are followed, and what is no file is not renamed away."""
    if path.exists() and not path.is_file():
        raise StoreError(f"{path} is no regular file, and no other is replaced: name a file")
    return path.resolve()


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError(
            "Parquet files need pyarrow, which is not installed: pip install 'freshrank[io]'"
        ) from error
    return pyarrow, pyarrow.parquet


def _layout(table: Table) -> dict[str, Any]:
    """What rows of two tables must have in common to mean the same."""
    return {
        "dim": table.dim,
        "first_order": table.width > table.dim,
        "optimizer": _state_of(table.optimizer),
        "first_order_optimizer": _state_of(table.first_order_optimizer),
    }


def _state_of(optimizer: Optimizer | None) -> dict[str, Any] | None:
    """What an optimizer's state rests on: the values that `Table.configure` may not change."""
    if optimizer is None:
        return None
    return {
        "kind": optimizer.kind,
        "beta": optimizer.beta if optimizer.kind == "ftrl" else None,
        "decays": optimizer.accumulator_half_life_s > 0,
    }


def _schema(pa: Any, table: Table) -> Any:
    n_state = table.rows_from(0, 0)[2].shape[1] - table.width
    state = [("state", pa.list_(pa.float32(), n_state))] if n_state > 0 else []
    fields = [
        ("id", pa.uint64()),
        ("weights", pa.list_(pa.float32(), table.width)),
        *state,
        ("version", pa.uint64()),
        ("last_seen_s", pa.uint32()),
        ("born_s", pa.uint32()),
        ("frequency", pa.uint32()),
    ]
    return pa.schema([pa.field(name, kind, nullable=False) for name, kind in fields])


def _slices(table: Table, batch_rows: int) -> Iterator[tuple[npt.NDArray[Any], ...]]:
    rows = table.rows_from(0, batch_rows)
    while len(rows[1]) > 0:
        yield rows[1:]
        rows = table.rows_from(rows[0], batch_rows)


def _as_lists(pa: Any, values: npt.NDArray[np.float32]) -> Any:
    """`float32[n, w]` as n lists of w."""
    n_columns = values.shape[1]
    item = pa.field("element", pa.float32(), nullable=True)
    flat = pa.array(np.ascontiguousarray(values).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, type=pa.list_(item, n_columns))


def _check(pa: Any, file: Any, table: Table, path: str) -> dict[str, Any]:
    """Refuse a file whose rows are not such a table's; return what its metadata say."""
    schema = file.schema_arrow
    if METADATA_KEY not in (schema.metadata or {}):
        raise StoreError(f"{path} was not written by export_parquet: it lacks its metadata")
    theirs = _metadata(schema.metadata[METADATA_KEY], path)
    for name, own in _layout(table).items():
        if theirs.get(name) != own:
            raise StoreError(
                f"{path} holds rows of {name} {theirs.get(name)!r}, this table is of {name} "
                f"{own!r}: import it into a table like the one it was exported from"
            )
    expected = {field.name: field.type for field in _schema(pa, table)}
    actual = {field.name: field.type for field in schema}
    for name in expected | actual:
        if actual.get(name) != expected.get(name):
            raise StoreError(
                f"{path}: column {name!r} is {actual.get(name, 'missing')}, it must be "
                f"{expected.get(name, 'left out')}"
            )
    return theirs


def _metadata(text: bytes, path: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if isinstance(found, dict) and all(type(found.get(n)) is int for n in ("version", "clock_s")):
        return found
    raise StoreError(f"{path}: what it says of its table is damaged: {text[:80]!r}")


def _put(table: Table, batch: Any, theirs: Mapping[str, Any], keeps_versions: bool) -> None:
    columns = {name: batch.column(name) for name in batch.schema.names}
    for name, column in columns.items():
        if column.null_count > 0:
            raise StoreError(f"column {name!r} holds {column.null_count} nulls")
    lists = [columns[name] for name in ("weights", "state") if name in columns]
    values = [own.flatten().to_numpy().reshape(len(batch), -1) for own in lists]
    plain = {name: columns[name].to_numpy() for name in columns if name not in ("weights", "state")}
    table.put_rows(
        plain["id"],
        np.concatenate(values, axis=1),
        plain["version"] if keeps_versions else None,
        plain["last_seen_s"],
        plain["born_s"],
        plain["frequency"],
        table_version=theirs["version"] if keeps_versions else 0,
        clock_s=theirs["clock_s"],
    )
