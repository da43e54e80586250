"""Takes forgotten ids out of the checkpoints of before.

Once a newer one is saved the trainer's own older ones go: they would leave soon anyhow. Those that
somebody kept are written anew, without the id, and without the rows the guard went by, which going
back does not read.
"""

import contextlib
import json
import logging
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from embedding_store import StoreError, Table
from freshrank.errors import Error
from freshrank.transport.files import sync_directory
from trainer.checkpoint import MANIFEST, verified, write
from trainer.checkpoint_store import CheckpointStore, drop
from trainer.denials import Denial, Denier

logger = logging.getLogger(__name__)

_PREFIX: Final = "scrubbed-"  # of one that is being written: no checkpoint has such a name
_CHUNK_BYTES: Final = 1 << 20


def scrub(store: CheckpointStore, saved: Path, denials: Sequence[Denial], denier: Denier) -> bool:
    """Leave no checkpoint that knows one of these ids from before it was denied.

    Args:
        store: The checkpoints.
        saved: The one that is saved and knows none.
        denials: The ids.
        denier: Takes them out of tables.

    Returns:
        False when some could not be scrubbed, which is logged: to be tried again.
    """
    is_clean = True
    _finish(store)
    paths = store.paths()
    for path in paths[: paths.index(saved)] if saved in paths else ():
        drop(path)
    for path in store.kept():
        try:
            state = verified(path)
            known = {Denial.from_json(one).name for one in state.get("denied", ())}
            if lacking := [one for one in denials if one.name not in known]:
                _write_anew(path, state, lacking, denier)
        except (Error, OSError, StoreError) as error:
            is_clean = False
            logger.error("checkpoint=not-scrubbed path=%s error=%s", path, error)
    return is_clean


def _write_anew(
    path: Path, state: dict[str, Any], denials: Sequence[Denial], denier: Denier
) -> None:
    changed: set[str] = set()
    read: set[str] = set()
    for one in denials:
        for names, more in zip((changed, read), denier.touched(one.slot), strict=True):
            names |= more
    tables = {name: Table.restore(path / f"table-{name}.bin") for name in changed | read}
    for one in denials:
        denier.erase(tables, one.slot, one.id)
    denied = [*state.get("denied", ()), *map(asdict, denials)]
    names = json.loads((path / MANIFEST).read_bytes())["files"].keys() - {"guard.safetensors"}
    files: dict[str, Iterable[bytes]] = {name: _chunks(path / name) for name in names}
    files["state.json"] = [json.dumps({**state, "denied": denied}, indent=1).encode()]
    files |= {f"table-{name}.bin": tables[name].begin_snapshot() for name in changed}
    temporary = path.with_name(_PREFIX + path.name)
    write(temporary, files)
    drop(path)
    temporary.rename(path)
    sync_directory(path.parent)
    logger.info("checkpoint=scrubbed path=%s", path)


def _finish(store: CheckpointStore) -> None:
    """End what a killed trainer left: the new one is whole once the old one is gone."""
    for temporary in store.directory.glob(f"{_PREFIX}*"):
        path = temporary.with_name(temporary.name.removeprefix(_PREFIX))
        if path.exists():
            shutil.rmtree(temporary, ignore_errors=True)
            continue
        with contextlib.suppress(Error):
            verified(temporary)
            temporary.rename(path)


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            yield chunk
