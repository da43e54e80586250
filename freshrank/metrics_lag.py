"""How far behind the end of the log its readers are."""

from collections.abc import Callable, Mapping
from typing import Final

from freshrank.errors import TransportError
from freshrank.metrics import Reading
from freshrank.transport.base import EventLog, TopicPartition
from service.patience import Patience

# A broker answers in milliseconds, and a scrape has to be done within seconds.
_WAIT_S: Final = 1.0


class Lag:
    """Asks the log at each scrape; while it does not answer there is no lag to tell.

    Args:
        log: The event log.
        positions: What is read next, by whom the metrics are of; from any thread.
        metric: What they are called.
    """

    def __init__(
        self,
        log: EventLog,
        positions: Callable[[], Mapping[TopicPartition, int]],
        metric: str = "consumer_lag_records",
    ) -> None:
        self._log = log
        self._positions = positions
        self._metric = metric
        self._looks = Patience("lag", n_max=1, wait_s=_WAIT_S)

    def readings(self) -> list[Reading]:
        """One for each partition that is read here."""
        positions = self._positions()
        if not positions:
            return []
        try:
            lags = self._looks.ask(lambda: self._log.lag(positions))
        except TransportError:
            return []
        return [
            Reading(
                self._metric,
                n_behind,
                {"topic": topic.rpartition(".")[2], "partition": str(partition)},
            )
            for (topic, partition), n_behind in lags.items()
        ]
