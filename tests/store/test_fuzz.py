"""Fuzzed files and fuzzed calls: a seeded sample of mutations here, libFuzzer in `make prove`."""

import os
import re
import shutil
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.proofs import record, scale
from tests.store.helpers import make, plain
from tests.store.native import NATIVE, RUN_DEADLINE_S, SANITIZED, built, run
from tests.store.test_golden import GOLDEN
from tests.store.test_snapshot import churn

Build = Callable[[str, str], Path]
SEED = os.environ.get("FRESHRANK_SEED", "7")
# One input a line, in hex: what libFuzzer found to be different, and whatever has failed once.
CALLS = NATIVE / "fuzz" / "operations.txt"
CLANGS = [f"clang++-{n}" for n in range(21, 14, -1)] + ["clang++"]
TABLES: tuple[dict[str, Any], ...] = (
    {"optimizer": "sgd", "ttl_s": 9},
    {"optimizer": "adagrad", "first_order": True, "min_count": 3, "probability": 0.7},
    {"optimizer": "rowwise_adagrad", "accumulator_half_life_s": 20},
    {"optimizer": "adam", "first_order": True, "first_order_optimizer": plain("ftrl")},
    {"optimizer": "ftrl", "min_count": 3, "count_half_life_s": 7, "ttl_s": 9},
    {"max_bytes": 8 << 20, "min_count": 4, "ttl_s": 9, "pending_bytes": 1 << 16},
)
SEALED, SHARED_BUDGET, CHAIN = 1, 2, 4  # bits of an input's first byte


def decode_inputs() -> Iterator[bytes]:
    """Files of small tables of every kind, as the harness takes them."""
    for n, settings in enumerate(TABLES):
        table = make(**settings)
        with table.begin_snapshot() as snapshot:
            empty = b"".join(snapshot)
        churn(table, np.random.default_rng(n), 6, 1)
        with table.begin_snapshot(since=snapshot.id) as increment:
            chain = struct.pack("<I", len(empty)) + empty + b"".join(increment)
        choice = SEALED | (n % 2) * SHARED_BUDGET
        yield bytes([choice]) + empty
        yield bytes([choice]) + table.snapshot()
        yield bytes([choice | CHAIN]) + chain
        yield bytes([0]) + empty
    for path in sorted(GOLDEN.parent.glob("*.bin")):
        yield bytes([SEALED]) + path.read_bytes()


def operations_inputs() -> Iterator[bytes]:
    """Sequences of calls that reach different code, and random ones."""
    yield from map(bytes.fromhex, CALLS.read_text(encoding="ascii").split())
    rng = np.random.default_rng(1)
    yield from (rng.bytes(400) for _ in range(20))


def write_all(inputs: Iterator[bytes], folder: Path) -> Path:
    """One file per input."""
    folder.mkdir()
    for n, data in enumerate(inputs):
        (folder / f"{n:04d}").write_bytes(data)
    return folder


@pytest.mark.timeout(900)
def test_fuzzed_files(sanitized: Build, tmp_path: Path) -> None:
    inputs = write_all(decode_inputs(), tmp_path / "inputs")
    fuzz("decode", inputs, 4_000, sanitized, tmp_path)


@pytest.mark.timeout(900)
def test_fuzzed_calls(sanitized: Build, tmp_path: Path) -> None:
    inputs = write_all(operations_inputs(), tmp_path / "inputs")
    fuzz("operations", inputs, 150, sanitized, tmp_path)


def fuzz(harness: str, inputs: Path, n_mutations: int, sanitized: Build, tmp_path: Path) -> None:
    """Mutations that follow from the seed; under `make prove` libFuzzer's own."""
    seconds = scale(f"fuzz-{harness}", 0)
    if seconds > 0:
        with_libfuzzer(harness, inputs, seconds)
        return
    program = sanitized(f"replay_{harness}", "asan")
    run([str(program), str(inputs), str(n_mutations), SEED, str(tmp_path / "last")])


def with_libfuzzer(harness: str, inputs: Path, seconds: int) -> None:
    """Search for so many seconds; an input that fails is kept beside the build."""
    clang = next((name for name in CLANGS if is_clang_15(name)), None)
    if clang is None:
        pytest.fail("libFuzzer comes with Clang 15 or newer: apt-get install clang-16")
    builds = NATIVE.parents[1] / "build"
    program = built(f"fuzz_{harness}", "fuzz", builds / "core-fuzz", clang)
    failed = builds / "fuzz-failed"
    failed.mkdir(parents=True, exist_ok=True)
    command = [
        str(program), f"-seed={SEED}", f"-max_total_time={seconds}", "-timeout=30",
        "-rss_limit_mb=4096", f"-max_len={40_000 if harness == 'decode' else 1_024}",
        "-len_control=0", "-print_final_stats=1", f"-artifact_prefix={failed}/", str(inputs),
    ]  # fmt: skip
    said = run(command, seconds + RUN_DEADLINE_S, SANITIZED)
    n_runs = re.findall(r"number_of_executed_units: (\d+)", said)[-1]
    edges, features = re.findall(r"cov: (\d+) ft: (\d+)", said)[-1]
    what = {
        "decode": "any bytes are refused as a snapshot, or give a table that works and is written "
        "and read again",
        "operations": "any calls leave a table as a model on plain maps says, its restored copy "
        "bit for bit the same",
    }
    record(
        what[harness],
        executions=f"{int(n_runs):,}",
        edges=f"{int(edges):,}",
        features=f"{int(features):,}",
        crashes=0,
    )


def is_clang_15(name: str) -> bool:
    """Whether there is such a compiler, new enough to build the core."""
    if not shutil.which(name):
        return False
    said = subprocess.run([name, "-dumpversion"], capture_output=True, text=True, check=True).stdout
    return int(said.split(".")[0]) >= 15
