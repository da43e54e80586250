"""A trainer that dies of the rows of one item, as does the process that searches a batch for it.

    DEADLY_ITEM=666 python deadly_rows.py DIRECTORY
    DEADLY_ITEM=666 python deadly_rows.py train

It learns what is in the log of the directory; or it is `freshrank train`. The process that searches
is started as this file, too, and inherits the environment; who merely imports the file is safe.
"""

import os
import signal
import sys
from pathlib import Path
from typing import Any

from freshrank import cli
from freshrank.clock import SystemClock
from freshrank.examples import ExampleBatch
from tests.unit.trainer.example_records import Bench, make_settings
from trainer.learner import Learner, Step

PARTS: dict[str, Any] = {"trainer": {"batching": "fixed", "batch_max": 4}}

_learn = Learner.learn


def _die_of(self: Learner, batch: ExampleBatch, *, counts: bool = True) -> Step:
    if int(os.environ["DEADLY_ITEM"]) in batch.values.slots["item_id"].ids:
        os.kill(os.getpid(), signal.SIGKILL)
    return _learn(self, batch, counts=counts)


if "DEADLY_ITEM" in os.environ:
    Learner.learn = _die_of  # type: ignore[method-assign]


def main(directory: str) -> None:
    """Learn all there is."""
    bench = Bench(Path(directory), make_settings(**PARTS), clock=SystemClock())
    trainer = bench.trainer()
    trainer.drain()
    trainer.close()
    bench.close()


if __name__ == "__main__":
    cli.main() if sys.argv[1] == "train" else main(sys.argv[1])
