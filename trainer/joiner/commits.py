"""How a round becomes durable: the seam between the joiner and where its log is."""

from typing import Final, Protocol

from freshrank.transport.base import ACTIONS, DEAD_LETTER_SUFFIX, EXAMPLES, IMPRESSIONS
from trainer.joiner.ledger import Ledger

OUTGOING_TOPICS: Final = (
    EXAMPLES,
    IMPRESSIONS + DEAD_LETTER_SUFFIX,
    ACTIONS + DEAD_LETTER_SUFFIX,
)


class Commits(Protocol):
    """Commits rounds with what they send: all of a round or nothing, once, whatever dies when."""

    @property
    def is_due(self) -> bool:
        """Whether a round is due though nothing has changed."""

    def restore(self) -> dict[str, int]:
        """Bring the database to what is committed; called at the start, and after any error.

        Returns:
            Its `meta` as the last round left it.

        Raises:
            SchemaError: what is committed was written by a newer version, or for other tasks.
            TransportError: database and log do not belong together (`joiner-state`, on Kafka
                `state-mismatch`), or one of them cannot be reached.
        """

    def put(self, topic: str, value: bytes, ledger: Ledger) -> None:
        """Add a record for one of `OUTGOING_TOPICS` to a round."""

    def commit(self, ledger: Ledger) -> None:
        """Commit a round that is decided.

        Raises:
            TransportError: nobody knows whether it is committed: `restore` finds out.
        """

    def relay(self) -> None:
        """Append what is committed but not yet in the log.

        Raises:
            TransportError: the log did not take all of it; the next call goes on.
        """
