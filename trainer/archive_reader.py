"""Reads an archive: its files checked before anything is learned, then records in their order."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from freshrank import examples
from freshrank.errors import DataError, SchemaError
from freshrank.examples import BatchInfo, ExampleBatch
from freshrank.features import Encoded, FeatureEncoder, SlotIds
from freshrank.settings import Settings
from freshrank.transport.base import EXAMPLES, Record
from trainer.archive_files import (
    FORMAT_VERSION,
    METADATA_KEY,
    PLACE,
    PartInfo,
    PartName,
    part_names,
)
from trainer.queue import ReadRecord
from trainer.state import TrainerState
from trainer.validation import check_rows

_ALLOW: Final = "or pass --allow-gaps to learn without it"
_UNREADABLE: Final = (pa.ArrowException, OSError, KeyError, ValueError, TypeError)


@dataclass(frozen=True, slots=True)
class Part:
    """A file of the archive: where it is, what its name says, and what it says itself."""

    path: Path
    name: PartName
    info: PartInfo


class Archive:
    """The files of one archive, opened and checked; rows are read as they are asked for.

    Args:
        directory: Its directory.
        settings: Tasks are read.
        encoder: Slots and schema hash that every file must have.
        first_hour: The first hour read, e.g. `2026-11-21T10`; None reads from the first there is.
        last_hour: The last hour read.
        allow_gaps: Read on where files are missing.

    Attributes:
        parts: In the order of reading.

    Raises:
        DataError: no archive, nothing in those hours, or a file missing in between, written twice
            or damaged (codes `archive-empty`, `archive-gap`, `archive-damaged`).
        SchemaError: a file of another schema hash or a newer format.
    """

    def __init__(
        self,
        directory: Path,
        settings: Settings,
        encoder: FeatureEncoder,
        *,
        first_hour: str | None = None,
        last_hour: str | None = None,
        allow_gaps: bool = False,
    ) -> None:
        self.directory = directory
        self.allow_gaps = allow_gaps
        self._losses = [task.loss for task in settings.tasks]
        self._tasks = [task.name for task in settings.tasks]
        self._slots = [slot.name for slot in encoder.slots]
        self._schema_hash = encoder.schema_hash
        names = part_names(directory) if directory.is_dir() else []
        if not names:
            raise DataError(
                f"{directory} is no archive: it has no files hour=…/part-….parquet. Name the "
                "directory that archive.dir of the configuration that wrote it names",
                code="archive-empty",
            )
        chosen = [
            name
            for name in names
            if (first_hour or "") <= name.hour and (last_hour is None or name.hour <= last_hour)
        ]
        if not chosen:
            raise DataError(
                f"{directory} has no hours from {first_hour or 'the first'} to "
                f"{last_hour or 'the last'}: it has {names[0].hour} to {names[-1].hour}",
                code="archive-empty",
            )
        self.parts = [self._checked(name) for name in chosen]
        for parts in self.lineages().values():
            for before, after in pairwise(parts):
                self._check_neighbours(before, after)

    def lineages(self) -> dict[tuple[str, int], list[Part]]:
        """(log, partition) -> its files, in order of offset."""
        found: dict[tuple[str, int], list[Part]] = {}
        for part in self.parts:
            found.setdefault((part.name.log, part.name.partition), []).append(part)
        return found

    def records(self, state: TrainerState, skipped: set[int]) -> Iterator[ReadRecord]:
        """Records that `state` has not dealt with, under its numbers of their partitions.

        Records without rows are left out, but for the last one of a file: it moves the position.

        Args:
            state: Its positions as they are now.
            skipped: Numbers of partitions to leave out.

        Raises:
            DataError: a file cannot be read (code `archive-damaged`).
        """
        begins = {number: position.offset for number, position in state.positions.items()}
        for part in self.parts:
            number = state.number(part.name.log, part.name.partition)
            if number not in skipped and part.name.last >= begins[number]:
                for offset, batch in self._read(part, begins[number], is_own=number >= 0):
                    record = Record(EXAMPLES, number, offset, b"", b"", 0)
                    yield ReadRecord(record, (batch, check_rows(batch, self._losses)))

    def _read(self, part: Part, begin: int, *, is_own: bool) -> Iterator[tuple[int, ExampleBatch]]:
        """Offsets and rows from `begin` on; the last one of the file brings its input offsets.

        What stood in another log has no input offsets here, and entered this one never: -1.
        """
        end_info = BatchInfo(self._schema_hash, part.info.offsets if is_own else {})
        info = BatchInfo(self._schema_hash)
        last = part.name.last
        offset = -1
        for offset, batch in self._groups(part, begin, info):
            one = batch if offset < last else replace(batch, info=end_info)
            yield offset, one if is_own else _of_another_log(one)
        if offset < last:
            yield last, self._empty(end_info)

    def _groups(
        self, part: Part, begin: int, info: BatchInfo
    ) -> Iterator[tuple[int, ExampleBatch]]:
        try:
            with pq.ParquetFile(part.path, page_checksum_verification=True) as file:
                at = file.schema_arrow.names.index("offset")
                for n in range(file.num_row_groups):
                    statistics = file.metadata.row_group(n).column(at).statistics
                    if statistics is None or statistics.max >= begin:
                        yield from self._records(file.read_row_group(n), begin, info)
        except (*_UNREADABLE, DataError) as error:
            raise _damaged(part.path, error) from error

    def _records(
        self, table: pa.Table, begin: int, info: BatchInfo
    ) -> Iterator[tuple[int, ExampleBatch]]:
        if "dense" not in table.column_names:
            table = table.append_column("dense", pa.nulls(table.num_rows))
        [group] = table.combine_chunks().to_batches()
        offsets = group.column("offset").to_numpy()
        rows = examples.from_columns(group, info, self._tasks, self._slots)
        starts = np.flatnonzero(np.diff(offsets, prepend=-1))
        stops = np.append(starts[1:], len(offsets))
        for start, stop in zip(starts.tolist(), stops.tolist(), strict=True):
            if offsets[start] >= begin:
                yield int(offsets[start]), _rows(rows, start, stop)

    def _empty(self, info: BatchInfo) -> ExampleBatch:
        """No rows, and what concerns them."""
        none = np.empty((0, len(self._tasks)), np.float32)
        ids = SlotIds(np.empty(0, np.uint64), np.zeros(1, np.int64))
        times, flags = np.empty(0, np.int64), np.empty(0, np.bool_)
        values = Encoded(0, dict.fromkeys(self._slots, ids), np.empty((0, 0), np.float32))
        return ExampleBatch(
            info, [], [], times, times, flags, flags, flags, none, none, none, none, values
        )

    def _checked(self, name: PartName) -> Part:
        path = self.directory / name.path
        try:
            with pq.ParquetFile(path) as file:
                content = json.loads(file.metadata.metadata[METADATA_KEY])
                if content["v"] > FORMAT_VERSION:
                    raise SchemaError(
                        f"{path} has format {content['v']}, this program reads up to "
                        f"{FORMAT_VERSION}: upgrade it"
                    )
                info = PartInfo(**content)
                names = set(file.schema_arrow.names)
                if file.metadata.num_rows != info.rows or not names.issuperset(PLACE.names):
                    raise ValueError(f"{file.metadata.num_rows} rows, {info.rows} were written")
        except _UNREADABLE as error:
            raise _damaged(path, error) from error
        if info.schema_hash != self._schema_hash:
            raise SchemaError(
                f"{path} was written for schema {info.schema_hash}, this configuration is "
                f"{self._schema_hash}: use the features, tasks, model and salt that wrote it, or "
                "only hours of this schema (--from, --until). Nothing was learned"
            )
        return Part(path, name, info)

    def _check_neighbours(self, before: Part, after: Part) -> None:
        expected, first = before.name.last + 1, after.name.first
        if first < expected:
            raise DataError(
                f"{after.path} begins at offset {first}, which {before.path} has too: move the "
                "one that does not belong there away",
                code="archive-damaged",
            )
        if first > expected and not self.allow_gaps:
            raise gap(f"{self.directory} has no file with", expected, first, before.name)


def gap(what: str, first: int, end: int, name: PartName) -> DataError:
    """The error that says which records of a partition are missing."""
    return DataError(
        f"{what} offsets {first} to {end - 1} of partition {name.partition} of log {name.log}: "
        f"restore it from a backup, {_ALLOW}",
        code="archive-gap",
    )


def _damaged(path: Path, error: Exception) -> DataError:
    return DataError(
        f"{path} is damaged ({type(error).__name__}: {error}): restore it from a backup, or move "
        "it away and pass --allow-gaps to learn without it",
        code="archive-damaged",
    )


_COLUMNS: Final = [
    field.name for field in fields(ExampleBatch) if field.name not in ("info", "values")
]


def _rows(batch: ExampleBatch, start: int, stop: int) -> ExampleBatch:
    """Rows `start` to `stop`, as views."""
    slots: Mapping[str, SlotIds] = batch.values.slots
    parts = {}
    for name, column in slots.items():
        offsets = column.offsets[start : stop + 1]
        parts[name] = SlotIds(column.ids[offsets[0] : offsets[-1]], offsets - offsets[0])
    columns: dict[str, Any] = {name: getattr(batch, name)[start:stop] for name in _COLUMNS}
    values = Encoded(stop - start, parts, batch.values.dense[start:stop])
    return replace(batch, values=values, **columns)


def _of_another_log(batch: ExampleBatch) -> ExampleBatch:
    return replace(batch, appended_at_ms=np.full(batch.n_rows, -1, np.int64))
