"""Who writes a partition of an archive: one process at a time, by a lock of the kernel.

Joiners that share the partitions of a topic write one archive together. One that was frozen while
its partition went to another still has the lock, so its half a file is nobody else's.
"""

import os
import secrets
from pathlib import Path

from freshrank.errors import TransportError
from freshrank.transport.files import holds_lock, try_lock


class Claims:
    """The partitions that are written here.

    Args:
        directory: Of the archive.
        log: Identity of the log that is archived.
    """

    def __init__(self, directory: Path, log: str) -> None:
        self._directory = directory
        self._log = log
        self._name = secrets.token_hex(4)
        self._locks: dict[int, int] = {}

    def __contains__(self, partition: int) -> bool:
        """Whether the partition is written here."""
        return partition in self._locks

    def take(self, partition: int) -> bool:
        """Whether the partition is written here from now on; False while another process does.

        Raises:
            OSError: the disk refused.
        """
        lock = try_lock(self._directory / f".{partition}-{self._log}.lock")
        if lock is None:
            return False
        try:
            for leftover in self._directory.glob(f".{partition}-{self._log}*.tmp"):
                leftover.unlink(missing_ok=True)  # of one that was killed
        except BaseException:
            os.close(lock)  # else this process would wait for itself
            raise
        self._locks[partition] = lock
        return True

    def check(self, partition: int) -> None:
        """Refuse to go on with a partition whose lock another machine's disk has given away.

        Raises:
            TransportError: another process has it (code `archive-taken`).
        """
        if not holds_lock(self._locks[partition]):
            raise self.lost(partition)

    def lost(self, partition: int) -> TransportError:
        """Leave it to the one who has it: what to raise."""
        self.release(partition)
        return TransportError(
            f"another process archives partition {partition} by now, as this one was cut off",
            code="archive-taken",
        )

    def temporary(self, partition: int) -> Path:
        """The file in the making, which nobody else writes."""
        return self._directory / f".{partition}-{self._log}-{self._name}.tmp"

    def release(self, partition: int) -> None:
        """Leave it to others."""
        if (lock := self._locks.pop(partition, None)) is not None:
            os.close(lock)

    def release_all(self) -> None:
        """Leave all of them to others."""
        for partition in list(self._locks):
            self.release(partition)
