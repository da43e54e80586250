"""The catalogue of metrics: every name that `/metrics` serves stands here and nowhere else.

Conventions: prefix `freshrank_`, base units last in names, `_total` only on counters, ratios from
0, no user or item ids in labels. A metric stands here because a panel or an alert reads it
(`tests/unit/test_metrics.py`). `docs/metrics.md` is generated from this module.
"""

from collections.abc import Mapping
from typing import Final, Literal, NamedTuple

PREFIX: Final = "freshrank"

Kind = Literal["counter", "gauge", "histogram"]
Role = Literal["serve", "join", "train"]

# Half a millisecond is a small rank, 25 ms the latency objective, beyond a second nobody waits.
_REQUEST_S: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)
# The goal is 3 s, the objective 30 s; 900 s is an outage.
_FRESHNESS_S: Final = (0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0)

_UNITS: Final = ("seconds", "bytes", "ratio", "records")


class Metric(NamedTuple):
    """One metric.

    Attributes:
        kind: Of Prometheus.
        roles: The commands whose processes have it; one that does all has all.
        text: What it says, for a person.
        labels: In the order of their values.
        buckets: Upper bounds of a histogram's.
    """

    kind: Kind
    roles: tuple[Role, ...]
    text: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


_ALL: Final[tuple[Role, ...]] = ("serve", "join", "train")
_SERVE: Final[tuple[Role, ...]] = ("serve",)
_JOIN: Final[tuple[Role, ...]] = ("join",)
_TRAIN: Final[tuple[Role, ...]] = ("train",)

# Name without prefix, and without `_total` of counters -> what it is.
CATALOGUE: Final[Mapping[str, Metric]] = {
    "build_info": Metric("gauge", _ALL, "Always 1; what runs.", ("version", "python")),
    "freshness_event_to_servable_seconds": Metric(
        "histogram",
        _ALL,
        "From an event's append until it had passed a stage of the loop, of a sample of events.",
        ("stage", "kind"),
        _FRESHNESS_S,
    ),
    # The service.
    "http_requests": Metric("counter", _SERVE, "Requests answered.", ("route", "method", "code")),
    "http_request_duration_seconds": Metric(
        "histogram", _SERVE, "Time to answer.", ("route",), _REQUEST_S
    ),
    "http_requests_in_flight": Metric("gauge", _SERVE, "Requests being answered."),
    "http_requests_limit": Metric(
        "gauge", _SERVE, "Requests that may be answered at once; others are refused early."
    ),
    "log_unacknowledged_bytes": Metric(
        "gauge", _SERVE, "Events on their way into the log; `log.in_flight` bounds them on Kafka."
    ),
    "http_rejected": Metric("counter", _SERVE, "Requests refused early.", ("reason",)),
    "events_received": Metric(
        "counter", _SERVE, "Events received, accepted or not.", ("kind", "source")
    ),
    "events_rejected": Metric("counter", _SERVE, "Events refused.", ("kind", "reason")),
    "entities_left_out": Metric(
        "counter",
        _SERVE,
        "Entities that were read and are not served, or a value of them.",
        ("reason",),
    ),
    "serving_feature_state_up": Metric(
        "gauge", _SERVE, "1 while feature state answers, 0 while requests go without it."
    ),
    "serving_sync_epoch": Metric("gauge", _SERVE, "Epoch of the parameters served."),
    "serving_sync_seq": Metric("gauge", _SERVE, "Sequence number of the rows served."),
    "sync_batches": Metric(
        "counter", _SERVE, "Parameter frames, applied or why not.", ("kind", "result")
    ),
    "sync_last_success_timestamp_seconds": Metric(
        "gauge", _SERVE, "When the newest parameters served were published.", ("kind",)
    ),
    # The joiner.
    "joiner_examples": Metric(
        "counter",
        _JOIN,
        "Actions and examples by what was made of them, since the log began.",
        ("partition", "outcome"),
    ),
    "joiner_pending": Metric(
        "gauge", _JOIN, "What waits for its window to close.", ("partition", "kind")
    ),
    "joiner_rounds": Metric("counter", _JOIN, "Rounds committed.", ("partition",)),
    "joiner_unknown_fields": Metric(
        "counter",
        _JOIN,
        "Records with fields that this program does not know, which it skips.",
        ("partition", "topic"),
    ),
    "joiner_cached_requests": Metric(
        "gauge", _JOIN, "Requests in memory; others are read from disk.", ("partition",)
    ),
    "joiner_watermark_timestamp_seconds": Metric(
        "gauge", _JOIN, "Event time up to which all is decided.", ("partition",)
    ),
    # Joiner and trainer.
    "consumer_lag_records": Metric(
        "gauge",
        ("join", "train"),
        "Offsets between what was read and the end of the log.",
        ("topic", "partition"),
    ),
    "archive_lag_records": Metric(
        "gauge",
        ("join", "train"),
        "Offsets between what the archive has read and the end of the log.",
        ("topic", "partition"),
    ),
    "dead_letters": Metric(
        "counter",
        ("join", "train"),
        "Records, or of a trainer examples, that cannot be used, since the log began.",
        ("topic", "partition"),
    ),
    "gap_records": Metric(
        "counter",
        ("join", "train"),
        "Records that retention removed before they were read, passed over with `--allow-gaps`.",
        ("stage", "partition"),
    ),
    "worker_retries": Metric(
        "counter",
        ("join", "train"),
        "Steps that failed as disk or log did, and are tried again.",
        ("worker",),
    ),
    # The trainer.
    "trainer_leading": Metric("gauge", _TRAIN, "1 in the trainer that learns, 0 in a standby."),
    "trainer_paused": Metric("gauge", _TRAIN, "1 while an operator has paused learning."),
    "trainer_steps": Metric("counter", _TRAIN, "Batches learned, along this lineage."),
    "trainer_examples": Metric("counter", _TRAIN, "Examples learned, along this lineage."),
    "trainer_progressive_auc": Metric(
        "gauge", _TRAIN, "AUC of predictions made before learning.", ("task", "source")
    ),
    "trainer_logloss": Metric(
        "gauge", _TRAIN, "Log loss of predictions made before learning.", ("task", "source")
    ),
    "trainer_calibration_ratio": Metric(
        "gauge", _TRAIN, "Predicted over observed, of the same.", ("task", "source")
    ),
    "trainer_sync_seq": Metric("gauge", _TRAIN, "Sequence number of the newest frame published."),
    "trainer_publications": Metric(
        "counter", _TRAIN, "Frames published, or not taken by the channel.", ("result",)
    ),
    "trainer_rollbacks": Metric(
        "counter", _TRAIN, "Times that the trainer went back to a checkpoint."
    ),
    "sync_held_back": Metric(
        "gauge", _TRAIN, "1 while a version that must not be served is held back."
    ),
    "sync_refused": Metric(
        "counter", _TRAIN, "Times that the trainer held a version back.", ("reason",)
    ),
    "checkpoints": Metric("counter", _TRAIN, "Checkpoints by what became of them.", ("result",)),
    "checkpoint_last_success_timestamp_seconds": Metric(
        "gauge", _TRAIN, "When the newest checkpoint was written."
    ),
    # Tables: those that are trained, and what a service has of them.
    "store_rows": Metric("gauge", ("serve", "train"), "Rows of a table.", ("side", "slot")),
    "store_bytes": Metric("gauge", ("serve", "train"), "Bytes of a table.", ("side", "slot")),
    "store_budget_bytes": Metric(
        "gauge", _TRAIN, "Bytes that a table may have, or all together.", ("slot",)
    ),
    "store_admissions": Metric(
        "counter", _TRAIN, "Ids admitted, and occurrences filtered.", ("slot", "outcome")
    ),
    "store_evictions": Metric("counter", _TRAIN, "Rows that left a table.", ("slot", "reason")),
}


# What the values of a label are. All but `partition`, `slot`, `task` and `worker`, which the
# configuration bounds, are few by construction.
LABELS: Final[Mapping[str, str]] = {
    "code": "HTTP status; 499: the client left",
    "kind": (
        "of events `impression`, `feedback`, `item`, `user`; of freshness `action`, `negative`; of "
        "frames `base`, `delta`, `dense`, `channel` (none could be read), of their age `sparse`; "
        "in the joiner `action` (parked: its impression is not there) or `item` (its window is "
        "open)"
    ),
    "method": "HTTP method, or `other`",
    "outcome": (
        "of actions `matched`, `duplicate`, `unmatched`, `late`, `dead_letter`; of examples "
        "`examples_written`, `reversals`; of ids `admitted`, `filtered`"
    ),
    "partition": "of the topic; empty where one figure is for all",
    "python": "version",
    "reason": (
        "of requests `shed` (overloaded), `size`, `auth`; of events `schema`, `bad-id`, "
        "`unknown-event`, `future` and others; of entities `unusable` (no entity, of a newer "
        "program, a value that the configuration does not take), `capacity`; of a version "
        "`nonfinite`, `norm`, `logloss`, `calibration`; of rows `expired`, `capacity`"
    ),
    "result": (
        "of frames in a service `applied`, or why not (`gap`, `checksum`, `schema`, `overflow`, "
        "`logloss`, …); of a trainer's `published`, `failed`; of checkpoints `saved`, `failed`, "
        "and `damaged` (a start passed over it)"
    ),
    "route": "template of the path, `/ui` or `unmatched`",
    "side": "`training` or `serving`",
    "slot": "name of the table: of its slot; of a budget empty where it is that of all together",
    "source": (
        "of events `http`, `simulation`; of predictions `served`, or `own` where a row carries "
        "none that was served"
    ),
    "stage": (
        "`queue`: the joiner has read it; `join`: its example is in the log; `train`: it is "
        "learned and published; `total`: a service has applied it"
    ),
    "task": "as configured",
    "topic": "without `freshrank.`",
    "version": "of freshrank",
    "worker": "`joiner-0`, …, `trainer`, `archiver`",
}


def full_name(name: str) -> str:
    """As Prometheus knows it.

    Example:
        >>> full_name("joiner_rounds")
        'freshrank_joiner_rounds_total'
    """
    return f"{PREFIX}_{name}_total" if CATALOGUE[name].kind == "counter" else f"{PREFIX}_{name}"


def unit(name: str) -> str:
    """Of its values; "" where they are a count or a state.

    Example:
        >>> unit("store_bytes"), unit("joiner_rounds")
        ('bytes', '')
    """
    last = name.rpartition("_")[2]
    return last if last in _UNITS else ""
