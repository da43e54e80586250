"""Time travel: learns an archive again, from its first hour or a checkpoint, to the same bits.

Batches are cut at exactly `trainer.batch_max` rows, whatever `trainer.batching` says, and a
remainder waits: so a trainer with `fixed` batches that wrote the archive, a replay of it, and two
replays of its halves all end with equal parameters.
"""

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from freshrank.errors import ConfigError, DataError
from freshrank.features import FeatureEncoder
from freshrank.replay.report import ModelRow, Report, table_counts
from freshrank.replay.taken import Taken
from freshrank.settings import Settings
from freshrank.transport.files import disk_errors
from trainer.archive_reader import Archive
from trainer.checkpoint import read
from trainer.checkpoint_parts import checkpoint, restore
from trainer.checkpoint_store import CheckpointStore
from trainer.dead_letters import count
from trainer.evaluation import Evaluation
from trainer.fingerprint import fingerprint
from trainer.history import enter
from trainer.learner import Learner
from trainer.lesson import Lesson
from trainer.queue import BatchQueue, Cut
from trainer.state import TrainerState

_HOUR: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d")
# Told after each batch: the share learned of what was to be, and the event time reached.
OnProgress = Callable[[float, int], None]


@dataclass(frozen=True, slots=True)
class ArchiveOptions:
    """What to learn, and from where.

    Attributes:
        first_hour: The first hour, e.g. `2026-11-21T10`; None: the archive's first, or where the
            checkpoint stands.
        last_hour: The last hour; None: the archive's last.
        checkpoint: A checkpoint of a trainer, or the directory of several: the newest is taken.
            None: a new model.
        save: Directory that gets the checkpoint reached.
        allow_gaps: Learn on where files are missing.
    """

    first_hour: str | None = None
    last_hour: str | None = None
    checkpoint: Path | None = None
    save: Path | None = None
    allow_gaps: bool = False


def replay_archive(
    directory: Path,
    settings: Settings,
    options: ArchiveOptions,
    report: Report,
    on_progress: OnProgress,
) -> None:
    """Learn the archived examples and say in the report what came of it.

    Raises:
        ConfigError: options that do not go together.
        DataError: no archive, damaged, with a gap, or the checkpoint is not of it.
        SchemaError: archive or checkpoint are of another configuration.
        TransportError: the disk did not take the checkpoint.
    """
    for name, hour in (("--from", options.first_hour), ("--until", options.last_hour)):
        if hour is not None and not _HOUR.fullmatch(hour):
            raise ConfigError(f"{name} {hour}: write an hour in UTC such as 2026-11-21T10")
    if options.checkpoint is not None and options.first_hour is not None:
        raise ConfigError("--checkpoint says where to begin: give no --from with it")
    began_s = time.monotonic()
    travel = TimeTravel(directory, settings, options, report)
    travel.learn(on_progress)
    if options.save is not None:
        travel.save(options.save)
    report.wall_s = time.monotonic() - began_s
    travel.describe(report)


class TimeTravel:
    """A learner, and the archive before it.

    Args:
        directory: The archive.
        settings: The whole configuration.
        options: What of it.
        report: Its counts of rejected rows and skipped steps are kept.

    Attributes:
        learner: The parameters.
        state: Positions and totals.
    """

    def __init__(
        self, directory: Path, settings: Settings, options: ArchiveOptions, report: Report
    ) -> None:
        encoder = FeatureEncoder(settings)
        self._archive = Archive(
            directory,
            settings,
            encoder,
            first_hour=options.first_hour,
            last_hour=options.last_hour,
            allow_gaps=options.allow_gaps,
        )
        self._report = report
        tasks, losses = zip(*((task.name, task.loss) for task in settings.tasks), strict=True)
        self.learner = Learner(settings, encoder)
        evaluation = Evaluation(tasks, losses)
        log = self._archive.parts[-1].name.log
        if options.checkpoint is None:
            self.state = TrainerState(encoder.schema_hash, settings.trainer.seed, {}, log)
        else:
            found = read(_newest(options.checkpoint), self.learner.sparse.vacate())
            self.state = restore(found, settings, encoder, self.learner, evaluation)
            self._check_position(options.checkpoint)
        for parts in self._archive.lineages().values():
            enter(self._archive, self.state, parts)
        self._lesson = Lesson(self.learner, evaluation, self.state)
        self._queue = BatchQueue(
            batch_max=settings.trainer.batch_max, is_fixed=True, positions=self.state.positions
        )
        self._taken = Taken(list(tasks), list(losses))

    def learn(self, on_progress: OnProgress) -> None:
        """Learn every whole batch.

        Raises:
            DataError: a file is damaged.
        """
        positions = self.state.positions
        ends = {
            self.state.number(*lineage): parts[-1].name.last + 1
            for lineage, parts in self._archive.lineages().items()
        }
        begin = sum(positions[number].offset for number in ends)
        n_records = sum(ends.values()) - begin
        for record in self._archive.records(self.state, set()):
            self._queue.put(record)
            while self._queue.is_full:
                self._take(self._queue.cut(flush=False))
                at = sum(positions[number].offset for number in ends)
                on_progress((at - begin) / n_records, self.state.watermark_ms)
        self._take(self._queue.cut(flush=False))  # records behind the last row learned

    def _take(self, cut: Cut) -> None:
        counts = self.state.counts
        self._report.skipped_steps -= counts["nonfinite_steps"]
        step = self._lesson.take(cut)
        self._report.skipped_steps += counts["nonfinite_steps"]
        for refused in cut.refused:
            n = count(counts, refused)
            rejected = self._report.rejected
            rejected[refused.code] = rejected.get(refused.code, 0) + n
        if step is not None and cut.rows is not None:
            self._report.examples += cut.rows.n_rows
            self._taken.add(cut.rows, step)

    def save(self, directory: Path) -> Path:
        """Write a checkpoint as a trainer does; returns its path.

        Raises:
            TransportError: the disk refused.
        """
        with disk_errors(f"save a checkpoint in {directory}"):
            content = checkpoint(self.state, self.learner, self._lesson.evaluation)
            return CheckpointStore(directory, keep=100).save(content.begin())

    def describe(self, report: Report) -> None:
        """Fill in figures and parameters."""
        own, served = self._taken.measures()
        speed = report.examples / max(report.wall_s, 1e-9)
        report.models.append(ModelRow("freshrank", [own.figures()], examples_per_second=speed))
        if any(figures["examples"] for figures in served.figures().values()):
            report.models.append(ModelRow("as served", [served.figures()]))
        report.requests = self._taken.n_requests
        report.tables = table_counts(self.learner.sparse.tables)
        report.seeds = [self.state.seed]
        report.rows_read = report.examples + sum(report.rejected.values()) + self._queue.n_rows
        report.parameters = fingerprint(self.learner)
        report.waiting_rows = self._queue.n_rows

    def _check_position(self, path: Path) -> None:
        """The checkpoint's own log must be in the archive, up to where it stands."""
        names = [part.name for part in self._archive.parts if part.name.log == self.state.log]
        for partition, position in self.state.positions.items():
            own = [name for name in names if name.partition == partition]
            if partition >= 0 and not (own and own[0].first <= position.offset <= own[-1].last + 1):
                has = f"has {own[0].first} to {own[-1].last}" if own else "has nothing of that log"
                raise DataError(
                    f"{path} stands at offset {position.offset} of partition {partition} of log "
                    f"{self.state.log}; {self._archive.directory} {has}: choose a checkpoint or "
                    "hours that meet",
                    code="archive-gap",
                )


def _newest(path: Path) -> Path:
    """The checkpoint itself, or the newest one in the directory."""
    return max(path.glob("checkpoint-*[0-9]"), default=path)
