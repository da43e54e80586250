"""`freshrank demo`: the whole loop with a simulated audience, in one process."""

import concurrent.futures
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

from freshrank import accounting, config, log_lines
from freshrank.audience import FEATURES, Audience
from freshrank.clock import SystemClock
from freshrank.commands.demo_drift import drift_router
from freshrank.commands.serving import address, listen, served, stopped_by_signal
from freshrank.embedded import Embedded
from freshrank.errors import ConfigError, Error
from freshrank.settings import Settings
from freshrank.simulation import Simulation
from freshrank.transport.files import disk_errors, make_directory, replace_file
from service.auth import check_listen

# Full speed shows the trainer at work; once the page is up a trickle keeps the figures alive and
# leaves the visitor's own clicks visible.
WARM_UP_REQUESTS_PER_SECOND = 150.0
SERVING_REQUESTS_PER_SECOND = 4.0
WARM_UP_S = 15.0
# Long enough to fill the window of progressive AUC once with each: what was wrong, what is learned.
RUSH_S = 30.0
# How soon a drift is noticed.
LOOK_S = 1.0
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
    """Run the demo; the options are those of `freshrank.cli_roles`.

    Raises:
        ConfigError: `host` is beyond loopback, and the demo has no keys; `seconds` is no number; or
            the configuration in `data_dir` is not for this audience.
        TransportError: port taken, or the data directory in use or not writable.
        Error: joiner or trainer stopped (the log lines before say why), or the accounting of a
            headless run does not add up.
    """
    if seconds is not None and not math.isfinite(seconds):
        raise ConfigError(f"--seconds {seconds}: write a number of seconds")
    port = port if port is not None else 0 if headless else 8000
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(stopped_by_signal())
        settings = _settings(_directory(stack, data_dir), host, port)
        # The demo speaks for itself; of what it does only trouble is told.
        log_lines.configure(settings.logging.model_copy(update={"level": "warning"}), role="demo")
        check_listen(settings, insecure=False)
        listener = stack.enter_context(contextlib.closing(listen(host, port)))
        loop = Embedded(settings, learn=True, simulated=True)
        stack.callback(loop.close)
        before = loop.accounting()
        audience, drifted = Audience(seed=seed), threading.Event()
        loop.app.include_router(drift_router(audience, drifted))
        loop.start()
        stack.enter_context(served(loop.app, listener))
        simulation = Simulation(audience, loop.service.ranker, loop.service.ingest, SystemClock())
        _wait_until_ready(loop, stop)
        if not headless:
            _print_page(address(listener))
        _warm_up(loop, simulation, stop, WARM_UP_S if seconds is None else seconds)
        if headless:
            _drain(loop, simulation, before)
            _print_result(outcome := result(loop, simulation), as_json=as_json)
            _check(loop)
            if problems := outcome["accounting_problems"]:
                raise Error(f"the accounting does not add up: {'; '.join(problems)}")
        elif not stop.is_set():
            _print_curls(address(listener))
            stay(simulation, stop, drifted)
        _check(loop)


def _directory(stack: contextlib.ExitStack, data_dir: Path | None) -> Path:
    with disk_errors(f"make the data directory {data_dir or tempfile.gettempdir()}"):
        if data_dir is None:
            temporary = tempfile.TemporaryDirectory(prefix="freshrank-demo-")
            return Path(stack.enter_context(temporary))
        directory = data_dir.expanduser().absolute()
        make_directory(directory)
        return directory


def _settings(directory: Path, host: str, port: int) -> Settings:
    """The packaged configuration, written beside the data so that `serve` can go on with it."""
    path = directory / "freshrank.yaml"
    place = json.dumps(str(directory))  # JSON is YAML
    with disk_errors(f"write {path}"):
        if not path.exists():
            text = config.demo_text().replace("data_dir: data #", f"data_dir: {place} #")
            replace_file(path, text.encode())
    overrides = {
        "FRESHRANK__SERVICE__DATA_DIR": place,
        "FRESHRANK__SERVICE__HOST": json.dumps(host),
        "FRESHRANK__SERVICE__PORT": str(port),
    }
    settings = config.load(path, environ=overrides)
    if missing := set(FEATURES) - {feature.name for feature in settings.features}:
        raise ConfigError(
            f"{path} is not of the demo: its audience sends {', '.join(sorted(missing))}. "
            "Choose another --data-dir"
        )
    return settings


def _check(loop: Embedded) -> None:
    if loop.failures:
        raise Error(f"a part of the loop stopped: {loop.failures[0]}")


def _wait_until_ready(loop: Embedded, stop: threading.Event) -> None:
    deadline_s = time.monotonic() + READY_TIMEOUT_S
    while loop.service.replica.model is None and not stop.is_set():
        _check(loop)
        if time.monotonic() > deadline_s:
            raise Error("the first parameters were not published; log lines above say why")
        time.sleep(0.02)


def _warm_up(loop: Embedded, simulation: Simulation, stop: threading.Event, seconds: float) -> None:
    with concurrent.futures.ThreadPoolExecutor(1, "audience") as pool, _bar(seconds) as update:
        began_s = time.monotonic()
        audience = pool.submit(
            simulation.run,
            stop,
            requests_per_second=WARM_UP_REQUESTS_PER_SECOND,
            seconds=seconds,
        )
        while not concurrent.futures.wait([audience], 0.25).done:
            update(time.monotonic() - began_s, _figures(loop, simulation, began_s))
    audience.result()  # or what went wrong


def stay(simulation: Simulation, stop: threading.Event, drifted: threading.Event) -> None:
    """A trickle; after a drift as many as at first, so that its dip is not a matter of minutes."""
    while not stop.is_set():
        is_rush = drifted.is_set()
        drifted.clear()
        simulation.run(
            stop,
            requests_per_second=(
                WARM_UP_REQUESTS_PER_SECOND if is_rush else SERVING_REQUESTS_PER_SECOND
            ),
            seconds=RUSH_S if is_rush else LOOK_S,
        )


@contextlib.contextmanager
def _bar(seconds: float) -> Iterator[Any]:
    """A progress bar on a terminal; nothing elsewhere."""
    console = Console(stderr=True)
    # Two lines of figures, so that all of it fits into 80 columns.
    columns = (BarColumn(bar_width=10), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("the simulated audience arrives", total=seconds)
        yield lambda at_s, text: progress.update(task, completed=at_s, description=text)


def _figures(loop: Embedded, simulation: Simulation, began_s: float) -> str:
    freshness = loop.service.replica.action_freshness
    gauges = loop.statistics()
    rate = simulation.n_events / max(time.monotonic() - began_s, 1e-3)
    p50_s, p99_s = freshness.percentile(50), freshness.percentile(99)
    rows, filtered = gauges.get("rows", 0), gauges.get("filtered", 0)
    return (
        f"{rate:,.0f} events/s  rows {rows:,.0f}  filtered {filtered:,.0f}\n"
        f"AUC {_shown(gauges.get('auc'), 3)}  "
        f"freshness p50 {_shown(p50_s, 2)} s  p99 {_shown(p99_s, 2)} s"
    )


def _shown(value: float | None, n_decimals: int) -> str:
    return "-" if value is None else f"{value:.{n_decimals}f}"


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
        if isinstance(value, dict):
            print(name, *(f"    {key:24} {n}" for key, n in value.items()), sep="\n")
        else:
            print(f"{name:28} {value:.3f}" if isinstance(value, float) else f"{name:28} {value}")


def _print_page(base: str) -> None:
    print(f"The page: {base}/ui  (a simulated audience arrives)", flush=True)


def _print_curls(base: str) -> None:
    text = (
        files("freshrank").joinpath("curls.txt").read_text().replace("http://127.0.0.1:8000", base)
    )
    print(f"\nThe page: {base}/ui\nThree curls that show it learning:\n\n{text}")
    print("A few of the audience stay. Ctrl-C stops.", flush=True)
