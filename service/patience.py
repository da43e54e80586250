"""Waits for what may never answer, but not for ever: a frozen broker must not hold requests."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final, TypeVar

from freshrank.errors import TransportError

T = TypeVar("T")

SLOW: Final = "log-slow"
# A broker answers in milliseconds; so long a request waits for one that is about to hang.
LOOK_S: Final = 0.5
# So long where the last one hung: one that is well again is found out all the same.
GLANCE_S: Final = 0.05
# Questions under way: a service asks a few a second.
LOOKS_MAX: Final = 4


class Patience:
    """Runs what blocks in threads of its own, so that who asks can turn to something else.

    What is not done in time goes on, and until it ends nobody else is kept waiting: it tells when
    it is worth while again. Where all places are taken a caller waits for one, but only briefly.

    Args:
        name: Of the threads.
        n_max: Places.
        wait_s: How long to wait for what has one.
        ill_wait_s: The same from when something was not done in time until something is.
    """

    def __init__(
        self, name: str, *, n_max: int, wait_s: float, ill_wait_s: float | None = None
    ) -> None:
        self._pool = ThreadPoolExecutor(n_max, thread_name_prefix=name)
        self._places = threading.Semaphore(n_max)
        self._began_s: dict[Future[Any], float] = {}  # of calls under way
        self._wait_s = wait_s
        self._ill_wait_s = wait_s if ill_wait_s is None else ill_wait_s
        self._is_ill = False

    def ask(self, work: Callable[[], T], *, is_ill: bool = False) -> T:
        """What `work` returns or raises.

        Args:
            work: What may block.
            is_ill: Something else has said already that it will not be done in time.

        Raises:
            TransportError: code `log-slow`, it is not done in time, or earlier ones are not.
        """
        wait_s = self._ill_wait_s if is_ill or self._is_ill else self._wait_s
        if not self._take_place(min(wait_s, LOOK_S)):
            raise TransportError("earlier calls of the event log have not ended yet", code=SLOW)
        future = self._pool.submit(work)
        self._began_s[future] = time.monotonic()
        future.add_done_callback(self._leave)
        try:
            return future.result(wait_s)
        except TimeoutError:
            self._is_ill = True
            text = f"the event log did not answer within {wait_s:g} s"
            raise TransportError(text, code=SLOW) from None

    def _take_place(self, wait_s: float) -> bool:
        now_s = time.monotonic()
        oldest_s = now_s - min(list(self._began_s.values()), default=now_s)
        if oldest_s >= self._wait_s:
            return False
        return self._places.acquire(timeout=0 if oldest_s >= LOOK_S else wait_s)

    def _leave(self, future: Future[Any]) -> None:
        if future.exception() is None:
            self._is_ill = False
        del self._began_s[future]
        self._places.release()
