"""The catalogue of metrics: every name that `/metrics` serves stands here and nowhere else.

Conventions: prefix `freshrank_`, base units, `_total` only on counters, ratios from 0 to 1, no user
or item ids in labels. Totals that another part already keeps are read when scraped (`Reading`), so
nothing is counted twice.
"""

import platform
from collections.abc import Callable, Iterator, Mapping
from typing import Final, NamedTuple

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

PREFIX: Final = "freshrank"

# Half a millisecond is a small rank, 25 ms the latency objective, beyond a second nobody waits.
REQUEST_BUCKETS_S: Final = (
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0,
)  # fmt: skip
# The goal is 3 s, the objective 30 s; 900 s is an outage.
FRESHNESS_BUCKETS_S: Final = (0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0)


class Metrics:
    """Counters that the service increments.

    Args:
        registry: Where they are registered; one per process, a fresh one per test.

    Example:
        >>> registry = CollectorRegistry()
        >>> Metrics(registry).events_received.labels("feedback", "http").inc()
        >>> labels = {"kind": "feedback", "source": "http"}
        >>> registry.get_sample_value("freshrank_events_received_total", labels)
        1.0
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]

        def counter(name: str, text: str, labels: tuple[str, ...]) -> Counter:
            return Counter(name, text, labels, namespace=PREFIX, registry=registry)

        self.http_requests = counter(
            "http_requests", "Requests answered.", ("route", "method", "code")
        )
        self.http_rejected = counter(
            "http_rejected", "Requests refused before they were read.", ("reason",)
        )
        self.events_received = counter(
            "events_received", "Events received, accepted or not.", ("kind", "source")
        )
        self.events_rejected = counter("events_rejected", "Events refused.", ("kind", "reason"))
        self.sync_batches = counter(
            "sync_batches", "Parameter frames by outcome.", ("kind", "result")
        )
        self.http_duration = Histogram(
            "http_request_duration_seconds",
            "Time to answer.",
            ("route",),
            namespace=PREFIX,
            registry=registry,
            buckets=REQUEST_BUCKETS_S,
        )
        self.http_in_flight = Gauge(
            "http_requests_in_flight",
            "Requests being answered.",
            namespace=PREFIX,
            registry=registry,
        )
        self.freshness = Histogram(
            "freshness_event_to_servable_seconds",
            "From an event's append to its effect on answers.",
            ("stage", "kind"),
            namespace=PREFIX,
            registry=registry,
            buckets=FRESHNESS_BUCKETS_S,
        )

    def observe_freshness(self, kind: str, seconds: list[float]) -> None:
        """Record event-to-servable times; `kind` is `action` or `negative`."""
        child = self.freshness.labels("total", kind)
        for one in seconds:
            child.observe(one)


def register_process(registry: CollectorRegistry, *, version: str) -> None:
    """Metrics of the process: CPU, memory, files, Python, and our version."""
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    Info("build", "What runs.", namespace=PREFIX, registry=registry).info(
        {"version": version, "python": platform.python_version()}
    )


class Reading(NamedTuple):
    """One value read at scrape time.

    Attributes:
        name: Without prefix and without `_total`.
        value: Its value.
        labels: Label values, by name.
    """

    name: str
    value: float
    labels: Mapping[str, str] = {}


# name -> (help, label names, whether it only grows)
READINGS: Final[Mapping[str, tuple[str, tuple[str, ...], bool]]] = {
    "serving_sync_seq": ("Sequence number of the parameters served.", (), False),
    "serving_sync_epoch": ("Epoch of the parameters served.", (), False),
    "sync_last_success_timestamp_seconds": (
        "When the newest parameters served were published.",
        ("kind",),
        False,
    ),
    "store_rows": ("Rows in the serving table.", ("slot",), False),
    "store_bytes": ("Bytes of the serving table.", ("slot",), False),
    "trainer_progressive_auc": (
        "AUC of predictions made before learning.",
        ("task", "window"),
        False,
    ),
    "joiner_examples": (
        "Actions and examples by what was made of them.",
        ("outcome",),
        True,
    ),
}


class ReadingCollector(Collector):
    """Metrics read from other parts when scraped.

    Args:
        read: Gives all readings; a name outside `READINGS` is a programmer's error.
    """

    def __init__(self, read: Callable[[], list[Reading]]) -> None:
        self._read = read

    def describe(self) -> Iterator[Metric]:
        """The families without values, so that registering does not read."""
        return iter([_family(name) for name in READINGS])

    def collect(self) -> Iterator[Metric]:
        """Every family that has a value now."""
        families: dict[str, CounterMetricFamily | GaugeMetricFamily] = {}
        for reading in self._read():
            family = families.setdefault(reading.name, _family(reading.name))
            _, label_names, _ = READINGS[reading.name]
            family.add_metric([reading.labels[name] for name in label_names], reading.value)
        return iter(families.values())


def _family(name: str) -> CounterMetricFamily | GaugeMetricFamily:
    text, labels, is_counter = READINGS[name]
    make = CounterMetricFamily if is_counter else GaugeMetricFamily
    return make(f"{PREFIX}_{name}", text, labels=labels)
