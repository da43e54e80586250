"""Group commit: of several threads that wait for their writes, one syncs for all."""

import threading
from collections.abc import Callable

from freshrank.errors import TransportError


class GroupSync:
    """Knows up to where a partition was written, released for syncing, and acknowledged.

    After a failed sync nobody knows what is on disk, so every write that waits is refused, and the
    writer takes everything unacknowledged back before it goes on (`restart`).
    """

    def __init__(self, sync_to: Callable[[int], None]) -> None:
        self._sync_to = sync_to
        self._condition = threading.Condition()
        self._is_syncing = False
        self._released = (0, 0)
        self.acknowledged = (0, 0)
        self.generation = 0
        self.has_failed = False

    def restart(self, offset: int, position: int) -> None:
        """Everything before `offset` is on disk, and there is nothing behind it."""
        with self._condition:
            self._released = self.acknowledged = (offset, position)
            self.generation += 1
            self.has_failed = False

    def move(self, position: int) -> None:
        """A new segment begins at the acknowledged end, its records at byte `position`."""
        with self._condition:
            self._released = self.acknowledged = (self.acknowledged[0], position)

    def release(self, offset: int, position: int) -> None:
        """Let everything before `offset` be synced."""
        with self._condition:
            self._released = (offset, position)

    def sync(self, offset: int, generation: int) -> None:
        """Return once everything before `offset` is acknowledged; it was released before.

        Args:
            offset: What to wait for.
            generation: As it was when that was written.

        Raises:
            TransportError: the disk failed; what waited is not in the log.
        """
        with self._condition:
            while True:
                if self.generation != generation or self.has_failed:
                    raise TransportError(
                        "the disk failed while syncing, so the records were taken back: "
                        "append them again",
                        code="disk-error",
                    )
                if self.acknowledged[0] >= offset:
                    return
                if not self._is_syncing:
                    break
                self._condition.wait()
            self._is_syncing = True
            released = self._released
        is_synced = False
        try:
            self._sync_to(released[0])
            is_synced = True
        finally:
            with self._condition:
                self._is_syncing = False
                if is_synced:
                    self.acknowledged = released
                else:
                    self.has_failed = True
                self._condition.notify_all()
