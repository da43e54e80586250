"""kill -9 of a joiner over a recorded log: the examples equal an undisturbed run's, row for row.

Run as a program, this file is the joiner that is killed: it joins the log in the directory it is
given and dies by itself where `JOINER_CRASH` says, `<point>:<number of times it survives it>`.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from freshrank.transport.base import ACTIONS, NewRecord
from tests.fault.story import END_MS, story
from tests.unit.joiner.world import (
    BUY,
    CLICK,
    World,
    append_ticks,
    settings,
)
from trainer.joiner import Joiner

ROOT = Path(__file__).parents[2]
CONFIG = settings(
    {**CLICK, "negative": {"from": "shown", "sample_rate": 0.5}},
    BUY,
    window="2s",
    allowed_lateness="4s",
)
N_REQUESTS = 600
POINTS = ("before-commit", "between-commit-and-append", "after-append")


class Crashing(Joiner):
    """Many small rounds, and a kill -9 of itself in one of them."""

    n_read_max = 20

    def _commit(self) -> None:
        self._reach("before-commit")
        super()._commit()
        self._reach("between-commit-and-append")

    def _relay(self) -> None:
        super()._relay()
        self._reach("after-append")

    def _reach(self, here: str) -> None:
        point, _, n_left = os.environ.get("JOINER_CRASH", "").partition(":")
        if point == here:
            if int(n_left) <= 0:
                os.kill(os.getpid(), signal.SIGKILL)
            os.environ["JOINER_CRASH"] = f"{point}:{int(n_left) - 1}"


def record_log(directory: Path) -> None:
    """A log of the story, with all its windows closed."""
    world = World(directory, CONFIG)
    world.joiner.close()
    for topic, _, value in story(N_REQUESTS):
        world.log.append(topic, [NewRecord(b"", value)], partition=0)
    append_ticks(world.log, END_MS)
    world.log.close()


def join(directory: Path, kind: type[Joiner]) -> World:
    """Process everything that is in the log."""
    world = World(directory, CONFIG, kind=kind)
    world.settle()
    return world


def start(directory: Path, crash: str = "") -> "subprocess.Popen[bytes]":
    """The joiner as a process of its own."""
    environment = {**os.environ, "JOINER_CRASH": crash, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, __file__, str(directory)], env=environment)


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("recorded")
    record_log(directory)
    (directory / "joiner.sqlite").unlink()
    return directory


@pytest.fixture(scope="module")
def undisturbed(log: Path, tmp_path_factory: pytest.TempPathFactory) -> World:
    directory = tmp_path_factory.mktemp("undisturbed") / "copy"
    shutil.copytree(log, directory)
    world = join(directory, Joiner)
    world.close()
    return world


def assert_equal(directory: Path, undisturbed: World) -> None:
    """Finish what the killed joiner left, and compare everything that is in the logs."""
    finished = join(directory, Joiner)
    reference = World(undisturbed.directory, CONFIG)
    try:
        assert finished.rows() == reference.rows()
        assert finished.joiner.accounting() == reference.joiner.accounting()
        assert finished.letters(ACTIONS) == reference.letters(ACTIONS)
        totals = reference.joiner.accounting()
        assert totals["examples_written"] + totals["reversals"] == len(reference.rows())
        assert min(totals[name] for name in ("reversals", "late", "duplicate", "unmatched")) > 0
    finally:
        finished.close()
        reference.close()


@pytest.mark.parametrize("point", POINTS)
def test_joiner_killed_at_random_rounds_loses_and_doubles_nothing(
    point: str, log: Path, undisturbed: World, tmp_path: Path
) -> None:
    rng = random.Random(point)
    directory = tmp_path / "log"
    shutil.copytree(log, directory)

    codes = []
    for _ in range(5):
        with start(directory, f"{point}:{rng.randrange(8)}") as process:
            codes.append(process.wait(60))

    assert codes == [-signal.SIGKILL] * 5
    assert_equal(directory, undisturbed)


def test_joiner_killed_at_any_moment_loses_and_doubles_nothing(
    log: Path, undisturbed: World, tmp_path: Path
) -> None:
    rng = random.Random(9)
    directory = tmp_path / "log"
    shutil.copytree(log, directory)
    database = directory / "joiner.sqlite"

    n_killed = 0
    for _ in range(5):
        with start(directory) as process:
            deadline = time.monotonic() + 60
            while not database.exists() and process.poll() is None:
                assert time.monotonic() < deadline
                time.sleep(0.001)
            time.sleep(rng.random() * 0.1)
            process.kill()
            n_killed += process.wait(60) == -signal.SIGKILL

    assert n_killed > 0
    assert_equal(directory, undisturbed)


if __name__ == "__main__":
    join(Path(sys.argv[1]), Crashing).close()
