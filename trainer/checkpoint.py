"""Checkpoints: parameters and offsets in one directory that is there whole or not at all.

```
checkpoint-000003-000000000007/
    MANIFEST.json         size and SHA-256 (before 2026-11-23 BLAKE2b) of every other file
    state.json            positions, epoch, sequence, counters, what is not published yet
    dense.safetensors     the net and its optimizer
    windows.safetensors   metric windows
    guard.safetensors     what the guard goes by; not of a replay, nor of before 2026-11-22
    table-<name>.bin      rows, optimizer state, counts, clocks, cursor, tombstones
```
A checkpoint is of one instant, and written while learning goes on: tables chunk by chunk, the rest
is small and copied. It is written beside its place, every file is synced, then the directory is
renamed and its parent synced: a crash leaves the one before. No format here can run code (no
pickle).
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load, save

from embedding_store import Budget, StoreError, Table
from freshrank.errors import ConfigError, Error, SchemaError
from freshrank.transport.files import sync_directory

FORMAT_VERSION: Final = 1
# Processors have instructions for it, so that it takes a third of BLAKE2b's time.
_DIGEST: Final = "sha256"
# Checkpoints of before have the other one.
_DIGESTS: Final[Mapping[str, Callable[[], Any]]] = {
    _DIGEST: hashlib.sha256,
    "blake2b": partial(hashlib.blake2b, digest_size=16),
}
MANIFEST: Final = "MANIFEST.json"
NO_BUDGETS: Final[Mapping[str, Budget]] = {}

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
        guard: Arrays of what the guard goes by; none in old ones.
        tables: By name.
    """

    state: dict[str, Any]
    dense: Arrays
    windows: Arrays
    guard: Arrays
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
            **({"guard.safetensors": [_save(self.guard)]} if self.guard else {}),
            **{f"table-{name}.bin": table.begin_snapshot() for name, table in self.tables.items()},
        }


def read(
    path: Path, budgets: Mapping[str, Budget] = NO_BUDGETS, *, is_verified: bool = False
) -> Checkpoint:
    """Read and verify one checkpoint.

    Args:
        path: Its directory.
        budgets: Of the tables that have one, by name.
        is_verified: `verified` has just read it: only the tables' own checksums are compared again.

    Raises:
        ConfigError: its tables do not fit their budgets.
        DamagedCheckpoint: a file is missing, has another size or digest, or its reader refuses it.
        SchemaError: it is of a newer format.
    """
    try:
        manifest = json.loads((path / MANIFEST).read_bytes())
        snapshots = {name: path / name for name in manifest["files"] if name.startswith("table-")}
        entries = {} if is_verified else manifest["files"]
        for name in entries.keys() - snapshots.keys():
            _verify(path / name, entries[name])
        state = _state(path)
        has_guard = "guard.safetensors" in manifest["files"]
        # A table reads itself for about as long as its digest takes, on another core.
        with ThreadPoolExecutor(1, "digests") as pool:
            verified = [
                pool.submit(_verify, path / name, entries[name])
                for name in entries.keys() & snapshots.keys()
            ]
            tables = _tables(path, snapshots, budgets)
        for one in verified:
            one.result()
        return Checkpoint(
            state=state,
            dense=load((path / "dense.safetensors").read_bytes()),
            windows=load((path / "windows.safetensors").read_bytes()),
            guard=load((path / "guard.safetensors").read_bytes()) if has_guard else {},
            tables=tables,
        )
    except _UNREADABLE as error:
        raise DamagedCheckpoint(f"{path}: {type(error).__name__}: {error}") from error


def verified(path: Path) -> dict[str, Any]:
    """What `state.json` of a checkpoint holds, all of whose files are as they were written.

    Raises:
        DamagedCheckpoint: they are not.
        SchemaError: it is of a newer format.
    """
    try:
        manifest = json.loads((path / MANIFEST).read_bytes())
        for name, entry in manifest["files"].items():
            _verify(path / name, entry)
        return _state(path)
    except _UNREADABLE as error:
        raise DamagedCheckpoint(f"{path}: {type(error).__name__}: {error}") from error


def _state(path: Path) -> dict[str, Any]:
    state: dict[str, Any] = json.loads((path / "state.json").read_bytes())
    if state["v"] > FORMAT_VERSION:
        raise SchemaError(
            f"{path} has format {state['v']}, this program reads up to {FORMAT_VERSION}: "
            "upgrade it, or move that checkpoint away to go on from an older one"
        )
    return state


def _tables(
    path: Path, files: Mapping[str, Path], budgets: Mapping[str, Budget]
) -> dict[str, Table]:
    snapshots = {
        name.removeprefix("table-").removesuffix(".bin"): file for name, file in files.items()
    }
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
        name = _DIGEST if _DIGEST in entry else "blake2b"
        digest = hashlib.file_digest(file, _DIGESTS[name]).hexdigest()
        n_bytes = file.tell()
    if n_bytes != entry["bytes"] or digest != entry[name]:
        raise DamagedCheckpoint(
            f"{path} is not what was written: {n_bytes} bytes, digest {digest}, expected {entry}"
        )


def _save(arrays: Arrays) -> bytes:
    data: bytes = save({name: np.ascontiguousarray(array) for name, array in arrays.items()})
    return data


def write(directory: Path, files: Files) -> None:
    """Write every file, synced, and the manifest last.

    Raises:
        OSError: the disk refused.
    """
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    entries = {name: _write_file(directory / name, chunks) for name, chunks in files.items()}
    manifest = json.dumps({"v": FORMAT_VERSION, "files": entries}, indent=1)
    _write_file(directory / MANIFEST, [manifest.encode()])
    sync_directory(directory)


def _write_file(path: Path, chunks: Iterable[bytes]) -> dict[str, Any]:
    """Write and sync a file; returns what the manifest says of it."""
    digest = hashlib.new(_DIGEST)
    with path.open("wb") as file:
        for chunk in chunks:
            file.write(chunk)
            digest.update(chunk)
        file.flush()
        os.fsync(file.fileno())
        return {"bytes": file.tell(), _DIGEST: digest.hexdigest()}
