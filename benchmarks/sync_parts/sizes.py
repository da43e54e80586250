"""How large the figures are measured: in full, or small to try the benchmark itself."""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Sizes:
    """Rows, rounds and seconds; the goals hold for the full ones alone.

    Attributes:
        rows: Of the table that is published, applied to and rolled back.
        ready_rows: Of the base that a new replica loads.
        rounds: Of which a figure is the median.
        events: Clicks, one at a time.
        warm_events: Before them, not counted.
        backlog: Requests of which the capacity is measured.
        open_loop_s: How long events then arrive at half of it.
        phase_s: How long requests are ranked with deltas, and without, in each round.
    """

    rows: int
    ready_rows: int
    rounds: int
    events: int
    warm_events: int
    backlog: int
    open_loop_s: int
    phase_s: float


FULL: Final = Sizes(
    rows=1_000_000,
    ready_rows=10_000_000,
    rounds=5,
    events=200,
    warm_events=20,
    backlog=20_000,
    open_loop_s=20,
    phase_s=3.0,
)
QUICK: Final = Sizes(
    rows=100_000,
    ready_rows=500_000,
    rounds=3,
    events=30,
    warm_events=5,
    backlog=3_000,
    open_loop_s=6,
    phase_s=1.0,
)
