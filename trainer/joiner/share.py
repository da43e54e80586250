"""The partitions that one process joins on Kafka, as its group gives and takes them."""

import contextlib
import logging
import threading
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final

from freshrank.clock import Clock
from freshrank.errors import Error, TransportError
from freshrank.feature_state import FeatureState
from freshrank.features import FeatureEncoder
from freshrank.garbage import spare_program
from freshrank.metrics import Reading
from freshrank.progress import Progress
from freshrank.settings import Settings
from freshrank.transport.base import IMPRESSIONS, TopicPartition
from freshrank.worker import Worker
from trainer.joiner.joiner import Joiner

if TYPE_CHECKING:
    from freshrank.transport.kafka import KafkaLog
    from trainer.archive import Archiver

logger = logging.getLogger(__name__)

_ARCHIVER: Final = -1  # in place of a partition

Step = Callable[[float], int]


class Seat:
    """A part and its worker, whose first step that gets through opens the part.

    Args:
        name: Of the worker.
        make: Opens the part and puts onto the stack what closes it; returns its step.
    """

    def __init__(self, name: str, make: Callable[[contextlib.ExitStack], Step]) -> None:
        self._make = make
        self._step_part: Step | None = None
        self._closing = contextlib.ExitStack()
        self._worker = Worker(name, self._step)
        self._worker.start()

    @property
    def failure(self) -> Exception | None:
        """What stopped the worker."""
        return self._worker.failure

    def reading(self) -> Reading:
        """The worker's metric."""
        return self._worker.reading()

    def leave(self) -> None:
        """End the step under way and release everything, however the part fared.

        Raises:
            Error: the step does not end; nothing is released then.
        """
        self._worker.stop()
        try:
            self._closing.close()
        except TransportError as error:  # what it had not done yet is done by the next
            logger.warning("closing failed: %s", error)

    def _step(self, timeout_s: float) -> int:
        if self._step_part is None:
            with contextlib.ExitStack() as stack:
                self._step_part = self._make(stack)
                self._closing = stack.pop_all()
        try:
            return self._step_part(timeout_s)
        except TransportError as error:
            if error.code == "state-damaged":  # opened again, it is found damaged, and filled anew
                self._step_part = None
                self._closing.close()
            raise


class Share:
    """Joins the partitions that are this process' own, each in a thread. Safe for threads.

    What is joined here is archived here.

    Args:
        settings: The configuration.
        log: The event log.
        clock: Time.
        state: Feature state.
        allow_gaps: See `Joiner`.
    """

    def __init__(
        self,
        settings: Settings,
        log: "KafkaLog",
        clock: Clock,
        state: FeatureState,
        *,
        allow_gaps: bool = False,
    ) -> None:
        self._settings = settings
        self._encoder = FeatureEncoder(settings)
        self._log = log
        self._clock = clock
        self._state = state
        self._allow_gaps = allow_gaps
        self._lock = threading.RLock()  # the group tells in a thread of its own
        self._seats: dict[int, Seat] = {}
        self._joiners: dict[int, Joiner] = {}
        self._archived: frozenset[int] = frozenset()
        self._archivers: list[Archiver] = []  # one, while it is written here
        self._failures: list[Exception] = []
        self._progress = Progress()
        self.n_partitions = log.n_partitions(IMPRESSIONS)
        spare_program()  # looking for garbage in it took 5 % of the joining

    @property
    def partitions(self) -> list[int]:
        """Those that are joined here."""
        with self._lock:
            return sorted(self._seats.keys() - {_ARCHIVER})

    @property
    def failures(self) -> list[Exception]:
        """What stopped a worker: the process should end."""
        with self._lock:
            now = [seat.failure for seat in self._seats.values()]
        return self._failures + [one for one in now if one is not None]

    def readings(self) -> list[Reading]:
        """Metrics of the partitions that are joined here."""
        with self._lock:
            workers = [seat.reading() for seat in self._seats.values()]
        joiners = list(self._joiners.values())
        return [
            *self._progress.readings(),
            *workers,
            *(reading for joiner in joiners for reading in joiner.readings()),
        ]

    def positions(self) -> dict[TopicPartition, int]:
        """The next record to read of each input."""
        joiners = list(self._joiners.values())
        return {place: at for joiner in joiners for place, at in joiner.positions().items()}

    def archive_positions(self) -> dict[TopicPartition, int]:
        """The next record that the archive is to have, where it is written here."""
        return {place: at for one in list(self._archivers) for place, at in one.positions().items()}

    def assign(self, partitions: Iterable[int]) -> None:
        """Join these, too."""
        with self._lock:
            for partition in partitions:
                self._seats[partition] = Seat(f"joiner-{partition}", self._joiner_of(partition))
            self._archive()

    def revoke(self, partitions: Iterable[int]) -> None:
        """End what is under way, and leave these to others."""
        with self._lock:
            self._leave(partitions)
            self._archive()

    def close(self) -> None:
        """End everything; what was joined here is archived to its end."""
        with self._lock:
            self._leave([*self.partitions, _ARCHIVER])

    def _leave(self, names: Iterable[int]) -> None:
        for name in names:
            seat = self._seats.pop(name, None)
            if seat is None:
                continue
            try:
                seat.leave()
            except Error as error:
                self._failures.append(error)

    def _archive(self) -> None:
        """Tell the archiver what is joined here. It goes by that in its own time."""
        self._archived = frozenset(self.partitions)
        if self._settings.archive is not None and self._archived and _ARCHIVER not in self._seats:
            self._seats[_ARCHIVER] = Seat("archiver", self._archiver)

    def _joiner_of(self, partition: int) -> Callable[[contextlib.ExitStack], Step]:
        database = self._settings.service.data_dir / "joiner" / f"cache-{partition}.sqlite"

        def make(stack: contextlib.ExitStack) -> Step:
            transactions = self._log.transactions(f"joiner-{partition}")
            stack.callback(transactions.close)
            try:
                joiner = Joiner(
                    self._settings,
                    self._encoder,
                    self._log,
                    partition=partition,
                    database=database,
                    clock=self._clock,
                    state=self._state,
                    progress=self._progress,
                    transactions=transactions,
                    allow_gaps=self._allow_gaps,
                )
            except TransportError as error:
                if error.code == "state-damaged":
                    logger.warning("cache=%s state=damaged action=filled-anew", database)
                    for path in database.parent.glob(f"{database.name}*"):
                        path.unlink()
                raise
            stack.callback(joiner.close)
            self._joiners[partition] = joiner
            stack.callback(self._joiners.pop, partition)
            return joiner.step

        return make

    def _archiver(self, stack: contextlib.ExitStack) -> Step:
        from trainer.archive import Archiver  # pyarrow's writer, which most joiners do without

        assert self._settings.archive is not None  # noqa: S101 - else nobody asks
        archiver = Archiver(
            self._settings.archive, self._log, self._clock, wanted=lambda: self._archived
        )
        stack.callback(archiver.close)
        self._archivers.append(archiver)
        stack.callback(self._archivers.clear)
        return archiver.step
