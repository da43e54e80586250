"""Folders put in place of others, all of them or none, whatever dies when.

```
restore-<time>.tmp/    being written; nothing has changed yet
restore-<time>/        whole: the renaming that made it so decides
before-<time>/         what stood in the way, moved there folder by folder
```
Whoever opens the data directory next finishes what was decided, so nobody meets half of it. Renames
stay below the data directory, which may be a file system of its own.
"""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Final

from freshrank.transport.files import disk_errors, locked, make_directory, sync_directory

_DECIDED: Final = re.compile(r"restore-(\d{8}T\d{6}Z)")
_TEMPORARY_SUFFIX: Final = ".tmp"


def swap(directory: Path, time: str, fill: Callable[[Path], None]) -> None:
    """Put every folder that `fill` makes in its place below `directory`.

    Args:
        directory: Whose folders they become.
        time: Names this, as `20261122T061500Z`.
        fill: Makes the folders below the directory it is given, synced.

    Raises:
        TransportError: the disk refused; nothing has changed, or `finish` will end it.
    """
    temporary = directory / f"restore-{time}{_TEMPORARY_SUFFIX}"
    with disk_errors(f"restore {directory}"):
        make_directory(directory)
        for leftover in directory.glob(f"restore-*{_TEMPORARY_SUFFIX}"):
            shutil.rmtree(leftover)
        temporary.mkdir()
        try:
            fill(temporary)
            sync_directory(temporary)
            temporary.rename(temporary.with_suffix(""))
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        sync_directory(directory)
    finish(directory)


def finish(directory: Path) -> None:
    """End what was decided: to be called by whoever opens the data directory, before all else.

    Raises:
        TransportError: the disk refused.
    """
    with disk_errors(f"finish the restoring of {directory}"):
        if not _decided(directory):
            return
        with locked(directory / "RESTORE.lock"):
            for staged in _decided(directory):  # others may have ended it meanwhile
                _move(directory, staged)


def _decided(directory: Path) -> list[Path]:
    found = directory.iterdir() if directory.is_dir() else ()
    return sorted(path for path in found if _DECIDED.fullmatch(path.name))


def _move(directory: Path, staged: Path) -> None:
    before = directory / staged.name.replace("restore-", "before-")
    for folder in sorted(staged.iterdir()):
        place = directory / folder.name
        if place.exists():
            before.mkdir(exist_ok=True)
            place.rename(before / folder.name)
        folder.rename(place)
    for changed in (before, directory):
        if changed.exists():
            sync_directory(changed)
    shutil.rmtree(staged)
