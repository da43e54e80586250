"""What our reading of a batch gives is what kafka-python's own gives, record by record."""

import random
import tracemalloc

import pytest
from kafka.errors import CorruptRecordError
from kafka.record.default_records import DefaultRecordBatch, DefaultRecordBatchBuilder

from freshrank import messages
from freshrank.errors import DataError
from freshrank.transport.base import Record
from freshrank.transport.kafka_batches import UNPACKED_BYTES_MAX, records_of

FIRST_OFFSET, FIRST_MS = 5_000_000_000, 1_700_000_000_000
OFFSET_BYTES, LENGTH_BYTES = 8, 4


def batch_builder(codec: int) -> DefaultRecordBatchBuilder:
    return DefaultRecordBatchBuilder(
        magic=2,
        compression_type=codec,
        is_transactional=False,
        producer_id=-1,
        producer_epoch=-1,
        base_sequence=-1,
        batch_size=1 << 28,
    )


def placed(builder: DefaultRecordBatchBuilder) -> DefaultRecordBatch:
    """What was built, as the broker gives it."""
    return DefaultRecordBatch(FIRST_OFFSET.to_bytes(OFFSET_BYTES, "big") + builder.build()[8:])


def batch_of(rng: random.Random, n_records: int, codec: int) -> DefaultRecordBatch:
    """Keys, values and headers that are there, empty or missing, times that go back and forth."""
    builder = batch_builder(codec)
    for number in range(n_records):
        key, value = (
            rng.choice([None, b"", rng.randbytes(rng.choice([1, 63, 64, 8_191, 8_192]))])
            for _ in range(2)
        )
        headers = [("name", rng.choice([None, b"text"]))] * rng.randrange(3)
        time_ms = FIRST_MS + rng.choice([0, -1, 1, 63, -65, 8_192, -(1 << 40), 1 << 40])
        assert builder.append(number, time_ms, key, value, headers) is not None
    return placed(builder)


@pytest.mark.parametrize("codec", [0, 1, 3], ids=["plain", "gzip", "lz4"])
def test_a_batch_reads_as_kafka_python_reads_it(codec: int) -> None:
    for n_records in (1, 2, 63, 64, 65, 300):
        ours = batch_of(random.Random(n_records), n_records, codec)
        theirs = batch_of(random.Random(n_records), n_records, codec)
        assert records_of(ours, "topic", 3) == [
            Record("topic", 3, one.offset, one.key or b"", one.value or b"", one.timestamp)
            for one in theirs
        ]


def test_a_batch_with_the_brokers_time_has_one_time() -> None:
    batch = batch_of(random.Random(1), 9, 0)
    at = DefaultRecordBatch.ATTRIBUTES_OFFSET
    data = bytearray(batch._buffer)
    data[at + 1] |= DefaultRecordBatch.TIMESTAMP_TYPE_MASK
    records = records_of(DefaultRecordBatch(data), "topic", 0)
    assert {one.appended_at_ms for one in records} == {batch.max_timestamp}
    assert len(records) == 9


def test_damage_behind_a_right_checksum_is_told() -> None:
    rng = random.Random(1)
    data = bytes(batch_of(rng, 3, 0)._buffer)
    for n_bytes in range(DefaultRecordBatch.HEADER_STRUCT.size, len(data)):
        with pytest.raises(CorruptRecordError):
            records_of(DefaultRecordBatch(data[:n_bytes]), "topic", 0)
    with pytest.raises(CorruptRecordError, match="1 bytes too many"):
        records_of(DefaultRecordBatch(data + b"\0"), "topic", 0)


@pytest.mark.parametrize("codec", [1, 3], ids=["gzip", "lz4"])
def test_of_a_batch_that_unpacks_to_too_much_no_more_is_unpacked(codec: int) -> None:
    builder = batch_builder(codec)
    for number in range(5):  # 2.5 times the bound
        assert builder.append(number, FIRST_MS, b"", bytes(UNPACKED_BYTES_MAX // 2), []) is not None
    batch = placed(builder)
    tracemalloc.start()
    try:
        (record,) = records_of(batch, "topic", 3)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert record.offset == FIRST_OFFSET
    assert b"5 records at offsets 5000000000 to 5000000004" in record.value
    assert peak_bytes < 2.2 * UNPACKED_BYTES_MAX  # a buffer that grows is there twice
    with pytest.raises(DataError, match="not a freshrank message"):
        messages.decode(record.value)


@pytest.mark.parametrize(("codec", "name"), [(2, b"snappy"), (4, b"zstd"), (7, b"7")])
def test_a_batch_of_another_codec_is_one_record_that_names_it(codec: int, name: bytes) -> None:
    data = bytearray(batch_of(random.Random(1), 3, 0)._buffer)
    data[DefaultRecordBatch.ATTRIBUTES_OFFSET + 1] |= codec
    (record,) = records_of(DefaultRecordBatch(data), "topic", 3)
    assert record.offset == FIRST_OFFSET
    assert b"3 records at offsets 5000000000 to 5000000002 is packed by " + name in record.value
    with pytest.raises(DataError, match="not a freshrank message"):
        messages.decode(record.value)


@pytest.mark.parametrize("codec", [1, 3], ids=["gzip", "lz4"])
def test_damage_in_a_packed_batch_is_told(codec: int) -> None:
    data = bytearray(batch_of(random.Random(1), 30, codec)._buffer)
    data[DefaultRecordBatch.HEADER_STRUCT.size] ^= 0xFF
    with pytest.raises(CorruptRecordError):
        records_of(DefaultRecordBatch(data), "topic", 0)
