"""Records a second through the joiner: impressions of five items, one action each on average.

    python -m benchmarks.joiner [--json]

A log of 30,000 impressions at 500 a second and as many actions is joined to its end, with the
defaults of `join` and `log`: 15,000 windows are open at a time, some actions come after their
window, and every round is committed and its examples appended before the next. Each run joins a
copy of the same log; the figures are the median of three.
"""

import random
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, Final

from benchmarks.report import Row, main, row
from freshrank import messages
from freshrank.clock import ManualClock
from freshrank.feature_state import LocalFeatureState
from freshrank.features import FeatureEncoder
from freshrank.messages import Action, Impression, Value
from freshrank.progress import Progress
from freshrank.settings import Settings
from freshrank.transport.base import ACTIONS, IMPRESSIONS, NewRecord
from freshrank.transport.local import LocalLog
from trainer.joiner import Joiner

CONTEXT: Final = {"device": 4, "region": 50, "section": 20, "hour": 24}  # name: how many values
CONFIG: Final[dict[str, Any]] = {
    "features": [
        {"name": "user_id", "type": "id", "scope": "user"},
        {"name": "item_id", "type": "id", "scope": "item", "key": "uint64"},
        *({"name": name, "type": "id", "scope": "context"} for name in CONTEXT),
        {"name": "last_clicks", "type": "recent", "event": "click", "max_len": 5},
    ],
    "tasks": [{"name": "click", "event": "click", "negative": {"from": "shown"}}],
}
N_REQUESTS, N_ITEMS_SHOWN, N_RUNS = 30_000, 5, 3
N_USERS, N_ITEMS = 50_000, 20_000
REQUEST_EVERY_MS: Final = 2
ACTION_DELAY_MS: Final = 6_000  # on average: one in 150 comes after its window of 30 s
# What there is to learn: items of four grades, and users that like items of their own kind.
KINDS: Final = 5
GRADES: Final = (0.3, 1.0, 1.0, 4.0)
OWN_KIND: Final = 3.0


def run() -> list[Row]:
    """Join the same log three times."""
    settings = Settings.model_validate(CONFIG)
    with tempfile.TemporaryDirectory() as name:
        recorded = Path(name) / "recorded"
        record(recorded)
        rates = [join(settings, recorded, Path(name) / str(i)) for i in range(N_RUNS)]
    wall, cpu = (statistics.median(one) for one in zip(*rates, strict=True))
    return [
        row("joiner_events_per_second", wall, "records/s", goal=20_000),
        row("joiner_events_per_cpu_second", cpu, "records/CPU s"),
    ]


def events() -> tuple[list[Impression], list[Action]]:
    """What was shown and what was clicked, each by event time."""
    rng = random.Random(1)
    shown: list[Impression] = []
    acted: list[Action] = []
    for i in range(N_REQUESTS):
        shown.append(impression(rng, 1_000_000 + REQUEST_EVERY_MS * i))
        acted += (action(rng, shown[-1]) for _ in range(rng.choice([0, 1, 1, 2])))
    acted.sort(key=lambda one: one.ts_ms)
    return shown, acted


def record(directory: Path) -> None:
    """Write the log."""
    shown, acted = events()
    log = LocalLog(directory, clock=ManualClock(), fsync="never")
    for topic, some in ((IMPRESSIONS, shown), (ACTIONS, acted)):
        new = [NewRecord(b"", messages.encode(one)) for one in some]
        for start in range(0, len(new), 1_000):
            log.append(topic, new[start : start + 1_000], partition=0)
    log.close()


def impression(rng: random.Random, ts_ms: int) -> Impression:
    """What the service logs of a ranking."""
    items = [str(item) for item in rng.sample(range(N_ITEMS), N_ITEMS_SHOWN)]
    request = f"{rng.getrandbits(128):032x}"
    shared: dict[str, Value] = {f: f"{f}-{rng.randrange(n)}" for f, n in CONTEXT.items()}
    shared["last_clicks"] = [str(rng.randrange(N_ITEMS)) for _ in range(5)]
    return Impression(
        event_id=request,
        ts_ms=ts_ms,
        received_at_ms=ts_ms,
        request_id=request,
        user=f"user-{rng.randrange(N_USERS)}",
        items=items,
        shared=shared,
        served={"click": [round(rng.random(), 6) for _ in items]},
        positions=list(range(1, N_ITEMS_SHOWN + 1)),
        version="d3-s1000",
    )


def number_of(user: str | None) -> int:
    """The number in a user's name."""
    return int((user or "").removeprefix("user-"))


def appeal(user: int, item: int) -> float:
    """How readily a user clicks an item, compared with others; both are numbers."""
    is_own = item % KINDS == user % KINDS
    return GRADES[item // KINDS % len(GRADES)] * (OWN_KIND if is_own else 1.0)


def action(rng: random.Random, shown: Impression) -> Action:
    """A click on one of the items."""
    user = number_of(shown.user)
    appeals = [appeal(user, int(item)) for item in shown.items]
    ts_ms = shown.ts_ms + 100 + int(rng.expovariate(1 / ACTION_DELAY_MS))
    return Action(
        event_id=f"{rng.getrandbits(128):032x}",
        ts_ms=ts_ms,
        received_at_ms=ts_ms,
        request_id=shown.request_id,
        item=rng.choices(shown.items, appeals)[0],
        event="click",
        user=shown.user,
    )


def join(settings: Settings, recorded: Path, directory: Path) -> tuple[float, float]:
    """Join a copy of the log; returns records a second of wall time and of CPU time."""
    shutil.copytree(recorded, directory / "log")
    clock = ManualClock()
    log = LocalLog(directory / "log", clock=clock, fsync=settings.log.fsync)
    joiner = Joiner(
        settings,
        FeatureEncoder(settings),
        log,
        partition=0,
        database=directory / "joiner.sqlite",
        clock=clock,
        state=LocalFeatureState(settings),
        progress=Progress(),
    )
    began_s, began_cpu_s = time.perf_counter(), time.process_time()
    joiner.drain()
    wall_s, cpu_s = time.perf_counter() - began_s, time.process_time() - began_cpu_s
    totals = joiner.accounting()
    joiner.close()
    log.close()
    n_records = totals["accepted_impressions"] + totals["accepted_actions"]
    if totals["click.pending"] or totals["impression_items"] != N_REQUESTS * N_ITEMS_SHOWN:
        raise SystemExit(f"not everything was joined: {totals}")
    return n_records / wall_s, n_records / cpu_s


if __name__ == "__main__":
    main(run)
