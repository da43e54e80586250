"""The end of a partition that grows: the last segment, open for writing."""

import logging
import os
from typing import Self

from freshrank.transport.files import write_all
from freshrank.transport.segments import Scan, Segment

logger = logging.getLogger(__name__)

# Appends make the file longer, and fdatasync covers the length; macOS has only fsync.
_sync_data = getattr(os, "fdatasync", os.fsync)


class Tail:
    """Writes one segment file. Its caller sees to it that one thread at a time does.

    Attributes:
        segment: The segment.
        position: Where the next record goes, in bytes.
        first_appended_at_ms: Of its first record; None while it is empty.
    """

    def __init__(self, segment: Segment, position: int, first_appended_at_ms: int | None) -> None:
        self.segment = segment
        self.position = position
        self.first_appended_at_ms = first_appended_at_ms
        self._descriptor = os.open(segment.path, os.O_RDWR)

    @classmethod
    def recover(cls, segment: Segment, scan: Scan) -> Self:
        """Go on behind the last whole record that `scan` found; the rest is cut off."""
        tail = cls(segment, scan.end_position, scan.first_appended_at_ms)
        n_torn = scan.file_bytes - scan.end_position
        if n_torn > 0:
            logger.warning("segment=%s torn_bytes=%d cut", segment.path, n_torn)
            tail.cut(scan.end_position)
        return tail

    @property
    def is_empty(self) -> bool:
        """True while it holds no record."""
        return self.position == self.segment.data_position

    def append(self, data: bytes, appended_at_ms: int) -> None:
        """Write `data` behind the rest, or nothing of it.

        Raises:
            OSError: The disk refused.
        """
        try:
            write_all(self._descriptor, data, self.position)
        except OSError:
            os.ftruncate(self._descriptor, self.position)
            raise
        self.position += len(data)
        if self.first_appended_at_ms is None:
            self.first_appended_at_ms = appended_at_ms

    def cut(self, position: int) -> None:
        """Drop everything from byte `position` on."""
        os.ftruncate(self._descriptor, position)
        self.position = position
        if self.is_empty:
            self.first_appended_at_ms = None

    def sync(self) -> None:
        """Make what was written survive a power cut."""
        _sync_data(self._descriptor)

    def close(self) -> None:
        """Release the file."""
        os.close(self._descriptor)
