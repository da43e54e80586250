"""Checkpoints: parameters and offsets in one directory that is there whole or not at all.

```
checkpoint-000000000007/
    MANIFEST.json         size and BLAKE2b of every other file
    state.json            positions, epoch, sequence, counters, what is not published yet
    dense.safetensors     the net and its optimizer
    windows.safetensors   metric windows
    table-<name>.bin      rows, optimizer state, counts, clocks, cursor, tombstones
```
A checkpoint is of one instant, and written while learning goes on: tables chunk by chunk, the rest
is small and copied. It is written beside its place, every file is synced, then the directory is
renamed and its parent synced: a crash leaves the one before. No format here can run code (no
pickle).
"""

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load, save

from embedding_store import Budget, Snapshot, StoreError, Table
from freshrank.errors import ConfigError, Error, SchemaError
from freshrank.transport.files import make_directory, sync_directory

logger = logging.getLogger(__name__)

FORMAT_VERSION: Final = 1
_NAME: Final = re.compile(r"checkpoint-(\d{12})")
_MANIFEST: Final = "MANIFEST.json"
_TEMPORARY_SUFFIX: Final = ".tmp"
_NO_BUDGETS: Final[Mapping[str, Budget]] = {}

Arrays = dict[str, npt.NDArray[Any]]
Files = Mapping[str, Iterable[bytes]]  # by name, in pieces

_UNREADABLE: Final = (
    OSError,
    ValueError,  # JSON that is none
    KeyError,
    TypeError,
    AttributeError,
    SafetensorError,
    StoreError,
)


class DamagedCheckpoint(Error):  # noqa: N818  (it is a state of the disk; the code says error)
    """A checkpoint's files are not what its manifest says, or cannot be read."""

    code = "checkpoint-damaged"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The content of one checkpoint.

    Attributes:
        state: What `state.json` holds.
        dense: Arrays of the dense net and its optimizer.
        windows: Arrays of the metric windows.
        tables: By name.
    """

    state: dict[str, Any]
    dense: Arrays
    windows: Arrays
    tables: Mapping[str, Table]

    def begin(self) -> Files:
        """Every file but the manifest as of now, to be written while learning goes on.

        Raises:
            StoreError: a snapshot of a table is being taken, as by another call of this.
        """
        state = json.dumps({"v": FORMAT_VERSION, **self.state}, indent=1).encode()
        return {
            "state.json": [state],
            "dense.safetensors": [_save(self.dense)],
            "windows.safetensors": [_save(self.windows)],
            **{f"table-{name}.bin": table.begin_snapshot() for name, table in self.tables.items()},
        }


class CheckpointStore:
    """The checkpoints below one directory.

    Args:
        directory: Holds them; made if it is not there.
        keep: How many of the newest stay.

    Attributes:
        n_refused: Damaged checkpoints that were passed over.
    """

    def __init__(self, directory: Path, *, keep: int) -> None:
        self._directory = directory
        self._keep = keep
        self._refused: set[Path] = set()
        make_directory(directory)

    @property
    def n_refused(self) -> int:
        """Damaged checkpoints found."""
        return len(self._refused)

    def paths(self) -> list[Path]:
        """All checkpoints, oldest first."""
        return sorted(path for path in self._directory.iterdir() if _NAME.fullmatch(path.name))

    def save(self, files: Files) -> Path:
        """Write a checkpoint that has begun, then drop those too many; damaged ones go first.

        Raises:
            OSError: the disk refused; what was there before still is.
        """
        existing = self.paths()
        number = int(existing[-1].name.split("-")[1]) + 1 if existing else 1
        path = self._directory / f"checkpoint-{number:012d}"
        temporary = path.with_name(path.name + _TEMPORARY_SUFFIX)
        try:
            _write(temporary, files)
            temporary.rename(path)
        except OSError:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        finally:
            for content in files.values():
                if isinstance(content, Snapshot):
                    content.close()
        sync_directory(self._directory)
        self._trim()
        return path

    def load(self, budgets: Mapping[str, Budget] = _NO_BUDGETS) -> Checkpoint | None:
        """The newest one that is whole; None when there never was one.

        Args:
            budgets: Of the tables that have one, by name.

        Raises:
            ConfigError: its tables do not fit their budgets.
            Error: there are checkpoints and none of them is whole (code `checkpoint-damaged`).
            SchemaError: the newest is of a newer format.
        """
        for leftover in self._directory.glob(f"checkpoint-*{_TEMPORARY_SUFFIX}"):
            shutil.rmtree(leftover)
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
                f"none of the {len(paths)} checkpoints in {self._directory} can be read: "
                "restore the directory from a back-up, or move it away to learn again from the "
                "start of the log"
            )
        return None

    def _trim(self) -> None:
        whole = [path for path in self.paths() if path not in self._refused]
        for path in [*self._refused, *whole[: -self._keep]]:
            # The manifest goes first: half a checkpoint must not look like one.
            (path / _MANIFEST).unlink(missing_ok=True)
            shutil.rmtree(path, ignore_errors=True)


def read(path: Path, budgets: Mapping[str, Budget] = _NO_BUDGETS) -> Checkpoint:
    """Read and verify one checkpoint.

    Args:
        path: Its directory.
        budgets: Of the tables that have one, by name.

    Raises:
        ConfigError: its tables do not fit their budgets.
        DamagedCheckpoint: a file is missing, has another size or digest, or its reader refuses it.
        SchemaError: it is of a newer format.
    """
    try:
        manifest = json.loads((path / _MANIFEST).read_bytes())
        for name, entry in manifest["files"].items():
            _verify(path / name, entry)
        state = json.loads((path / "state.json").read_bytes())
        if state["v"] > FORMAT_VERSION:
            raise SchemaError(
                f"{path} has format {state['v']}, this program reads up to {FORMAT_VERSION}: "
                "upgrade it, or move that checkpoint away to go on from an older one"
            )
        return Checkpoint(
            state=state,
            dense=load((path / "dense.safetensors").read_bytes()),
            windows=load((path / "windows.safetensors").read_bytes()),
            tables=_tables(
                path,
                {
                    name.removeprefix("table-").removesuffix(".bin"): path / name
                    for name in manifest["files"]
                    if name.startswith("table-")
                },
                budgets,
            ),
        )
    except _UNREADABLE as error:
        raise DamagedCheckpoint(f"{path}: {type(error).__name__}: {error}") from error


def _tables(
    path: Path, snapshots: Mapping[str, Path], budgets: Mapping[str, Budget]
) -> dict[str, Table]:
    try:
        return {
            name: Table.restore(data, budget=budgets.get(name)) for name, data in snapshots.items()
        }
    except StoreError as error:
        # Damaged, or too large for its budget: without limits only damage is refused.
        needed = {name: _needed_bytes(data) for name, data in snapshots.items()}
        shares = [
            f"{name} {n_bytes} of {budgets[name].max_bytes}"
            for name, n_bytes in needed.items()
            if name in budgets
        ]
        raise ConfigError(
            f"{path}: its tables need {sum(needed.values())} bytes ({', '.join(shares)}): "
            "raise store.max_bytes or the features' max_bytes, or leave them out"
        ) from error


def _needed_bytes(snapshot: Path) -> int:
    return Table.restore(snapshot, budget=Budget(1 << 62)).statistics()["budget_bytes"]


def _verify(path: Path, entry: dict[str, Any]) -> None:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, _new_digest).hexdigest()
        n_bytes = file.tell()
    if n_bytes != entry["bytes"] or digest != entry["blake2b"]:
        raise DamagedCheckpoint(
            f"{path} is not what was written: {n_bytes} bytes of {entry['bytes']}, "
            f"digest {digest}, expected {entry['blake2b']}"
        )


def _save(arrays: Arrays) -> bytes:
    data: bytes = save({name: np.ascontiguousarray(array) for name, array in arrays.items()})
    return data


def _write(directory: Path, files: Files) -> None:
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    entries = {name: _write_file(directory / name, chunks) for name, chunks in files.items()}
    manifest = json.dumps({"v": FORMAT_VERSION, "files": entries}, indent=1)
    _write_file(directory / _MANIFEST, [manifest.encode()])
    sync_directory(directory)


def _write_file(path: Path, chunks: Iterable[bytes]) -> dict[str, Any]:
    """Write and sync a file; returns what the manifest says of it."""
    digest = _new_digest()
    with path.open("wb") as file:
        for chunk in chunks:
            file.write(chunk)
            digest.update(chunk)
        file.flush()
        os.fsync(file.fileno())
        return {"bytes": file.tell(), "blake2b": digest.hexdigest()}


def _new_digest() -> "hashlib.blake2b":
    return hashlib.blake2b(digest_size=16)
