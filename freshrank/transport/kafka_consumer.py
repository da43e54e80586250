"""kafka-python's consumer, which gives our records, also of a partition that was paused."""

from functools import partial
from typing import Any

from kafka import KafkaConsumer

from freshrank.transport.kafka_batches import Fetched


class Consumer(KafkaConsumer):  # type: ignore[misc]  # kafka-python has no types
    """A consumer whose partitions can be paused and resumed, and whose `poll` gives our records.

    kafka-python 3.0.12 puts aside what it has fetched and parsed of a paused partition, and takes
    it up again once nothing is in line; but it looks for nothing (None), where the last partition
    in line stays when it is used up. Then the paused one is neither read nor fetched again.

    Args:
        prefix: Of all topics' names in the cluster.
        configs: Of `KafkaConsumer`.
    """

    def __init__(self, *, prefix: str, **configs: Any) -> None:
        super().__init__(**configs)
        self._fetcher.PartitionRecords = partial(Fetched, prefix=prefix)

    def poll(self, *arguments: Any, **options: Any) -> Any:
        """As of `KafkaConsumer`."""
        if not self._fetcher._next_partition_records:  # used up: it is false then
            self._fetcher._next_partition_records = None
        return super().poll(*arguments, **options)
