"""Back from a backup: verified before anything is touched, in place whole or not at all."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from freshrank.backup import manifest
from freshrank.backup.manifest import Manifest
from freshrank.backup.swap import finish, swap
from freshrank.errors import ConfigError, DataError, SchemaError, TransportError
from freshrank.features import FeatureEncoder
from freshrank.settings import Settings
from freshrank.transport.files import disk_errors, make_directory, try_lock


@dataclass(frozen=True, slots=True)
class Restored:
    """What was restored.

    Attributes:
        manifest: Of the backup.
        before: Where the folders are that stood in the way; None if none did.
    """

    manifest: Manifest
    before: Path | None


def restore(settings: Settings, source: Path, *, is_forced: bool) -> Restored:
    """Put a backup's folders in place of those of the data directory.

    Args:
        settings: Of the deployment, which does not run.
        source: The backup.
        is_forced: Move what is there aside.

    Raises:
        ConfigError: it is of a configuration that keeps other things (`log.kind` and others).
        DataError: it is damaged (code `backup-damaged`), or there is something in the data
            directory (code `not-empty`).
        SchemaError: it is of other features, tasks, model or salt, or a newer version wrote it.
        TransportError: a process has the data directory (code `log-in-use`), or a disk refused.
    """
    found = manifest.verify(source)
    _check(settings, found, source)
    directory = settings.service.data_dir
    finish(directory)
    with contextlib.ExitStack() as stack:
        state = None
        if manifest.REDIS_STATE in found.files:
            from freshrank.backup.redis import RedisStateCopy

            state = stack.enter_context(contextlib.closing(RedisStateCopy(settings)))
        taken = [str(directory / one) for one in found.parts if _has_content(directory / one)]
        taken += [f"state.prefix {settings.state.prefix}"] if state and state.is_taken() else []
        if taken and not is_forced:
            raise DataError(
                f"{', '.join(taken)}: there is something: --force moves it aside",
                code="not-empty",
            )
        stack.enter_context(_unused(directory / "log" / "LOCK"))
        time = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
        before = directory / f"before-{time}"
        if state:
            if state.is_taken():
                with disk_errors(f"keep feature state in {before}"):
                    make_directory(before)
                    state.save(before / Path(manifest.REDIS_STATE).name)
            state.load(source / manifest.REDIS_STATE)
        swap(directory, time, partial(_fill, source, found))
        if state:
            state.done()
    return Restored(found, before if before.exists() else None)


def _fill(source: Path, found: Manifest, staged: Path) -> None:
    """Copy the folders of a backup, verified once more as they are read."""
    for part in found.parts:
        (staged / part).mkdir()
    for name, entry in found.files.items():
        if name.partition("/")[0] in found.parts:
            (staged / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, staged / name)
            manifest.check(staged, name, entry)
    manifest.sync(staged)


def _check(settings: Settings, found: Manifest, source: Path) -> None:
    ours = FeatureEncoder(settings).schema_hash
    if found.schema_hash != ours:
        raise SchemaError(
            f"{source} is of schema {found.schema_hash}, this configuration is {ours}: take the "
            f"features, tasks, model and salt of {source / manifest.CONFIG}"
        )
    if found.parts != manifest.parts_of(settings):
        raise ConfigError(
            f"{source} has {', '.join(found.parts)}, this configuration keeps "
            f"{', '.join(manifest.parts_of(settings))}: take log.kind, state.kind and "
            f"sync.channel.kind of {source / manifest.CONFIG}"
        )
    if "log" in found.parts and found.partitions != settings.log.partitions:
        raise ConfigError(
            f"{source} has a log of {found.partitions} partitions, this configuration "
            f"{settings.log.partitions}: the number cannot change, as records are found by it"
        )


def _has_content(directory: Path) -> bool:
    return directory.is_dir() and any(directory.iterdir())


@contextlib.contextmanager
def _unused(path: Path) -> Iterator[None]:
    """Hold a log's lock, if there is a log."""
    lock = None
    if path.parent.is_dir():
        with disk_errors(f"lock {path}"):
            lock = try_lock(path)
        if lock is None:
            raise TransportError(
                f"{path.parent} is in use: stop the process that has it", code="log-in-use"
            )
    try:
        yield
    finally:
        if lock is not None:
            os.close(lock)
