"""What a replay could not use: listed in a file with its reason, and counted."""

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Literal, TextIO

from freshrank.errors import DataError
from freshrank.transport.files import disk_errors
from service.event_checks import Refusal
from service.problems import ProblemError

# Of a line that is itself refused for its length.
CONTENT_CHARACTERS_MAX: Final = 1 << 22
# While fewer rows than this were read, so few may be bad as if it were this many: else one bad line
# among the first fifty would stop a replay of millions.
_ROWS_MIN: Final = 10_000


class Rejects:
    """JSON lines `{line, reason, detail, content}`; a context that closes the file.

    Args:
        path: Made with the first reject; None only counts.
        share_max: Largest share of the rows read that may be rejected, as `check` holds.

    Attributes:
        counts: Reason -> how many.
        first: Reason -> place and detail of the first.
        n_read: Rows read, rejected ones included; whoever reads counts them here.
        unit: What a place in the source is called, and the first key of each line of the file.
    """

    def __init__(self, path: Path | None, *, share_max: float = 1.0) -> None:
        self.path = path
        self.counts: Counter[str] = Counter()
        self.n_read = 0
        self.unit: Literal["line", "row"] = "line"
        self._share_max = share_max
        self.first: dict[str, tuple[int, str]] = {}
        self._file: TextIO | None = None

    def __enter__(self) -> "Rejects":
        if self.path is not None:
            with disk_errors(f"remove {self.path}, of an earlier replay"):
                self.path.unlink(missing_ok=True)
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            with disk_errors(f"write {self.path}"):
                self._file.close()

    def add(self, place: int, reason: str, detail: str, content: object) -> None:
        """List what stood in a line, or in a row, counted from 1.

        Args:
            place: The line or row.
            reason: A slug.
            detail: What is wrong, and with which value.
            content: The line's bytes, or the row's values by column.

        Raises:
            TransportError: the disk refused.
        """
        self.counts[reason] += 1
        self.first.setdefault(reason, (place, detail))
        if self.path is not None:
            if isinstance(content, bytes):
                content = content.decode("utf-8", "backslashreplace")[:CONTENT_CHARACTERS_MAX]
                content = content.strip()
            entry = {self.unit: place, "reason": reason, "detail": detail, "content": content}
            with disk_errors(f"write {self.path}"):
                if self._file is None:
                    self.path.parent.mkdir(parents=True, exist_ok=True)
                    self._file = self.path.open("w", encoding="utf-8")
                self._file.write(json.dumps(entry, ensure_ascii=False, default=str) + "\n")

    @contextmanager
    def taking(self, number: int, line: bytes) -> Iterator[None]:
        """List the line where what is done with its event refuses it."""
        self.n_read += 1
        try:
            yield
        except Refusal as refusal:
            place = "/".join(str(step) for step in refusal.steps)
            detail = f"{place}: {refusal.detail}" if place else refusal.detail
            self.add(number, refusal.reason, detail, line)
        except ProblemError as problem:
            self.add(number, problem.slug, str(problem), line)

    def n_allowed(self, *, at_end: bool = False) -> float:
        """How many of the rows read so far may be unfit."""
        return self._share_max * (self.n_read if at_end else max(self.n_read, _ROWS_MIN))

    def check(self, *, at_end: bool = False) -> None:
        """Hold that no larger share of the rows than allowed was rejected so far.

        Raises:
            DataError: it was (code `too-many-rejects`).
        """
        if self.counts.total() > self.n_allowed(at_end=at_end):
            reasons = "\n".join(
                f"  {n:,} {reason}, the first in {self.unit} {place}: {detail}"
                for reason, n in self.counts.most_common()
                for place, detail in [self.first[reason]]
            )
            listed = "" if self.path is None else f"\nAll of them stand in {self.path}"
            raise DataError(
                f"{self.counts.total():,} of {self.n_read:,} rows were rejected, --max-rejects "
                f"allows {self._share_max:.4%}:\n{reasons}{listed}",
                code="too-many-rejects",
            )
