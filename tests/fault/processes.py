"""Work in a process of its own, to be killed at random points, and a disk that is full."""

import contextlib
import multiprocessing
import random
import resource
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

N_KILLS = 6
Work = Callable[[Path, Connection], None]


def heard(work: Work, directory: Path) -> tuple[BaseProcess, Connection]:
    """The work, forked from a process that has torch, and where to hear what it tells."""
    context = multiprocessing.get_context("forkserver")
    module = (work.func if isinstance(work, partial) else work).__module__
    context.set_forkserver_preload([module, "trainer.loop"])
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=work, args=(directory, there), daemon=True)
    process.start()
    there.close()
    return process, here


def started(work: Work, directory: Path) -> BaseProcess:
    """The work about to begin: it has said so."""
    process, here = heard(work, directory)
    with here:
        here.recv()
    return process


def told(here: Connection) -> Iterator[Any]:
    """What the work tells, until it ends."""
    with here, contextlib.suppress(EOFError):
        while True:
            yield here.recv()


def finished(work: Work, directory: Path, within_s: float = 90.0) -> float:
    """Seconds that it took to the end."""
    process = started(work, directory)
    began_s = time.monotonic()
    process.join(within_s)
    assert process.exitcode == 0
    return time.monotonic() - began_s


def shaken_by_kills(
    work: Work, directory: Path, lasts_s: float, seed: int, n_kills: int = N_KILLS
) -> None:
    """Kill the work again and again, then let it end."""
    rng = random.Random(seed)
    for _ in range(n_kills):
        process = started(work, directory)
        # Together they cannot reach the end, so each kill finds work.
        time.sleep(rng.uniform(0, lasts_s / (2 * n_kills)))
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
