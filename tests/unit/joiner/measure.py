"""Records a joiner takes per second of one core: impressions of ten items, one action each.

PYTHONPATH=. .venv/bin/python -m tests.unit.joiner.measure [requests]
"""

import random
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from freshrank import messages
from freshrank.clock import ManualClock
from freshrank.feature_state import LocalFeatureState
from freshrank.features import FeatureEncoder
from freshrank.progress import Progress
from freshrank.settings import Settings
from freshrank.transport.base import ACTIONS, EXAMPLES, IMPRESSIONS, NewRecord
from freshrank.transport.local import LocalLog
from tests.unit.joiner.world import action, impression
from trainer.joiner import Joiner

FEATURES: Final[list[dict[str, Any]]] = [
    {"name": "user_id", "type": "id", "scope": "user"},
    {"name": "item_id", "type": "id", "scope": "item"},
    {"name": "region", "type": "id", "scope": "context"},
    {"name": "category", "type": "id", "scope": "item"},
    {"name": "tags", "type": "id_list", "scope": "item"},
    {"name": "age", "type": "bucket", "scope": "user", "boundaries": [18, 30, 50]},
    {"name": "price", "type": "dense", "scope": "item", "transform": "log1p"},
    {"name": "last_clicks", "type": "recent", "event": "click", "max_len": 5},
]
NEGATIVE: Final = {"from": "shown", "sample_rate": 0.5}
TASKS: Final[list[dict[str, Any]]] = [
    {"name": "click", "event": "click", "negative": {"from": "shown"}},
    {"name": "buy", "event": "buy", "negative": NEGATIVE},
]
REQUEST_EVERY_MS: Final = 2  # 500 requests/s of event time: 15,000 open windows of 30 s


def record(log: LocalLog, n_requests: int) -> None:
    """Fill the log."""
    rng = random.Random(1)
    shown, acted = [], []
    for i in range(n_requests):
        ts = 1_000_000 + REQUEST_EVERY_MS * i
        items = [f"item-{rng.randrange(10_000)}" for _ in range(10)]
        one = impression(
            f"request-{i:012d}",
            items,
            ts,
            user=f"user-{rng.randrange(5_000)}",
            shared={"region": "eu", "age": 33, "last_clicks": ["item-1", "item-2"]},
            columns={
                "category": [f"c{rng.randrange(20)}" for _ in items],
                "tags": [["a", "b"] for _ in items],
                "price": [rng.random() * 10 for _ in items],
            },
            served={"click": [0.1] * 10, "buy": [0.01] * 10},
        )
        shown.append(NewRecord(b"", messages.encode(one)))
        event = rng.choice(["click", "click", "click", "buy"])
        acted.append(
            action(one.request_id, rng.choice(items), ts + rng.randrange(8_000), event=event)
        )
    acted.sort(key=lambda one: one.ts_ms)
    for start in range(0, n_requests, 500):
        log.append(IMPRESSIONS, shown[start : start + 500], partition=0)
        some = [NewRecord(b"", messages.encode(one)) for one in acted[start : start + 500]]
        log.append(ACTIONS, some, partition=0)


def main(n_requests: int) -> None:
    """Join a recorded log to its end and print the rate."""
    config = Settings.model_validate({"features": FEATURES, "tasks": TASKS})
    with TemporaryDirectory() as name:
        directory = Path(name)
        clock = ManualClock()
        log = LocalLog(directory / "log", clock=clock)
        record(log, n_requests)
        joiner = Joiner(
            config,
            FeatureEncoder(config),
            log,
            partition=0,
            database=directory / "joiner.sqlite",
            clock=clock,
            state=LocalFeatureState(n_max=5),
            progress=Progress(),
        )
        began_s, began_cpu_s = time.perf_counter(), time.process_time()
        joiner.drain()
        wall_s, cpu_s = time.perf_counter() - began_s, time.process_time() - began_cpu_s
        totals = joiner.accounting()
        n_records = totals["accepted_impressions"] + totals["accepted_actions"]
        print(
            f"records={n_records} records_per_s={n_records / wall_s:.0f} "
            f"records_per_cpu_s={n_records / cpu_s:.0f} rows={totals['examples_written']} "
            f"example_records={log.end_offset(EXAMPLES, 0)}"
        )
        joiner.close()
        log.close()


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20_000)
