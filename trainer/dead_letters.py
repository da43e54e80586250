"""What cannot be learned goes to the dead-letter topic with its reason."""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from freshrank import examples, messages
from freshrank.errors import TransportError
from freshrank.examples import BatchInfo, ExampleBatch
from freshrank.messages import DeadLetter
from freshrank.transport.base import (
    DEAD_LETTER_SUFFIX,
    RECORD_BYTES_MAX,
    EventLog,
    NewRecord,
    Record,
)
from trainer.rows import select

logger = logging.getLogger(__name__)

# Names, numbers and reason of a letter (at most four bytes a character) stay below this.
_ENVELOPE_BYTES_MAX: Final = 8_192
_REASON_LENGTH_MAX: Final = 1_000


@dataclass(frozen=True, slots=True)
class Refused:
    """What goes to the dead letter.

    Attributes:
        record: Where it stood.
        code: Why, as a slug.
        reason: Why, for a person.
        rows: Rows of the record; None when all of it is refused as it is.
    """

    record: Record
    code: str
    reason: str = ""
    rows: ExampleBatch | None = None


def dead_letter(record: Record, code: str, reason: str, value: bytes) -> bytes:
    """The letter that sends a value to its record's dead-letter topic."""
    letter = DeadLetter(
        topic=record.topic,
        partition=record.partition,
        offset=record.offset,
        code=code,
        reason=reason[:_REASON_LENGTH_MAX],
        value=value if _fits(value, record) else b"",
    )
    return messages.encode(letter)


def _fits(value: bytes, record: Record) -> bool:
    return len(value) + len(record.key) + _ENVELOPE_BYTES_MAX < RECORD_BYTES_MAX


def count(counts: Counter[str], refused: Refused) -> int:
    """Add to `<topic>_dead_letter`, and the same by reason; returns how many examples it were."""
    name = f"{refused.record.topic.rpartition('.')[2]}_dead_letter"
    # A reversal pair is one example of two rows.
    rows = refused.rows
    n = 1 if rows is None else rows.n_rows - int(rows.is_reversal.sum()) // 2
    counts[name] += n
    counts[f"{name}:{refused.code}"] += n
    return n


class DeadLetterBox:
    """Collects refused rows and records and appends them.

    Appending comes after learning, so a failed append must not undo a step: what could not be
    appended is kept, and `flush` before the next step raises until it is out. After a crash a
    letter may stand twice, since it is written again with the batch that is learned again; it is
    counted once.

    Args:
        log: The event log.
        tasks: Task names, for encoding rows.
        counts: `<topic>_dead_letter`, and the same by reason: in examples, or whole records.
    """

    def __init__(self, log: EventLog, tasks: Sequence[str], counts: Counter[str]) -> None:
        self._log = log
        self._tasks = list(tasks)
        self._counts = counts
        self._unsent: list[tuple[str, NewRecord]] = []

    @property
    def n_unsent(self) -> int:
        """Letters that wait for the log."""
        return len(self._unsent)

    def put(self, refused: Refused) -> None:
        """Keep rows, or a whole record, for the next `flush`."""
        record, rows = refused.record, refused.rows
        count(self._counts, refused)
        values = [record.value]
        if rows is not None:
            # Without its offsets and outcomes: those of the record are in force whatever became
            # of these rows.
            values = self._encode(replace(rows, info=BatchInfo(rows.info.schema_hash)), record)
        for value in values:
            letter = dead_letter(record, refused.code, refused.reason, value)
            new = NewRecord(record.key, letter)
            self._unsent.append((record.topic + DEAD_LETTER_SUFFIX, new))

    def flush(self) -> None:
        """Append what is kept.

        Raises:
            TransportError: the log did not take it; everything is still kept.
        """
        while self._unsent:
            topic, letter = self._unsent[0]
            self._log.append(topic, [letter])
            self._unsent.pop(0)

    def try_flush(self) -> None:
        """Append what is kept, or leave it for later."""
        try:
            self.flush()
        except TransportError as error:
            logger.warning("dead_letters=kept n=%d error=%s", self.n_unsent, error)

    def _encode(self, rows: ExampleBatch, record: Record) -> list[bytes]:
        """Rows as one record, or as several when one would be too large."""
        value = examples.encode(rows, self._tasks)
        if _fits(value, record) or rows.n_rows == 1:
            return [value]
        halves = np.array_split(np.arange(rows.n_rows), 2)
        return [value for half in halves for value in self._encode(select(rows, half), record)]
