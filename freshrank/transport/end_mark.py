"""END: the offset up to which a partition is acknowledged, in 16 bytes beside its segments.

Other processes read it to see how far they may read: nothing behind it is certain to survive, so
nobody may learn from it. And at open it tells a torn tail (behind END: cut) from damage
(before END: refused). It is written after each fsync but not fsynced itself: it may lag after a
power cut, it never leads.
"""

import os
import struct
from pathlib import Path
from typing import Final

from freshrank.transport.files import replace_file, write_all

_LAYOUT: Final = struct.Struct("<QQ")
_ALL_ONES: Final = 0xFFFF_FFFF_FFFF_FFFF
# A read that meets a write in progress sees a mismatch and looks again; a write takes microseconds.
_N_TRIES: Final = 100


class EndMark:
    """The END file of one partition; its descriptor is opened at first use."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "END"
        self._descriptor: int | None = None

    def read(self) -> int | None:
        """The acknowledged end offset; None when there is no (readable) END."""
        if self._descriptor is None:
            try:
                self._descriptor = os.open(self.path, os.O_RDONLY)
            except FileNotFoundError:
                return None
        for _ in range(_N_TRIES):
            data = os.pread(self._descriptor, _LAYOUT.size, 0)
            if len(data) == _LAYOUT.size:
                offset, check = _LAYOUT.unpack(data)
                if offset ^ check == _ALL_ONES:
                    return int(offset)
        return None

    def create(self, offset: int) -> None:
        """Set END, making the file if need be, and keep it open for `write`.

        An existing file is written in place: other processes hold it open.
        """
        self.close()
        if not self.path.exists():
            replace_file(self.path, _pack(offset))
        self._descriptor = os.open(self.path, os.O_RDWR)
        self.write(offset)

    def write(self, offset: int) -> None:
        """Move the end; only after `create`."""
        assert self._descriptor is not None  # noqa: S101 - created with the partition
        write_all(self._descriptor, _pack(offset), 0)

    def close(self) -> None:
        """Release the file."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def _pack(offset: int) -> bytes:
    return _LAYOUT.pack(offset, offset ^ _ALL_ONES)
