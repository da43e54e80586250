"""Records of `freshrank.examples`: what was written is read for ever, what is newer is not."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from freshrank import examples
from freshrank.errors import DataError
from freshrank.examples import BatchInfo, ExampleBatch
from freshrank.features import Encoded, SlotIds
from freshrank.frames import Outcome
from tests.unit.joiner.world import examples_of

GOLDEN = Path(__file__).parents[1] / "golden" / "examples_v1.arrow"
TASKS, SLOTS = ["click", "buy"], ["item_id", "tags"]
BATCH = ExampleBatch(
    info=BatchInfo(
        schema_hash="0123456789abcdef",
        offsets={"freshrank.impressions:0": 7, "freshrank.actions:0": 9},
        outcomes=[Outcome("freshrank.actions", 0, 8, "duplicate")],
        watermark_ms=1_700_000_000_000,
    ),
    request_ids=["r1", "Å"],
    items=["1", "18446744073709551615"],
    ts_ms=np.array([1_700_000_000_000, 1_700_000_000_001]),
    appended_at_ms=np.array([1_700_000_000_500, 1_700_000_000_600]),
    is_action=np.array([True, False]),
    is_first=np.array([True, False]),
    is_reversal=np.array([False, False]),
    labels=np.array([[1, 0], [0, 0]], np.float32),
    weights=np.array([[1, 0], [0, 1]], np.float32),
    keep_rates=np.array([[0.5, 1], [0.5, 1]], np.float32),
    served=np.array([[0.25, 0.125], [np.nan, np.nan]], np.float32),
    values=Encoded(
        2,
        {
            "item_id": SlotIds(np.array([1, 2**64 - 1], np.uint64), np.array([0, 1, 2])),
            "tags": SlotIds(np.array([5, 6], np.uint64), np.array([0, 2, 2])),
        },
        np.array([[0.5, -1.0], [0.0, 3.0]], np.float32),
    ),
)


def test_golden_record_is_read_for_ever(request: pytest.FixtureRequest) -> None:
    if request.config.getoption("--update-golden"):
        GOLDEN.write_bytes(examples.encode(BATCH, TASKS))
    read = examples.decode(GOLDEN.read_bytes(), TASKS, SLOTS)
    assert read.info == BATCH.info
    assert examples_of(read) == examples_of(BATCH)


def test_what_is_written_now_is_what_was() -> None:
    """By columns, types and values: how Arrow lays them out may change with its version."""
    (now, told), (then, told_then) = map(
        examples.unpack, (examples.encode(BATCH, TASKS), GOLDEN.read_bytes())
    )
    assert now.schema.equals(then.schema, check_metadata=True)
    assert told == told_then
    assert now.drop_columns(["served.click", "served.buy"]).equals(
        then.drop_columns(["served.click", "served.buy"])
    )  # NaN equals nothing; the test above reads it


def test_a_record_of_a_newer_program_is_refused() -> None:
    newer = replace(BATCH, info=replace(BATCH.info, v=examples.VERSION + 1))
    with pytest.raises(DataError, match="upgrade the trainer first") as caught:
        examples.decode(examples.encode(newer, TASKS), TASKS, SLOTS)
    assert caught.value.code == "newer-version"
