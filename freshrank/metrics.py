"""Metrics of every process, as Prometheus reads them.

Counters of requests are incremented as they come. All else is read when scraped, from totals that
its part keeps anyway (`Reading`): nothing is counted twice, and no hot path knows of metrics.
"""

import platform
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

from freshrank.metrics_catalogue import CATALOGUE, PREFIX, Kind

_Family = CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily


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

        def counter(name: str) -> Counter:
            one = CATALOGUE[name]
            return Counter(name, one.text, one.labels, namespace=PREFIX, registry=registry)

        self.http_requests = counter("http_requests")
        self.http_rejected = counter("http_rejected")
        self.events_received = counter("events_received")
        self.events_rejected = counter("events_rejected")
        self.sync_batches = counter("sync_batches")
        name = "http_request_duration_seconds"
        one = CATALOGUE[name]
        self.http_duration = Histogram(
            *(name, one.text, one.labels),
            namespace=PREFIX,
            registry=registry,
            buckets=one.buckets,
        )
        name = "http_requests_in_flight"
        self.http_in_flight = Gauge(name, CATALOGUE[name].text, namespace=PREFIX, registry=registry)


class Counts(NamedTuple):
    """A histogram at one moment.

    Attributes:
        buckets: `int64[n]`, values in each, not accumulated; the last has those beyond all bounds.
        total: Sum of the values.
    """

    buckets: npt.NDArray[np.int64]
    total: float


class Reading(NamedTuple):
    """What one series says at scrape time.

    Attributes:
        name: In the catalogue.
        value: Its value; of a histogram, its counts.
        labels: Label values, by name.
    """

    name: str
    value: float | Counts
    labels: Mapping[str, str] = {}


class Freshness:
    """How long after their append events had passed a stage. Safe for threads.

    Args:
        stage: In the catalogue's label `stage`.

    Example:
        >>> freshness = Freshness("train")
        >>> freshness.add("action", [1_000, 1_900], 2_000)
        >>> [reading] = freshness.readings()
        >>> reading.value.buckets.tolist()[:4], round(reading.value.total, 3)
        ([1, 0, 0, 1], 1.1)
    """

    NAME: Final = "freshness_event_to_servable_seconds"

    def __init__(self, stage: str) -> None:
        self._stage = stage
        self._bounds = np.array(CATALOGUE[self.NAME].buckets)
        nothing = Counts(np.zeros(len(self._bounds) + 1, np.int64), 0.0)
        self._counts = dict.fromkeys(("action", "negative"), nothing)
        self._lock = threading.Lock()

    def add(
        self, kind: str, appended_at_ms: Sequence[int] | npt.NDArray[np.int64], now_ms: int
    ) -> None:
        """Take in events of one kind that have passed now.

        Args:
            kind: `action` or `negative`.
            appended_at_ms: `int64[n]`, when each was appended.
            now_ms: The time.
        """
        if not len(appended_at_ms):
            return
        seconds = np.maximum(now_ms - np.asarray(appended_at_ms, np.int64), 0) / 1_000
        found = np.searchsorted(self._bounds, seconds)
        new = np.bincount(found, minlength=len(self._bounds) + 1)
        with self._lock:
            before = self._counts[kind]
            total = before.total + float(seconds.sum())
            self._counts[kind] = Counts(before.buckets + new, total)

    def readings(self) -> list[Reading]:
        """Those of the kinds that were seen."""
        return [
            Reading(self.NAME, counts, {"stage": self._stage, "kind": kind})
            for kind, counts in self._counts.items()
            if counts.buckets.any()
        ]


def register_process(registry: CollectorRegistry, *, version: str) -> None:
    """Metrics of the process: CPU, memory, files, Python and its garbage, and our version."""
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    one = CATALOGUE["build_info"]
    build = Gauge("build_info", one.text, one.labels, namespace=PREFIX, registry=registry)
    build.labels(version, platform.python_version()).set(1)


class ReadingCollector(Collector):
    """Metrics read from other parts when scraped.

    Args:
        read: Gives all readings; a name outside the catalogue is a programmer's error.
    """

    def __init__(self, read: Callable[[], list[Reading]]) -> None:
        self._read = read

    def describe(self) -> Iterator[Family]:
        """Nothing: registering does not read."""
        return iter(())

    def collect(self) -> Iterator[Family]:
        """Every family that has a value now."""
        families: dict[str, _Family] = {}
        for name, value, labels in self._read():
            family = families.setdefault(name, _family(name))
            values = [labels[label] for label in CATALOGUE[name].labels]
            if isinstance(family, HistogramMetricFamily) and isinstance(value, Counts):
                bounds = [*map(str, CATALOGUE[name].buckets), "+Inf"]
                upto = list(zip(bounds, np.cumsum(value.buckets).tolist(), strict=True))
                family.add_metric(values, upto, sum_value=value.total)
            elif not isinstance(family, HistogramMetricFamily) and not isinstance(value, Counts):
                family.add_metric(values, value)
            else:
                raise TypeError(f"{name} is a {CATALOGUE[name].kind}, its reading is {value}")
        return iter(families.values())


_FAMILIES: Final[Mapping[Kind, type[_Family]]] = {
    "counter": CounterMetricFamily,
    "gauge": GaugeMetricFamily,
    "histogram": HistogramMetricFamily,
}


def _family(name: str) -> _Family:
    one = CATALOGUE[name]
    return _FAMILIES[one.kind](f"{PREFIX}_{name}", one.text, labels=one.labels)
