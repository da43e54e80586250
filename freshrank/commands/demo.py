"""`freshrank demo`: the whole loop with a simulated audience, in one process."""

import contextlib
import json
import math
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from freshrank import accounting, config
from freshrank.audience import Audience
from freshrank.clock import SystemClock
from freshrank.commands.serving import address, listen, served, stopped_by_signal
from freshrank.embedded import Embedded
from freshrank.errors import Error, TransportError
from freshrank.settings import Settings
from freshrank.simulation import Simulation
from service.auth import check_listen

# Full speed shows the trainer at work; once the page is up a trickle keeps the figures alive and
# leaves the visitor's own clicks visible.
WARM_UP_REQUESTS_PER_SECOND = 150.0
SERVING_REQUESTS_PER_SECOND = 4.0
WARM_UP_S = 15.0
READY_TIMEOUT_S = 60.0
DRAIN_TIMEOUT_S = 30.0


def run(
    *,
    host: str,
    port: int | None,
    seconds: float | None,
    headless: bool,
    as_json: bool,
    data_dir: Path | None,
    seed: int,
) -> None:
    """Run the demo.

    Args:
        host: Address to listen on.
        port: Port; by default 8000, or any free one when headless.
        seconds: How long the audience is at full speed.
        headless: End after that, with the result on standard output.
        as_json: Print the result as one JSON object.
        data_dir: Keep the data here; by default in a temporary directory that is removed.
        seed: Seed of the audience.

    Raises:
        ConfigError: `host` is beyond loopback, and the demo has no keys.
        TransportError: port taken, or the data directory in use.
        Error: joiner or trainer stopped; the log lines before say why.
    """
    console = Console(stderr=True)
    listener = listen(host, port if port is not None else 0 if headless else 8000)
    with contextlib.ExitStack() as stack:
        stack.callback(listener.close)
        stop = stack.enter_context(stopped_by_signal())
        settings = _settings(_directory(stack, data_dir), host, listener.getsockname()[1])
        check_listen(settings, insecure=False)
        loop = Embedded(settings, learn=True, simulated=True)
        stack.callback(loop.close)
        before = loop.accounting()
        loop.start()
        stack.enter_context(served(loop.app, listener))
        simulation = Simulation(
            Audience(seed=seed), loop.service.ranker, loop.service.ingest, SystemClock()
        )
        _wait_until_ready(loop)
        simulation.introduce()
        if not headless:
            _print_page(address(listener))
        warm_up_s = WARM_UP_S if seconds is None else seconds
        _warm_up(console, loop, simulation, stop, warm_up_s)
        if headless:
            _drain(loop, simulation, before)
            _print_result(result(loop, simulation), as_json=as_json)
            if loop.failures:
                raise Error(f"a part of the loop stopped: {loop.failures[0]}")
        else:
            _print_curls(address(listener))
            simulation.run(stop, requests_per_second=SERVING_REQUESTS_PER_SECOND)


def _directory(stack: contextlib.ExitStack, data_dir: Path | None) -> Path:
    if data_dir is not None:
        data_dir.mkdir(parents=True, exist_ok=True)
        return data_dir
    return Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="freshrank-demo-")))


def _settings(directory: Path, host: str, port: int) -> Settings:
    """The packaged configuration, written beside the data so that `serve` can go on with it."""
    text = files("freshrank").joinpath("demo.yaml").read_text()
    path = directory / "freshrank.yaml"
    if not path.exists():
        path.write_text(text)
    overrides = {
        "FRESHRANK__SERVICE__DATA_DIR": str(directory),
        "FRESHRANK__SERVICE__HOST": host,
        "FRESHRANK__SERVICE__PORT": str(port),
    }
    return config.load(path, environ=overrides)


def _wait_until_ready(loop: Embedded) -> None:
    deadline_s = time.monotonic() + READY_TIMEOUT_S
    while loop.service.replica.model is None:
        if loop.failures or time.monotonic() > deadline_s:
            raise TransportError("the first parameters were not published; log lines above say why")
        time.sleep(0.02)


def _warm_up(
    console: Console, loop: Embedded, simulation: Simulation, stop: threading.Event, seconds: float
) -> None:
    done = threading.Event()
    audience = threading.Thread(
        target=_drive, args=(simulation, stop, done, seconds), name="audience", daemon=True
    )
    audience.start()
    with _bar(console, seconds) as update:
        began_s = time.monotonic()
        while not done.wait(0.25):
            update(time.monotonic() - began_s, _figures(loop, simulation, began_s))
    audience.join()


def _drive(
    simulation: Simulation, stop: threading.Event, done: threading.Event, seconds: float
) -> None:
    try:
        simulation.run(stop, requests_per_second=WARM_UP_REQUESTS_PER_SECOND, seconds=seconds)
    finally:
        done.set()


@contextlib.contextmanager
def _bar(console: Console, seconds: float) -> Iterator[Any]:
    """A progress bar on a terminal; nothing elsewhere."""
    columns = (BarColumn(bar_width=20), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("the simulated audience arrives", total=seconds)
        yield lambda at_s, text: progress.update(task, completed=at_s, description=text)


def _figures(loop: Embedded, simulation: Simulation, began_s: float) -> str:
    freshness = loop.service.replica.action_freshness
    gauges = loop.statistics()
    rate = simulation.n_events / max(time.monotonic() - began_s, 1e-3)
    return (
        f"{rate:,.0f} events/s  AUC {gauges.get('auc', math.nan):.3f}  "
        f"freshness p50 {freshness.percentile(50) or math.nan:.2f} s "
        f"p99 {freshness.percentile(99) or math.nan:.2f} s  "
        f"rows {gauges.get('rows', 0):,.0f}  filtered {gauges.get('filtered', 0):,.0f}"
    )


def _drain(loop: Embedded, simulation: Simulation, before: dict[str, int]) -> None:
    """Wait until all that was sent is joined, every window closed and every example learned."""
    deadline_s = time.monotonic() + DRAIN_TIMEOUT_S
    expected = {
        "accepted_impressions": simulation.n_requests,
        "accepted_actions": simulation.n_actions,
    }
    while time.monotonic() < deadline_s and not loop.failures:
        totals = loop.service.ingest.totals() | loop.accounting()
        is_joined = all(
            totals.get(name, 0) - before.get(name, 0) >= n for name, n in expected.items()
        )
        is_closed = accounting.n_open(totals, loop.settings) == 0
        if is_joined and is_closed and not accounting.problems(totals, loop.settings):
            return
        time.sleep(0.05)


def result(loop: Embedded, simulation: Simulation) -> dict[str, Any]:
    """What happened, as `--json` prints it. Freshness covers actions, negatives apart."""
    totals = loop.service.ingest.totals() | loop.accounting()
    gauges = loop.statistics()
    replica = loop.service.replica
    return {
        "events": simulation.n_events,
        "requests": simulation.n_requests,
        "accounting": totals,
        "accounting_problems": accounting.problems(totals, loop.settings),
        "auc_last": gauges.get("auc"),
        "freshness_p50_seconds": replica.action_freshness.percentile(50),
        "freshness_p99_seconds": replica.action_freshness.percentile(99),
        "rows": int(gauges.get("rows", 0)),
        "filtered": int(gauges.get("filtered", 0)),
    }


def _print_result(outcome: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        json.dump(outcome, sys.stdout)
        print()
        return
    for name, value in outcome.items():
        print(f"{name:24} {value}")


def _print_page(base: str) -> None:
    print(f"The page: {base}/ui   (a simulated audience is warming the model up)", flush=True)


def _print_curls(base: str) -> None:
    text = (
        files("freshrank").joinpath("curls.txt").read_text().replace("http://127.0.0.1:8000", base)
    )
    print(f"\nThe page: {base}/ui\nThree curls that show it learning:\n\n{text}", flush=True)
