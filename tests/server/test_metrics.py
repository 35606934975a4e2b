"""Metrics, read back by the parser of the Prometheus client and by promtool where it is installed."""

import asyncio
import shutil
import subprocess
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from engine.backend import BackendStatus
from engine.views import EventView, Stats
from server.metrics import BOUNDS_S, CELLS_LIMIT, LAG_EVERY_S, Metrics
from server.routes import Call
from tests.server.running import Running, running

WANTED = (
    "queue_waiting_users",
    "queue_active_users",
    "queue_users_processed",
    "queue_processing_rate",
    "queue_avg_wait_seconds",
    "queue_operation_latency_seconds",
    "stanchion_log_last_lsn",
    "stanchion_log_durable_lsn",
    "stanchion_log_commits",
    "stanchion_log_commit_seconds",
    "stanchion_log_written_bytes",
    "stanchion_log_queued_records",
    "stanchion_snapshot_last_lsn",
    "stanchion_snapshot_age_seconds",
    "stanchion_snapshot_size_bytes",
    "stanchion_snapshot_duration_seconds",
    "stanchion_sockets",
    "stanchion_sweep_last_seconds",
    "stanchion_loop_lag_seconds",
    "stanchion_epoch",
    "process_start_time_seconds",
)


async def scrape(server: Running) -> str:
    async with server.client.get(f"{server.url}/metrics") as response:
        assert response.status == 200
        assert response.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
        return await response.text()


def samples(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def test_a_scrape_holds_every_series_and_says_what_is(tmp_path: Path) -> None:
    async with running(tmp_path) as server:
        await server.open_event(max_active=2)
        for number in range(5):
            await server.place(f"u{number}")
        await server.call("POST", "/v1/admin/events/e1/release", {"count": 5})
        await server.call("POST", "/v1/admin/snapshot", {})
        text = await scrape(server)
    families = [family.name for family in text_string_to_metric_families(text)]
    assert set(WANTED) <= set(families)
    assert len(families) == len(set(families))
    found, e1 = samples(text), (("event", "e1"),)
    assert found["queue_waiting_users", e1] == 3
    assert found["queue_active_users", e1] == 2
    assert found["queue_users_processed_total", e1] == 2
    joins = (("event", "e1"), ("operation", "join"))
    assert found["queue_operation_latency_seconds_count", joins] == 5
    assert found["stanchion_log_durable_lsn", ()] == found["stanchion_log_last_lsn", ()] > 0


async def test_promtool_accepts_a_scrape_where_it_is_installed(tmp_path: Path) -> None:
    async with running(tmp_path) as server:
        await server.open_event()
        await server.place("u1")
        text = await scrape(server)
    promtool = shutil.which("promtool")
    if promtool is not None:
        check = [promtool, "check", "metrics"]
        checked = await asyncio.to_thread(subprocess.run, check, input=text, text=True, capture_output=True)
        assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")


# ---- over a fake backend ------------------------------------------------------------------------------


class Backend:
    """Events by name, and details as they are given."""

    def __init__(self, events: Iterable[str] = (), details: Mapping[str, object] | None = None) -> None:
        self.names = list(events)
        self.details = details or {}
        self.scrapes = 0

    async def events(self) -> list[EventView]:
        self.scrapes += 1
        return [EventView(name, "", "open", None, None, None, 0, 0, 0, 0.0, {}, None, 1, 1) for name in self.names]

    async def stats(self, event_id: str) -> Stats:
        counts = dict.fromkeys(("waiting", "ready", "active"), 0)
        return Stats(event_id, "open", counts, 0, 0, 0, 0, 0.0, 0.0, None, 0, None, 1)

    def status(self) -> BackendStatus:
        return BackendStatus("fake", 1, 1, 1, (), None, self.details)


class Hub:
    def stats(self) -> Mapping[str, float]:
        return {"sockets": 3, "sweeps": 2, "something.new": 1}


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def metrics_of(backend: Backend, clock: Clock) -> Metrics:
    return Metrics(backend, Hub(), clock)  # type: ignore[arg-type]


async def text_of(metrics: Metrics) -> str:
    return (await metrics.metrics(Call(None, "", None, None))).body.decode()  # type: ignore[arg-type]


async def test_a_scrape_is_read_at_most_once_a_second() -> None:
    backend, clock = Backend(), Clock()
    metrics = metrics_of(backend, clock)
    await asyncio.gather(*(text_of(metrics) for _ in range(5)))
    assert backend.scrapes == 1
    clock.now_s = 1.0
    await text_of(metrics)
    assert backend.scrapes == 2


async def test_observations_fall_into_their_buckets() -> None:
    metrics = metrics_of(Backend(["e1"]), Clock())
    for seconds in (0.0, 0.0005, 0.0006, 99.0):
        metrics.observe("join", "e1", seconds)
    found = samples(await text_of(metrics))

    def count(bound: str) -> float:
        labels = (("event", "e1"), ("le", bound), ("operation", "join"))
        return found["queue_operation_latency_seconds_bucket", labels]

    assert [count("0.0005"), count("0.001"), count("2.5"), count("+Inf")] == [2, 3, 3, 4]
    assert found["queue_operation_latency_seconds_sum", (("event", "e1"), ("operation", "join"))] == 99.0011


async def test_events_that_are_gone_leave_the_labels() -> None:
    backend, clock = Backend(["e1", "e2"]), Clock()
    metrics = metrics_of(backend, clock)
    for event_id in ("e1", "e2", "never", ""):
        metrics.observe("join", event_id, 0.001)
    text = await text_of(metrics)
    assert 'event="e2"' in text and 'event="never"' not in text and 'event=""' in text
    backend.names, clock.now_s = ["e1"], 2.0
    assert 'event="e2"' not in await text_of(metrics)


async def test_labels_are_bounded_even_when_nobody_scrapes() -> None:
    metrics = metrics_of(Backend(), Clock())
    for number in range(CELLS_LIMIT + 100):
        metrics.observe("join", f"e{number}", 0.001)
    assert len(metrics._cells) == CELLS_LIMIT + 1
    assert sum(metrics._cells["", "join"].counts) == 100


async def test_numbers_nobody_knows_go_out_under_their_own_name() -> None:
    details = {"shards": 4, "ok": True, "word": "no number", "pool": {"idle": 2}}
    found = samples(await text_of(metrics_of(Backend(details=details), Clock())))
    assert found["stanchion_shards", ()] == 4
    assert found["stanchion_ok", ()] == 1
    assert found["stanchion_pool_idle", ()] == 2
    assert found["stanchion_push_something_new", ()] == 1


async def test_the_age_of_a_snapshot_counts_from_when_it_was_first_seen() -> None:
    backend, clock = Backend(details={"snapshot_last": {"lsn": 5}}), Clock()
    metrics = metrics_of(backend, clock)
    await text_of(metrics)
    clock.now_s = 60.0
    assert samples(await text_of(metrics))["stanchion_snapshot_age_seconds", ()] == 60
    backend.details, clock.now_s = {"snapshot_last": {"lsn": 9}}, 70.0
    assert samples(await text_of(metrics))["stanchion_snapshot_age_seconds", ()] == 0


async def test_loop_lag_is_what_a_timer_is_late(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, naps = Clock(), 0

    async def sleep(seconds: float) -> None:
        nonlocal naps
        naps += 1
        if naps > 3:
            raise asyncio.CancelledError
        clock.now_s += LAG_EVERY_S + (0.2 if naps == 2 else 0.0)

    metrics = metrics_of(Backend(), clock)
    with monkeypatch.context() as patched:
        patched.setattr(asyncio, "sleep", sleep)
        with pytest.raises(asyncio.CancelledError):
            await metrics.run()
    found = samples(await text_of(metrics))
    assert found["stanchion_loop_lag_seconds_count", ()] == 3
    assert found["stanchion_loop_lag_highest_seconds", ()] == pytest.approx(0.2)


@pytest.mark.slow
def test_an_observation_costs_about_as_much_as_it_says() -> None:
    metrics = Metrics.__new__(Metrics)
    metrics._cells = {}
    best = min(_cost_of(metrics) for _ in range(5))
    assert best < 2e-6, f"{best * 1e9:.0f} ns"


def _cost_of(metrics: Metrics, count: int = 20_000) -> float:
    began = time.perf_counter()
    for _ in range(count):
        metrics.observe("join", "e1", 0.0031)
    return (time.perf_counter() - began) / count


def test_buckets_reach_from_half_a_millisecond_to_seconds() -> None:
    assert tuple(sorted(BOUNDS_S)) == BOUNDS_S
    assert (BOUNDS_S[0], BOUNDS_S[-1]) == (0.0005, 2.5)
