"""Small promises on files: replaced whole or not at all, locked by one, full disks told apart."""

import contextlib
import errno
import fcntl
import os
import threading
from collections.abc import Iterator
from pathlib import Path

from freshrank.errors import TransportError

# EFBIG is a full disk too: a quota of the process (ulimit -f) instead of one of the disk.
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
# No trying again mends these: after a failed write nobody knows what the disk holds, and a file
# system that met errors is mounted read-only.
_FAILED = frozenset({errno.EIO, errno.EROFS})

_TEMPORARY_SUFFIX = ".tmp"


@contextlib.contextmanager
def disk_errors(what: str) -> Iterator[None]:
    """Turn an `OSError` inside into a `TransportError`.

    Args:
        what: What was being done, e.g. `append to /data/log/…`.

    Raises:
        TransportError: code `disk-full` when there is no room left, `disk-failed` when the disk
            is broken or read-only, else `disk-error`.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise TransportError(
                f"{what}: the disk is full ({error}); nothing of it was kept. "
                "Free some space and try again",
                code="disk-full",
            ) from error
        if has_failed(error):
            raise disk_failed(what, error) from error
        raise TransportError(
            f"{what}: {error}; check the disk and the rights of this user", code="disk-error"
        ) from error


def has_failed(error: OSError) -> bool:
    """The disk is broken or read-only, as opposed to full or busy: trying again is of no use."""
    return error.errno in _FAILED


def disk_failed(what: str, error: Exception) -> TransportError:
    """The error that ends a process whose state this disk holds (code `disk-failed`)."""
    return TransportError(
        f"{what}: {error}: the disk is broken or read-only; mend it and start again",
        code="disk-failed",
    )


def sync_directory(directory: Path) -> None:
    """Make renames inside `directory` survive a power cut; of a file its content."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_directory(directory: Path, *, is_durable: bool = True) -> None:
    """Create `directory` and what leads to it, each one entered durably into its parent."""
    missing = [path for path in (directory, *directory.parents) if not path.exists()]
    directory.mkdir(parents=True, exist_ok=True)
    if is_durable:
        for path in missing:
            sync_directory(path.parent)


def read_file(path: Path, n_bytes: int = -1) -> bytes | None:
    """A file's first bytes, by default all of them; None where there is none.

    Raises:
        TransportError: as `disk_errors`.
    """
    with disk_errors(f"read {path}"):
        try:
            with path.open("rb") as file:
                return file.read(n_bytes)
        except FileNotFoundError:
            return None


def write_all(descriptor: int, data: bytes, position: int) -> None:
    """Write all of `data` at byte `position`; a short write is continued until the disk refuses."""
    view = memoryview(data)
    while view:
        n_written = os.pwrite(descriptor, view, position)
        view = view[n_written:]
        position += n_written


def replace_file(path: Path, data: bytes, *, is_durable: bool = True) -> None:
    """Put `data` at `path` in one step: readers see the old file or the new one, never a part.

    Args:
        path: The file; its directory exists.
        data: All of its bytes.
        is_durable: Also survive a power cut after returning.

    Raises:
        OSError: The disk refused; the old file stands and nothing is left behind.
    """
    name = f".{path.name}.{os.getpid()}-{threading.get_ident()}{_TEMPORARY_SUFFIX}"
    temporary = path.with_name(name)
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        try:
            write_all(descriptor, data, 0)
            if is_durable:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
        temporary.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    if is_durable:
        sync_directory(path.parent)


def remove_temporary_files(directory: Path) -> None:
    """Remove what a killed `replace_file` left; only where nobody else may be writing."""
    for path in directory.glob(f"*{_TEMPORARY_SUFFIX}"):
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock file at `path`, waiting for whoever has it; the kernel frees it at a crash."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def try_lock(path: Path) -> int | None:
    """Take the lock file at `path` without waiting.

    Returns:
        A descriptor that holds the lock until it is closed; None when another holds it.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except OSError:  # of a disk that has no locks
        os.close(descriptor)
        raise
    return descriptor


def holds_lock(descriptor: int) -> bool:
    """Whether what `try_lock` has returned still holds its lock; takes it again if nobody has."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
