"""A small deployment that has learned something, to be backed up."""

import hashlib
from pathlib import Path
from typing import Any, Final

from freshrank.backup.restore import Restored, restore
from freshrank.backup.take import take
from freshrank.config import loads
from freshrank.embedded import Embedded
from freshrank.settings import Settings

CONFIG: Final = """
features:
  - {name: item_id, type: id, scope: item, dim: 4}
  - {name: rate, type: rate, event: click, half_life: 1h}
tasks:
  - {name: click, event: click}
"""


def settings_of(directory: Path, text: str = CONFIG) -> Settings:
    """The configuration, with this data directory."""
    environ = {"FRESHRANK__SERVICE__DATA_DIR": str(directory)}
    return loads(text, name="freshrank.yaml", environ=environ)


def learn(directory: Path, name: str, *, n: int = 3) -> dict[str, int]:
    """Show and click, join, learn and publish; returns the totals."""
    loop = Embedded(settings_of(directory), learn=True)
    assert loop.trainer is not None
    items = [{"item": f"i{i}"} for i in range(3)]
    events: list[dict[str, Any]] = []
    for i in range(n):
        request = {"request_id": f"{name}-{i}"}
        events.append({"kind": "impression", "items": items, **request})
        events.append({"kind": "feedback", "item": "i0", "event": "click", **request})
    assert loop.service.ingest.submit(events).accepted == 2 * n
    for _ in range(4):
        for joiner in loop.joiners:
            joiner.step(0.0)
    loop.trainer.drain()
    loop.close()
    return loop.accounting()


def totals(directory: Path) -> dict[str, int]:
    """Those of what a data directory goes on from."""
    loop = Embedded(settings_of(directory), learn=True)
    found = loop.accounting()
    loop.close()
    return found


def content(directory: Path) -> dict[str, str]:
    """Every file with its digest, but locks and what a restore leaves behind."""
    found = {}
    for path in sorted(directory.rglob("*")):
        name = path.relative_to(directory).as_posix()
        if path.is_file() and not name.startswith("before-") and "LOCK" not in name.upper():
            found[name] = hashlib.blake2b(path.read_bytes()).hexdigest()
    return found


def back_up(directory: Path, destination: Path) -> None:
    """Take a backup."""
    take(settings_of(directory), CONFIG.encode(), destination)


def put_back(directory: Path, source: Path, *, is_forced: bool = False) -> Restored:
    """Restore one."""
    return restore(settings_of(directory), source, is_forced=is_forced)
