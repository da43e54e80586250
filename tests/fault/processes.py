"""Work in a process of its own, to be killed at random points, and a disk that is full."""

import multiprocessing
import random
import resource
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

N_KILLS = 6
Work = Callable[[Path, Connection], None]


def started(work: Work, directory: Path) -> BaseProcess:
    """The work about to begin (it says so), forked from a process that has torch."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([work.__module__, "trainer.loop"])
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=work, args=(directory, there), daemon=True)
    process.start()
    there.close()
    with here:
        here.recv()
    return process


def finished(work: Work, directory: Path) -> float:
    """Seconds that it took to the end."""
    process = started(work, directory)
    began_s = time.monotonic()
    process.join(90)
    assert process.exitcode == 0
    return time.monotonic() - began_s


def shaken_by_kills(work: Work, directory: Path, lasts_s: float, seed: int) -> None:
    """Kill the work again and again, then let it end."""
    rng = random.Random(seed)
    for _ in range(N_KILLS):
        process = started(work, directory)
        # Together they cannot reach the end, so each kill finds work.
        time.sleep(rng.uniform(0, lasts_s / (2 * N_KILLS)))
        process.kill()
        process.join(60)
        assert process.exitcode == -signal.SIGKILL, f"seed {seed}: it had finished"
    finished(work, directory)


@contextmanager
def full_disk(n_bytes: int) -> Iterator[None]:
    """No file may grow beyond `n_bytes`: writes fail as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
