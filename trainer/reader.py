"""Reads the log: examples -> decoded, judged records in the queue; commands -> the state."""

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from freshrank import examples, messages
from freshrank.errors import DataError, SchemaError, TransportError
from freshrank.features import FeatureEncoder
from freshrank.messages import Control, check_id
from freshrank.settings import Settings
from freshrank.transport.base import CONTROL, EXAMPLES, EventLog, Record, TopicPartition
from trainer.dead_letters import DeadLetterBox, Refused
from trainer.losses import Loss
from trainer.queue import BatchQueue, Position, ReadRecord
from trainer.state import TrainerState
from trainer.validation import check_rows

logger = logging.getLogger(__name__)

# Per read: a live record holds a few rows, a replayed one hundreds. 256 small ones fill half a
# default batch; 4 MiB bounds what large ones put in memory beyond a batch.
_RECORDS_MAX: Final = 256
_BYTES_MAX: Final = 4 << 20
CONTROL_LOG: Final = TopicPartition(CONTROL, 0)


class ExampleReader:
    """Fills a queue: from history, if there is some, then from every partition in turn.

    Args:
        settings: Tasks are read.
        encoder: Slots and schema hash that the records must have.
        log: Where the examples stand.
        positions: Where each partition starts.
        history: What comes before the log.
        counts: `example_gap_records` of it grows by what is passed over.
        allow_gaps: Pass over what retention removed.

    Attributes:
        n_history_rows: Rows of the history read so far, but bad ones.
    """

    def __init__(
        self,
        settings: Settings,
        encoder: FeatureEncoder,
        log: EventLog,
        positions: Mapping[int, Position],
        history: Iterable[ReadRecord] = (),
        *,
        counts: Counter[str],
        allow_gaps: bool = False,
    ) -> None:
        self._tasks = [task.name for task in settings.tasks]
        self._losses: Sequence[Loss] = [task.loss for task in settings.tasks]
        self._slots = [slot.name for slot in encoder.slots]
        self._n_dense = len(encoder.dense_names)
        self._schema_hash = encoder.schema_hash
        self._log = log
        self._next = {p: position.offset for p, position in positions.items() if p >= 0}
        self._counts = counts
        self._allow_gaps = allow_gaps
        self._history = iter(history)
        self._damage: DataError | None = None
        self._ahead = self._next_of_history()
        self.n_history_rows = 0

    @property
    def is_in_history(self) -> bool:
        """Some of the history is still to be read."""
        return self._ahead is not None

    def fill(self, queue: BatchQueue) -> None:
        """Read until a whole batch waits or every partition is at its end.

        Raises:
            DataError: a file of the history is damaged.
            SchemaError: the examples were written for another configuration.
            TransportError: the log failed, or retention removed what was not learned.
        """
        if self._damage is not None:
            raise self._damage  # the log must not be learned before the rest of the history
        while self._ahead is not None and not queue.is_full:
            self._take_history(queue, self._ahead)
        is_growing = True
        while is_growing and not queue.is_full:
            is_growing = False
            for partition, offset in self._next.items():
                records = self._read(partition, offset)
                for record in records:
                    queue.put(self._judge(record))
                    self._next[partition] = record.offset + 1
                is_growing = is_growing or bool(records)

    def _read(self, partition: int, offset: int) -> list[Record]:
        def read(at: int) -> list[Record]:
            return self._log.read(EXAMPLES, partition, at, n_max=_RECORDS_MAX, bytes_max=_BYTES_MAX)

        try:
            return read(offset)
        except TransportError as error:
            if error.code != "offset-removed":
                raise
            if not self._allow_gaps:
                told = f"{error}; to learn on without what is gone: --allow-gaps"
                raise TransportError(told, code=error.code) from error
        start = self._log.start_offset(EXAMPLES, partition)
        self._counts["example_gap_records"] += start - offset
        logger.error("partition=%d gap=%d..%d: not learned", partition, offset, start - 1)
        return read(start)

    def n_behind(self) -> int:
        """Records of the log that are still to be read, and one more within the history."""
        return sum(self._log.lag(self.ends()).values()) + self.is_in_history

    def pass_marks(self, positions: dict[int, Position]) -> None:
        """Move positions with no record behind them to the end of their partitions.

        What stands between is no record, as the marks of Kafka's transactions are none. A position
        before them would seem to have lost records once retention has removed an idle log.

        Args:
            positions: Where everything before is dealt with.
        """
        for partition, offset in self._next.items():
            place = TopicPartition(EXAMPLES, partition)
            if positions[partition] == (offset, 0):
                end = self._log.end_offset(*place)
                if self._log.lag({place: offset})[place] == 0:
                    self._next[partition] = end
                    positions[partition] = Position(end, 0)

    def _take_history(self, queue: BatchQueue, read: ReadRecord) -> None:
        queue.put(read)
        if not isinstance(read.judged, DataError):
            self.n_history_rows += len(read.judged[1].good)
        if read.record.partition >= 0:  # of this log, which goes on behind it
            self._next[read.record.partition] = read.record.offset + 1
        self._ahead = self._next_of_history()

    def _next_of_history(self) -> ReadRecord | None:
        try:
            return next(self._history, None)
        except DataError as error:
            self._damage = error
            raise

    def ends(self) -> dict[TopicPartition, int]:
        """Where each partition will be read next."""
        return {TopicPartition(EXAMPLES, p): offset for p, offset in self._next.items()}

    def _judge(self, record: Record) -> ReadRecord:
        try:
            batch = examples.decode(record.value, self._tasks, self._slots)
        except DataError as error:
            if error.code == "newer-version":
                raise SchemaError(f"{self._place(record)}: {error}") from error
            return ReadRecord(record, error)
        if batch.info.schema_hash != self._schema_hash:
            raise SchemaError(
                f"{self._place(record)} was written for schema {batch.info.schema_hash}, this "
                f"configuration is {self._schema_hash}: start the trainer with the features, "
                "tasks, model and salt of the joiner, or restart the joiner with these and learn "
                "from a new data directory"
            )
        n_dense = batch.values.dense.shape[1]
        if n_dense != self._n_dense:
            wrong = DataError(f"{n_dense} dense values, expected {self._n_dense}", code="schema")
            return ReadRecord(record, wrong)
        return ReadRecord(record, (batch, check_rows(batch, self._losses)))

    @staticmethod
    def _place(record: Record) -> str:
        return f"example record {record.topic}:{record.partition} offset {record.offset}"


class ControlReader:
    """Follows the control topic; its offset and what it said are part of the state.

    Args:
        log: The event log.
        state: Where `is_paused` and the offset are kept.
        dead_letters: Takes records that are no commands.

    Attributes:
        waiting: Record and command that was met and changes parameters, to go back or to forget:
            what stands behind it is obeyed once somebody has set this to None.
    """

    def __init__(self, log: EventLog, state: TrainerState, dead_letters: DeadLetterBox) -> None:
        self._log = log
        self._state = state
        self._dead_letters = dead_letters
        self._next = state.control_offset
        self.waiting: tuple[Record, Control] | None = None

    @property
    def offset(self) -> int:
        """The next control record."""
        if self._next is None:
            self._next = self._log.start_offset(*CONTROL_LOG)
        return self._next

    def poll(self) -> None:
        """Obey what has arrived. Commands that retention removed are passed over."""
        if self.waiting is not None:
            return
        try:
            records = self._log.read(*CONTROL_LOG, self.offset)
        except TransportError as error:
            if error.code != "offset-removed":
                raise
            self._next = None
            records = self._log.read(*CONTROL_LOG, self.offset)
        state = self._state
        for record in records:
            try:
                message = messages.decode(record.value)
                if not isinstance(message, Control):
                    raise DataError("not a control record", code="not-control")
                check_id(message)
            except DataError as error:
                self._dead_letters.put(Refused(record, error.code, str(error)))
            else:
                logger.info("command=%s offset=%d", message.command, record.offset)
                if message.command in ("rollback", "forget"):
                    self.waiting = record, message
                else:
                    state.is_paused = message.command == "pause"
            self._next = state.control_offset = record.offset + 1
            if self.waiting is not None:
                return
