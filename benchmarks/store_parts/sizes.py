"""How large the figures are measured: in full, or small to try the benchmark itself."""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Sizes:
    """Rows of tables and batches of a round; the goals hold for the full ones alone."""

    large: int
    small: int
    huge: int
    grown_from: int
    grown_to: int
    lookup_batches: int
    update_batches: int


FULL: Final = Sizes(
    large=10_000_000,
    small=1_000_000,
    huge=100_000_000,
    grown_from=1_000_000,
    grown_to=32_000_000,
    lookup_batches=200,
    update_batches=60,
)
QUICK: Final = Sizes(
    large=500_000,
    small=100_000,
    huge=5_000_000,
    grown_from=100_000,
    grown_to=1_000_000,
    lookup_batches=40,
    update_batches=20,
)
