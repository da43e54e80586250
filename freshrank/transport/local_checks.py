"""What the local log refuses before it touches a record."""

import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from freshrank.errors import TransportError
from freshrank.transport.base import RECORD_BYTES_MAX, NewRecord
from freshrank.transport.files import disk_errors, make_directory, replace_file, try_lock
from freshrank.transport.records import KEY_BYTES_MAX, PRODUCER_BYTES_MAX

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


def check_append(
    topic: str,
    records: Sequence[NewRecord],
    partition: int | None,
    producer: str | None,
    first_sequence: int | None,
) -> None:
    """Refuse an append that breaks the rules of `EventLog.append`.

    Raises:
        TransportError: code `bad-append` or `record-too-large`.
    """
    if producer is not None or first_sequence is not None:
        if producer is None or partition is None or first_sequence is None:
            raise TransportError(
                "an idempotent append needs producer, first_sequence and partition together",
                code="bad-append",
            )
        if first_sequence < 0 or not 0 < len(producer.encode()) <= PRODUCER_BYTES_MAX:
            raise TransportError(
                f"producer {producer!r} with first_sequence {first_sequence}: the name has 1 to "
                f"{PRODUCER_BYTES_MAX} bytes, a sequence counts from 0",
                code="bad-append",
            )
    for index, record in enumerate(records):
        if len(record.value) >= RECORD_BYTES_MAX or len(record.key) > KEY_BYTES_MAX:
            raise TransportError(
                f"record {index} for {topic}: its value has {len(record.value)} bytes and must "
                f"stay below {RECORD_BYTES_MAX}, its key {len(record.key)} of at most "
                f"{KEY_BYTES_MAX}; split it under the same key",
                code="record-too-large",
            )
