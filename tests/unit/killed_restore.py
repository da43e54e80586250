"""Restores that are killed at every step they take on the disk, each in a process of its own.

    python killed_restore.py DATA_DIR BACKUP SCRATCH

Prints a line per kill: what stood there at once, and after whoever comes next, as `old`, `new` or
`half`.
"""

import os
import shutil
import signal
import sys
from pathlib import Path

from freshrank.backup.swap import finish
from tests.unit.backups import content, put_back

_STEPS = ("os.rename", "os.mkdir", "os.remove", "os.rmdir", "shutil.copyfile")
_STEPS_MAX = 1_000


def main(data_dir: str, backup: str, scratch: str) -> None:
    old = content(Path(data_dir))
    whole = Path(scratch) / "whole"
    put_back(whole, Path(backup))
    new = content(whole)
    for step in range(1, _STEPS_MAX):
        directory = Path(scratch) / f"killed-{step}"
        shutil.copytree(data_dir, directory)
        child = os.fork()
        if child == 0:
            killed_at(step)
            put_back(directory, Path(backup), is_forced=True)
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        finish(directory)
        found = without_leftovers(content(directory))
        was = "old" if found == old else "new" if found == new else "half"
        is_kept = was == "old" or set_aside(directory) == old
        print(was if is_kept else "lost", flush=True)
        shutil.rmtree(directory)
        if os.WIFEXITED(status):
            return


def killed_at(step: int) -> None:
    n_left = step

    def count(event: str, _: object) -> None:
        nonlocal n_left
        if event in _STEPS:
            n_left -= 1
            if n_left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)


def without_leftovers(found: dict[str, str]) -> dict[str, str]:
    """What is not of a restore that was cut short before anything had changed."""
    return {name: digest for name, digest in found.items() if not name.startswith("restore-")}


def set_aside(directory: Path) -> dict[str, str]:
    [before] = directory.glob("before-*")
    return content(before)


if __name__ == "__main__":
    main(*sys.argv[1:])
