"""A disk that fails one process: `faulty_disk.c`, compiled and preloaded."""

from contextlib import suppress
from pathlib import Path

from tests.fault.preloaded import compiled


class FaultyDisk:
    """Fails the processes that have its environment, below one directory.

    Args:
        directory: What is below it is on the disk.
        scratch: Beside the disk.
    """

    def __init__(self, directory: Path, scratch: Path) -> None:
        self._now = scratch / "errno"
        self.environment = {
            "LD_PRELOAD": compiled("faulty_disk", scratch),
            "FAULTY_DISK": f"{directory}/",
            "FAULTY_DISK_ERRNO": str(self._now),
        }

    def fail(self, number: int) -> None:
        """From now on every access is refused with this errno; with EROFS reading is not."""
        part = self._now.with_suffix(".tmp")
        part.write_text(str(number))
        part.replace(self._now)

    def mend(self) -> None:
        """From now on it is as good as any."""
        with suppress(FileNotFoundError):
            self._now.unlink()
