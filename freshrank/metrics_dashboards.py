"""Grafana's dashboards as code: what no alert says, and what one looks at when one does.

`deploy/grafana/*.json` are written from here. Panels stand in rows of three, in this order.
"""

import json
from typing import Any, Final, NamedTuple

_WIDTH: Final = 8  # of 24
_HEIGHT: Final = 8


class Panel(NamedTuple):
    """One plot.

    Attributes:
        title: What it shows.
        unit: Of Grafana.
        lines: PromQL -> its legend, with labels in braces.
    """

    title: str
    unit: str
    lines: dict[str, str]


_RATE: Final = "[$__rate_interval]"


def _rates(name: str, *labels: str, where: str = "") -> dict[str, str]:
    by = f" by ({', '.join(labels)})" if labels else ""
    legend = " ".join(f"{{{{{label}}}}}" for label in labels)
    return {f"sum{by} (rate({name}{where}{_RATE}))": legend or name}


OVERVIEW: Final = (
    Panel("Requests", "reqps", _rates("freshrank_http_requests_total", "route", "code")),
    Panel("Time to rank, p99", "s", {"freshrank:rank_seconds:p99_5m": "p99"}),
    Panel(
        "Requests under way",
        "short",
        {
            "freshrank_http_requests_in_flight": "{{instance}}",
            "freshrank_http_requests_limit": "limit {{instance}}",
        },
    ),
    Panel("Refused early", "reqps", _rates("freshrank_http_rejected_total", "reason")),
    Panel(
        "From event to answer, p99",
        "s",
        {"freshrank:freshness_seconds:p99_5m": "{{stage}} {{kind}}"},
    ),
    Panel(
        "Age of what is served",
        "s",
        {"time() - freshrank_sync_last_success_timestamp_seconds": "{{instance}}"},
    ),
    Panel(
        "Frames behind",
        "short",
        {
            "scalar(max(freshrank_trainer_sync_seq)) - freshrank_serving_sync_seq": "{{instance}}",
        },
    ),
    Panel("AUC", "percentunit", {"freshrank_trainer_progressive_auc": "{{task}} {{source}}"}),
    Panel("Log loss", "short", {"freshrank_trainer_logloss": "{{task}} {{source}}"}),
    Panel(
        "Predicted over observed",
        "short",
        {"freshrank_trainer_calibration_ratio": "{{task}} {{source}}"},
    ),
    Panel(
        "Who learns",
        "short",
        {"freshrank_trainer_leading": "{{instance}}", "freshrank_trainer_paused": "paused"},
    ),
    Panel(
        "What runs",
        "short",
        {"count by (version, python) (freshrank_build_info)": "{{version}} {{python}}"},
    ),
    Panel("Feature state", "short", {"freshrank_serving_feature_state_up": "{{instance}}"}),
    Panel(
        "On their way into the log", "bytes", {"freshrank_log_unacknowledged_bytes": "{{instance}}"}
    ),
)
STORE_AND_STREAM: Final = (
    Panel("Events", "eps", _rates("freshrank_events_received_total", "kind", "source")),
    Panel("Events refused", "eps", _rates("freshrank_events_rejected_total", "kind", "reason")),
    Panel(
        "Lag",
        "short",
        {
            "freshrank:consumer_lag_records:sum": "{{topic}}",
            "sum(freshrank_archive_lag_records)": "archive",
        },
    ),
    Panel("What was made of events", "eps", _rates("freshrank_joiner_examples_total", "outcome")),
    Panel(
        "Waiting for its window", "short", {"sum by (kind) (freshrank_joiner_pending)": "{{kind}}"}
    ),
    Panel(
        "Age of the watermark",
        "s",
        {"time() - freshrank_joiner_watermark_timestamp_seconds": "{{partition}}"},
    ),
    Panel("Rounds", "ops", _rates("freshrank_joiner_rounds_total", "partition")),
    Panel(
        "Unknown fields, gaps, entities left out",
        "ops",
        _rates("freshrank_joiner_unknown_fields_total", "topic")
        | _rates("freshrank_gap_records_total", "stage")
        | _rates("freshrank_entities_left_out_total", "reason"),
    ),
    Panel("Requests in memory", "short", {"freshrank_joiner_cached_requests": "{{partition}}"}),
    Panel(
        "Tried again, dead letters",
        "ops",
        _rates("freshrank_worker_retries_total", "worker")
        | _rates("freshrank_dead_letters_total", "topic"),
    ),
    Panel("Examples learned", "eps", _rates("freshrank_trainer_examples_total")),
    Panel(
        "Rows in a step",
        "short",
        {
            f"sum(rate(freshrank_trainer_examples_total{_RATE}))"
            f" / sum(rate(freshrank_trainer_steps_total{_RATE}))": "examples"
        },
    ),
    Panel(
        "Frames",
        "ops",
        _rates("freshrank_trainer_publications_total", "result")
        | _rates("freshrank_sync_batches_total", "kind", "result"),
    ),
    Panel(
        "Held back, gone back",
        "short",
        {
            "freshrank_sync_held_back": "held back",
            "sum(increase(freshrank_trainer_rollbacks_total[1h]))": "gone back within an hour",
        }
        | _rates("freshrank_sync_refused_total", "reason"),
    ),
    Panel(
        "Age of the checkpoint",
        "s",
        {"time() - max(freshrank_checkpoint_last_success_timestamp_seconds)": "age"},
    ),
    Panel("Rows", "short", {"max by (side, slot) (freshrank_store_rows)": "{{side}} {{slot}}"}),
    Panel(
        "Bytes",
        "bytes",
        {
            "max by (side, slot) (freshrank_store_bytes)": "{{side}} {{slot}}",
            "max by (slot) (freshrank_store_budget_bytes)": "budget {{slot}}",
        },
    ),
    Panel(
        "Ids admitted, filtered",
        "ops",
        _rates("freshrank_store_admissions_total", "slot", "outcome"),
    ),
    Panel("Rows that left", "ops", _rates("freshrank_store_evictions_total", "slot", "reason")),
)
DASHBOARDS: Final = {"overview": OVERVIEW, "store-and-stream": STORE_AND_STREAM}


def dashboard(name: str) -> dict[str, Any]:
    """What Grafana reads of one of `DASHBOARDS`."""
    return {
        "uid": f"freshrank-{name}",
        "title": f"freshrank: {name.replace('-', ' ')}",
        "schemaVersion": 39,
        "editable": False,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "panels": [_panel(number, one) for number, one in enumerate(DASHBOARDS[name])],
    }


def as_json(document: dict[str, Any]) -> str:
    """A dashboard's file."""
    return json.dumps(document, indent=1) + "\n"


def _panel(number: int, one: Panel) -> dict[str, Any]:
    row, column = divmod(number, 24 // _WIDTH)
    return {
        "id": number + 1,
        "type": "timeseries",
        "title": one.title,
        "datasource": {"type": "prometheus", "uid": "prometheus"},
        "gridPos": {"x": column * _WIDTH, "y": row * _HEIGHT, "w": _WIDTH, "h": _HEIGHT},
        "fieldConfig": {"defaults": {"unit": one.unit}, "overrides": []},
        "targets": [
            {"refId": chr(ord("A") + n), "expr": expr, "legendFormat": legend}
            for n, (expr, legend) in enumerate(one.lines.items())
        ],
    }
