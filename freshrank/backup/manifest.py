"""What a backup says of itself, and whether its files are what was written.

```
MANIFEST.json    format, digest of the rest; what this is, size and BLAKE2b of each file
freshrank.yaml   the configuration as it was written
log/             the event log without what was not acknowledged, where it is local
joiner/          the joiners' databases, where the log is local
features/        feature state; state.redis where it is in Redis
trainer/         the newest whole checkpoint, and those that are kept
parameters/      the parameter channel, where it is a directory
```
"""

import hashlib
from functools import partial
from pathlib import Path
from typing import Final

import msgspec

from freshrank.errors import DataError, SchemaError
from freshrank.settings import Settings
from freshrank.transport.files import disk_errors, replace_file, sync_directory

FORMAT: Final = 1
NAME: Final = "MANIFEST.json"
CONFIG: Final = "freshrank.yaml"
REDIS_STATE: Final = "features/state.redis"


class Entry(msgspec.Struct, frozen=True):
    """A file."""

    bytes: int
    blake2b: str


class Manifest(msgspec.Struct, frozen=True):
    """What a backup is.

    Attributes:
        freshrank: Version that wrote it.
        taken_at: ISO 8601, UTC, when it was begun.
        schema_hash: Of features, tasks, model and salt.
        partitions: Of the log.
        parts: Folders it consists of, empty ones too; `parts_of` the configuration.
        log: Where a local log is cut: `topic:partition` -> first offset and end.
        checkpoint: The newest; "" for none.
        log_identity: Of the log that the offsets of `learned` are of.
        learned: `topic:partition` -> next offset, of what is in that checkpoint.
        files: By path below the backup.
    """

    freshrank: str
    taken_at: str
    schema_hash: str
    partitions: int
    parts: list[str]
    log: dict[str, tuple[int, int]]
    checkpoint: str
    log_identity: str
    learned: dict[str, int]
    files: dict[str, Entry]

    @property
    def n_bytes(self) -> int:
        """Of all files but the manifest."""
        return sum(entry.bytes for entry in self.files.values())


class _Version(msgspec.Struct, frozen=True):
    v: int


class _Sealed(msgspec.Struct, frozen=True):
    v: int
    blake2b: str
    manifest: msgspec.Raw


def parts_of(settings: Settings) -> list[str]:
    """The folders of `service.data_dir` that this configuration keeps something in."""
    is_local = {
        "log": settings.log.kind == "local",
        "joiner": settings.log.kind == "local",  # on Kafka a cache of the changelog
        "features": settings.state.kind == "local",
        "trainer": True,
        "parameters": settings.sync.channel.kind == "directory",
    }
    return [name for name, is_kept in is_local.items() if is_kept]


def described(directory: Path) -> dict[str, Entry]:
    """Every file below `directory` by its path there."""
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    return {path.relative_to(directory).as_posix(): entry_of(path) for path in files}


def sync(directory: Path) -> None:
    """Make all that is below `directory` survive a power cut."""
    for path in (directory, *directory.rglob("*")):
        sync_directory(path)


def entry_of(path: Path) -> Entry:
    """Size and digest of a file."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, partial(hashlib.blake2b, digest_size=16))
        return Entry(file.tell(), digest.hexdigest())


def write(directory: Path, manifest: Manifest) -> None:
    """Write the manifest, last of all files."""
    data = msgspec.json.format(msgspec.json.encode(manifest), indent=1)
    sealed = _Sealed(FORMAT, _digest(data), msgspec.Raw(data))
    replace_file(directory / NAME, msgspec.json.encode(sealed) + b"\n")


def verify(directory: Path) -> Manifest:
    """Read a backup's manifest and every file it names.

    Raises:
        DataError: it is none, or a file is missing or not what was written (code
            `backup-damaged`).
        SchemaError: a newer version wrote it (code `newer-version`).
        TransportError: the disk cannot be read.
    """
    manifest = _read(directory)
    for name, entry in manifest.files.items():
        check(directory, name, entry)
    return manifest


def check(directory: Path, name: str, entry: Entry) -> None:
    """See that a file below `directory` is what was written.

    Raises:
        DataError: it is not (code `backup-damaged`).
        TransportError: the disk cannot be read.
    """
    path = directory / name
    with disk_errors(f"read {path}"):
        found = entry_of(path) if path.is_file() else None
    if found != entry:
        told = "missing" if found is None else f"{found.bytes} bytes, digest {found.blake2b}"
        raise DataError(
            f"{path} is not what was written: {told}; it was {entry.bytes} bytes, digest "
            f"{entry.blake2b}: take another backup",
            code="backup-damaged",
        )


def _read(directory: Path) -> Manifest:
    path = directory / NAME
    with disk_errors(f"read {path}"):
        if not path.is_file():
            raise DataError(
                f"{directory} is no backup: it has no {NAME}, which is written last",
                code="backup-damaged",
            )
        data = path.read_bytes()
    try:
        version = msgspec.json.decode(data, type=_Version).v
        if version > FORMAT:
            raise SchemaError(
                f"{path} has format {version}, this program reads up to {FORMAT}: restore it with "
                "the version that wrote it",
                code="newer-version",
            )
        sealed = msgspec.json.decode(data, type=_Sealed)
        if _digest(bytes(sealed.manifest)) != sealed.blake2b:
            raise DataError(
                f"{path} is not what was written: take another backup", code="backup-damaged"
            )
        manifest = msgspec.json.decode(sealed.manifest, type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path} is damaged ({error}): take another backup", code="backup-damaged"
        ) from error
    outside = [name for name in manifest.files if not _is_below(name)]
    if outside:
        raise DataError(
            f"{path} names {outside[0]!r}, which leads out of it", code="backup-damaged"
        )
    return manifest


def _is_below(name: str) -> bool:
    path = Path(name)
    return not path.is_absolute() and ".." not in path.parts


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()
