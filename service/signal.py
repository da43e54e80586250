"""Waking those who wait: any thread notifies, coroutines and threads wait."""

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress


class Signal:
    """Something changed; look again.

    A waiting coroutine costs a future, not a thread.
    """

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._futures: set[asyncio.Future[None]] = set()

    def notify(self) -> None:
        """Wake everybody who waits."""
        with self._condition:
            self._condition.notify_all()
            futures, self._futures = self._futures, set()
        for future in futures:
            with suppress(RuntimeError):  # its loop was closed: nobody waits any more
                future.get_loop().call_soon_threadsafe(_resolve, future)

    def wait_for(self, is_done: Callable[[], bool], *, timeout_s: float) -> bool:
        """Block this thread until `is_done`; False when time ran out."""
        with self._condition:
            return self._condition.wait_for(is_done, timeout_s)

    async def wait_for_async(self, is_done: Callable[[], bool], *, timeout_s: float) -> bool:
        """The same for a coroutine."""
        end = asyncio.get_running_loop().time() + timeout_s
        while True:
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            with self._condition:
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
                with self._condition:
                    self._futures.discard(future)


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
