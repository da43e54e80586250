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
import logging
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from fastapi import FastAPI
from prometheus_client import CollectorRegistry

from freshrank import doctor
from freshrank.clock import Clock, SystemClock
from freshrank.errors import ConfigError, Error, TransportError
from freshrank.feature_state import LocalFeatureState
from freshrank.features import FeatureEncoder
from freshrank.logs import open_log
from freshrank.progress import Progress
from freshrank.settings import Settings
from freshrank.transport.directory import DirectoryChannel
from service.app import Service, ServiceParts, create_app

if TYPE_CHECKING:
    from trainer.archive import Archiver
    from trainer.joiner import Joiner
    from trainer.loop import Trainer

logger = logging.getLogger(__name__)

# How long a part waits for news before it looks at its clock again. Short enough that a publication
# that falls due while nothing arrives is at most this late.
STEP_TIMEOUT_S = 0.05
# Back-off after a transport error such as a full disk: the first retry soon, later ones each 5 s.
RETRY_FIRST_S, RETRY_MAX_S = 0.2, 5.0
CLOSE_TIMEOUT_S = 30.0


def can_learn() -> bool:
    """True when the extra `train` is installed."""
    return all(map(doctor.is_installed, doctor.TRAIN_MODULES))


class Worker:
    """A thread that calls `step` until stopped.

    A `TransportError` (disk full, log unreachable) is retried with back-off; any other error is a
    bug or damaged state: it is logged, the worker stops, the service goes on with what it has.
    """

    def __init__(self, name: str, step: Callable[[float], int]) -> None:
        self._name = name
        self._step = step
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self.failure: Exception | None = None

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """Finish the step under way and end the thread.

        Raises:
            Error: it does not end, so what it works on must not be touched.
        """
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join(CLOSE_TIMEOUT_S)
        if self._thread.is_alive():
            self.failure = Error(f"worker {self._name} did not end in {CLOSE_TIMEOUT_S:.0f} s")
            raise self.failure

    def _run(self) -> None:
        retry_s = RETRY_FIRST_S
        trouble = ""
        while not self._stop.is_set():
            try:
                self._step(STEP_TIMEOUT_S)
                if trouble:
                    logger.warning("worker=%s state=recovered", self._name)
                retry_s, trouble = RETRY_FIRST_S, ""
            except TransportError as error:
                if error.code != trouble:  # a line per change, not per try
                    logger.warning("worker=%s state=retrying error=%s", self._name, error)
                trouble = error.code
                self._stop.wait(retry_s)
                retry_s = min(2 * retry_s, RETRY_MAX_S)
            except Exception as error:
                self.failure = error
                logger.exception("worker=%s state=stopped", self._name)
                return


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
        ConfigError: `learn` without the extra `train` installed.
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
        if learn and not can_learn():
            raise ConfigError(
                f"learning needs {', '.join(doctor.TRAIN_MODULES)}: {doctor.TRAIN_MEND}, "
                "or serve without learning: --no-learn"
            )
        if learn and settings.log.kind != "local":
            raise ConfigError(
                f"log.kind is {settings.log.kind}: joining needs a local log as yet; serve such a "
                "log without learning: --no-learn"
            )
        clock = clock or SystemClock()
        directory = settings.service.data_dir
        self.settings = settings
        self.encoder = FeatureEncoder(settings)
        self.log = open_log(settings, clock)
        self.channel = DirectoryChannel(directory / "parameters", clock=clock)
        self.progress = Progress()
        self.state = LocalFeatureState(settings, directory / "features" / "state.msgpack")
        self.joiners: list[Joiner] = []
        self.archiver: Archiver | None = None
        self.trainer: Trainer | None = None
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
        from trainer.joiner import Joiner
        from trainer.loop import Trainer

        settings, encoder = self.settings, self.encoder
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
        )

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
            stack.callback(self._close_learning, drain=drain)
            for worker in reversed(self._workers.values()):
                stack.callback(worker.stop)

    def _close_learning(self, *, drain: bool) -> None:
        with contextlib.ExitStack() as stack:
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

    def statistics(self) -> dict[str, float]:
        """The trainer's gauges."""
        return {} if self.trainer is None else self.trainer.statistics()
