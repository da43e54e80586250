"""What cannot be learned goes to the dead-letter topic with its reason."""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import msgspec
import numpy as np

from freshrank import examples
from freshrank.errors import TransportError
from freshrank.examples import BatchInfo, ExampleBatch
from freshrank.transport.base import (
    DEAD_LETTER_SUFFIX,
    RECORD_BYTES_MAX,
    EventLog,
    NewRecord,
    Record,
)
from trainer.queue import Refused
from trainer.rows import select

logger = logging.getLogger(__name__)

# Topic, reason and numbers of the envelope stay far below this.
_ENVELOPE_BYTES_MAX: Final = 1_024


class DeadLetter(msgspec.Struct, frozen=True, kw_only=True):
    """A record of a dead-letter topic, as msgpack.

    Attributes:
        topic: Where the value stood.
        partition: Its partition.
        offset: Its offset; the last one where rows of several records were refused together.
        reason: A slug.
        value: The record's bytes, or the refused rows encoded as a record of their own without
            offsets, so that it can be appended again. Empty when it does not fit into a record:
            then it can only be read at its offset.
        v: Format version.
    """

    topic: str
    partition: int
    offset: int
    reason: str
    value: bytes
    v: int = 1


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
        record = refused.record
        name = f"{record.topic.rpartition('.')[2]}_dead_letter"
        # A reversal pair is one example of two rows.
        rows = refused.rows
        n = 1 if rows is None else rows.n_rows - int(rows.is_reversal.sum()) // 2
        self._counts[name] += n
        self._counts[f"{name}:{refused.reason}"] += n
        if rows is None:
            self._keep(record, refused.reason, record.value)
        else:
            # Without its offsets and outcomes: those of the record are in force whatever became
            # of these rows.
            rows = replace(rows, info=BatchInfo(rows.info.schema_hash))
            for value in self._encode(rows):
                self._keep(record, refused.reason, value)

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

    def _keep(self, record: Record, reason: str, value: bytes) -> None:
        if len(value) + len(record.key) + _ENVELOPE_BYTES_MAX >= RECORD_BYTES_MAX:
            value = b""
        letter = DeadLetter(
            topic=record.topic,
            partition=record.partition,
            offset=record.offset,
            reason=reason,
            value=value,
        )
        new = NewRecord(record.key, msgspec.msgpack.encode(letter))
        self._unsent.append((record.topic + DEAD_LETTER_SUFFIX, new))

    def _encode(self, rows: ExampleBatch) -> list[bytes]:
        """Rows as one record, or as several when one would be too large."""
        value = examples.encode(rows, self._tasks)
        if len(value) + _ENVELOPE_BYTES_MAX < RECORD_BYTES_MAX or rows.n_rows == 1:
            return [value]
        halves = np.array_split(np.arange(rows.n_rows), 2)
        return [value for half in halves for value in self._encode(select(rows, half))]
