"""The whole loop in one process: service, joiner, trainer and replica over local files.

This is a supported deployment, not a toy: the parts are those of the distributed one, only the
event log, the parameter channel and the feature state are the embedded ones. Everything durable
lies under `service.data_dir`:

    log/         the event log (segments per topic and partition)
    joiner/      one SQLite database per partition
    features/    feature state
    trainer/     checkpoints
    parameters/  the parameter channel
"""

import contextlib
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from prometheus_client import CollectorRegistry

from freshrank import doctor
from freshrank.channels import open_channel
from freshrank.clock import Clock, SystemClock
from freshrank.errors import ConfigError
from freshrank.features import FeatureEncoder
from freshrank.logs import open_log
from freshrank.memory import check_budget
from freshrank.metrics import Reading
from freshrank.metrics_lag import Lag
from freshrank.progress import Progress
from freshrank.settings import Settings
from freshrank.states import open_state
from freshrank.transport.base import TopicPartition
from freshrank.worker import Worker
from service.app import Service, ServiceParts, create_app

if TYPE_CHECKING:
    from trainer.archive import Archiver
    from trainer.checkpoint_store import CheckpointStore
    from trainer.joiner import Joiner
    from trainer.loop import Trainer
    from trainer.readings import TrainerReadings


def can_learn() -> bool:
    """True when the extra `train` is installed."""
    return all(map(doctor.is_installed, doctor.TRAIN_MODULES))


def check_can_learn() -> None:
    """Refuse to learn without the extra `train`.

    Raises:
        ConfigError: it is not installed.
    """
    if not can_learn():
        raise ConfigError(
            f"learning needs {', '.join(doctor.TRAIN_MODULES)}: {doctor.TRAIN_MEND}, "
            "or serve without learning: --no-learn"
        )


class Embedded:
    """Every part of the loop, composed.

    Args:
        settings: The configuration.
        learn: Run joiner, trainer and, where the configuration names one, the archive's writer;
            without them the service ranks with what the channel holds.
        serve: Make the service; without it there is no `app` and no `service`.
        history: Archive to be learned before the log.
        allow_gaps: Learn on where records of it are missing.
        simulated: A simulated audience uses it; the page says so.
        clock: Time.

    Raises:
        ConfigError: `learn` without the extra `train` installed, or with less memory than budgets.
        DataError: the history is no archive, damaged or has a gap.
        SchemaError: checkpoint or history are of another configuration.
        TransportError: the data directory is in use by another process, or damaged.
    """

    app: FastAPI
    service: Service

    def __init__(
        self,
        settings: Settings,
        *,
        learn: bool,
        serve: bool = True,
        history: Path | None = None,
        allow_gaps: bool = False,
        simulated: bool = False,
        clock: Clock | None = None,
    ) -> None:
        if learn:
            check_can_learn()
        if learn and settings.log.kind != "local":
            raise ConfigError(
                f"log.kind is {settings.log.kind}: such a log is joined by `freshrank join` and "
                "learned by `freshrank train`, processes of their own: --no-learn"
            )
        clock = clock or SystemClock()
        directory = settings.service.data_dir
        self.settings = settings
        self.encoder = FeatureEncoder(settings)
        self.log = open_log(settings, clock)
        self.channel = open_channel(settings, clock)
        self.progress = Progress()
        self.state = open_state(settings)
        self.joiners: list[Joiner] = []
        self.archiver: Archiver | None = None
        self.trainer: Trainer | None = None
        self._trainer_readings: TrainerReadings | None = None
        self._checkpoints: CheckpointStore | None = None
        self._lag = Lag(self.log, self._positions)
        self._archive_lag = Lag(self.log, self._archive_positions, "archive_lag_records")
        self._workers: dict[str, Worker] = {}
        try:
            if learn:
                self._compose_learning(directory, clock, history, allow_gaps=allow_gaps)
            if serve:
                self.app = self._compose_service(clock, simulated=simulated)
                self.service = self.app.state.service
        except BaseException:
            self.close()
            raise
        steps = {f"joiner-{i}": joiner.step for i, joiner in enumerate(self.joiners)}
        if self.archiver is not None:
            steps["archiver"] = self.archiver.step
        if self.trainer is not None:
            steps["trainer"] = self.trainer.step
        self._workers = {name: Worker(name, step) for name, step in steps.items()}

    def _compose_service(self, clock: Clock, *, simulated: bool) -> FastAPI:
        is_learning = self.trainer is not None
        parts = ServiceParts(
            settings=self.settings,
            encoder=self.encoder,
            log=self.log,
            channel=self.channel,
            state=self.state,
            progress=self.progress if is_learning else None,
            loop=self if is_learning else None,
            clock=clock,
            registry=CollectorRegistry(),
            simulated=simulated,
        )
        return create_app(parts)

    def _compose_learning(
        self, directory: Path, clock: Clock, history: Path | None, *, allow_gaps: bool
    ) -> None:
        from trainer.archive import Archiver
        from trainer.archive_reader import Archive
        from trainer.checkpoint_store import CheckpointStore
        from trainer.joiner import Joiner
        from trainer.loop import Trainer
        from trainer.readings import TrainerReadings

        settings, encoder = self.settings, self.encoder
        check_budget(settings)  # now that all that learns is loaded
        archive = None
        if history is not None:
            archive = Archive(history, settings, encoder, allow_gaps=allow_gaps)
        if settings.archive is not None:
            self.archiver = Archiver(settings.archive, self.log, clock)

        for partition in range(self.settings.log.partitions):
            database = directory / "joiner" / f"partition-{partition}.sqlite"
            self.joiners.append(
                Joiner(
                    self.settings,
                    self.encoder,
                    self.log,
                    partition=partition,
                    database=database,
                    clock=clock,
                    state=self.state,
                    progress=self.progress,
                    allow_gaps=allow_gaps,
                )
            )
        self.trainer = Trainer(
            self.settings,
            self.encoder,
            self.log,
            self.channel,
            directory=directory / "trainer",
            clock=clock,
            progress=self.progress,
            history=archive,
            allow_gaps=allow_gaps,
        )
        self._trainer_readings = TrainerReadings(settings, encoder)
        self._checkpoints = CheckpointStore(directory / "trainer", keep=settings.checkpoint.keep)

    def start(self) -> None:
        """Start joiners and trainer; the replica starts with the app's lifespan."""
        for worker in self._workers.values():
            worker.start()

    def close(self, *, drain: bool = False) -> None:
        """Stop in the order of the stream, save a checkpoint, release the files.

        What fails does not keep the rest from closing. A trainer that failed is not saved: it may
        have stopped within a batch, and a checkpoint of that would learn it twice.

        Args:
            drain: First learn what a fixed batch would leave waiting in the log.
        """
        with contextlib.ExitStack() as stack:  # the last one first
            stack.callback(self.log.close)
            stack.callback(self.channel.close)
            stack.callback(self.state.close)
            stack.callback(self._close_learning, drain=drain)
            for worker in reversed(self._workers.values()):
                stack.callback(worker.stop)

    def _close_learning(self, *, drain: bool) -> None:
        with contextlib.ExitStack() as stack:
            if self.archiver is not None:
                stack.callback(self.archiver.release)  # however it fared
            for name, part in (("trainer", self.trainer), ("archiver", self.archiver)):
                worker = self._workers.get(name)
                if part is not None and worker is not None and worker.failure is None:
                    stack.callback(part.close)
                    if part is self.trainer and drain:
                        stack.callback(self.trainer.drain)
            for joiner in self.joiners:
                joiner.close()

    @property
    def failures(self) -> list[Exception]:
        """Errors that stopped a worker."""
        return [one.failure for one in self._workers.values() if one.failure is not None]

    def is_learning(self) -> bool:
        """False once a joiner or the trainer has failed."""
        return not any(one.failure for name, one in self._workers.items() if name != "archiver")

    def accounting(self) -> dict[str, int]:
        """The joiners' and the trainer's totals; `freshrank.accounting` says how they add up."""
        total: Counter[str] = Counter()
        for joiner in self.joiners:
            total.update(joiner.accounting())
        for part in (self.archiver, self.trainer):
            total.update(part.accounting() if part is not None else {})
        return dict(total)

    def inspect(self, table: str, id: int) -> Mapping[str, Any]:
        """What the trainer's table knows of one id; nothing without a trainer."""
        if self.trainer is None:
            return {}
        return self.trainer.learner.sparse.tables[table].inspect(id)

    def snapshots(self) -> list[dict[str, Any]]:
        """The trainer's checkpoints; none without a trainer."""
        return [] if self._checkpoints is None else self._checkpoints.described()

    def statistics(self) -> dict[str, float]:
        """The trainer's gauges, and how far the clock is behind event time, if that is too far."""
        behind_s = max((joiner.clock_behind_s for joiner in self.joiners), default=0.0)
        behind = {"clock_behind_seconds": behind_s} if behind_s else {}
        return behind | ({} if self.trainer is None else self.trainer.statistics())

    def readings(self) -> list[Reading]:
        """Metrics of joiners and trainer."""
        found = self.progress.readings() + self._lag.readings() + self._archive_lag.readings()
        for joiner in self.joiners:
            found += joiner.readings()
        found += [worker.reading() for worker in self._workers.values()]
        if self.trainer is not None and self._trainer_readings is not None:
            is_leading = self._workers["trainer"].failure is None
            found += (
                self._trainer_readings.leading(self.accounting(), self.statistics())
                if is_leading
                else self._trainer_readings.standby()
            )
        return found

    def _archive_positions(self) -> dict[TopicPartition, int]:
        return {} if self.archiver is None else self.archiver.positions()

    def _positions(self) -> dict[TopicPartition, int]:
        positions = {} if self.trainer is None else self.trainer.reader.ends()
        for joiner in self.joiners:
            positions |= joiner.positions()
        return positions
