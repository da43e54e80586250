"""Records that wait to be learned, and where batches are cut.

**Cut.** A batch has at most `batch_max` good rows, in the order read. `fixed`: exactly `batch_max`,
a smaller remainder waits, so the cuts depend on the examples alone. `adaptive`: whatever is there,
so that batches are small while the stream is slow (freshness) and large under load (throughput).
**Pairs.** A cut never parts a reversal pair: where it would, the batch takes the second row too and
has `batch_max + 1`. (Ending it one row early would never end with `batch_max` 1.)
**Positions.** After a batch, every partition's position is the first row that is neither learned
nor dead-lettered, so a restart needs no rows but those in the log.
"""

from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from freshrank.errors import DataError
from freshrank.examples import BatchInfo, ExampleBatch
from freshrank.transport.base import Record
from trainer.dead_letters import Refused
from trainer.rows import concatenate, select
from trainer.validation import Verdict


class Position(NamedTuple):
    """The first row not dealt with: a record of a partition and a row in it."""

    offset: int
    row: int


@dataclass(frozen=True, slots=True)
class ReadRecord:
    """A record of `freshrank.examples`, decoded and judged.

    Attributes:
        record: As read.
        judged: Its rows and what they are worth, or why the whole record is refused.
    """

    record: Record
    judged: tuple[ExampleBatch, Verdict] | DataError


@dataclass(slots=True)
class Cut:
    """What one step deals with.

    Attributes:
        rows: Good rows to learn; None if there are none.
        refused: Rows passed over.
        finished: What whole records say, in order, whose rows are all dealt with.
        positions: Partition -> position after this cut.
        sources: The records that `rows` stood in, and how many of them each.
    """

    rows: ExampleBatch | None = None
    refused: list[Refused] = field(default_factory=list)
    finished: list[BatchInfo] = field(default_factory=list)
    positions: dict[int, Position] = field(default_factory=dict)
    sources: list[tuple[Record, int]] = field(default_factory=list)

    def refuse(self, rows: npt.NDArray[np.int64], code: str, reason: str) -> None:
        """Move rows of the batch to `refused`, under the records they stood in.

        Args:
            rows: `int64[k]`, ascending.
            code: Why, as a slug.
            reason: Why, for a person.
        """
        if self.rows is None or not len(rows):
            return
        begin = 0
        for record, n in self.sources:
            own = rows[(rows >= begin) & (rows < begin + n)]
            if len(own):
                self.refused.append(Refused(record, code, reason, select(self.rows, own)))
            begin += n
        self.drop(rows)

    def drop(self, rows: npt.NDArray[np.int64]) -> None:
        """Leave rows of the batch out, `int64[k]`, ascending."""
        if self.rows is None or not len(rows):
            return
        ends = np.cumsum([0, *(n for _, n in self.sources)])
        n_gone = np.diff(np.searchsorted(rows, ends)).tolist()
        self.sources = [
            (record, n - gone) for (record, n), gone in zip(self.sources, n_gone, strict=True)
        ]
        kept = np.setdiff1d(np.arange(self.rows.n_rows), rows)
        self.rows = select(self.rows, kept) if len(kept) else None


class BatchQueue:
    """First in, first out.

    Args:
        batch_max: Good rows in a batch.
        is_fixed: Cut at exactly `batch_max`.
        positions: Where each partition starts; rows before it are dealt with.
    """

    def __init__(
        self, *, batch_max: int, is_fixed: bool, positions: Mapping[int, Position]
    ) -> None:
        self._batch_max = batch_max
        self._is_fixed = is_fixed
        self._records: deque[ReadRecord] = deque()
        self._begins = dict(positions)
        self._rows: dict[int, int] = {}  # next row of each partition's first waiting record
        self._n_waiting: Counter[int] = Counter()
        self.n_rows = 0

    @property
    def is_full(self) -> bool:
        """A whole batch waits."""
        return self.n_rows >= self._batch_max

    def put(self, record: ReadRecord) -> None:
        """Append a record; of a partition, always the next one."""
        partition = record.record.partition
        if (begin := self._begins.pop(partition, None)) is not None:
            # Another record than the one left halfway: that one is gone, by leave of --allow-gaps.
            self._rows[partition] = begin.row if record.record.offset == begin.offset else 0
        start = 0 if self._n_waiting[partition] else self._rows[partition]
        if not isinstance(record.judged, DataError):
            self.n_rows += int((record.judged[1].good >= start).sum())
        self._n_waiting[partition] += 1
        self._records.append(record)

    def cut(self, *, flush: bool) -> Cut:
        """Take the next batch.

        Args:
            flush: Take a remainder smaller than a fixed batch too.
        """
        cut = Cut()
        wanted = self._batch_max
        if self._is_fixed and not flush and self.n_rows < wanted:
            wanted = 0
        parts: list[ExampleBatch] = []
        while self._records:
            taken, is_done = self._take(self._records[0], wanted, cut)
            if taken is not None:
                parts.append(taken)
                cut.sources.append((self._records[0].record, taken.n_rows))
                wanted -= taken.n_rows
            if not is_done:
                break
            self._n_waiting[self._records.popleft().record.partition] -= 1
        if parts:
            cut.rows = concatenate(parts, parts[-1].info)
            self.n_rows -= cut.rows.n_rows
        return cut

    def _take(self, read: ReadRecord, wanted: int, cut: Cut) -> tuple[ExampleBatch | None, bool]:
        """Take up to `wanted` rows of the first record; say whether it is done."""
        record = read.record
        start = self._rows[record.partition]
        if isinstance(read.judged, DataError):
            cut.refused.append(Refused(record, read.judged.code, str(read.judged)))
            self._pass(record, None, cut)
            return None, True
        batch, verdict = read.judged
        good = verdict.good[verdict.good >= start]
        n = min(max(wanted, 0), len(good))
        if 0 < n < len(good) and verdict.is_pair_first[good[n - 1]]:
            n += 1
        is_done = n == len(good)
        stop = batch.n_rows if is_done else int(good[n])
        if is_done:
            self._pass(record, None, cut)
            cut.finished.append(batch.info)
        elif stop > start:
            self._pass(record, stop, cut)
        by_code: dict[str, list[int]] = {}
        for row, code in sorted(verdict.bad.items()):
            if start <= row < stop:
                by_code.setdefault(code, []).append(row)
        for code, rows in by_code.items():
            chosen = select(batch, np.array(rows, np.int64))
            reason = f"rows {rows[:100]} cannot be learned"
            cut.refused.append(Refused(record, code, reason, chosen))
        return (select(batch, good[:n]) if n else None), is_done

    def _pass(self, record: Record, row: int | None, cut: Cut) -> None:
        """Move the partition to `row` of the record, or behind it."""
        position = Position(record.offset + 1, 0) if row is None else Position(record.offset, row)
        self._rows[record.partition] = position.row
        cut.positions[record.partition] = position
