"""Batches that cannot be learned as they are: which rows of one it is that do it.

A step that is not finite says so, and its rows are looked for at once. A step that raises or kills
the process says nothing any more: `Attempts` writes down which batch is being learned, and who
starts next finds it. A batch in which three have died is searched by a process of its own, the
`Proxy`; where that explains nothing the batch is learned as any other, and once six have died in it
it goes to the dead letter as a whole. So a kill from outside changes no parameter, and no batch
stops the stream for good.
"""

import contextlib
import logging
import multiprocessing
import os
import weakref
from collections.abc import Callable, Mapping
from functools import cached_property
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final, Self

import msgspec
import numpy as np
import numpy.typing as npt

from freshrank.examples import ExampleBatch
from freshrank.features import FeatureEncoder
from freshrank.settings import Settings
from trainer.learner import Learner
from trainer.queue import Cut, Position
from trainer.rows import select

logger = logging.getLogger(__name__)

I64 = npt.NDArray[np.int64]
Span = tuple[Position, Position]

SEARCHED_AFTER: Final = 3
REFUSED_AFTER: Final = 2 * SEARCHED_AFTER
# A step takes milliseconds; a proxy that has to import torch first, seconds.
_PROXY_S: Final = 60.0


def culprits(batch: ExampleBatch, is_sound: Callable[[ExampleBatch], bool]) -> I64:
    """Rows that cannot be learned, by halving what cannot: `int64[k]`, ascending.

    For k of n rows some k * 2 log2(n) questions. A reversal pair is kept or goes as one. Rows that
    fail only together are no culprits.
    """
    seconds = np.flatnonzero(batch.is_reversal)[1::2]  # of pairs, which are whole and adjacent
    starts = np.setdiff1d(np.arange(batch.n_rows), seconds)
    ends = np.append(starts[1:], batch.n_rows)
    found: list[I64] = []
    waiting = [(0, len(starts))]
    while waiting:
        first, stop = waiting.pop()
        rows = np.arange(starts[first], ends[stop - 1])
        if is_sound(select(batch, rows)):
            continue
        if stop - first == 1:
            found.append(rows)
        else:
            middle = (first + stop) // 2
            waiting += [(middle, stop), (first, middle)]
    return np.concatenate([np.empty(0, np.int64), *found])


class _Attempt(msgspec.Struct):
    """A batch somebody began to learn: from where to where of each partition, and how often."""

    log: str
    spans: dict[int, Span]
    n_tries: int


class Attempts:
    """The batch that is being learned, in a file that outlives the process.

    Not synced, as that would cost more than the step: a machine that loses power forgets it. What
    the disk does not take is forgotten, too.

    Args:
        path: The file; made if it is not there.
        log: Identity of the log that the positions are of.
    """

    def __init__(self, path: Path, log: str) -> None:
        self._log = log
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        weakref.finalize(self, os.close, self._file)

    def deaths(self, spans: Mapping[int, Span]) -> int:
        """How many trainers before this one died in a batch with rows of these."""
        left = self._left
        if left is None or left.log != self._log:
            return 0
        shared = spans.keys() & left.spans.keys()
        is_shared = any(
            spans[p][0] < left.spans[p][1] and left.spans[p][0] < spans[p][1] for p in shared
        )
        return left.n_tries if is_shared else 0

    def begin(self, spans: Mapping[int, Span]) -> None:
        """A batch is about to be learned."""
        attempt = _Attempt(self._log, dict(spans), self.deaths(spans) + 1)
        self._write(msgspec.json.encode(attempt) + b"\n")

    def end(self) -> None:
        """It is learned."""
        self._write(b"\n")

    def _write(self, data: bytes) -> None:
        with contextlib.suppress(OSError):
            os.pwrite(self._file, data, 0)

    @cached_property
    def _left(self) -> _Attempt | None:
        """What an earlier trainer left, as of the first batch: a standby opened the file before."""
        data = os.pread(self._file, os.fstat(self._file).st_size, 0)
        try:
            return msgspec.json.decode(data.partition(b"\n")[0], type=_Attempt)
        except (msgspec.DecodeError, UnicodeDecodeError):  # none, or half of one
            return None


class Proxy:
    """Learns in the trainer's place, in a process that may die of it.

    It begins with empty tables: what kills is taken to be in the rows. Memory for a second copy of
    the parameters is not there.

    Args:
        settings: The whole configuration.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._context = multiprocessing.get_context("spawn")
        self._connection: Connection | None = None
        self._process: multiprocessing.process.BaseProcess | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def survives(self, batch: ExampleBatch) -> bool:
        """Whether a process that learns these rows lives on, and says so within a minute."""
        if self._connection is None:
            self._connection, there = self._context.Pipe()
            self._process = self._context.Process(
                target=_learn, args=(there, self._settings), daemon=True
            )
            self._process.start()
            there.close()
        with contextlib.suppress(OSError, EOFError):
            self._connection.send(batch)
            if self._connection.poll(_PROXY_S):
                return bool(self._connection.recv())
        self._end()
        return False

    def _end(self) -> None:
        if self._connection is not None and self._process is not None:
            self._connection.close()
            self._process.kill()
            self._process.join()
            self._connection = None


def _learn(connection: Connection, settings: Settings) -> None:
    learner = Learner(settings, FeatureEncoder(settings))
    with contextlib.suppress(EOFError):
        while True:
            learner.learn(connection.recv())
            connection.send(True)


class Isolation:
    """Keeps a batch that trainers die of from killing all of them.

    Args:
        path: Where attempts are written down.
        log: Identity of the log.
        settings: The whole configuration.
    """

    def __init__(self, path: Path, log: str, settings: Settings) -> None:
        self._attempts = Attempts(path, log)
        self._settings = settings

    def begin(self, cut: Cut, positions: Mapping[int, Position]) -> bool:
        """Before a cut is learned: rows that killed trainers before leave it for the dead letter.

        Args:
            cut: The batch.
            positions: Where it begins.

        Returns:
            There were such rows.
        """
        if cut.rows is None:
            return False
        spans = {p: (positions[p], end) for p, end in cut.positions.items()}
        n_rows, n_deaths = cut.rows.n_rows, self._attempts.deaths(spans)
        if n_deaths >= REFUSED_AFTER:
            told = f"{n_deaths} trainers died of the batch with these rows, none of them alone"
            cut.refuse(np.arange(n_rows), "deadly", told)
        elif n_deaths >= SEARCHED_AFTER:
            logger.error("batch=suspect deaths=%d rows=%d", n_deaths, n_rows)
            with Proxy(self._settings) as proxy:
                rows = culprits(cut.rows, proxy.survives)
            cut.refuse(rows, "deadly", f"{n_deaths} trainers died of a batch with these rows")
        if cut.rows is not None:
            self._attempts.begin(spans)
        return cut.rows is None or cut.rows.n_rows < n_rows

    def end(self) -> None:
        """It is learned."""
        self._attempts.end()
