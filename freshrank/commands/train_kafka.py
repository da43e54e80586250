"""`freshrank train` on Kafka: one trainer learns, the others are ready to go on where it stops.

All of them share the data directory. A standby keeps the parameters of the newest checkpoint loaded
and waits for the lease; once it has it, it claims the next epoch, learns what no checkpoint has,
and publishes. One that loses the lease ends: what it has learned since its last checkpoint is
learned by the one that has it now.
"""

import contextlib
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from freshrank.channels import open_channel
from freshrank.clock import SystemClock
from freshrank.errors import Error, TransportError
from freshrank.features import FeatureEncoder
from freshrank.logs import cluster, open_log
from freshrank.memory import check_budget
from freshrank.metrics import Reading
from freshrank.metrics_lag import Lag
from freshrank.progress import Progress
from freshrank.settings import Settings
from freshrank.transport.base import TopicPartition
from freshrank.worker import Worker

if TYPE_CHECKING:
    from trainer.loop import Trainer

logger = logging.getLogger(__name__)


class Standby:
    """A trainer that waits for the lease, and learns in a thread of its own while it holds it.

    Args:
        settings: The configuration; its log is on Kafka.
        history: Archive to be learned before the log.
        allow_gaps: Learn on where records are missing, or the log is made anew.

    Raises:
        ConfigError: the extra `kafka` is not installed, or a secret is missing.
        DataError: the history is no archive, damaged or has a gap.
        SchemaError: checkpoint or history are of another configuration.
        TransportError: the cluster cannot be reached, or is not the checkpoint's.
    """

    def __init__(self, settings: Settings, *, history: Path | None, allow_gaps: bool) -> None:
        # Here, as it needs the extra `kafka`.
        from freshrank.transport.kafka_lease import Lease
        from trainer.readings import TrainerReadings

        check_budget(settings)
        self._settings = settings
        self._history = history
        self._allow_gaps = allow_gaps
        self._clock = SystemClock()
        self._encoder = FeatureEncoder(settings)
        self._worker: Worker | None = None
        self._n_rows = 0
        self._progress = Progress()
        self._readings = TrainerReadings(settings, self._encoder)
        self.trainer: Trainer | None = None
        with contextlib.ExitStack() as stack:
            self._log = stack.enter_context(contextlib.closing(open_log(settings, self._clock)))
            self._channel = stack.enter_context(
                contextlib.closing(open_channel(settings, self._clock))
            )
            self._lag = Lag(self._log, self._positions)
            self._load_safely()
            self._lease = stack.enter_context(contextlib.closing(Lease(cluster(settings.log))))
            self._parts = stack.pop_all()

    def wait(self, timeout_s: float) -> bool:
        """Wait for the lease; once it is there, learn. True from then on.

        Raises:
            Error: what the newest checkpoint is refused for.
        """
        if self._worker is not None:
            return True
        is_leading = self._lease.wait(timeout_s)
        if self.trainer is None or self.trainer.is_behind:
            self._load() if is_leading else self._load_safely()
        if is_leading and self.trainer is not None:
            self._n_rows = self._count_rows()
            logger.info("trainer=leading rows=%d", self._n_rows)
            self._worker = Worker("trainer", self.trainer.step)
            self._worker.start()
        return is_leading

    @property
    def failure(self) -> Exception | None:
        """What stopped the trainer."""
        return None if self._worker is None else self._worker.failure

    @property
    def n_learned(self) -> int:
        """Rows that this process has learned."""
        return self._count_rows() - self._n_rows

    @property
    def n_history(self) -> int:
        """Rows of the history that this process has read."""
        return 0 if self.trainer is None else self.trainer.reader.n_history_rows

    def lag(self) -> int | None:
        """Offsets of the examples that are still to be read; None while the log cannot tell."""
        try:
            return None if self.trainer is None else self.trainer.reader.n_behind()
        except TransportError:
            return None

    def readings(self) -> list[Reading]:
        """Metrics; of a standby that it is one."""
        trainer, worker = self.trainer, self._worker
        if trainer is None or worker is None:
            return self._readings.standby()
        return [
            *self._readings.leading(trainer.accounting(), trainer.statistics()),
            *self._progress.readings(),
            *self._lag.readings(),
            worker.reading(),
        ]

    def _positions(self) -> dict[TopicPartition, int]:
        return {} if self.trainer is None else self.trainer.reader.ends()

    def _count_rows(self) -> int:
        return 0 if self.trainer is None else self.trainer.accounting().get("rows_learned", 0)

    def close(self, *, drain: bool = False) -> None:
        """Save what was learned, and only then give up the lease; without it, save nothing.

        Args:
            drain: First learn what a fixed batch would leave waiting in the log.
        """
        with self._parts:
            if self._worker is not None and self.trainer is not None:
                self._worker.stop()
                if self._worker.failure is None:
                    if drain:
                        self.trainer.drain()
                    self.trainer.close()

    def _load_safely(self) -> None:
        """Load, unless the leader removes what is being read: then there is a newer one to come."""
        try:
            self._load()
        except Error as error:
            if error.code != "checkpoint-damaged":
                raise
            logger.warning("checkpoint=not-loaded error=%s", error)

    def _load(self) -> None:
        from trainer.archive_reader import Archive
        from trainer.loop import Trainer

        self.trainer = None  # two would need twice the memory
        history = None
        if self._history is not None:
            history = Archive(
                self._history, self._settings, self._encoder, allow_gaps=self._allow_gaps
            )
        self.trainer = Trainer(
            self._settings,
            self._encoder,
            self._log,
            self._channel,
            directory=self._settings.service.data_dir / "trainer",
            clock=self._clock,
            progress=self._progress,
            history=history,
            allow_gaps=self._allow_gaps,
            check_lease=self._check_lease,
        )

    def _check_lease(self) -> None:
        self._lease.check()
