"""A thread that does one part of the loop, step by step, whatever the disk and the log do."""

import logging
import threading
from collections.abc import Callable

from freshrank.errors import Error, TransportError
from freshrank.metrics import Reading

logger = logging.getLogger(__name__)

# How long a part waits for news before it looks at its clock again. Short enough that a publication
# that falls due while nothing arrives is at most this late.
STEP_TIMEOUT_S = 0.05
# Back-off after a transport error such as a full disk: the first retry soon, later ones each 5 s.
RETRY_FIRST_S, RETRY_MAX_S = 0.2, 5.0
CLOSE_TIMEOUT_S = 30.0
# No trying again mends these: the disk is broken, another process has taken over, or the log is
# another one now, or has lost what was to be read.
FATAL_CODES = (
    "disk-failed",
    "fenced",
    "lease-lost",
    "log-partitions",
    "log-replaced",
    "offset-removed",
    "state-mismatch",
)


class Worker:
    """A thread that calls `step` until stopped.

    A `TransportError` (disk full, log unreachable) is retried with back-off, but for those of
    `FATAL_CODES`. These and any other error, a bug or damaged state, are logged and stop the
    worker; the others go on.
    """

    def __init__(self, name: str, step: Callable[[float], int]) -> None:
        self._name = name
        self._step = step
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self.failure: Exception | None = None
        self.n_retries = 0

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def reading(self) -> Reading:
        """Its metric."""
        return Reading("worker_retries", self.n_retries, {"worker": self._name})

    def stop(self) -> None:
        """Finish the step under way and end the thread.

        Raises:
            Error: it does not end, so what it works on must not be touched.
        """
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join(CLOSE_TIMEOUT_S)
        if self._thread.is_alive():
            self.failure = Error(f"worker {self._name} did not end in {CLOSE_TIMEOUT_S:.0f} s")
            raise self.failure

    def _run(self) -> None:
        retry_s = RETRY_FIRST_S
        trouble = ""
        while not self._stop.is_set():
            try:
                self._step(STEP_TIMEOUT_S)
                if trouble:
                    logger.warning("worker=%s state=recovered", self._name)
                retry_s, trouble = RETRY_FIRST_S, ""
            except TransportError as error:
                if error.code in FATAL_CODES:
                    self._end(error)
                    return
                if error.code != trouble:  # a line per change, not per try
                    logger.warning("worker=%s state=retrying error=%s", self._name, error)
                trouble = error.code
                self.n_retries += 1
                self._stop.wait(retry_s)
                retry_s = min(2 * retry_s, RETRY_MAX_S)
            except Exception as error:
                self._end(error)
                return

    def _end(self, error: Exception) -> None:
        self.failure = error
        logger.error("worker=%s state=stopped", self._name, exc_info=error)
