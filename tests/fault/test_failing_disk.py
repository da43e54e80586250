"""The disk fails or is mounted read-only under each role, or the process dies as it writes there.

A full disk is waited for, a broken one ends the process: nobody knows what it still holds.
"""

import errno
import os
import signal
import subprocess
from collections.abc import Callable
from contextlib import closing
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from freshrank.clock import SystemClock
from freshrank.transport.kafka import KafkaLog
from tests.fault import joined_on_kafka as joined_on
from tests.fault.disks import FaultyDisk
from tests.fault.joined_on_kafka import Watch, oracle, record_log
from tests.fault.processes import started
from tests.fault.trained_on_kafka import (
    N_ROWS,
    PARTS,
    OnKafka,
    append,
    recorded,
    saved,
    undisturbed,
)
from tests.integration.transport.log_checks import DEADLINE_S
from tests.servers import NewCluster
from tests.unit.trainer.example_records import Bench, make_settings, random_batch
from trainer import checkpoint
from trainer.fingerprint import fingerprint

SAID = "the disk is broken or read-only; mend it and start again"


def dying_at(n_calls: int) -> Callable[..., Callable[..., Any]]:
    """Functions wrapped by this die of kill -9 instead of the call of that number, of them all."""
    left = iter(range(n_calls, 0, -1))

    def wrapped(call: Callable[..., Any]) -> Callable[..., Any]:
        def dying(*arguments: Any, **options: Any) -> Any:
            if next(left) == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*arguments, **options)

        return dying

    return wrapped


def bench_in(directory: Path) -> Bench:
    return Bench(directory, make_settings(**PARTS), clock=SystemClock())


def learn_save_and_die(n_calls: int, directory: Path, is_ready: Connection) -> None:
    """Learn what is there and save; die at one of the points that the disk is told to keep."""
    trainer = bench_in(directory).trainer()
    trainer.catch_up()
    wrapped = dying_at(n_calls)
    for name in ("fsync", "rename", "replace"):
        setattr(os, name, wrapped(getattr(os, name)))
    is_ready.send(True)
    trainer._saver.save()
    os._exit(0)


def test_a_trainer_killed_at_each_point_of_a_checkpoint_leaves_the_one_before_or_the_new_one(
    tmp_path: Path,
) -> None:
    calm, shaken, rng = bench_in(tmp_path / "calm"), tmp_path / "shaken", np.random.default_rng(5)
    undisturbed, expected = calm.trainer(), [("", 0)]
    with closing(bench_in(shaken)) as bench:
        bench.trainer()._saver.save()
    outcomes, exit_code = [], -signal.SIGKILL
    while exit_code == -signal.SIGKILL and len(expected) < 30:
        batch, before = random_batch(calm.encoder, rng, 32), saved(shaken)
        with closing(bench_in(shaken)) as bench:
            bench.append(batch)
        calm.append(batch)
        undisturbed.catch_up()
        expected.append((fingerprint(undisturbed.learner), 32 * len(expected)))
        process = started(partial(learn_save_and_die, len(expected) - 1), shaken)
        process.join(DEADLINE_S)
        assert process.exitcode is not None
        exit_code = process.exitcode
        assert saved(shaken) in (before, expected[-1])
        outcomes.append(saved(shaken) == expected[-1])
    calm.close()
    assert exit_code == 0  # there was no such point left
    # Each file is synced, then their directory; once that is renamed, it is the newest.
    [*_, newest] = sorted((shaken / "trainer").glob("checkpoint-*"))
    n_before = len(list(newest.iterdir())) + 2
    assert outcomes == [*[False] * n_before, *[True] * (len(outcomes) - n_before)]


def test_a_bit_flipped_at_every_4_kb_of_a_checkpoint_and_a_cut_there_are_found(
    tmp_path: Path,
) -> None:
    rng = np.random.default_rng(4)
    with closing(Bench(tmp_path, make_settings(model={"hidden": [64, 32]}))) as bench:
        bench.append(*(random_batch(bench.encoder, rng, 50) for _ in range(4)))
        trainer = bench.trainer()
        trainer.drain()
        trainer.close()
    [path] = (tmp_path / "trainer").glob("checkpoint-*")
    n_places = 0
    for file in path.iterdir():
        data = file.read_bytes()
        for place in range(0, len(data), 4_096):
            flipped = bytearray(data)
            flipped[place] ^= 1 << (n_places % 8)
            for damaged in (bytes(flipped), data[:place]):
                file.write_bytes(damaged)
                with pytest.raises(checkpoint.DamagedCheckpoint):
                    checkpoint.read(path)
            n_places += 1
        file.write_bytes(data)
    assert n_places > 12
    assert checkpoint.read(path).state["counts"]["rows_learned"] == 200


def test_a_joiner_whose_disk_fails_ends_and_its_successor_goes_on(
    new_cluster: NewCluster, tmp_path: Path
) -> None:
    told, copy = tmp_path / "told", tmp_path / "copy"
    for one in (told, copy):
        record_log(one, 1, 600)
    joined, expected = joined_on.OnKafka(new_cluster(1), told, tmp_path, 1), oracle(copy, 1)
    disk = FaultyDisk(tmp_path / "a", tmp_path)
    with closing(KafkaLog(joined.cluster)) as log:
        watch = Watch(log)
        for number in (errno.EIO, errno.EROFS):  # at work, and as it starts
            with joined.start(stderr=subprocess.PIPE, **disk.environment) as process:
                watch.until(expected.n_rows // 4)
                disk.fail(number)
                _, said = process.communicate(timeout=DEADLINE_S)
            assert process.returncode == 3, said
            assert SAID in said.decode()
        disk.mend()
        with joined.running("a"):
            watch.until(expected.n_rows)
        assert joined.result(log) == expected


def test_a_trainer_whose_disk_fails_ends_and_its_successor_learns_what_it_did_not_save(
    new_cluster: NewCluster, tmp_path: Path
) -> None:
    records = recorded(64)
    trained = OnKafka(new_cluster(1), tmp_path)
    disk = FaultyDisk(trained.data_dir, tmp_path)
    append(trained.cluster, records[:32])
    for name, number in (("at work", errno.EIO), ("as it starts", errno.EROFS)):
        with trained.trainer(name, **disk.environment) as process:
            trained.until(lambda: trained.n_examples() == 32 * N_ROWS)
            disk.fail(number)
            append(trained.cluster, records[32:] if number == errno.EIO else [])
            assert process.wait(DEADLINE_S) == 3, trained.told(name)
        assert trained.told(name).rstrip().endswith(SAID)
    disk.mend()
    with trained.trainer("mended") as process:
        trained.until(lambda: trained.n_examples() == 64 * N_ROWS)
        process.terminate()
        assert process.wait(DEADLINE_S) == 0
    assert saved(trained.data_dir) == (undisturbed(tmp_path / "local", records), 64 * N_ROWS)
