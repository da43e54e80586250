"""Batches of records as Kafka keeps them -> our records, a batch at a time.

kafka-python makes three objects of each record and asks a dozen properties for it, which takes 8 us
of a core; here it is 2 us. It also unpacks whatever a batch unpacks to: a megabyte may hold a
gigabyte.
"""

import logging
import zlib
from collections.abc import Iterator
from typing import Any, Final

import lz4.frame
from kafka.consumer.fetcher import Fetcher
from kafka.errors import CorruptRecordError
from kafka.record.default_records import DefaultRecordBatch
from kafka.record.util import decode_varint

from freshrank.transport.base import Record

logger = logging.getLogger(__name__)

# A message is 1 MiB at most, and so is a packed batch of any topic made by `freshrank topics`.
UNPACKED_BYTES_MAX: Final = 64 << 20
_CODECS: Final = (0, DefaultRecordBatch.CODEC_GZIP, DefaultRecordBatch.CODEC_LZ4)
_OTHERS: Final = {DefaultRecordBatch.CODEC_SNAPPY: "snappy", DefaultRecordBatch.CODEC_ZSTD: "zstd"}
_GZIP: Final = 16 + zlib.MAX_WBITS
_MAGIC: Final = 2  # of the only format that knows transactions and idempotent producers


class Fetched(Fetcher.PartitionRecords):  # type: ignore[misc]  # kafka-python has no types
    """What one fetch brought of a partition; gives committed records with our topic's name.

    Args:
        prefix: Of all topics' names in the cluster.
        arguments: Of kafka-python's own, as are `options`: checksums are always looked at, nothing
            is deserialized, and what is not committed is left out.
    """

    def __init__(self, *arguments: Any, prefix: str, **options: Any) -> None:
        self._prefix = prefix
        super().__init__(*arguments, **options)

    def _unpack_records(self, place: Any, batches: Any, *_: object) -> Iterator[Record]:
        topic = place.topic.removeprefix(self._prefix)
        while (batch := batches.next_batch()) is not None:
            if batch.magic != _MAGIC or not batch.validate_crc():
                raise CorruptRecordError(f"batch of {place} at offset {batch.base_offset}")
            self.leader_epoch = batch.leader_epoch
            if self._is_committed(batch):
                for record in records_of(batch, topic, place.partition):
                    self.next_fetch_offset = record.offset + 1
                    yield record
            self.next_fetch_offset = batch.next_offset  # compaction may have taken the last ones
        self.drain()

    def _is_committed(self, batch: DefaultRecordBatch) -> bool:
        """Whether it brings records: it is no mark, and its transaction was not aborted."""
        if not batch.has_producer_id():
            return True
        self._consume_aborted_transactions_up_to(batch.last_offset)
        if not batch.is_control_batch:
            return not self._is_batch_aborted(batch)
        if self._contains_abort_marker(batch):
            self.aborted_producer_ids.discard(batch.producer_id)
        return False


def records_of(batch: DefaultRecordBatch, topic: str, partition: int) -> list[Record]:
    """The records of a batch; its format is told in `kafka.record.default_records`.

    Of a batch that unpacks to more than `UNPACKED_BYTES_MAX`, or is packed by another codec than
    gzip and lz4, it is one record at the first offset, whose value says so: no message, and so a
    dead letter.

    Args:
        batch: Whose checksum is right.
        topic: Name for the records.
        partition: Number for the records.

    Raises:
        CorruptRecordError: it is no whole number of records.
    """
    data, at = _unpacked(batch)
    first_offset, first_ms = batch.base_offset, batch.first_timestamp
    trouble = ""
    if len(data) - at > UNPACKED_BYTES_MAX:
        trouble = f"unpacks to more than {UNPACKED_BYTES_MAX >> 20} MiB"
    elif batch.compression_type not in _CODECS:
        codec = _OTHERS.get(batch.compression_type, batch.compression_type)
        trouble = f"is packed by {codec}, write it again with lz4 or gzip"
    if trouble:
        text = (
            f"batch of {batch.records_count} records at offsets {first_offset} to "
            f"{batch.last_offset} {trouble}: not read"
        )
        logger.error("topic=%s partition=%d %s", topic, partition, text)
        return [Record(topic, partition, first_offset, b"", text.encode(), first_ms)]
    same_ms = batch.max_timestamp if batch.timestamp_type == batch.LOG_APPEND_TIME else None
    records: list[Record] = []
    try:
        for _ in range(batch.records_count):
            length, start = decode_varint(data, at)
            at = start + length
            since_ms, start = decode_varint(data, start + 1)  # behind attributes, unused by Kafka
            n_before, start = decode_varint(data, start)
            n_key, start = decode_varint(data, start)  # -1 without one
            middle = start + n_key if n_key > 0 else start
            key = data[start:middle]
            n_value, start = decode_varint(data, middle)
            end = start + n_value if n_value > 0 else start
            if not end < at <= len(data):  # headers stand between, unread
                raise CorruptRecordError(f"record {len(records)} of the batch at {first_offset}")
            time_ms = first_ms + since_ms if same_ms is None else same_ms
            records.append(
                Record(topic, partition, first_offset + n_before, key, data[start:end], time_ms)
            )
    except (IndexError, ValueError) as error:
        raise CorruptRecordError(f"batch at offset {first_offset}: {error}") from error
    if at != len(data):
        raise CorruptRecordError(f"{len(data) - at} bytes too many at offset {first_offset}")
    return records


def _unpacked(batch: DefaultRecordBatch) -> tuple[bytes, int]:
    """Its bytes and where records begin; of more bytes than the bound only the first.

    What kafka-python unpacks by packages that are not installed with ours stays packed: it has no
    bound there.
    """
    packed, most = memoryview(batch._buffer)[batch._pos :], UNPACKED_BYTES_MAX + 1
    try:
        if batch.compression_type == batch.CODEC_GZIP:
            return zlib.decompressobj(_GZIP).decompress(packed, most), 0
        if batch.compression_type == batch.CODEC_LZ4:
            return lz4.frame.LZ4FrameDecompressor().decompress(packed, most), 0
    except (zlib.error, RuntimeError) as error:
        raise CorruptRecordError(f"batch at offset {batch.base_offset}: {error}") from error
    return bytes(batch._buffer), batch._pos
