"""Joiner and trainer over a recorded log in a process of their own, to be killed at any moment."""

import hashlib
import json
import os
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from freshrank import accounting, config, feature_state
from freshrank.embedded import Embedded
from freshrank.feature_state import LocalFeatureState
from freshrank.transport.base import ACTIONS, EXAMPLES, IMPRESSIONS
from trainer.joiner import Joiner


def learn(directory: Path, told: Connection) -> None:
    """Tell the number of examples learned after every step, and at the end describe the loop.

    Once nothing is left it learns the remainder of the last batch and writes `result.json`.

    Args:
        directory: The data directory, with `freshrank.yaml`.
        told: Takes the numbers; whoever has the other end hears them until the process ends.
    """
    # So that kills meet rounds at work, and each third with feature state saved.
    Joiner.n_read_max = 20
    feature_state.UNSAVED_MAX = 1_000  # type: ignore[misc]
    environ = {**os.environ, "FRESHRANK__SERVICE__DATA_DIR": str(directory)}
    loop = Embedded(config.load(directory / "freshrank.yaml", environ=environ), learn=True)
    assert loop.trainer is not None
    [joiner] = loop.joiners
    while True:
        n_joined = joiner.step(0.0)
        n_learned = loop.trainer.step(0.0)
        told.send(loop.accounting().get("examples_learned", 0))
        if n_joined == n_learned == 0 and is_drained(loop):
            break
    loop.trainer.drain()
    (directory / "result.json").write_text(json.dumps(describe(loop)))
    loop.close()


def is_drained(loop: Embedded) -> bool:
    """Everything recorded is joined and no window is open."""
    totals = loop.accounting()
    joined = totals["accepted_impressions"] + totals["accepted_actions"]
    recorded = json.loads((loop.settings.service.data_dir / "recorded.json").read_text())
    return joined == recorded and accounting.n_open(totals, loop.settings) == 0


def describe(loop: Embedded) -> dict[str, object]:
    """Totals, and digests of rows, optimizer state, the dense net and feature state."""
    assert loop.trainer is not None
    assert isinstance(loop.state, LocalFeatureState)
    learner = loop.trainer._learner
    digests = {}
    for name, table in sorted(learner.sparse.tables.items()):
        keys = table.keys()
        digest = hashlib.sha256(keys.tobytes())
        digest.update(table.lookup(keys).tobytes())
        digest.update(table.last_seen_s(keys).tobytes())
        # Optimizer state shows in what one more equal step does to every row.
        table.apply(keys, np.full((len(keys), table.width), 0.5, np.float32))
        digest.update(table.lookup(keys).tobytes())
        digests[name] = digest.hexdigest()
    dense = hashlib.sha256()
    for parameter in learner.net.state_dict().values():
        dense.update(parameter.detach().numpy().tobytes())
    known = {}
    entries = {name: series.entries() for name, series in loop.state.series.items()}
    for name, columns in [
        *entries.items(),
        *((e, r.entries()) for e, r in loop.state.rings.items()),
    ]:
        order = np.lexsort(columns)
        known[name] = hashlib.sha256(b"".join(c[order].tobytes() for c in columns)).hexdigest()
        assert len(order) > 0
    totals = loop.accounting()
    names = ("examples_written", "reversals", "examples_learned", "click.positive")
    return {
        "tables": digests,
        "dense": dense.hexdigest(),
        "features": known,
        "totals": {name: totals.get(name, 0) for name in names},
        "accounting_problems": accounting.problems(
            {**totals, "received": 0, "accepted": 0, "rejected": 0}, loop.settings
        ),
        "records": {
            topic: loop.log.end_offset(topic, 0) for topic in (IMPRESSIONS, ACTIONS, EXAMPLES)
        },
    }
