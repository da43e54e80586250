"""Files of labelled rows as Arrow batches: Parquet, CSV and TSV, each also under gzip.

A text file has a header line, no line breaks inside a value, and values quoted with `"` where
needed. Its lines are looked at before Arrow parses them: one stray quote would else swallow the
lines after it.
"""

import csv
import gzip
import io
import re
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from freshrank.errors import DataError
from freshrank.hints import did_you_mean
from freshrank.replay.rejects import Rejects

I64 = npt.NDArray[np.int64]
Batches = Iterator[tuple[pa.RecordBatch, I64]]

ROWS_PER_BATCH: Final = 65_536
# Text parsed at once: some 80,000 lines of 50 bytes.
_BLOCK_BYTES: Final = 4 << 20
# A line so long is not a row but, say, a Parquet file called .csv.
_LINE_BYTES_MAX: Final = 16 << 20
_FORMATS: Final = {".parquet": "parquet", ".pq": "parquet", ".csv": "csv", ".tsv": "tsv"}
_BROKEN: Final = (EOFError, zlib.error, gzip.BadGzipFile, pa.ArrowException, OSError)


class TableFile:
    """A file of labelled rows.

    Args:
        path: The file.
        kind: `parquet`, `csv` or `tsv`; None to go by its name.

    Attributes:
        path: The file.
        names: Its columns.
        unit: What a place in it is called: `row` of a Parquet file, `line` of a text.
        share_read: How much of it has been read, from 0 to 1.

    Raises:
        DataError: it cannot be opened, is empty, or nobody knows its format.
    """

    def __init__(self, path: Path, kind: str | None = None) -> None:
        self.path = path
        self._is_gzip = path.suffix == ".gz"
        stem = path.with_suffix("") if self._is_gzip else path
        self._kind = kind or _FORMATS.get(stem.suffix.lower())
        if self._kind is None and not path.exists():
            raise DataError(f"{path}: no such file or directory", code="no-file")
        if self._kind is None:
            raise DataError(
                f"{path}: what format is it? Give replay.format: parquet, csv or tsv. Events are "
                "JSON lines in a file called .jsonl",
                code="format",
            )
        self.share_read = 0.0
        self._delimiter = "\t" if self._kind == "tsv" else ","
        # A row on one line, as Arrow reads it: a quote opens at the start of a value only, and text
        # may follow the one that closes.
        rest = f"[^{self._delimiter}\r]*"
        value = f'(?:"(?:[^"\r]|"")*+"{rest}|(?!"){rest})'
        self._row = re.compile(f"{value}(?:{self._delimiter}{value})*\r?".encode())
        self.unit: Literal["row", "line"] = "row" if self._kind == "parquet" else "line"
        self.names = self._parquet_names() if self._kind == "parquet" else self._header()
        if repeated := sorted({name for name in self.names if self.names.count(name) > 1}):
            raise DataError(f"{path}: column {repeated[0]!r} stands there twice", code="columns")

    def require(self, name: str, use: str) -> None:
        """Hold that there is a column of this name.

        Raises:
            DataError: there is none (code `missing-column`).
        """
        if name not in self.names:
            there = ", ".join(self.names) or "none"
            if len(self.names) == 1 and self.unit == "line":
                there += f" alone: values stand between {self._delimiter!r} in a {self._kind} file"
            raise DataError(
                f"{self.path} has no column {name!r} ({use}){did_you_mean(name, self.names)}. It "
                f"has {there}. The configuration says under replay.columns which column is what",
                code="missing-column",
            )

    def batches(self, names: Sequence[str], rejects: Rejects, limit: int | None = None) -> Batches:
        """Batches of these columns, with the place of every row: its row or line from 1.

        Lines that are no rows are rejected as `corrupt-line`; values of a text file come as bytes,
        null where empty.

        Raises:
            DataError: the file breaks off or is damaged (code `broken-file`), after all that could
                be read.
        """
        read = self._parquet if self._kind == "parquet" else self._text
        rejects.unit = self.unit
        with self._blaming(lambda: f" after {rejects.n_read:,} rows"):
            for batch, places in read(names, rejects, limit):
                rejects.n_read += len(places)
                yield batch, places
                if rejects.n_read == limit:
                    return
        if not rejects.n_read:
            raise DataError(f"{self.path} holds no rows", code="empty")

    @contextmanager
    def _blaming(self, where: Callable[[], str]) -> Iterator[None]:
        try:
            yield
        except _BROKEN as error:
            code = "broken-file"
            reason = error.strerror if isinstance(error, OSError) and error.strerror else error
            raise DataError(
                f"{self.path} cannot be read as {self._kind}{where()}: {reason}", code=code
            ) from error

    def _parquet_names(self) -> list[str]:
        with self._blaming(str), self._parquet_file() as file:
            return list(file.schema_arrow.names)

    @contextmanager
    def _parquet_file(self) -> Iterator[pyarrow.parquet.ParquetFile]:
        if not self._is_gzip:
            with pyarrow.parquet.ParquetFile(self.path) as file:
                yield file
            return
        # Parquet is read from its end: what is compressed as a whole is unpacked first.
        with tempfile.TemporaryFile() as unpacked, gzip.open(self.path) as packed:
            shutil.copyfileobj(packed, unpacked)
            with pyarrow.parquet.ParquetFile(unpacked) as file:
                yield file

    def _parquet(self, names: Sequence[str], rejects: Rejects, limit: int | None) -> Batches:
        n_before = 0
        with self._parquet_file() as file:
            for batch in file.iter_batches(batch_size=ROWS_PER_BATCH, columns=list(names)):
                n_before += batch.num_rows
                self.share_read = n_before / file.metadata.num_rows
                kept = batch[: None if limit is None else limit - rejects.n_read]
                yield kept, n_before - batch.num_rows + np.arange(len(kept)) + 1

    @contextmanager
    def _open(self) -> Iterator[tuple[io.BufferedReader, io.BufferedIOBase]]:
        """The file as it is, and unpacked."""
        with self.path.open("rb") as raw:
            if self._is_gzip:
                with gzip.open(raw) as unpacked:
                    yield raw, unpacked
            else:
                yield raw, raw

    def _header(self) -> list[str]:
        with self._blaming(str), self._open() as (_, file):
            line = file.readline(_LINE_BYTES_MAX)
        if not line.strip():
            raise DataError(f"{self.path} is empty: it needs a header line", code="empty")
        try:
            return next(csv.reader([line.decode("utf-8-sig")], delimiter=self._delimiter))
        except (UnicodeDecodeError, csv.Error):
            raise DataError(
                f"{self.path}: its first line is no header of a {self._kind} file in UTF-8, whose "
                "lines end with \\n or \\r\\n",
                code="broken-file",
            ) from None

    def _text(self, names: Sequence[str], rejects: Rejects, limit: int | None) -> Batches:
        for block, n_before in self._blocks():
            blank = [n for n, line in enumerate(block) if not line or line == b"\r"]
            lines, places = _without(block, n_before + np.arange(len(block)) + 1, blank)
            left = None if limit is None else limit - rejects.n_read
            lines, places = lines[:left], places[:left]
            stray = self._stray(lines)
            detail = "a quote or a line is not closed"
            self._corrupt(rejects, [(int(places[n]), detail, lines[n]) for n in stray])
            lines, places = _without(lines, places, stray)
            if lines:
                table, misfits = self._parse(lines, names)
                self._corrupt(
                    rejects, [(int(places[n]), detail, lines[n]) for n, detail in misfits.items()]
                )
                for batch in table.combine_chunks().to_batches():  # none where no line is a row
                    yield batch, np.delete(places, list(misfits))
            if rejects.n_read == limit:
                return

    def _stray(self, lines: list[bytes]) -> list[int]:
        """Those that Arrow would read as other than one line each."""
        whole = b"\n".join(lines)
        if (
            b'"' not in whole and b"\r" not in whole
        ):  # mostly; a look at each takes as long as Arrow
            return []
        return [
            n
            for n, line in enumerate(lines)
            if (b'"' in line or b"\r" in line[:-1]) and not self._row.fullmatch(line)
        ]

    @staticmethod
    def _corrupt(rejects: Rejects, rows: list[tuple[int, str, bytes]]) -> None:
        rejects.n_read += len(rows)
        for place, detail, line in rows:
            rejects.add(place, "corrupt-line", detail, line)

    def _blocks(self) -> Iterator[tuple[list[bytes], int]]:
        """Whole lines, some 4 MiB at a time, each with the number of lines before."""
        n_lines = 1
        rest = b""
        broken = None
        size = max(self.path.stat().st_size, 1)
        with self._open() as (raw, file):
            file.readline(_LINE_BYTES_MAX)
            try:
                while block := file.read1(_BLOCK_BYTES):
                    rest += block
                    self.share_read = raw.tell() / size
                    if len(rest) >= _BLOCK_BYTES and b"\n" in block:
                        *lines, rest = rest.split(b"\n")
                        yield lines, n_lines
                        n_lines += len(lines)
                    elif len(rest) > _LINE_BYTES_MAX:
                        raise EOFError(f"line {n_lines + 1} is longer than 16 MiB")
            except _BROKEN as error:
                broken = error
        if broken is not None:  # what was read of it counts first, less a line that was cut
            rest = rest[: rest.rfind(b"\n") + 1]
        if rest:
            yield rest.removesuffix(b"\n").split(b"\n"), n_lines
        if broken is not None:
            raise broken

    def _parse(self, lines: list[bytes], names: Sequence[str]) -> tuple[pa.Table, dict[int, str]]:
        """The lines' columns, and which lines are no rows."""
        misfits: dict[int, str] = {}

        def note(row: pyarrow.csv.InvalidRow) -> str:
            detail = f"expected {row.expected_columns} values, got {row.actual_columns}"
            misfits[row.number - 1] = detail
            return "skip"

        data = b"\n".join(lines) + b"\n"
        table = pyarrow.csv.read_csv(
            pa.BufferReader(data),
            pyarrow.csv.ReadOptions(
                use_threads=False, column_names=self.names, block_size=len(data) + 1
            ),
            pyarrow.csv.ParseOptions(delimiter=self._delimiter, invalid_row_handler=note),
            pyarrow.csv.ConvertOptions(
                column_types=dict.fromkeys(self.names, pa.binary()),
                include_columns=list(names),
                null_values=[""],
                strings_can_be_null=True,
            ),
        )
        return table, misfits


def _without(lines: list[bytes], places: I64, rows: list[int]) -> tuple[list[bytes], I64]:
    if not rows:
        return lines, places
    kept = np.delete(np.arange(len(lines)), rows)
    return [lines[n] for n in kept.tolist()], places[kept]
