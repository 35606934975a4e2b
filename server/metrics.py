"""Metrics for Prometheus: what the rooms hold, how long operations take, and how the process fares.

What is counted on the hot path is a list of plain integers per event and operation; everything else is read when
somebody scrapes, at most once a second, and turned into text off the loop. Labels are events that exist and
operations of the route table, so their number is bounded by the server and not by who calls it.
"""

import asyncio
import re
import time
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from engine.backend import Backend, BackendStatus
from engine.errors import Refused
from engine.views import EventView, Stats
from server.answers import Answer
from server.metric_names import HUB, LOG, Named
from server.routes import Call, Listener, Route

PROMETHEUS = b"text/plain; version=0.0.4; charset=utf-8"
BOUNDS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
CELLS_LIMIT = 100_000
CACHE_S = 1.0
EVENTS_A_SLICE = 50
LAG_EVERY_S = 0.25
LAG_WINDOW = 240
_UNNAMEABLE = re.compile(r"[^a-zA-Z0-9_]")


class HubStats(Protocol):
    """Whoever keeps the sockets."""

    def stats(self) -> Mapping[str, float]:
        """Return numbers by name: sockets, sweeps, sweep_seconds_last, pushes, slow_closed."""


class Histogram:
    """Counts by bucket, one more for what is above all bounds, and the sum of what was observed."""

    __slots__ = ("counts", "sum")

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS_S) + 1)
        self.sum = 0.0

    def observe(self, seconds: float) -> None:
        """Count one observation; about 0.2 µs."""
        self.counts[bisect_left(BOUNDS_S, seconds)] += 1
        self.sum += seconds

    def buckets(self) -> list[tuple[str, float]]:
        """Return the cumulative counts as Prometheus wants them."""
        bounds = [*map(str, BOUNDS_S), "+Inf"]
        return [(bound, float(count)) for bound, count in zip(bounds, accumulate(self.counts), strict=True)]


@dataclass(frozen=True, slots=True, eq=False)
class _Scrape(Collector):
    """What one scrape saw; turned into text in another thread."""

    events: Sequence[tuple[EventView, Stats]]
    latencies: Sequence[tuple[str, str, Histogram]]
    status: BackendStatus
    numbers: Mapping[str, float]
    hub: Mapping[str, float]
    lag: Histogram
    lag_highest_s: float

    def collect(self) -> Iterator[Metric]:
        yield from self._rooms()
        yield self._latency()
        yield from self._process()
        yield from _named(LOG, self.numbers, "stanchion_")
        yield from _named(HUB, self.hub, "stanchion_push_")

    def _rooms(self) -> Iterator[Metric]:
        gauges = {name: GaugeMetricFamily(name, about, labels=["event"]) for name, about, _ in _GAUGES}
        processed = CounterMetricFamily(
            "queue_users_processed", "Visitors released from the line since the event was made", labels=["event"]
        )
        by_status = GaugeMetricFamily("queue_visitors", "Visitors by status", labels=["event", "status"])
        for view, stats in self.events:
            label = [view.event_id]
            for name, _, value in _GAUGES:
                gauges[name].add_metric(label, value(stats))
            processed.add_metric(label, stats.released_automatic + stats.released_manual)
            for status, count in stats.counts.items():
                by_status.add_metric([view.event_id, status], count)
        yield from gauges.values()
        yield from (processed, by_status)

    def _latency(self) -> Metric:
        family = HistogramMetricFamily(
            "queue_operation_latency_seconds",
            "From a parsed request to its answer, for requests that were not refused",
            labels=["event", "operation"],
        )
        for event_id, operation, histogram in self.latencies:
            family.add_metric([event_id, operation], histogram.buckets(), histogram.sum)
        return family

    def _process(self) -> Iterator[Metric]:
        yield GaugeMetricFamily("stanchion_epoch", "Term x 2^20 + restarts", value=self.status.epoch)
        yield GaugeMetricFamily(
            "stanchion_ready", "1 while joins are taken", value=float(self.status.refuses_joins is None)
        )
        yield GaugeMetricFamily("stanchion_degraded", "How many things are degraded", value=len(self.status.degraded))
        lag = HistogramMetricFamily("stanchion_loop_lag_seconds", "How late the event loop woke a timer")
        lag.add_metric([], self.lag.buckets(), self.lag.sum)
        yield lag
        yield GaugeMetricFamily(
            "stanchion_loop_lag_highest_seconds", "The highest loop lag of the last minute", value=self.lag_highest_s
        )


_GAUGES: tuple[tuple[str, str, Callable[[Stats], float]], ...] = (
    ("queue_waiting_users", "Visitors waiting in line", lambda stats: stats.counts["waiting"]),
    ("queue_active_users", "Released visitors: ready or active", lambda s: s.counts["ready"] + s.counts["active"]),
    ("queue_processing_rate", "Recent rate of release, visitors a minute", lambda stats: stats.rate_per_minute),
    ("queue_avg_wait_seconds", "Mean wait of the released", lambda stats: stats.average_wait_s),
    ("queue_arrivals", "Places given out so far", lambda stats: stats.arrivals),
)


class Metrics:
    """Counts latencies and answers scrapes. `run` samples the loop's lag and is a core task."""

    def __init__(self, backend: Backend, hub: HubStats, clock: Callable[[], float] = time.monotonic) -> None:
        self._backend = backend
        self._hub = hub
        self._clock = clock
        self._cells: dict[tuple[str, str], Histogram] = {}
        self._lag = Histogram()
        self._lags: deque[float] = deque([0.0], LAG_WINDOW)
        self._process = CollectorRegistry()
        ProcessCollector(registry=self._process)
        self._snapshot_seen: tuple[float, float] | None = None
        self._text = b""
        self._text_at_s = float("-inf")
        self._scraping = asyncio.Lock()

    def routes(self) -> list[Route]:
        """Return the row of the scrape."""
        return [
            Route(
                "GET",
                "/metrics",
                self.metrics,
                "Metrics in the Prometheus text format",
                {200: str},
                listener=Listener.ADMIN,
                content_type="text/plain",
                tag="health",
            )
        ]

    def observe(self, operation: str, event_id: str, seconds: float) -> None:
        """Count one operation; about 0.4 µs."""
        cell = self._cells.get((event_id, operation))
        if cell is None:
            cell = self._new_cell(operation, event_id)
        cell.counts[bisect_left(BOUNDS_S, seconds)] += 1
        cell.sum += seconds

    def _new_cell(self, operation: str, event_id: str) -> Histogram:
        """Return a histogram; beyond the limit events share one per operation until a scrape drops the gone ones."""
        name = (event_id if len(self._cells) < CELLS_LIMIT else "", operation)
        return self._cells.setdefault(name, Histogram())

    async def run(self) -> None:
        """Sample how late the loop wakes a timer, until cancelled."""
        while True:
            due_s = self._clock() + LAG_EVERY_S
            await asyncio.sleep(LAG_EVERY_S)
            lag_s = max(0.0, self._clock() - due_s)
            self._lag.observe(lag_s)
            self._lags.append(lag_s)

    async def metrics(self, call: Call) -> Answer:
        """Answer a scrape; the text is at most a second old."""
        async with self._scraping:
            if self._clock() - self._text_at_s >= CACHE_S:
                scrape = await self._scrape()
                self._text = await asyncio.to_thread(_render, scrape, self._process)
                self._text_at_s = self._clock()
        return Answer(200, self._text, PROMETHEUS)

    async def _scrape(self) -> _Scrape:
        """Read everything, event by event, letting others run in between."""
        events = []
        for count, view in enumerate(await self._backend.events(), 1):
            try:
                events.append((view, await self._backend.stats(view.event_id)))
            except Refused:
                continue
            if count % EVENTS_A_SLICE == 0:
                await asyncio.sleep(0)
        known = {view.event_id for view, _ in events} | {""}
        for name in [name for name in self._cells if name[0] not in known]:
            del self._cells[name]
        latencies = [(event_id, operation, cell) for (event_id, operation), cell in self._cells.items()]
        status = self._backend.status()
        numbers = {**_numbers(status.details), "last_lsn": status.version, "durable_lsn": status.durable_version}
        self._add_age(numbers)
        return _Scrape(events, latencies, status, numbers, self._hub.stats(), self._lag, max(self._lags))

    def _add_age(self, numbers: dict[str, float]) -> None:
        """Add the snapshot's age, counted from the scrape that first saw it, where the backend gives none."""
        lsn = numbers.get("snapshot_last_lsn")
        if lsn is None or "snapshot_age_seconds" in numbers:
            return
        if self._snapshot_seen is None or self._snapshot_seen[0] != lsn:
            self._snapshot_seen = lsn, self._clock()
        numbers["snapshot_age_seconds"] = self._clock() - self._snapshot_seen[1]


def _render(scrape: _Scrape, process: CollectorRegistry) -> bytes:
    registry = CollectorRegistry()
    registry.register(scrape)
    return generate_latest(registry) + generate_latest(process)


def _numbers(details: Mapping[str, object], prefix: str = "") -> dict[str, float]:
    """Return the numbers among details by name, those of a part under the part's name."""
    numbers: dict[str, float] = {}
    for name, value in details.items():
        if isinstance(value, Mapping):
            numbers |= _numbers(value, f"{prefix}{name}_")
        elif isinstance(value, int | float):
            numbers[prefix + name] = float(value)
    return numbers


def _named(names: Mapping[str, Named], numbers: Mapping[str, float], prefix: str) -> Iterable[Metric]:
    """Yield a series for every number; those without an entry in the table go out as plain gauges."""
    for name, value in numbers.items():
        known = names.get(name) or Named(prefix + _UNNAMEABLE.sub("_", name), "As named", is_sum=False)
        if known.is_sum:
            yield CounterMetricFamily(known.series, known.about, value=value)
        else:
            yield GaugeMetricFamily(known.series, known.about, value=value)
