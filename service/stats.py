"""What `GET /v1/stats` answers: the state of the whole loop, as the live page shows it."""

from collections.abc import Mapping
from typing import Any, Final

from freshrank.errors import DataError, TransportError
from freshrank.messages import Control, Value, decode
from freshrank.transport.base import CONTROL, EventLog, Record
from service.core import Service
from service.history import lag
from service.model import Current, Model
from service.request_values import MODEL_NAME
from service.times import rfc3339

SAMPLE_USERS: Final = 8
SAMPLE_ITEMS: Final = 12
# Roll-backs and ids to forget may stand behind the last pause; nobody gives so many meanwhile.
CONTROLS_MAX: Final = 1_000


def stats(service: Service) -> dict[str, Any]:
    """The document; parts that do not exist yet are null."""
    parts = service.parts
    model = service.replica.model
    current = model.current if model else None
    loop = dict(parts.loop.statistics()) if parts.loop else {}
    totals = service.ingest.totals()
    return {
        "name": parts.settings.service.name,
        "simulated": parts.simulated,
        "uptime_seconds": (parts.clock.now_ms() - service.started_at_ms) / 1_000,
        "model": describe(service, current) if current else None,
        "freshness": freshness(service, current),
        "auc": _auc(service, current, loop),
        "events": totals["received"],
        "ingest": totals,
        "rows": loop.get("rows", _rows(model)),
        "filtered": loop.get("filtered"),
        "tables": _tables(model, loop),
        "statistics": loop,
        "accounting": parts.loop.accounting() if parts.loop else {},
        "lag": lag(parts.loop),
        "trainer": {"present": parts.loop is not None, "paused": is_paused(service)},
        "refused_frames": service.replica.refusals,
        "degraded": service.health.degraded(current) if current else ["untrained"],
        "sample": {
            "users": _sample(service, "user", SAMPLE_USERS),
            "items": _sample(service, "item", SAMPLE_ITEMS),
        },
    }


def describe(service: Service, current: Current) -> dict[str, Any]:
    """A model as `/v1/models` shows it."""
    info = current.info
    return {
        "name": MODEL_NAME,
        "version": info.version,
        "epoch": info.epoch,
        "sparse_seq": info.seq,
        "dense_version": info.dense_version,
        "created_at": rfc3339(info.published_at_ms),
        "examples": info.examples,
        "untrained": info.untrained,
        "schema_hash": info.schema_hash,
        "tasks": [
            {"name": task.name, "event": task.event, "loss": task.loss}
            for task in service.parts.settings.tasks
        ],
        "metrics": info.metrics,
    }


def freshness(service: Service, current: Current | None) -> dict[str, Any]:
    """Event-to-servable times and the age of what is served."""
    actions, negatives = service.replica.action_freshness, service.replica.impression_freshness
    now_ms = service.parts.clock.now_ms()
    age_ms = max(now_ms - current.info.published_at_ms, 0) if current else None
    return {
        "p50_seconds": actions.percentile(50),
        "p99_seconds": actions.percentile(99),
        "samples": len(actions),
        "negatives": {
            "p50_seconds": negatives.percentile(50),
            "p99_seconds": negatives.percentile(99),
            "samples": len(negatives),
        },
        "sparse_seq": current.info.seq if current else None,
        "sparse_age_seconds": None if age_ms is None else age_ms / 1_000,
    }


def is_paused(service: Service) -> bool | None:
    """Whether pause or resume was said last; None when the log cannot be read."""
    try:
        return service.looks.ask(lambda: _is_pause_last(service.parts.log))
    except TransportError:
        return None


def _is_pause_last(log: EventLog) -> bool:
    start, end = log.start_offset(CONTROL, 0), log.end_offset(CONTROL, 0)
    records = log.read(CONTROL, 0, max(start, end - CONTROLS_MAX), n_max=CONTROLS_MAX)
    said = [one for one in map(_command, records) if one in ("pause", "resume")]
    return said[-1:] == ["pause"]


def _command(record: Record) -> str:
    """What a record commands; nothing where it is no command."""
    try:
        message = decode(record.value)
    except DataError:
        return ""
    return message.command if isinstance(message, Control) else ""


def _auc(service: Service, current: Current | None, loop: Mapping[str, float]) -> float | None:
    if "auc" in loop:
        return loop["auc"]
    first = service.parts.settings.tasks[0].name
    return current.info.metrics.get(f"{first}.auc") if current else None


def _rows(model: Model | None) -> int | None:
    return sum(map(len, model.tables.values())) if model else None


def _tables(model: Model | None, loop: Mapping[str, float]) -> list[dict[str, Any]]:
    """Of each table its copy here, and under `trainer` the one that learns, where it is known."""
    if model is None:
        return []
    return [
        {
            "name": name,
            "rows": len(table),
            "bytes": table.nbytes,
            "trainer": _below(f"tables.{name}.", loop) or None,
        }
        for name, table in model.tables.items()
    ]


def _below(prefix: str, gauges: Mapping[str, float]) -> dict[str, float]:
    return {
        name.removeprefix(prefix): value
        for name, value in gauges.items()
        if name.startswith(prefix)
    }


def _sample(service: Service, scope: str, n: int) -> list[dict[str, Any]]:
    """Entities first; ids that were only ranked fill up, without features."""
    known: dict[str, Mapping[str, Value]] = dict(service.entities.sample(scope, n))
    for identity in service.ranker.first_seen(scope):
        known.setdefault(identity, service.entities.features(scope, identity))
    return [{"id": identity, "features": dict(values)} for identity, values in known.items()][:n]
