"""`freshrank snapshots list|keep`: the checkpoints of a trainer, which one can go back to."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from freshrank import config
from freshrank.embedded import check_can_learn


def show(path: Path, *, environ: Mapping[str, str], as_json: bool) -> None:
    """Print the checkpoints below the data directory, oldest first.

    Raises:
        ConfigError: the configuration is wrong, or the extra `train` is not installed.
    """
    found = _store(path, environ).described()
    if as_json:
        print(json.dumps(found))
        return
    table = Table("name", "saved", "epoch", "seq", "rows learned", "MB", box=None)
    for one in found:
        megabytes = f"{one['bytes'] / 1e6:.1f}"
        numbers = [str(one.get(name, "damaged")) for name in ("epoch", "seq", "rows_learned")]
        table.add_row(one["name"], one["saved_at"], *numbers, megabytes)
    Console().print(table)


def keep(path: Path, name: str, *, environ: Mapping[str, str], as_json: bool) -> None:
    """Keep the newest checkpoint under a name.

    Raises:
        ConfigError: as `show`.
        DataError: the name is none, or is taken; or there is no checkpoint yet.
    """
    store = _store(path, environ)
    kept = store.describe(store.keep(name))
    print(json.dumps(kept) if as_json else f"kept as {kept['name']}")


def _store(path: Path, environ: Mapping[str, str]) -> Any:
    settings = config.load(path, environ=environ)
    check_can_learn()
    from trainer.checkpoint_store import CheckpointStore

    directory = settings.service.data_dir / "trainer"
    return CheckpointStore(directory, keep=settings.checkpoint.keep)
