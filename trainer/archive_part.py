"""A file of the archive while it is written."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from freshrank.examples import BatchInfo
from freshrank.transport.base import Record
from trainer.archive_files import PLACE, PartInfo

# Rows wait for a row group: large ones compress and read well, and hold some 20 MB.
GROUP_ROWS: Final = 65_536
GROUP_BYTES: Final = 32 << 20
FILE_ROWS_MAX: Final = 16 * GROUP_ROWS


@dataclass(slots=True)
class OpenPart:
    """A file being written: what it covers, and what waits for its next row group."""

    path: Path
    hour: str
    opened_s: float
    schema_hash: str
    schema: pa.Schema
    writer: pq.ParquetWriter
    waiting: list[pa.RecordBatch] = field(default_factory=list)
    n_waiting: int = 0
    n_waiting_bytes: int = 0
    n_rows: int = 0
    offsets: dict[str, int] = field(default_factory=dict)

    def fits(self, rows: pa.RecordBatch, info: BatchInfo, hour: str) -> bool:
        """Whether a record's rows may stand in this file."""
        return bool(
            self.hour == hour
            and self.schema_hash == info.schema_hash
            and self.schema.equals(rows.schema)
            and self.n_rows + self.n_waiting < FILE_ROWS_MAX
        )

    def add(self, rows: pa.RecordBatch, n_bytes: int) -> None:
        """Take a record's rows."""
        self.waiting.append(rows)
        self.n_waiting += rows.num_rows
        self.n_waiting_bytes += n_bytes
        if self.n_waiting >= GROUP_ROWS or self.n_waiting_bytes >= GROUP_BYTES:
            self.write_group()

    def write_group(self) -> None:
        """Write what waits as one row group, which never parts a record."""
        if self.n_waiting:
            table = pa.Table.from_batches(self.waiting, self.schema)
            self.writer.write_table(table, row_group_size=table.num_rows)
        self.n_rows += self.n_waiting
        self.waiting, self.n_waiting, self.n_waiting_bytes = [], 0, 0

    @property
    def info(self) -> PartInfo:
        """What is to stand in its metadata."""
        return PartInfo(
            schema_hash=self.schema_hash,
            tasks=_suffixes(self.schema, "label."),
            slots=_suffixes(self.schema, "slot."),
            rows=self.n_rows,
            offsets=self.offsets,
        )


def placed(rows: pa.RecordBatch, record: Record) -> pa.RecordBatch:
    """The rows behind columns that say where they stood; without a column of no type."""
    n = rows.num_rows
    columns = [
        pa.array(np.full(n, record.partition, np.int32)),
        pa.array(np.full(n, record.offset, np.int64)),
        pa.array(np.arange(n, dtype=np.int32)),
    ]
    kept = [i for i, one in enumerate(rows.schema) if not pa.types.is_null(one.type)]
    return pa.RecordBatch.from_arrays(
        [*columns, *(rows.column(i) for i in kept)],
        schema=pa.schema([*PLACE, *(rows.schema.field(i) for i in kept)]),
    )


def _suffixes(schema: pa.Schema, prefix: str) -> list[str]:
    """What stands behind the prefix in the names of columns that have it."""
    return [name.removeprefix(prefix) for name in schema.names if name.startswith(prefix)]
