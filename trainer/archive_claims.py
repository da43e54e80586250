"""Who writes a partition of an archive: one process at a time, by a lock of the kernel.

Joiners that share the partitions of a topic write one archive together. One that was frozen while
its partition went to another still has the lock, so its half a file is nobody else's.
"""

import os
from pathlib import Path

from freshrank.transport.files import try_lock


class Claims:
    """The partitions that are written here.

    Args:
        directory: Of the archive.
        log: Identity of the log that is archived.
    """

    def __init__(self, directory: Path, log: str) -> None:
        self._directory = directory
        self._log = log
        self._locks: dict[int, int] = {}

    def take(self, partition: int) -> bool:
        """Whether the partition is written here from now on; False while another process does.

        Raises:
            OSError: the disk refused.
        """
        lock = try_lock(self._directory / f".{partition}-{self._log}.lock")
        if lock is None:
            return False
        self._locks[partition] = lock
        return True

    def release(self) -> None:
        """Leave all of them to others."""
        for lock in self._locks.values():
            os.close(lock)
        self._locks.clear()
