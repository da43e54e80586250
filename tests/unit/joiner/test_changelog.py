"""The joiner's changelog: golden bytes, rounds larger than a record, what a newer program wrote."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from freshrank.clock import ManualClock
from freshrank.errors import SchemaError, TransportError
from freshrank.transport.base import JOINER_STATE, RECORD_BYTES_MAX, NewRecord, TopicPartition
from freshrank.transport.local import LocalLog
from trainer.joiner.changelog import Round, encode, rounds_from
from trainer.joiner.changes import Changes

GOLDEN = Path(__file__).parents[2] / "golden" / "joiner_round_v1.bin"
PLACE = TopicPartition(JOINER_STATE, 0)
TIMES = (1_000, 31_000, 91_000, 99_000)


def round_of(*values: bytes) -> Round:
    """A round that has something of everything."""
    return Round(
        log="0123456789abcdef",
        fingerprint="served after click",
        rows={"seen": [(-5, 7_000)], "parts": [(65_536, 999, b"earlier")]},
        changes=Changes(
            meta={"freshrank.actions:0": 12, "newest_ms": 1_000},
            gone=[1],
            new=[(2, "r2", 31_000, *TIMES, 1, b"\x00\x01", None)],
            changed=[(*TIMES, 3, b"\x02", b"extra", 4)],
            rescheduled=[(*TIMES, 0, b"", None, None, 5)],
            parts=[(131_072 + i, 1_000, value) for i, value in enumerate(values)],
            seen={-(1 << 63): 8_000},
            updates=(6, b"updates"),
            features_saved=-1,
        ),
    )


@pytest.fixture
def log(tmp_path: Path) -> Iterator[LocalLog]:
    with closing(LocalLog(tmp_path, clock=ManualClock(), fsync="never")) as log:
        yield log


def test_golden_round_is_read_for_ever(request: pytest.FixtureRequest, log: LocalLog) -> None:
    (record,) = encode(round_of(b"impression"))
    if request.config.getoption("--update-golden"):
        GOLDEN.write_bytes(record.value)
    assert record.value == GOLDEN.read_bytes()
    log.append(JOINER_STATE, [NewRecord(b"", GOLDEN.read_bytes())], partition=0)
    assert list(rounds_from(log, PLACE, 0)) == [(1, round_of(b"impression"))]


def test_rounds_larger_than_a_record_come_back_whole(log: LocalLog) -> None:
    largest = bytes(range(256)) * (RECORD_BYTES_MAX // 256)
    rounds = [round_of(), round_of(largest, largest), round_of(b"small"), round_of(largest[1:])]
    ends, n_records = [], 0
    for one in rounds:
        records = encode(one)
        assert max(len(record.value) for record in records) < RECORD_BYTES_MAX
        log.append(JOINER_STATE, records, partition=0)
        n_records += len(records)
        ends.append(n_records)
    assert ends == [1, 4, 5, 7]
    assert list(rounds_from(log, PLACE, 0)) == list(zip(ends, rounds, strict=True))
    assert list(rounds_from(log, PLACE, 4)) == list(zip(ends[2:], rounds[2:], strict=True))


def test_what_a_newer_program_wrote_or_is_damaged_is_refused(log: LocalLog) -> None:
    value = encode(round_of())[0].value
    log.append(JOINER_STATE, [NewRecord(b"", b"\x02" + value[1:])], partition=0)
    log.append(JOINER_STATE, [NewRecord(b"", value[:-5])], partition=0)
    with pytest.raises(SchemaError, match="version 2, this program reads 1"):
        next(rounds_from(log, PLACE, 0))
    with pytest.raises(TransportError, match=r"end at offset 1 are damaged.*log\.prefix"):
        next(rounds_from(log, PLACE, 1))
