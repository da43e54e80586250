"""Prometheus beside the running loop: each fault is told until it is mended, every panel shows."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from threading import Event
from typing import Final

import pytest

from freshrank.dev.servers import Server
from freshrank.metrics_dashboards import DASHBOARDS
from tests.alert_faults import ROUNDS, Fault
from tests.prometheus import Prometheus, prometheus
from tests.promtool import promtool
from tests.proofs import record, scale
from tests.servers import started
from tests.watched import Watched

# An hour of the rules is a minute here.
SCALE: Final = 1 / 60
IS_WHOLE: Final = scale("alerts", 0) > 0
# A process that starts on two busy cores, and then the longest window after it: 20 s where nothing
# else runs, two minutes were seen at ten times the load. Of the whole: the 20,000 rows that figures
# of quality look back on, sixty a second, or six hours of a burn.
DEADLINE_S: Final = 1_200.0 if IS_WHOLE else 240.0
# What has no series before something was refused.
OF_FAULTS: Final = ("freshrank_http_rejected_total", "freshrank_events_rejected_total")

EVERY: Final = {
    name for faults in ROUNDS for one in faults for name in (*one.during, *one.later, *one.after)
}


@pytest.fixture
def watched(kafka_server: Server, tmp_path: Path) -> Iterator[Watched]:
    """Everything running and ready."""
    with ExitStack() as stack:
        yield Watched(tmp_path, kafka_server, stack)


@pytest.fixture
def asked(watched: Watched, tmp_path: Path) -> Iterator[Prometheus]:
    """It watches the loop."""
    yield from started(
        lambda directory: prometheus(directory, watched.targets, scale=SCALE),
        tmp_path / "prometheus",
    )


class Operator:
    """Waits for what Prometheus shows and tells.

    Attributes:
        seen: Every alert that was waited for.
    """

    def __init__(self, asked: Prometheus, watched: Watched) -> None:
        self._asked = asked
        self._watched = watched
        self.seen: set[str] = set()

    def sees_panels(self, queries: list[str]) -> None:
        """Each of them has given series."""
        self._until(
            lambda: [one for one in queries if not self._asked.query(one)], "panels are empty"
        )

    def sees(self, alerts: set[str]) -> None:
        """Each of them was told, not all at once."""
        missing = set(alerts)
        self.seen |= alerts

        def still_missing() -> set[str]:
            missing.difference_update(self._asked.firing())
            return missing

        self._until(still_missing, "not told")

    def sees_end(self, alerts: set[str]) -> None:
        """None of them is told."""
        self._until(lambda: alerts & self._asked.firing(), "still told")

    def _until(self, lacking: Callable[[], object], what: str) -> None:
        deadline_s, pause = time.monotonic() + DEADLINE_S, Event()
        while left := lacking():
            assert time.monotonic() < deadline_s, f"{what}: {left}\n{self._watched.logs()}"
            pause.wait(0.2)


def panels() -> list[str]:
    """The query of every line, with Grafana's variable filled."""
    lines = [expr for panels in DASHBOARDS.values() for one in panels for expr in one.lines]
    return [expr.replace("$__rate_interval", "5s") for expr in lines]


def live_through(faults: tuple[Fault, ...], watched: Watched, operator: Operator) -> None:
    """Let them happen; their alerts are told, and were not before."""
    during = {name for one in faults for name in one.during}
    after: set[str] = set()
    if IS_WHOLE:
        during |= {name for one in faults for name in one.later}
        after |= {name for one in faults for name in one.after}
    operator.sees_end(during | after)
    with ExitStack() as stack:
        for one in faults:
            stack.enter_context(one.cause(watched))
        operator.sees(during)
    operator.sees(after)


@pytest.mark.timeout(3_600 if IS_WHOLE else 1_200)
def test_each_fault_is_told_until_it_is_mended_and_every_panel_shows(
    watched: Watched, asked: Prometheus
) -> None:
    began_s = time.monotonic()
    operator = Operator(asked, watched)
    operator.sees_panels([one for one in panels() if not any(name in one for name in OF_FAULTS)])
    for text in watched.figures():
        assert promtool("check", "metrics", given=text) == ""
    if IS_WHOLE:
        operator.sees_end(EVERY)
    rounds = [faults for faults in ROUNDS if IS_WHOLE or any(one.during for one in faults)]
    for faults in rounds:
        live_through(faults, watched, operator)
    operator.sees_end(operator.seen)
    operator.sees_panels(panels())
    assert asked.broken_rules() == []
    record(
        "every fault under a real Prometheus is told, and no more once it is mended",
        faults=sum(map(len, rounds)),
        alerts=len(operator.seen),
        panels=sum(map(len, DASHBOARDS.values())),
        seconds=round(time.monotonic() - began_s),
    )
