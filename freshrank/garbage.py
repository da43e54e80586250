"""Garbage collection of processes that are to answer soon, or to read a stream fast."""

import gc
from typing import Final

# New objects between two looks at the youngest: one rank request of 200 candidates makes 700, the
# interpreter's own bound, and most of them go without a look.
_YOUNG_MAX: Final = 10_000


def spare_program() -> None:
    """Leave what is here now out of every later collection; called once a process is built.

    The program itself is not garbage, but a full collection looks at all of it: for 100 to 350 ms
    every four seconds under load, in which no thread runs.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG_MAX, *gc.get_threshold()[1:])
