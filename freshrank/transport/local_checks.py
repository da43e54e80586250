"""What the local log refuses before it touches a record."""

import secrets
from pathlib import Path
from typing import Final

import msgspec

from freshrank.errors import TransportError
from freshrank.transport.files import disk_errors, make_directory, replace_file, try_lock

_FORMAT: Final = 1
# Four thousand partitions of one topic are more than one machine has files for.
_PARTITIONS_MAX: Final = 4_096


class _Meta(msgspec.Struct, frozen=True):
    format: int
    n_partitions: int
    identity: str = ""


def take_lock(directory: Path) -> int:
    """Become the one process that writes the log in `directory`, which is made if need be.

    Returns:
        A descriptor that holds the lock until it is closed.

    Raises:
        TransportError: another one writes (code `log-in-use`).
    """
    with disk_errors(f"open the log in {directory}"):
        make_directory(directory)
        lock = try_lock(directory / "LOCK")
    if lock is None:
        raise TransportError(
            f"the log in {directory} is already open for writing: stop the process that has it, "
            "or open the log read-only",
            code="log-in-use",
        )
    return lock


def check_meta(directory: Path, n_partitions: int, *, writable: bool) -> str:
    """Check the log in `directory` for format and number of partitions; a new one gets them.

    Returns:
        The log's identity: 16 random hex digits from its first opening for writing.

    Raises:
        TransportError: it differs, or there is no log to read.
    """
    if not 1 <= n_partitions <= _PARTITIONS_MAX:
        raise TransportError(
            f"n_partitions is {n_partitions}; it must be 1 to {_PARTITIONS_MAX}",
            code="log-partitions",
        )
    path = directory / "log.json"
    with disk_errors(f"open the log in {directory}"):
        if not path.exists():
            if not writable:
                raise TransportError(
                    f"there is no log in {directory} yet: start the process that writes it first",
                    code="log-missing",
                )
            _write_meta(path, n_partitions)
        data = path.read_bytes()
    try:
        meta = msgspec.json.decode(data, type=_Meta)
    except msgspec.DecodeError as error:
        raise TransportError(
            f'{path} is damaged ({error}): write {{"format":1,"n_partitions":N}} with the number '
            "of partitions this log was made with",
            code="log-damaged",
        ) from error
    if meta.format != _FORMAT:
        raise TransportError(
            f"{path} has format {meta.format}, this program reads {_FORMAT}: open the log with "
            "the version that wrote it",
            code="newer-version",
        )
    if meta.n_partitions != n_partitions:
        raise TransportError(
            f"the log in {directory} has {meta.n_partitions} partitions, not {n_partitions}: the "
            "number cannot change, as records are found by it",
            code="log-partitions",
        )
    if not meta.identity and writable:  # made by an earlier version
        with disk_errors(f"open the log in {directory}"):
            return _write_meta(path, n_partitions)
    return meta.identity


def _write_meta(path: Path, n_partitions: int) -> str:
    identity = secrets.token_hex(8)
    replace_file(path, msgspec.json.encode(_Meta(_FORMAT, n_partitions, identity)))
    return identity
