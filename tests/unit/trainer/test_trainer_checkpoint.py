"""Restarting from a checkpoint, and refusing a damaged one."""

import json
import logging
import shutil
import threading
from hashlib import blake2b
from pathlib import Path

import numpy as np
import pytest

from freshrank.errors import Error, SchemaError, SyncError
from tests.unit.trainer.conftest import MakeBench
from tests.unit.trainer.example_records import FEATURES, NOW_MS, Bench, random_batch
from trainer import checkpoint
from trainer.loop import Trainer

# No publication after the first base, so that two runs close the same versions of their tables.
NEVER = {"every": "365d", "keep": 3}
QUIET = {"sync": {"sparse_every": "365d"}, "checkpoint": NEVER}
OFTEN = {**QUIET, "checkpoint": {"every": "1s", "keep": 3}}
RARE = {
    "features": [
        {"name": "user_id", "type": "id", "scope": "user", "dim": 4, "admission": {"min_count": 3}},
        {"name": "item_id", "type": "id", "scope": "item", "key": "uint64", "dim": 4},
        {"name": "tags", "type": "id_list", "scope": "item", "dim": 4, "expire": "2s"},
        {"name": "price", "type": "dense", "scope": "candidate"},
    ]
}


def _fill(bench: Bench, n_records: int = 12) -> None:
    rng = np.random.default_rng(4)
    for n in range(n_records):
        batch = random_batch(bench.encoder, rng, 50, offsets={"freshrank.actions:0": n})
        # Rows expire on the way; half of the records are late: the clock must not go back.
        batch.ts_ms[:] += 700 * n - (4_000 if n % 4 > 1 else 0)
        bench.append(batch)


def _run(bench: Bench, trainer: Trainer, n_steps: int | None = None) -> None:
    while n_steps != 0 and trainer.step(0.0):
        bench.manual.advance(ms=300)
        n_steps = None if n_steps is None else n_steps - 1
    trainer._saver.settle()  # a process that dies writes no further


def _content(trainer: Trainer) -> dict[str, bytes]:
    """Everything that learning changed, as bytes."""
    learner = trainer._learner
    adam = learner.adam
    content = {name: table.snapshot() for name, table in learner.sparse.tables.items()}
    for name in ("parameters", "moment1", "moment2"):
        content[name] = getattr(adam, name).numpy().tobytes()
    content |= {n: v.tobytes() for n, v in trainer._study.lesson.evaluation.state().items()}
    state = trainer._state.to_json()
    counts = {n: c for n, c in state.pop("counts").items() if n.endswith("learned")}
    for lineage in ("log", "epoch", "seq", "dense_version", "outcomes", "actions", "impressions"):
        state.pop(lineage)
    return content | {"state": json.dumps([state, counts], sort_keys=True).encode()}


def _paths(bench: Bench) -> list[Path]:
    return sorted((bench.directory / "trainer").glob("checkpoint-*"))


@pytest.mark.parametrize("n_steps", [1, 4, 7, 11])
def test_restarted_trainer_equals_an_undisturbed_one_bit_for_bit(
    make_bench: MakeBench, n_steps: int
) -> None:
    calm, shaken = make_bench(**OFTEN, **RARE), make_bench(**OFTEN, **RARE)
    contents = []
    for bench in (calm, shaken):
        _fill(bench)
        trainer = bench.trainer()
        if bench is shaken:
            _run(bench, trainer, n_steps)  # abandoned as it is: what is not in a checkpoint is lost
            trainer = bench.trainer()
        _run(bench, trainer)
        contents.append(_content(trainer))
    assert contents[0] == contents[1]


def test_checkpoint_written_while_learning_goes_on_is_of_its_instant(
    make_bench: MakeBench,
) -> None:
    bench = make_bench(**QUIET, **RARE)
    _fill(bench)
    trainer = bench.trainer()
    _run(bench, trainer, 4)
    expected = _content(trainer)
    trainer._saver._begin()
    _run(bench, trainer, 4)
    assert trainer._saver.settle()
    restored = bench.trainer()
    assert _content(restored) == expected
    assert _content(trainer) != expected


def test_checkpoint_is_written_though_no_thread_can_begin(
    make_bench: MakeBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = make_bench(**QUIET)
    _fill(bench, 3)
    trainer = bench.trainer()
    _run(bench, trainer)

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        assert trainer._saver.save()
    assert _content(bench.trainer()) == _content(trainer)


def test_checkpoint_holds_what_is_not_published_yet(make_bench: MakeBench) -> None:
    bench = make_bench(**QUIET)
    _fill(bench, 3)
    trainer = bench.trainer()
    _run(bench, trainer)
    trainer._saver.save()
    bench.manual.advance(ms=1)
    bench.trainer().start()
    info = bench.frames()[0].info
    assert info.kind == "base"
    assert info.offsets == {"freshrank.actions:0": 1}
    assert len(info.action_appended_at_ms) + len(info.impression_appended_at_ms) == 128


def test_files_are_those_of_the_manifest_and_none_can_run_code(make_bench: MakeBench) -> None:
    bench = make_bench(**QUIET)
    _fill(bench)
    bench.trainer().close()
    [path] = _paths(bench)
    manifest = json.loads((path / "MANIFEST.json").read_bytes())
    arrays = ("dense", "guard", "windows")
    expected = ["state.json", *(f"{name}.safetensors" for name in arrays)]
    expected += [f"table-{name}.bin" for name in ("item_id", "tags", "user_id")]
    assert sorted(manifest["files"]) == sorted(expected)
    assert sorted(p.name for p in path.iterdir()) == sorted([*expected, "MANIFEST.json"])


def test_only_the_newest_are_kept(make_bench: MakeBench) -> None:
    bench = make_bench(**QUIET)
    _fill(bench)
    trainer = bench.trainer()
    for _ in range(5):
        trainer._saver.save()
    assert [p.name[-2:] for p in _paths(bench)] == ["03", "04", "05"]


def _two_checkpoints(bench: Bench) -> tuple[list[Path], int]:
    """Their paths, and the rows learned at the first."""
    _fill(bench)
    trainer = bench.trainer()
    _run(bench, trainer, 3)
    trainer._saver.save()
    n_rows = trainer.accounting()["rows_learned"]
    _run(bench, trainer, 3)
    trainer._saver.save()
    paths = _paths(bench)
    return paths, n_rows


FILES = ["MANIFEST.json", "state.json", "dense.safetensors", "table-item_id.bin"]


def _damage(path: Path, how: str) -> None:
    data = bytearray(path.read_bytes())
    if how == "truncated":
        del data[len(data) // 2 :]
    elif how == "flipped":
        # In the manifest a flip must hit something that is read: a digest near its end.
        data[len(data) - 20 if path.suffix == ".json" else len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    if how == "missing":
        path.unlink()


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("how", ["truncated", "flipped", "missing"])
def test_damaged_checkpoint_is_refused_and_the_one_before_is_used(
    make_bench: MakeBench, caplog: pytest.LogCaptureFixture, file: str, how: str
) -> None:
    bench = make_bench(**QUIET)
    paths, n_rows = _two_checkpoints(bench)
    _damage(paths[1] / file, how)
    with caplog.at_level(logging.ERROR):
        trainer = bench.trainer()
    assert trainer.accounting()["rows_learned"] == n_rows
    assert trainer.accounting()["checkpoints_refused"] == 1
    assert f"checkpoint=refused path={paths[1]}" in caplog.text
    trainer._saver.save()
    names = [p.name[-2:] for p in _paths(bench)]
    assert paths[1].name[-2:] not in names  # the damaged one does not count among those kept
    assert len(names) == 2


@pytest.mark.parametrize("how", ["whole", "flipped"])
def test_checkpoints_of_before_are_checked_by_the_digest_they_have(
    make_bench: MakeBench, how: str
) -> None:
    bench = make_bench(**QUIET)
    (_, newest), _ = _two_checkpoints(bench)
    manifest = json.loads((newest / "MANIFEST.json").read_bytes())
    for name, entry in manifest["files"].items():
        del entry["sha256"]
        entry["blake2b"] = blake2b((newest / name).read_bytes(), digest_size=16).hexdigest()
    (newest / "MANIFEST.json").write_text(json.dumps(manifest))
    _damage(newest / "windows.safetensors", how)
    assert bench.trainer().accounting().get("checkpoints_refused", 0) == (how == "flipped")


def test_trainer_never_starts_afresh_beside_damaged_checkpoints(make_bench: MakeBench) -> None:
    bench = make_bench(**QUIET)
    for path in _two_checkpoints(bench)[0]:
        _damage(path / "state.json", "truncated")
    for _ in range(2):
        with pytest.raises(Error, match="none of the 2 checkpoints") as caught:
            bench.trainer()
        assert caught.value.code == "checkpoint-damaged"


def test_checkpoint_of_another_schema_is_refused(make_bench: MakeBench) -> None:
    bench, other = make_bench(**QUIET), make_bench(model={"hidden": [3]})
    _two_checkpoints(bench)
    shutil.copytree(bench.directory / "trainer", other.directory / "trainer")
    with pytest.raises(SchemaError, match="features, tasks, model and salt"):
        other.trainer()


def test_restart_takes_new_rates_thresholds_and_times_to_live(make_bench: MakeBench) -> None:
    bench = make_bench(**QUIET)
    item = {**FEATURES[1], "admission": {"min_count": 3}, "expire": "60s"}
    features = [FEATURES[0], item, *FEATURES[2:]]
    other = make_bench(**QUIET, features=features, optimizer={"sparse": {"lr": 0.2}})
    _two_checkpoints(bench)
    shutil.copytree(bench.directory / "trainer", other.directory / "trainer")
    before = bench.trainer()._learner.sparse.tables["item_id"]
    after = other.trainer()._learner.sparse.tables["item_id"]

    known = before.keys()[:1]
    row = before.lookup(known)
    for table in (before, after):
        table.apply(known, np.ones((1, table.width), np.float32))
    kept, changed = row - before.lookup(known), row - after.lookup(known)
    np.testing.assert_allclose(changed / kept, 4.0, rtol=1e-3)  # 0.2 / 0.05

    unknown = np.array([2**63], np.uint64)
    now_s = NOW_MS // 1_000
    after.lookup_or_admit(unknown, np.array([2], np.uint32), now_s)
    assert not after.contains(unknown)[0]
    assert after.expire(now_s + 3_600, 1_000_000) > 0


def test_checkpoint_with_another_optimizers_state_is_refused(make_bench: MakeBench) -> None:
    bench = make_bench(**QUIET)
    other = make_bench(**QUIET, optimizer={"sparse": {"kind": "sgd"}})
    _two_checkpoints(bench)
    shutil.copytree(bench.directory / "trainer", other.directory / "trainer")
    with pytest.raises(SchemaError, match="hold the state of adagrad"):
        other.trainer()


def test_half_written_checkpoint_of_a_killed_trainer_is_swept_away(make_bench: MakeBench) -> None:
    bench = make_bench(**QUIET)
    directory = bench.directory / "trainer"
    numbers = ("", "000001-", "000009-")
    leftovers = [directory / f"checkpoint-{epoch}000000000009.tmp" for epoch in numbers]
    for leftover in leftovers:
        leftover.mkdir(parents=True)
        (leftover / "state.json").write_text("{")
    trainer = bench.trainer()
    assert trainer.accounting().get("rows_learned", 0) == 0
    trainer.close()
    # That of a later epoch is in the making.
    assert [path.exists() for path in leftovers] == [False, False, True]


def test_trainer_that_was_replaced_saves_nothing_and_removes_nothing(
    make_bench: MakeBench,
) -> None:
    bench = make_bench(**{**QUIET, "checkpoint": {"every": "365d", "keep": 1}})
    _fill(bench)
    old = bench.trainer()
    _run(bench, old, 3)
    old._saver.save()
    new = bench.trainer()
    _run(bench, new, 1)
    new._saver.save()
    before = _paths(bench)
    assert [path.name for path in before] == ["checkpoint-000002-000000000002"]
    with pytest.raises(SyncError, match="later trainer") as caught:
        old._saver.save()
    assert caught.value.code == "fenced"
    assert _paths(bench) == before
    assert [path.name for path in before[0].parent.iterdir() if path.is_dir()] == [before[0].name]


def test_checkpoint_of_an_earlier_version_is_read_and_the_next_one_counts_on(
    make_bench: MakeBench,
) -> None:
    bench = make_bench(**QUIET)
    _fill(bench)
    trainer = bench.trainer()
    _run(bench, trainer, 2)
    trainer._saver.save()
    [path] = _paths(bench)
    path.rename(path.with_name("checkpoint-000000000007"))
    again = bench.trainer()
    assert again.accounting()["rows_learned"] == 64
    again.close()
    assert [p.name for p in _paths(bench)] == [
        "checkpoint-000000000007", "checkpoint-000002-000000000008",
    ]  # fmt: skip


def test_epochs_go_on_where_the_channel_was_lost(make_bench: MakeBench) -> None:
    bench = make_bench(**QUIET)
    for _ in range(3):
        bench.trainer().close()
    shutil.rmtree(bench.directory / "parameters")
    (bench.directory / "parameters").mkdir()
    bench.trainer().close()
    head = bench.channel.head()
    assert head is not None
    assert head.epoch == 4
    assert _paths(bench)[-1].name == "checkpoint-000004-000000000004"


def test_step_that_failed_halfway_is_learned_anew_by_the_next_trainer(
    make_bench: MakeBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = make_bench()
    bench.append(random_batch(bench.encoder, np.random.default_rng(0), 96))
    trainer = bench.trainer()
    assert trainer.step(0.0) == 32

    def fail(*_: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(trainer._learner.sparse, "learn", fail)
        with pytest.raises(MemoryError):
            trainer.step(0.0)
    with pytest.raises(Error, match="halfway") as caught:
        trainer.step(0.0)
    assert caught.value.code == "step-failed"
    trainer.close()  # what is in memory must neither be saved nor go on past the lost batch

    again = bench.trainer()
    assert again.accounting() == {}
    assert again.drain() == 96


def test_checkpoint_of_a_newer_program_stops_the_trainer_and_stays(
    make_bench: MakeBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = make_bench()
    bench.trainer().close()
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "FORMAT_VERSION", 2)
        bench.trainer().close()
    with pytest.raises(SchemaError, match="format 2, this program reads up to 1"):
        bench.trainer()
    assert len(_paths(bench)) == 2
