"""Waking those who wait: any thread notifies, coroutines wait."""

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress


class Signal:
    """Something changed; look again.

    A waiting coroutine costs a future, not a thread.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._futures: set[asyncio.Future[None]] = set()

    def notify(self) -> None:
        """Wake everybody who waits."""
        with self._lock:
            futures, self._futures = self._futures, set()
        for future in futures:
            with suppress(RuntimeError):  # its loop was closed: nobody waits any more
                future.get_loop().call_soon_threadsafe(_resolve, future)

    async def wait_for(self, is_done: Callable[[], bool], *, timeout_s: float) -> bool:
        """Return once `is_done`; False when time ran out."""
        end = asyncio.get_running_loop().time() + timeout_s
        while True:
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            with self._lock:
                self._futures.add(future)
            try:
                # Asked after the future is registered: a change in between resolves it.
                if is_done():
                    return True
                async with asyncio.timeout_at(end):
                    await future
            except TimeoutError:
                return is_done()
            finally:
                with self._lock:
                    self._futures.discard(future)


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
