"""Ranks what was asked for last, before the service says that it is ready.

The first requests of a process are slow: pages of the tables were never touched, and the dense net
has allocated nothing. So users and items of the newest impressions are ranked once more; nobody
hears of it, and nothing is logged.
"""

import logging
import time
from collections.abc import Iterator
from typing import Final

from freshrank.errors import DataError, TransportError
from freshrank.messages import Impression, decode
from freshrank.transport.base import IMPRESSIONS, EventLog
from service.bodies import Candidate, RankRequest
from service.follower import Follower
from service.problems import ProblemError
from service.ranker import Ranker
from service.replica import Replica

logger = logging.getLogger(__name__)

# Whoever waits for readiness waits no longer for this.
WARMUP_MAX_S: Final = 10.0
# Offsets that are looked through for one impression: ticks stand between them.
_OFFSETS: Final = 4


class Warmup(Follower):
    """Ranks once a model is there, and ends.

    Args:
        ranker: What is warmed up, and all that is behind it.
        replica: Has the model.
        log: With impressions; where it cannot be read, nothing is warmed up.
        n_requests: To rank at most; 0 for none.

    Attributes:
        is_over: True once that is done, or cannot be.
    """

    def __init__(self, ranker: Ranker, replica: Replica, log: EventLog, *, n_requests: int) -> None:
        super().__init__("warmup")
        self._ranker = ranker
        self._replica = replica
        self._log = log
        self._n_requests = n_requests
        self.is_over = n_requests == 0

    def step(self, timeout_s: float) -> None:
        """Wait for a model, or warm up."""
        if self._replica.model is None and not self.is_over:
            self._stop.wait(timeout_s)
            return
        try:
            self._warm_up()
        except TransportError as error:
            logger.warning("warmup=skipped error=%s", error)
        finally:
            self.is_over = True
            self.stop()

    def _warm_up(self) -> None:
        began_s = time.monotonic()
        n_ranked = n_refused = 0
        for request in self._newest():
            if self._stop.is_set() or time.monotonic() >= began_s + WARMUP_MAX_S:
                break
            try:
                self._ranker.rank(request)
                n_ranked += 1
            except ProblemError:  # of another configuration
                n_refused += 1
        text = "warmup=over requests=%d refused=%d took_s=%.2f"
        logger.info(text, n_ranked, n_refused, time.monotonic() - began_s)

    def _newest(self) -> Iterator[RankRequest]:
        n_partitions = self._log.n_partitions(IMPRESSIONS)
        n = -(-self._n_requests // n_partitions)
        for partition in range(n_partitions if n else 0):
            end = self._log.end_offset(IMPRESSIONS, partition)
            at = max(self._log.start_offset(IMPRESSIONS, partition), end - _OFFSETS * n)
            found: list[RankRequest] = []
            while at < end and (records := self._log.read(IMPRESSIONS, partition, at)):
                found += filter(None, map(_request, (record.value for record in records)))
                at = records[-1].offset + 1
            yield from found[-n:]


def _request(value: bytes) -> RankRequest | None:
    """What may have led to this record."""
    try:
        shown = decode(value)
    except DataError:
        return None
    if not isinstance(shown, Impression) or shown.user is None:
        return None
    candidates = [Candidate(item=item) for item in shown.items]
    return RankRequest(user=shown.user, candidates=candidates, log_impression=False)
