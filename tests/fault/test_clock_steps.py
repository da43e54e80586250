"""The machine's clock steps an hour ahead and back, as where NTP mends it, under the whole loop.

The program is the real one; `stepped_clock.c` changes the time of day it sees and no other clock.
"""

import re
import struct
import time
from pathlib import Path
from typing import Any

from tests.fault.preloaded import compiled
from tests.fault.serving import SHOP, Serving, serving
from tests.integration.transport.log_checks import eventually

HOUR_S = 3_600
EVERY_S = 0.1
CONFIG = (
    SHOP
    + """
join: {{window: 10m, max_out_of_order: 100ms, allowed_lateness: 10m}}
sync: {{sparse_every: 100ms, dense_every: 100ms}}
"""
)


class SteppedClock:
    """The time of day of the processes that have its environment.

    Args:
        scratch: A directory for its files.
    """

    def __init__(self, scratch: Path) -> None:
        self._ahead = scratch / "ahead_ns"
        self._ahead.write_bytes(bytes(8))
        self.environment = {
            "LD_PRELOAD": compiled("stepped_clock", scratch),
            "STEPPED_CLOCK": str(self._ahead),
        }

    def step_to(self, ahead_s: int) -> None:
        """From now on it is so far ahead of this process's."""
        with self._ahead.open("r+b") as file:
            file.write(struct.pack("=q", ahead_s * 1_000_000_000))


def stats(one: Serving) -> dict[str, Any]:
    told: dict[str, Any] = one.api.ask("/v1/stats").json()
    return told


def count(one: Serving, name: str) -> int:
    counted: dict[str, int] = stats(one)["accounting"]
    return counted.get(name, 0)


def outcomes(one: Serving, receipt: str) -> set[tuple[str, str]]:
    return {(o["topic"], o["outcome"]) for o in one.became(receipt)["outcomes"]}


def seconds_of_actions(one: Serving) -> float:
    """What all actions took from append to servable, together."""
    name = "freshrank_freshness_event_to_servable_seconds_sum"
    found = re.search(rf'{name}{{kind="action",stage="total"}} (\S+)', one.api.ask("/metrics").text)
    assert found is not None
    return float(found[1])


def keeps_its_pace(one: Serving) -> None:
    """Publications and checkpoints go on, and none that a stepped timer would think were missed."""
    names = ("frames_published", "checkpoints")
    began_s, before = time.monotonic(), {name: count(one, name) for name in names}
    one.learns()
    eventually(lambda: all(count(one, name) > before[name] for name in names))
    n_frames = count(one, "frames_published") - before["frames_published"]
    # One may be due at either end; the hour that passed at once would have been 36,000.
    assert n_frames <= (time.monotonic() - began_s) / EVERY_S + 2


def test_an_hour_ahead_and_back_loses_that_hour_and_says_so(tmp_path: Path) -> None:
    clock = SteppedClock(tmp_path)
    with serving(tmp_path, config=CONFIG, environ=clock.environment) as one:
        open_ = one.send("i1", "i2")  # i2 is neither clicked nor decided: its window is open
        open_id = one.request_id
        assert outcomes(one, open_) == {("freshrank.actions", "trained")}
        assert count(one, "click.negative") == 0

        clock.step_to(HOUR_S)
        keeps_its_pace(one)
        assert count(one, "click.negative") == 1  # the window closed early
        late = {"kind": "feedback", "request_id": open_id, "item": "i2", "event": "click"}
        receipt = one.api.ask("/v1/events", {"events": [late]}).json()["receipt"]
        assert outcomes(one, receipt) == {("freshrank.actions", "late")}
        assert one.rank() == 200
        assert stats(one)["degraded"] == []
        assert 0 <= seconds_of_actions(one) < HOUR_S

        clock.step_to(0)
        # Nothing is lost without a word: an impression is a dead letter, its click is unmatched.
        first, second = one.send("i1"), one.send("i1")
        lost = {("freshrank.impressions", "dead_letter"), ("freshrank.actions", "unmatched")}
        assert outcomes(one, first) == lost
        assert one.rank() == 200
        eventually(lambda: stats(one)["degraded"] == ["clock"])
        assert "clock=behind" in one.said.read_text()
        assert 0 <= seconds_of_actions(one) < HOUR_S
        assert stats(one)["freshness"]["sparse_age_seconds"] >= 0

        clock.step_to(HOUR_S + 60)  # as if the hour had passed
        assert outcomes(one, second) == lost
        keeps_its_pace(one)
        eventually(lambda: stats(one)["degraded"] == [])
        assert "clock=caught-up" in one.said.read_text()
