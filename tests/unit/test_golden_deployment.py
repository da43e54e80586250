"""What a released version wrote opens in this one, with the same content.

Files of `PACKED` were written once and are never written again: a format that changes gets a file
of its own beside them, written by `pytest --update-golden` where there is none.
"""

import shutil
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import pytest

from freshrank import frames
from freshrank.backup.restore import restore
from freshrank.clock import SystemClock
from freshrank.embedded import Embedded
from freshrank.frames import Frame
from freshrank.transport.base import EXAMPLES
from freshrank.transport.directory import DirectoryChannel
from tests.conftest import GOLDEN, Golden
from tests.unit.golden_deployment import (
    described,
    make,
    opened,
    settings_of,
    unpack,
    without_trainer,
)
from trainer.checkpoint import read

# The first has checkpoints that are checked by BLAKE2b, the second by SHA-256.
PACKED: Final = ("deployment_v1", "deployment_v1_sha256")


@pytest.fixture(params=PACKED)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def data(name: str, tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A golden deployment, restored."""
    packed = GOLDEN / f"{name}.tar.xz"
    if request.config.getoption("--update-golden") and not packed.exists():
        make(tmp_path, packed)
        shutil.rmtree(tmp_path / "data")
        shutil.rmtree(tmp_path / "backup")
        shutil.rmtree(tmp_path / "archive")
    backup, _ = unpack(packed, tmp_path)
    restore(settings_of(tmp_path / "data"), backup, is_forced=False)
    return tmp_path / "data"


def test_it_goes_on_with_what_it_had(name: str, data: Path, golden: Golden) -> None:
    with closing(opened(data)) as loop:
        found = described(loop)
        golden(f"{name}.json", found)
    assert found["totals"]["examples_learned"] == found["totals"]["examples_written"] > 20
    assert found["totals"]["duplicate"] == 8
    assert found["totals"]["dead_letter"] == 2
    assert found["feature_state"].keys() > {"click"}
    assert [name for name, known in found["feature_state"].items() if not known[0]] == []


def test_its_kept_snapshot_holds_what_it_held(name: str, data: Path, golden: Golden) -> None:
    kept = read(data / "trainer" / "kept-good")
    assert kept.guard
    tables = {
        slot: [sorted(table.keys().tolist()), table.statistics()["rows"]]
        for slot, table in kept.tables.items()
    }
    golden(f"{name}_kept.json", {"state": kept.state, "tables": tables})


def test_its_frames_lead_to_the_rows_of_its_checkpoint(data: Path) -> None:
    channel = DirectoryChannel(data / "parameters", clock=SystemClock())
    head, base = channel.head(), channel.base()
    assert head is not None
    assert base is not None
    deltas = [channel.delta(head.epoch, seq) for seq in range(head.base_seq + 1, head.seq + 1)]
    found: list[Frame] = [frames.decode(one) for one in (base[2], *deltas) if one is not None]
    assert [one.info.kind for one in found] == ["base"] + ["delta"] * len(deltas)
    assert len(deltas) > 0
    served: dict[str, dict[int, list[float]]] = {}
    for one in found:
        for name, table in one.tables.items():
            rows = served.setdefault(name, {})
            rows |= zip(table.keys.tolist(), table.rows.tolist(), strict=True)
            for key in table.tombstones.tolist():
                rows.pop(key, None)
    with closing(opened(data)) as loop:
        rows = described(loop)["rows"]
    assert {name: {str(k): row for k, row in table.items()} for name, table in served.items()} == {
        name: rows[name] for name in served
    }


def assert_learned_alike(one: dict[str, Any], other: dict[str, Any]) -> None:
    """To what another processor's arithmetic may differ in."""
    for part in ("rows", "dense"):
        numbers, expected = dict(leaves(one[part])), dict(leaves(other[part]))
        assert numbers == pytest.approx(expected, rel=1e-3, abs=1e-6)


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, float]]:
    if isinstance(value, float):
        yield path, value
        return
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for name, below in items:
        yield from leaves(below, f"{path}/{name}")


def test_its_log_and_its_archive_teach_what_its_checkpoint_knows(
    data: Path, tmp_path: Path
) -> None:
    with closing(opened(data)) as loop:
        learned = described(loop)
    without_trainer(data, tmp_path / "log-only" / "data")
    with closing(opened(tmp_path / "log-only" / "data")) as loop:
        assert loop.trainer is not None
        loop.trainer.drain()
        again = described(loop)
    assert_learned_alike(again, learned)

    elsewhere = tmp_path / "archive-only" / "data"
    loop = Embedded(settings_of(elsewhere), learn=True, serve=False, history=tmp_path / "archive")
    with closing(loop):
        assert loop.trainer is not None
        loop.trainer.drain()
        again = described(loop)
        assert loop.log.end_offset(EXAMPLES, 0) == 0
    assert_learned_alike(again, learned)
