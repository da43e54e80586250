"""Operators' commands from `freshrank.control`."""

import logging

from freshrank import messages
from freshrank.errors import DataError
from freshrank.messages import Control
from freshrank.transport.base import CONTROL, EventLog, TopicPartition
from trainer.dead_letters import DeadLetterBox, Refused
from trainer.state import TrainerState

logger = logging.getLogger(__name__)

LOG = TopicPartition(CONTROL, 0)


class ControlReader:
    """Follows the control topic; its offset and what it said are part of the state.

    Args:
        log: The event log.
        state: Where `is_paused` and the offset are kept.
        dead_letters: Takes records that are no commands.
    """

    def __init__(self, log: EventLog, state: TrainerState, dead_letters: DeadLetterBox) -> None:
        self._log = log
        self._state = state
        self._dead_letters = dead_letters

    @property
    def offset(self) -> int:
        """The next control record. Commands that retention removed are passed over."""
        start = self._log.start_offset(*LOG)
        return max(self._state.control_offset or 0, start)

    def poll(self) -> None:
        """Obey what has arrived."""
        state = self._state
        for record in self._log.read(*LOG, self.offset):
            try:
                message = messages.decode(record.value)
                if not isinstance(message, Control):
                    raise DataError("not a control record", code="not-control")
            except DataError as error:
                self._dead_letters.put(Refused(record, error.code, str(error)))
            else:
                state.is_paused = message.command == "pause"
                logger.info("command=%s offset=%d", message.command, record.offset)
            state.control_offset = record.offset + 1
