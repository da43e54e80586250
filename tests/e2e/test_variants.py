"""The whole loop under other settings than the demo's: each must learn a click."""

import json
from pathlib import Path

import pytest

from freshrank.client import call
from tests.e2e.test_commands import CONFIG, run, serving

LOGISTIC = ("join:", "model: {kind: logistic}\njoin:")
UINT64 = ("type: id, scope: item", "type: id, scope: item, key: uint64")
PARTITIONS = ("join:", "log: {partitions: 3}\njoin:")
ADAM = ("join:", "optimizer: {sparse: {kind: adam, lr: 0.01}}\njoin:")
FTRL = (
    "join:",
    "optimizer: {sparse: {accumulator_half_life: 7d, first_order: {kind: ftrl}}}\njoin:",
)
ROWWISE = ("join:", "optimizer: {sparse: {kind: rowwise_adagrad}}\njoin:")
AT_CLOSE = ("window: 1s", "window: 1s, emit: at_close")
AT_ONCE = ("window: 1s", "window: 1s, emit: at_once")
FLOAT16 = ("sync: {", "serving: {dtype: float16}\nsync: {dtype: float16, ")
FIXED = ("join:", "trainer: {batching: fixed, batch_max: 1}\njoin:")


@pytest.mark.parametrize(
    "change",
    [LOGISTIC, UINT64, PARTITIONS, ADAM, FTRL, ROWWISE, AT_CLOSE, AT_ONCE, FIXED, FLOAT16],
    ids=[
        "logistic",
        "uint64",
        "partitions",
        "adam",
        "ftrl",
        "rowwise",
        "at_close",
        "at_once",
        "fixed",
        "float16",
    ],
)
def test_a_click_is_learned_and_outlives_a_restart(change: tuple[str, str], tmp_path: Path) -> None:
    old, new = change
    assert old in CONFIG
    (tmp_path / "freshrank.yaml").write_text(CONFIG.replace(old, new))
    item = 2**64 - 1

    with serving(tmp_path) as (base, process):
        shown = {"kind": "impression", "request_id": "r1", "items": [{"item": str(item)}]}
        click = {"kind": "feedback", "request_id": "r1", "item": str(item), "event": "click"}
        receipt = call(base, "/v1/events", {"events": [shown, click]})["receipt"]
        learned = call(base, f"/v1/events/{receipt}?wait=30s")
        assert learned["state"] == "servable", learned
        process.terminate()
        assert process.wait(30) == 0

    with serving(tmp_path) as (base, _):
        answer = run(
            "rank", "--user", "u", "--url", base, "--json", str(item), "1", directory=tmp_path
        )
        after = json.loads(answer.stdout)

    assert [one["item"] for one in after["items"]] == [str(item), "1"]
    assert [one["known"] for one in after["items"]] == [True, False]
    clicked, other = (one["score"] for one in after["items"])
    assert clicked > other
