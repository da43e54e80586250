"""The checkpoints below one directory: which is the newest, and who may write the next.

A name holds the epoch of the trainer that wrote it, then a running number, and the epoch counts
first. So a trainer that was replaced without knowing can neither put its checkpoint before its
successor's nor remove one of these: it needs no lock, which a frozen process would keep.
"""

import contextlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from embedding_store import Budget, Snapshot
from freshrank.errors import DataError, SyncError
from freshrank.transport.files import make_directory, sync_directory
from trainer.checkpoint import (
    MANIFEST,
    NO_BUDGETS,
    Checkpoint,
    DamagedCheckpoint,
    Files,
    read,
    verified,
    write,
)

logger = logging.getLogger(__name__)

# A kept one stays until somebody removes it, and no trainer starts from it by itself.
_KEPT: Final = re.compile(r"kept-[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
# Without an epoch: of an earlier version, or saved by a replay.
_NAME: Final = re.compile(r"checkpoint-(?:(\d{6,})-)?(\d{12})(?:\.tmp)?")
_TEMPORARY_SUFFIX: Final = ".tmp"


class CheckpointStore:
    """The checkpoints below one directory.

    Args:
        directory: Holds them; made if it is not there.
        keep: How many of the newest stay.

    Attributes:
        directory: It.
        n_refused: Damaged checkpoints that were passed over.
    """

    def __init__(self, directory: Path, *, keep: int) -> None:
        self.directory = directory
        self._keep = keep
        self._refused: set[Path] = set()
        make_directory(directory)

    @property
    def n_refused(self) -> int:
        """Damaged checkpoints found."""
        return len(self._refused)

    def paths(self) -> list[Path]:
        """All checkpoints, oldest first."""
        found = [path for path in self.directory.iterdir() if path.suffix != _TEMPORARY_SUFFIX]
        return sorted((path for path in found if _NAME.fullmatch(path.name)), key=_age)

    def newest(self) -> Path | None:
        """The newest one, whole or damaged."""
        return next(reversed(self.paths()), None)

    def kept(self) -> list[Path]:
        """Those that stay, by name."""
        return sorted(path for path in self.directory.iterdir() if _KEPT.fullmatch(path.name))

    def all(self) -> list[Path]:
        """Kept ones, then the others, oldest first."""
        return [*self.kept(), *self.paths()]

    def described(self) -> list[dict[str, Any]]:
        """Each of `all` as `describe` has it."""
        found = []
        for one in self.all():
            with contextlib.suppress(FileNotFoundError):  # a newer one took its place meanwhile
                found.append(self.describe(one))
        return found

    @staticmethod
    def describe(path: Path) -> dict[str, Any]:
        """One for people: name, saved_at, bytes; epoch, seq and rows_learned unless it is damaged.

        Raises:
            FileNotFoundError: it has gone meanwhile.
        """
        told = {
            "name": path.name,
            "saved_at": datetime.fromtimestamp(path.stat().st_mtime, UTC).isoformat(
                timespec="seconds"
            ),
            "bytes": sum(one.stat().st_size for one in path.iterdir()),
        }
        try:
            state = json.loads((path / "state.json").read_bytes())
            numbers = {"epoch": state["epoch"], "seq": state["seq"]}
            return told | numbers | {"rows_learned": state["counts"].get("rows_learned", 0)}
        except (OSError, ValueError, KeyError):
            return told

    def find(self, name: str) -> Path:
        """The checkpoint of this name, whole or damaged.

        Raises:
            DataError: there is none (code `unknown-checkpoint`).
        """
        for path in self.all():
            if path.name == name:
                return path
        raise DataError(
            f"no checkpoint {name!r} in {self.directory}: `freshrank snapshots list` says which "
            "there are",
            code="unknown-checkpoint",
        )

    def keep(self, name: str) -> Path:
        """Keep the newest whole checkpoint under a name; costs no room while it is the newest.

        Safe beside a trainer that writes here.

        Args:
            name: Letters, digits, `-`, `_` and dots, at most 64.

        Raises:
            DataError: no name, taken, or nothing to keep.
            OSError: the disk refused.
        """
        path = self.directory / f"kept-{name}"
        if not _KEPT.fullmatch(path.name):
            raise DataError(f"{name!r} is no name for a checkpoint: use letters, digits and -_.")
        if path.exists():
            raise DataError(f"{path} is there already: choose another name, or remove it")
        temporary = path.with_name(path.name + _TEMPORARY_SUFFIX)
        self._duplicate_newest(temporary, os.link)
        temporary.rename(path)
        sync_directory(self.directory)
        return path

    def copy(self, target: Path) -> Path | None:
        """Copy the newest whole checkpoint, and those that are kept, into another directory.

        Safe beside a trainer that writes here. A kept one that is damaged is left out.

        Returns:
            The copy of the newest; None where there never was one.

        Raises:
            DataError: there are checkpoints, and none is whole.
            OSError: the disk refused.
        """
        for path in self.kept():
            try:
                verified(path)
            except DamagedCheckpoint as error:
                logger.warning("checkpoint=not-copied path=%s error=%s", path, error)
                continue
            shutil.copytree(path, target / path.name)
        if not self.paths():
            return None
        temporary = target / f"newest{_TEMPORARY_SUFFIX}"
        newest = self._duplicate_newest(temporary, shutil.copyfile)
        return temporary.rename(target / newest.name)

    def _duplicate_newest(self, target: Path, copy_file: Callable[[Any, Any], object]) -> Path:
        """Make `target` a duplicate of the newest whole checkpoint, which is returned."""
        for newest in reversed(self.paths()):
            shutil.rmtree(target, ignore_errors=True)
            target.mkdir()
            try:
                for path in newest.iterdir():
                    copy_file(path, target / path.name)
                verified(target)
            except (FileNotFoundError, DamagedCheckpoint) as error:
                # It went while it was looked at, or is damaged: another one is not.
                logger.warning("checkpoint=not-copied path=%s error=%s", newest, error)
                continue
            return newest
        shutil.rmtree(target, ignore_errors=True)
        raise DataError(f"there is no whole checkpoint in {self.directory} yet")

    def save(self, files: Files, epoch: int = 0) -> Path:
        """Write a checkpoint that has begun, then drop those too many; damaged ones go first.

        Args:
            files: What `Checkpoint.begin` made.
            epoch: Of the trainer that writes; 0 for none.

        Raises:
            OSError: the disk refused; what was there before still is.
            SyncError: a trainer of a later epoch has written one (code `fenced`).
        """
        number = max((_age(path)[1] for path in self.paths()), default=0) + 1
        name = f"{epoch:06d}-{number:012d}" if epoch else f"{number:012d}"
        path = self.directory / f"checkpoint-{name}"
        temporary = path.with_name(path.name + _TEMPORARY_SUFFIX)
        try:
            self._check_epoch(epoch)
            self._sweep(epoch)
            write(temporary, files)
            self._check_epoch(epoch)
            temporary.rename(path)
        except (OSError, SyncError):
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        finally:
            for content in files.values():
                if isinstance(content, Snapshot):
                    content.close()
        sync_directory(self.directory)
        self._trim()
        return path

    def load(self, budgets: Mapping[str, Budget] = NO_BUDGETS) -> Checkpoint | None:
        """The newest one that is whole; None when there never was one.

        Args:
            budgets: Of the tables that have one, by name.

        Raises:
            ConfigError: its tables do not fit their budgets.
            Error: there are checkpoints and none of them is whole (code `checkpoint-damaged`).
            SchemaError: the newest is of a newer format.
        """
        paths = self.paths()
        for path in reversed(paths):
            try:
                checkpoint = read(path, budgets)
            except DamagedCheckpoint as error:
                logger.error("checkpoint=refused path=%s error=%s", path, error)
                self._refused.add(path)
                continue
            return checkpoint
        if paths:
            raise DamagedCheckpoint(
                f"none of the {len(paths)} checkpoints in {self.directory} can be read: "
                "restore the directory from a backup, or move it away to learn again from the "
                "start of the log"
            )
        return None

    def _check_epoch(self, epoch: int) -> None:
        newest = self.newest()
        if newest is not None and _age(newest)[0] > epoch:
            raise SyncError(
                f"{newest} was written by a later trainer, this one has epoch {epoch}: another "
                "trainer took over; stop this one",
                code="fenced",
            )

    def _sweep(self, epoch: int) -> None:
        """Remove what killed trainers left half-written; a later one's may be in the making."""
        for leftover in self.directory.glob(f"checkpoint-*{_TEMPORARY_SUFFIX}"):
            if _age(leftover)[0] <= epoch:
                shutil.rmtree(leftover, ignore_errors=True)

    def _trim(self) -> None:
        whole = [path for path in self.paths() if path not in self._refused]
        for path in [*self._refused, *whole[: -self._keep]]:
            drop(path)


def drop(path: Path) -> None:
    """Remove a checkpoint."""
    # The manifest goes first: half a checkpoint must not look like one.
    (path / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(path, ignore_errors=True)


def _age(path: Path) -> tuple[int, int]:
    """Epoch and number: what orders checkpoints."""
    match = _NAME.fullmatch(path.name)
    return (int(match[1] or 0), int(match[2])) if match else (0, 0)
