"""What a process that is built leaves out of garbage collection."""

import subprocess
import sys

SCRIPT = """
import gc
from freshrank.garbage import spare_program

n_before = len(gc.get_objects())
spare_program()
n_watched, (youngest, *older) = len(gc.get_objects()), gc.get_threshold()
print(n_before > 1_000, n_watched < n_before / 10, youngest > 5_000, older == [10, 10])

class Cycle:
    alive = 0
    def __init__(self): self.own, Cycle.alive = self, Cycle.alive + 1
    def __del__(self): Cycle.alive -= 1

for _ in range(2 * youngest): Cycle()
print(Cycle.alive < 2 * youngest)
"""


def test_the_program_is_left_out_and_what_comes_later_is_collected() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.split() == ["True"] * 5
