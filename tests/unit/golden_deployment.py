"""A small deployment with something of everything that a version writes to disk."""

import json
import shutil
import tarfile
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from freshrank import feature_state
from freshrank.backup.take import take
from freshrank.clock import Clock, ManualClock
from freshrank.config import loads
from freshrank.embedded import Embedded
from freshrank.feature_state import LocalFeatureState
from freshrank.settings import Settings
from freshrank.transport.base import ACTIONS, TOPICS, NewRecord
from trainer.checkpoint_store import CheckpointStore

NOW_MS: Final = 1_790_000_000_000
CONFIG: Final = """
features:
  - {name: user_id, type: id, scope: user, dim: 2}
  - {name: item_id, type: id, scope: item, key: uint64, dim: 2, admission: {min_count: 2}}
  - {name: tags, type: id_list, scope: item, dim: 2, expire: 1h}
  - {name: hour, type: bucket, scope: context, boundaries: [12], dim: 2}
  - {name: price, type: dense, scope: item}
  - {name: pair, type: cross, of: [user_id, tags], dim: 2}
  - {name: last, type: recent, event: click, table: item_id, max_len: 3}
  - {name: rate, type: rate, event: click, half_life: 1h}
  - {name: often, type: count, event: click, of: user_id, half_life: 1d}
  - {name: ago, type: seen, event: click, value: ago}
tasks:
  - {name: click, event: click}
  - {name: dwell, event: dwell, loss: huber}
model: {hidden: [2]}
join: {window: 2s}
trainer: {batching: fixed, batch_max: 8}
"""
_ITEMS: Final = ["7", "18446744073709551615", "8"]


def settings_of(directory: Path) -> Settings:
    """The configuration; the archive lies beside the data directory."""
    environ = {"FRESHRANK__SERVICE__DATA_DIR": str(directory)}
    text = CONFIG + f"archive: {{dir: {json.dumps(str(directory.with_name('archive')))}}}\n"
    return loads(text, name="freshrank.yaml", environ=environ)


def opened(directory: Path, clock: Clock | None = None) -> Embedded:
    """What goes on from a data directory, stepped by hand."""
    clock = clock or ManualClock(now_ms=NOW_MS + 3_600_000)
    return Embedded(settings_of(directory), learn=True, serve=True, clock=clock)


def make(directory: Path, target: Path) -> None:
    """Learn, save, keep, learn on; put a backup and the archive of that into a new archive file."""
    clock, before = ManualClock(now_ms=NOW_MS), feature_state.UNSAVED_MAX
    feature_state.UNSAVED_MAX = 1  # type: ignore[misc]  # or a million updates would save it
    data = directory / "data"
    try:
        for name in ("first", "second"):
            with closing(opened(data, clock)) as loop:
                _teach(loop, clock, name)
            if name == "first":
                CheckpointStore(data / "trainer", keep=3).keep("good")
            feature_state.UNSAVED_MAX = before  # type: ignore[misc]  # the joiner keeps these
    finally:
        feature_state.UNSAVED_MAX = before  # type: ignore[misc]
    take(settings_of(data), CONFIG.encode(), directory / "backup")
    with tarfile.open(target, "w:xz") as packed:
        packed.add(directory / "backup", "backup")
        packed.add(directory / "archive", "archive")


def _teach(loop: Embedded, clock: ManualClock, name: str) -> None:
    assert loop.trainer is not None
    loop.trainer.start()
    for n in range(4):
        request = {"request_id": f"{name}-{n}", "user": f"ünal-{n % 2}"}
        items = [{"item": item, "features": {"tags": ["a", "b"], "price": 1.5}} for item in _ITEMS]
        action = {**request, "item": _ITEMS[n % 3], "ts": clock.now_ms() / 1_000}
        events: list[dict[str, Any]] = [
            {"kind": "impression", "items": items, "context": {"hour": 3 * n}, **request},
            {"kind": "feedback", "event": "click", "event_id": f"{name}-c{n}", **action},
            {"kind": "feedback", "event": "dwell", "value": 2.5, **action},
            {"kind": "feedback", "event": "click", "event_id": f"{name}-c{n}", **action},
            {"kind": "item", "item": _ITEMS[n % 3], "features": {"price": 2.0 + n}},
        ]
        assert loop.service.ingest.submit(events).accepted == len(events)
        _step(loop, clock, 1_000)
    for _ in range(4):
        _step(loop, clock, 1_000)
    [joiner] = loop.joiners
    loop.log.append(ACTIONS, [NewRecord(b"", b"\xff is no message")], partition=0)
    joiner.step(0.0)
    loop.trainer.drain()


def _step(loop: Embedded, clock: ManualClock, ms: int) -> None:
    clock.advance(ms=ms)
    for joiner in loop.joiners:
        joiner.step(0.0)
    assert loop.trainer is not None
    loop.trainer.step(0.0)


def unpack(packed: Path, directory: Path) -> tuple[Path, Path]:
    """The backup and the archive that `make` packed."""
    with tarfile.open(packed) as file:
        file.extractall(directory, filter="data")
    return directory / "backup", directory / "archive"


def without_trainer(data: Path, target: Path) -> None:
    """The same data directory, before anything was learned from its log."""
    shutil.copytree(data, target, ignore=shutil.ignore_patterns("trainer", "parameters"))


def described(loop: Embedded) -> dict[str, Any]:
    """What a deployment holds, as JSON."""
    assert loop.trainer is not None
    assert isinstance(loop.state, LocalFeatureState)
    learner = loop.trainer.learner
    rows = {
        name: {str(key): row for key, row in zip(keys.tolist(), values.tolist(), strict=True)}
        for name, table in learner.sparse.tables.items()
        for keys in [np.sort(table.keys())]
        for values in [table.lookup(keys)]
    }
    dense = {name: value.tolist() for name, value in learner.net.state_dict().items()}
    known = {name: _sorted(one.entries()) for name, one in loop.state.series.items()}
    known |= {name: _sorted(one.entries()) for name, one in loop.state.rings.items()}
    ends = {
        topic: loop.log.end_offset(topic, 0) for topic in TOPICS if loop.log.end_offset(topic, 0)
    }
    return {
        "rows": rows,
        "dense": dense,
        "feature_state": known,
        "totals": {n: c for n, c in sorted(loop.accounting().items()) if c},
        "records": ends,
    }


def _sorted(columns: tuple[npt.NDArray[Any], ...]) -> list[list[float]]:
    """Entries by key and time; of sums that decay, six digits are the same on every machine."""
    order = np.lexsort(columns[1::-1])
    return [
        [float(f"{x:.6g}") if isinstance(x, float) else x for x in column[order].tolist()]
        for column in columns
    ]
