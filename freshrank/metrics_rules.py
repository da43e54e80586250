"""Prometheus' rules: what is computed ahead, and how alerts are written down.

`deploy/prometheus/recording.yml` and `alerts.yml` are written from here. All times pass through one
scale, so that a test can see an alert of hours come and go in minutes.

Objectives over 28 days: 99.9 % of rankings answered, 99 % of them within 25 ms, 99 % of clicks
servable within 30 s. A burn of 1 spends such a budget in just that time; who burns faster is told
by two windows, a long one against noise and a short one so that it ends soon after the fault
(Beyer et al. 2018, The Site Reliability Workbook, chapter 5).
"""

import io
import re
from collections.abc import Iterator
from typing import Any, Final, Literal, NamedTuple

from ruamel.yaml import YAML

Severity = Literal["page", "ticket"]

# Where the pages are in the repository.
RUNBOOKS: Final = "docs/runbooks"

_SECONDS: Final = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
_WINDOWS: Final = ("5m", "30m", "1h", "6h", "3d")
# Burn, long window, short window, how it is told.
_BURNS: Final[tuple[tuple[float, str, str, Severity], ...]] = (
    (14.4, "1h", "5m", "page"),
    (6, "6h", "30m", "page"),
    (1, "3d", "6h", "ticket"),
)


class Objective(NamedTuple):
    """One service level objective.

    Attributes:
        series: Of the ratio that is bad: `freshrank:<series>_rate<window>`.
        bad: PromQL of what is bad, per second; `[w]` is the window.
        all: Of everything.
        budget: Share that may be bad.
    """

    series: str
    bad: str
    all: str
    budget: float


class Alert(NamedTuple):
    """One alert.

    Attributes:
        name: As Prometheus shows it; its runbook has it with hyphens.
        expr: PromQL; where it compares with seconds, these have their unit.
        hold: How long it must be so; "" for no time.
        severity: `page` for what users feel, `ticket` for what they will.
        summary: What is so, as a sentence.
        window: Tells apart the alerts of one objective.
    """

    name: str
    expr: str
    hold: str
    severity: Severity
    summary: str
    window: str = ""


def _beyond(histogram: str, labels: str, bound: str) -> tuple[str, str]:
    """Observations above a bound of a bucket, and all of them."""
    everything = f"sum(rate({histogram}_count{{{labels}}}[w]))"
    within = f'sum(rate({histogram}_bucket{{{labels},le="{bound}"}}[w]))'
    return f"({everything} - {within})", everything


OBJECTIVES: Final = {
    "RankAvailability": Objective(
        "rank_errors:ratio",
        '(sum(rate(freshrank_http_requests_total{route="/v1/rank",code=~"5.."}[w])) or vector(0))',
        'sum(rate(freshrank_http_requests_total{route="/v1/rank"}[w]))',
        0.001,
    ),
    "RankLatency": Objective(
        "rank_slow:ratio",
        *_beyond("freshrank_http_request_duration_seconds", 'route="/v1/rank"', "0.025"),
        0.01,
    ),
    "Freshness": Objective(
        "freshness_late:ratio",
        *_beyond(
            "freshrank_freshness_event_to_servable_seconds",
            'stage="total",kind="action"',
            "30.0",
        ),
        0.01,
    ),
}
_RECORDED: Final = {
    "freshrank:sync_age_seconds:max": "time() - min(freshrank_sync_last_success_timestamp_seconds)",
    "freshrank:consumer_lag_records:sum": "sum by (topic) (freshrank_consumer_lag_records)",
    "freshrank:freshness_seconds:p99_5m": (
        "histogram_quantile(0.99, sum by (stage, kind, le) "
        "(rate(freshrank_freshness_event_to_servable_seconds_bucket[5m])))"
    ),
    "freshrank:rank_seconds:p99_5m": (
        "histogram_quantile(0.99, sum by (le) "
        '(rate(freshrank_http_request_duration_seconds_bucket{route="/v1/rank"}[5m])))'
    ),
}


def burns() -> Iterator[Alert]:
    """The alerts of the objectives."""
    for name, one in OBJECTIVES.items():
        for burn, long, short, severity in _BURNS:
            bound = f"{burn * one.budget:g}"
            series = f"freshrank:{one.series}_rate"
            yield Alert(
                name,
                f"{series}{long} > {bound} and {series}{short} > {bound}",
                "",
                severity,
                f"{name} spends its budget of 28 days {burn:g} times too fast.",
                long,
            )


def recording(scale: float = 1.0) -> dict[str, Any]:
    """The document of `recording.yml`.

    Args:
        scale: Of all times.
    """
    ratios = {
        f"freshrank:{one.series}_rate{window}": f"{one.bad} / {one.all}".replace(
            "[w]", f"[{window}]"
        )
        for one in OBJECTIVES.values()
        for window in _WINDOWS
    }
    rules = [
        {"record": name, "expr": _scaled(expr, scale)}
        for name, expr in (ratios | _RECORDED).items()
    ]
    return {"groups": [{"name": "freshrank-recording", "rules": rules}]}


def alerting(
    alerts: tuple[Alert, ...], scale: float = 1.0, *, runbooks: str = RUNBOOKS
) -> dict[str, Any]:
    """The document of `alerts.yml`.

    Args:
        alerts: Which.
        scale: Of all times.
        runbooks: What stands before the file of a runbook, without a slash at its end.
    """
    rules = [
        {
            "alert": one.name,
            "expr": _scaled(one.expr, scale),
            **({"for": _duration(one.hold, scale)} if one.hold else {}),
            "labels": {
                "severity": one.severity,
                **({"window": one.window} if one.window else {}),
            },
            "annotations": {
                "summary": one.summary,
                "runbook_url": f"{runbooks}/{runbook(one.name)}",
            },
        }
        for one in alerts
    ]
    return {"groups": [{"name": "freshrank-alerts", "rules": rules}]}


def runbook(name: str) -> str:
    """The file of an alert's runbook.

    Example:
        >>> runbook("RankAvailability")
        'rank-availability.md'
    """
    return re.sub(r"(?<!^)(?=[A-Z])", "-", name).lower() + ".md"


def _scaled(expr: str, scale: float) -> str:
    """PromQL with other windows, and bounds in seconds without their unit.

    Example:
        >>> _scaled("time() - x > 120s and rate(y[5m]) > 0", 1 / 60)
        'time() - x > 2 and rate(y[5s]) > 0'
    """
    expr = re.sub(r"\[(\w+)\]", lambda match: f"[{_duration(match[1], scale)}]", expr)
    return re.sub(r"(?<=[<>] )(\d+)s\b", lambda match: f"{int(match[1]) * scale:g}", expr)


def _duration(text: str, scale: float) -> str:
    """A time so much shorter or longer, in the largest unit that is whole.

    Example:
        >>> _duration("5m", 1), _duration("90s", 1 / 60)
        ('5m', '1500ms')
    """
    milliseconds = round(int(text[:-1]) * _SECONDS[text[-1]] * scale * 1_000)
    for unit, seconds in reversed(_SECONDS.items()):
        if milliseconds % (1_000 * seconds) == 0:
            return f"{milliseconds // (1_000 * seconds)}{unit}"
    return f"{milliseconds}ms"


def as_yaml(document: dict[str, Any]) -> str:
    """A rule file."""
    stream = io.StringIO()
    yaml = YAML()
    yaml.width = 1_000  # an expression stays on its line
    yaml.dump(document, stream)
    return f"# Written from the code: freshrank/metrics_rules.py.\n{stream.getvalue()}"
