"""A thread that follows something: step by step, whatever goes wrong, until it shall end."""

import logging
import threading
from abc import ABC, abstractmethod
from typing import Final

from freshrank.errors import TransportError

logger = logging.getLogger(__name__)

# How long a step sleeps without news before the thread sees that it shall stop.
STEP_TIMEOUT_S: Final = 0.1
# After an error: long enough not to spin, short against any staleness limit.
RETRY_S: Final = 1.0
STOP_TIMEOUT_S: Final = 10.0


class Follower(ABC):
    """Base of what keeps itself up to date; `name` is the thread's and the log's."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Follow in a thread of its own; a second call changes nothing."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Tell the thread to end; what it has taken in stays in force."""
        self._stop.set()

    def join(self) -> None:
        """Wait until it has ended."""
        if self._thread is not None:
            self._thread.join(STOP_TIMEOUT_S)

    @abstractmethod
    def step(self, timeout_s: float) -> object:
        """Take in what is new, or wait for it."""

    def _failed(self, reason: str, text: str) -> None:
        """Note a step that failed."""
        logger.warning("%s=retrying reason=%s error=%s", self._name, reason, text)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self.step(STEP_TIMEOUT_S)
            except TransportError as error:
                self._failed("transport", str(error))
                self._stop.wait(RETRY_S)
            except Exception:
                # A bug here must not take the ranking away: it goes on with what it has.
                logger.exception("%s=retrying reason=internal", self._name)
                self._failed("internal", "see the log")
                self._stop.wait(RETRY_S)
