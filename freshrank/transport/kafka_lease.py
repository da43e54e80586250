"""One process of several that may write: who has the only partition of a group.

A lease ends by itself. Its holder asks the group's coordinator every second to be confirmed, and
holds it for a session from the time of the question, by its own monotonic clock; the coordinator
gives it to another only after a session of silence. So two never hold it at a time, frozen ones
included, as far as their clocks run alike. What its holder began in time and finished late must be
fenced where it arrives: by the epochs of checkpoints and parameters.
"""

import logging
import threading
import time
from typing import Final

from kafka.structs import OffsetAndMetadata

from freshrank.errors import TransportError
from freshrank.transport.base import CONTROL, TopicPartition
from freshrank.transport.kafka_cluster import Cluster
from freshrank.transport.kafka_members import Membership

logger = logging.getLogger(__name__)

_GROUP: Final = "trainer-lease"
_CONFIRM_EVERY_S: Final = 1.0
_LOOK_S: Final = 0.2
_RETRY_S: Final = 0.5
_CLOSE_S: Final = 10.0


class Lease:
    """Waits for the right to write, and knows whether it is still held. For any thread.

    Args:
        cluster: Where the group is; its topics are made.

    Raises:
        TransportError: the cluster cannot be reached.
    """

    def __init__(self, cluster: Cluster) -> None:
        self._changed = threading.Condition()
        self._is_assigned = False
        self._ends_s: float | None = None  # None: never held
        self._trouble = ""
        self._must_end = threading.Event()
        self._member = _Member(
            cluster,
            _GROUP,
            CONTROL,  # has one partition
            on_assigned=lambda partitions: self._assign(bool(partitions)),
            on_revoked=lambda _: self._assign(False),
        )
        self._thread = threading.Thread(target=self._run, name="lease", daemon=True)
        self._thread.start()

    def wait(self, timeout_s: float) -> bool:
        """Until it is held for the first time; False when time ran out."""
        with self._changed:
            return self._changed.wait_for(lambda: self._ends_s is not None, timeout_s)

    def check(self) -> None:
        """Refuse to go on once it is not held any more.

        Raises:
            TransportError: code `lease-lost`: another process may write, this one must end.
        """
        ends_s = self._ends_s
        if ends_s is None or time.monotonic() >= ends_s:
            why = self._trouble or "this process stood still, or another one has taken over"
            raise TransportError(
                f"the lease to write is lost ({why}): nothing was saved or published since; start "
                "again, to wait for the lease",
                code="lease-lost",
            )

    def close(self) -> None:
        """Give it up: another process has it within a second or two."""
        self._must_end.set()
        self._thread.join(_CLOSE_S)

    # What follows runs in the thread of its own.

    def _run(self) -> None:
        confirmed_s = 0.0
        while not self._must_end.is_set():
            try:
                self._member.poll(_LOOK_S)
                if self._is_assigned and time.monotonic() >= confirmed_s + _CONFIRM_EVERY_S:
                    confirmed_s = self._confirm()
                self._tell("")
            except TransportError as error:
                self._tell(str(error))
                self._must_end.wait(_RETRY_S)
        with self._changed:
            self._is_assigned = False
            self._ends_s = self._ends_s and 0.0
        self._member.close()

    def _confirm(self) -> float:
        asked_s = time.monotonic()
        self._member.confirm(TopicPartition(CONTROL, 0), self._member.session_s / 2)
        with self._changed:
            # Once it has ended it is lost for good: what was learned meanwhile is another's.
            if self._is_assigned and (self._ends_s is None or time.monotonic() < self._ends_s):
                self._ends_s = asked_s + self._member.session_s
                self._changed.notify_all()
        return asked_s

    def _assign(self, is_assigned: bool) -> None:
        with self._changed:
            if self._is_assigned and not is_assigned:
                self._ends_s = self._ends_s and 0.0
            self._is_assigned = is_assigned
        logger.info("lease=%s", "assigned" if is_assigned else "revoked")

    def _tell(self, trouble: str) -> None:
        if trouble != self._trouble:  # a line per change, not per try
            logger.warning("lease=%s", trouble or "recovered")
            self._trouble = trouble


class _Member(Membership):
    def confirm(self, place: TopicPartition, timeout_s: float) -> None:
        """Have the coordinator say that this process is a member, which it is for a session then.

        By a commit, which it takes from members alone, and which means nothing else.

        Raises:
            TransportError: it does not say so now.
        """
        offsets = {self._cluster.place(place): OffsetAndMetadata(0, "", -1)}
        with self._cluster.errors(f"confirm the lease of {self._group}"):
            self._consumer.commit(offsets, timeout_ms=int(timeout_s * 1_000))
