"""Back to an earlier checkpoint: its parameters, and a new epoch of which they are the base.

What was learned since is lost on purpose: the input goes on where it is, and the rows between are
counted; with `relearn` it goes back too. A command that cannot be carried out is refused before
anything is touched. One that three trainers died of is refused as well: what stands behind it has
to be reached some time.
"""

import logging
from pathlib import Path
from typing import Final

from freshrank.errors import DataError, Error
from freshrank.messages import Control
from freshrank.transport.base import EXAMPLES, EventLog, Record
from trainer.dead_letters import Refused
from trainer.saver import Saver
from trainer.state import TrainerState
from trainer.study import Study

logger = logging.getLogger(__name__)

_TRIES_MAX: Final = 3


class RollBacks:
    """Carries out the roll-backs that a study meets.

    Args:
        study: Where they stand in the log, and which goes on from the other parameters.
        saver: Has the checkpoints, and puts their parameters into the learner.
        log: Which has to have what is to be learned again.
        tries: File that says which command a trainer died of.
    """

    def __init__(self, study: Study, saver: Saver, log: EventLog, *, tries: Path) -> None:
        self._study = study
        self._saver = saver
        self._log = log
        self._tries = tries

    def obey(self) -> bool:
        """Carry out the command that was met, if one was.

        Returns:
            True when the parameters are others now: none of the old ones may be published.

        Raises:
            Error: the checkpoint could not be read after all: the trainer must start again.
        """
        found = self._study.control.waiting
        if found is None or found[1].command != "rollback":
            return False
        record, command = found
        try:
            path, then = self._check(command)
            self._count_try(record)
        except Error as error:
            logger.error("rollback=refused to=%r error=%s", command.to, error)
            self._study.dead_letters.put(Refused(record, error.code, str(error)))
            self._study.control.waiting = None
            return False
        self._saver.settle()
        self._saver.go_back(path)
        self._forget_again(then)
        state, n_rows = self._saver.state, self._saver.state.counts["rows_learned"]
        if command.relearn:
            state.rewind(then)
            self._study.rewind()
        state.counts["rollbacks"] += 1
        state.counts["rows_rolled_back"] += max(n_rows - then.counts["rows_learned"], 0)
        self._study.control.waiting = None
        self._saver.save_soon()
        self._tries.unlink(missing_ok=True)
        logger.warning("rollback=done to=%s reason=%r", path.name, command.reason)
        return True

    def _forget_again(self, then: TrainerState) -> None:
        """Keep out what was forgotten since."""
        known, tables = {one.name for one in then.denied}, self._study.lesson.learner.sparse.tables
        for one in self._saver.state.denied:
            if one.name not in known:
                self._study.denier.erase(tables, one.slot, one.id)

    def _check(self, command: Control) -> tuple[Path, TrainerState]:
        """The checkpoint and its state.

        Raises:
            Error: there is no such checkpoint, it is damaged or of another schema, or what was
                learned since cannot be learned again.
        """
        path, then = self._saver.look_up(command.to)
        now = self._saver.state
        if command.relearn:
            if then.log != now.log or _histories(then) != _histories(now):
                raise DataError(
                    f"{path.name} was learned from other logs or archives than these: go back to "
                    "it without learning again",
                    code="cannot-relearn",
                )
            for partition, position in then.positions.items():
                if partition < 0:
                    continue
                start = self._log.start_offset(EXAMPLES, partition)
                if position.offset < start:
                    raise DataError(
                        f"{path.name} ends at offset {position.offset} of "
                        f"{EXAMPLES}:{partition}, which begins at {start} by now: go back to it "
                        "without learning again, or to a newer one",
                        code="cannot-relearn",
                    )
        return path, then

    def _count_try(self, record: Record) -> None:
        """Write down that this command is begun; refuse it when three have died of it."""
        before = self._tries.read_text().split() if self._tries.exists() else []
        is_same = before[:1] == [str(record.offset)] and len(before) == 2
        n_tries = int(before[1]) + 1 if is_same else 1
        if n_tries > _TRIES_MAX:
            self._tries.unlink()
            raise DataError(
                f"{_TRIES_MAX} trainers ended while they went back: the memory or the settings of "
                "today do not suffice for that checkpoint",
                code="rollback-failed",
            )
        self._tries.write_text(f"{record.offset} {n_tries}\n")


def _histories(state: TrainerState) -> dict[int, object]:
    return {partition: at for partition, at in state.positions.items() if partition < 0}
