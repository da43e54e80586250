"""A backup taken beside the processes that write.

It is what a power cut would have left, whatever happens meanwhile, and every start makes good what
that leaves. The order of the parts sees to it: none knows of something that a later one lacks. So
the trainer's checkpoint comes before the joiners' databases, these before the log. Of what joiners
sent, the log's copy ends where their databases do; feature state is that of before and after them.
"""

import json
import os
import shutil
import sqlite3
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import freshrank
from freshrank.backup import manifest
from freshrank.backup.manifest import Manifest
from freshrank.clock import SystemClock
from freshrank.errors import DataError, TransportError
from freshrank.features import FeatureEncoder
from freshrank.settings import Settings
from freshrank.transport.base import CONTROL, EXAMPLES, TopicPartition
from freshrank.transport.directory import DirectoryChannel
from freshrank.transport.files import disk_errors, make_directory, sync_directory
from freshrank.transport.local_copy import Limit, copy_log

# Feature state is saved once per million updates: a second try is rare, a third nearly impossible.
_TRIES: Final = 10


def take(settings: Settings, config: bytes, destination: Path) -> Manifest:
    """Copy what the deployment must keep into a new directory, whole and synced or not at all.

    Args:
        settings: Its configuration.
        config: The same as it was written.
        destination: Not there yet.

    Raises:
        DataError: there is something already, or nothing to keep, or no whole checkpoint.
        TransportError: what is to be copied is damaged, or a disk refused.
    """
    source, taken_at = settings.service.data_dir, datetime.now(UTC)
    if destination.exists():
        raise DataError(f"{destination} is there already: give a backup a new name")
    if destination.resolve().is_relative_to(source.resolve()):
        raise DataError(f"{destination} lies in {source}: a backup there is lost with it")
    temporary = destination.with_name(destination.name + ".tmp")
    with disk_errors(f"back up {source} to {destination}"):
        make_directory(destination.parent)
        shutil.rmtree(temporary, ignore_errors=True)  # of one that was killed
        temporary.mkdir(mode=0o700)  # the configuration may hold secrets
        try:
            told = _Copy(settings, source, temporary).take()
            (temporary / manifest.CONFIG).write_bytes(config)
            taken = Manifest(
                freshrank=freshrank.__version__,
                taken_at=taken_at.isoformat(timespec="seconds"),
                schema_hash=FeatureEncoder(settings).schema_hash,
                partitions=settings.log.partitions,
                parts=manifest.parts_of(settings),
                files=manifest.described(temporary),
                **told,
            )
            manifest.write(temporary, taken)
            manifest.sync(temporary)
            temporary.rename(destination)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        sync_directory(destination.parent)
    return taken


class _Copy:
    """Copies the parts one after another; the order matters."""

    def __init__(self, settings: Settings, source: Path, target: Path) -> None:
        self._settings = settings
        self._source = source
        self._target = target

    def take(self) -> dict[str, Any]:
        """Copy all; returns what the manifest says of them."""
        parts = manifest.parts_of(self._settings)
        for part in parts:
            (self._target / part).mkdir()
        if "log" in parts:
            groups = self._target / "log" / "groups"
            groups.mkdir()
            for path in (self._source / "log" / "groups").glob("*.json"):
                shutil.copyfile(path, groups / path.name)
        if "parameters" in parts and (self._source / "parameters").is_dir():
            with closing(DirectoryChannel(self._source / "parameters", clock=SystemClock())) as one:
                one.copy(self._target / "parameters")
        told: dict[str, Any] = {"checkpoint": "", "log_identity": "", "learned": {}, "log": {}}
        if (self._source / "trainer").is_dir():
            told |= self._copy_checkpoints()
        limits = self._copy_joined() if "joiner" in parts or "features" in parts else {}
        if self._settings.state.kind == "redis" and (told["checkpoint"] or "log" in parts):
            from freshrank.backup.redis import RedisStateCopy

            path = self._target / manifest.REDIS_STATE
            path.parent.mkdir()
            with closing(RedisStateCopy(self._settings)) as state:
                state.save(path)
        if (self._source / "log" / "log.json").exists() and "log" in parts:
            held = copy_log(self._source / "log", self._target / "log", limits)
            told["log"] = {f"{topic}:{p}": offsets for (topic, p), offsets in held.items()}
        if not told["checkpoint"] and not told["log"]:
            raise DataError(
                f"{self._source} has neither a log nor a checkpoint: run this where "
                "service.data_dir of the trainer is; beside a service or a joiner on Kafka there "
                "is nothing to keep"
            )
        return told

    def _copy_checkpoints(self) -> dict[str, Any]:
        from trainer.checkpoint_store import CheckpointStore
        from trainer.state import TrainerState

        store = CheckpointStore(self._source / "trainer", keep=self._settings.checkpoint.keep)
        newest = store.copy(self._target / "trainer")
        if newest is None:
            return {}
        state = TrainerState.from_json(json.loads((newest / "state.json").read_bytes()))
        learned = {f"{EXAMPLES}:{p}": at.offset for p, at in state.positions.items() if p >= 0}
        if state.control_offset is not None:
            learned[f"{CONTROL}:0"] = state.control_offset
        return {
            "checkpoint": newest.name,
            "log_identity": state.log,
            "learned": learned | state.offsets,
        }

    def _copy_joined(self) -> dict[TopicPartition, Limit]:
        """Joiners' databases, and feature state as it was while they were copied."""
        path = self._source / "features" / "state.msgpack"
        for _ in range(_TRIES):
            before = path.open("rb") if path.exists() else None
            try:
                limits = self._copy_databases()
                if before is None and path.exists():
                    continue
                if before is not None:
                    # An open file keeps its number, so another one has another.
                    if not os.path.samestat(os.fstat(before.fileno()), path.stat()):
                        continue
                    with (self._target / "features" / path.name).open("wb") as copy:
                        shutil.copyfileobj(before, copy)
                return limits
            finally:
                if before is not None:
                    before.close()
        raise TransportError(
            f"{path} was saved while each of {_TRIES} copies was made: try again",
            code="backup-busy",
        )

    def _copy_databases(self) -> dict[TopicPartition, Limit]:
        from trainer.joiner.outbox import known

        limits: dict[TopicPartition, Limit] = {}
        for path in sorted((self._source / "joiner").glob("partition-*.sqlite")):
            copy = self._target / "joiner" / path.name
            copy.unlink(missing_ok=True)
            _copy_database(path, copy)
            limits |= known(copy, int(path.stem.removeprefix("partition-")))
        return limits


def _copy_database(source: Path, target: Path) -> None:
    """Copy a SQLite file that another process may write, as of one transaction."""
    try:
        with (
            closing(sqlite3.connect(f"{source.absolute().as_uri()}?mode=ro", uri=True)) as database,
            closing(sqlite3.connect(target)) as copy,
        ):
            database.backup(copy)
    except sqlite3.Error as error:
        raise TransportError(
            f"copy the joiner's state in {source}: {error}", code="joiner-state"
        ) from error
