"""A replica in a process of its own, which says what it has applied and when."""

import multiprocessing
import time
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Event
from typing import Final, NamedTuple, Self

from benchmarks.sync_parts.model import new_channel, new_replica
from freshrank.settings import Settings

DEADLINE_S: Final = 60.0


class Applied(NamedTuple):
    """A version that is served from `at_s` on, by the clock that all processes share."""

    epoch: int
    seq: int
    at_s: float  # time.monotonic()
    at_ms: float  # since 1970
    offsets: dict[str, int]


class FollowerProcess:
    """Follows the channel while the context lasts.

    Args:
        url: Of the channel.
        settings: Of the replica.
    """

    def __init__(self, url: str, settings: Settings) -> None:
        context = multiprocessing.get_context("spawn")
        self._stop = context.Event()
        self._told, telling = context.Pipe(duplex=False)
        arguments = (url, settings, telling, self._stop)
        self._process = context.Process(target=_follow, args=arguments)
        self.newest: Applied | None = None

    def __enter__(self) -> Self:
        self._process.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._process.join()
        self._told.close()

    def poll(self, timeout_s: float) -> Applied | None:
        """What was applied next; None where nothing was told in time."""
        if not self._told.poll(timeout_s):
            return None
        self.newest = Applied(*self._told.recv())
        return self.newest


def _follow(url: str, settings: Settings, told: Connection, stop: Event) -> None:
    channel = new_channel(url)
    replica = new_replica(settings, channel)
    while not stop.is_set():
        if replica.step(0.1) and replica.model is not None:
            info = replica.model.current.info
            applied = Applied(
                info.epoch, info.seq, time.monotonic(), time.time() * 1e3, info.offsets
            )
            told.send(tuple(applied))
    channel.close()
