"""Forgets an id: its rows and counts now, and what old records would make of them.

The command takes the id out of the tables, out of the rows the guard goes by, and into the list of
denied ids, which is in every checkpoint from then on. Frames carry the tombstones; checkpoints from
before are scrubbed as soon as there is one without the id.
"""

import contextlib
import logging

from embedding_store import StoreError
from freshrank.errors import TransportError
from freshrank.transport.base import EXAMPLES, EventLog, ParameterChannel, Record
from trainer.dead_letters import Refused
from trainer.denials import Denial
from trainer.guard_memory import GuardMemory
from trainer.saver import Saver
from trainer.study import Study

logger = logging.getLogger(__name__)


class Forgets:
    """Carries out the commands to forget that a study meets.

    Args:
        study: Meets them, and knows where an id stands.
        saver: Has the state, and the checkpoints.
        memory: Rows the guard goes by.
        log: Its retention ends a denial.
        channel: Is asked for a base, so that frames from before can go.
    """

    def __init__(
        self,
        study: Study,
        saver: Saver,
        memory: GuardMemory,
        log: EventLog,
        channel: ParameterChannel,
    ) -> None:
        self._study = study
        self._saver = saver
        self._memory = memory
        self._log = log
        self._channel = channel

    def obey(self) -> bool:
        """Carry out or refuse the command that was met; False if none was."""
        found = self._study.control.waiting
        if found is None or found[1].command != "forget":
            return False
        self._study.control.waiting = None
        record, command = found
        denier, state = self._study.denier, self._saver.state
        if not denier.knows(command.slot):
            self._refuse(record, "unknown-slot", f"{command.slot[:64]!r} has no ids here")
            return True
        tables = self._study.lesson.learner.sparse.tables
        try:
            n_rows = denier.erase(tables, command.slot, command.id)
        except StoreError as error:
            self._refuse(record, "no-room", f"{error}; give the command again")
            return True
        denial = Denial(command.slot, command.id, record.appended_at_ms, dict(command.marks), {})
        state.denied.append(denial)
        self._memory.canary.remove(lambda rows: denier.names(rows, command.slot, command.id))
        state.counts["keys_forgotten"] += 1
        state.counts["rows_forgotten"] += n_rows
        self._saver.save_soon()
        # Where it cannot be reached the periodic base does the same later.
        with contextlib.suppress(TransportError):
            self._channel.request_base(state.epoch, state.seq)
        # Neither the id nor its hash: the offset says which command it was.
        logger.info("forget=done slot=%s offset=%d rows=%d", command.slot, record.offset, n_rows)
        return True

    def age(self) -> None:
        """Drop the denials that nothing in the log needs any more.

        Behind the command in its partition the joiner makes no row of what came before. Once the
        trainer has come to it everywhere, what stands before in the examples is all that can bring
        the id back, by a roll-back that learns again, or a restart.
        """
        state = self._saver.state
        for one in state.denied:
            is_passed = all(state.offsets.get(log, 0) > at for log, at in one.marks.items())
            if one.marks and not one.until and is_passed:
                one.until = {
                    partition: at.offset + bool(at.row)
                    for partition, at in state.positions.items()
                    if partition >= 0
                }
        state.denied = [one for one in state.denied if not self._is_over(one)]

    def _is_over(self, one: Denial) -> bool:
        return bool(one.until) and all(
            self._log.start_offset(EXAMPLES, partition) >= offset
            for partition, offset in one.until.items()
        )

    def _refuse(self, record: Record, code: str, reason: str) -> None:
        logger.error("forget=refused offset=%d error=%s", record.offset, reason)
        self._study.dead_letters.put(Refused(record, code, reason))
