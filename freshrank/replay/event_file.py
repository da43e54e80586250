"""A file of events, line by line: JSON lines, compressed by gzip or not."""

import gzip
import zlib
from collections.abc import Iterator
from io import BufferedIOBase
from pathlib import Path
from typing import Final

from freshrank.errors import DataError
from service.bodies import EventBody
from service.event_checks import Refusal
from service.ingest import decode_event

_GZIP_MAGIC: Final = b"\x1f\x8b"
_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"


class EventFile:
    """The lines of one file; a context that closes it.

    Args:
        path: What to read.
        line_bytes_max: Longer lines come cut to one byte more.

    Attributes:
        n_lines: Lines that were not blank so far.
        stopped: Why it could not be read to its end; None if it could.

    Raises:
        DataError: it cannot be opened (code `no-file`).
    """

    def __init__(self, path: Path, *, line_bytes_max: int) -> None:
        self.n_lines = 0
        self.stopped: str | None = None
        self.path = path
        self._line_bytes_max = line_bytes_max
        try:
            self._n_bytes = max(path.stat().st_size, 1)
            self._file = path.open("rb")
        except OSError as error:
            raise DataError(f"cannot read {path}: {error.strerror}", code="no-file") from error

    def __enter__(self) -> "EventFile":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    @property
    def share(self) -> float:
        """How much of the file was read, 0 to 1."""
        return min(self._file.tell() / self._n_bytes, 1.0)

    def lines(self) -> Iterator[tuple[int, bytes]]:
        """Number, from 1, and content of every line that is not blank."""
        stream = self._stream()
        number = 0
        try:
            while line := self._line(stream):
                number += 1
                if number == 1:
                    line = line.removeprefix(_BYTE_ORDER_MARK)
                if not line.isspace():
                    self.n_lines += 1
                    yield number, line
        except (EOFError, gzip.BadGzipFile, zlib.error, OSError) as error:
            self.stopped = (
                f"{self.path} breaks off after line {number}: {error}. Fetch the file again for "
                "the rest"
            )

    def event(self, line: bytes) -> EventBody:
        """The event in a line.

        Raises:
            Refusal: it is none, or the line is too long.
            ProblemError: it is not JSON.
        """
        if len(line) > self._line_bytes_max:
            raise Refusal("too-long", [], f"longer than {self._line_bytes_max} bytes")
        return decode_event(line)

    def _stream(self) -> BufferedIOBase:
        if self._file.peek(len(_GZIP_MAGIC))[: len(_GZIP_MAGIC)] != _GZIP_MAGIC:
            return self._file
        return gzip.GzipFile(
            fileobj=self._file
        )  # a larger buffer would lose what it holds at a break

    def _line(self, stream: BufferedIOBase) -> bytes:
        line = stream.readline(self._line_bytes_max + 1)
        rest = line
        while len(rest) > self._line_bytes_max and not rest.endswith(b"\n"):
            rest = stream.readline(self._line_bytes_max + 1)
        return line
