"""wal: what making a record durable costs, beside a bare loop of write and flush, on this disk and on slower ones."""

import asyncio
import os
import time
from functools import partial
from pathlib import Path

import uvloop

from bench.load import percentiles_ms
from bench.outcome import Chart, Outcome, Setting, median
from bench.prefill import user_id_of
from bench.profiling import profile_call
from bench.targets import missed
from engine.line import order_key
from engine.records import Joined
from snapshots.journal import Journal, JournalOptions
from snapshots.storage import DiskFile, DiskStorage

WAITERS = (1, 8, 64, 512)
DELAYS_MS = (0.0, 2.0, 10.0)
ROUNDS = 3
RECORD_BYTES = 96


class SlowFile(DiskFile):
    """A file on a disk whose flushes take longer."""

    delay_s = 0.0

    def fdatasync(self) -> None:
        if self.delay_s:
            time.sleep(self.delay_s)
        super().fdatasync()


class SlowStorage(DiskStorage):
    """A storage of files whose flushes take `delay_s` longer."""

    def __init__(self, root: Path, delay_s: float) -> None:
        super().__init__(root)
        self._delay_s = delay_s

    def create(self, name: str) -> DiskFile:
        return self._slowed(super().create(name))

    def open_file(self, name: str) -> DiskFile:
        return self._slowed(super().open_file(name))

    def _slowed(self, file: DiskFile) -> DiskFile:
        slow = SlowFile(file._path, file._descriptor)
        slow.delay_s = self._delay_s
        return slow


def run(setting: Setting) -> Outcome:
    """Measure commits with each number of waiters and each delay, in turn with the bare loop."""
    outcome = Outcome()
    seconds = setting.size(1.0, 0.15)
    rounds = setting.size(ROUNDS, 1)
    curves: dict[str, list[tuple[float, float]]] = {}
    for delay_ms in DELAYS_MS:
        label = f"{delay_ms:g} ms added" if delay_ms else "this disk"
        rates: dict[int, list[float]] = {waiters: [] for waiters in WAITERS}
        p50s: dict[int, list[float]] = {waiters: [] for waiters in WAITERS}
        bare: list[float] = []
        bare_p50s: list[float] = []
        for turn in range(rounds):
            setting.say(f"wal: {label}, round {turn + 1} of {rounds}")
            bare_rate, bare_p50_ms = bare_loop(setting.folder / "bare.log", delay_ms / 1000, seconds)
            bare.append(bare_rate)
            bare_p50s.append(bare_p50_ms)
            for waiters in WAITERS:
                folder = setting.folder / f"wal-{time.monotonic_ns()}"
                rate, p50_ms = uvloop.run(_commit(folder, delay_ms / 1000, waiters, seconds))
                rates[waiters].append(rate)
                p50s[waiters].append(p50_ms)
        _report(outcome, label, bare, median(bare_p50s), rates, p50s)
        curves[label] = [(waiters, median(rates[waiters])) for waiters in WAITERS]
        curves[f"bare loop, {label}"] = [(waiters, median(bare)) for waiters in WAITERS]
    if missed("wal", outcome.measured, quick=setting.quick):
        commit = partial(_commit, setting.folder / "wal-profiled", 0.0, WAITERS[-1], seconds)
        outcome.profile = profile_call(lambda: uvloop.run(commit()), setting.folder / "wal.profile")
    outcome.charts.append(Chart("Durable records a second", "records/s", curves=curves, x_unit="waiters"))
    return outcome


def _report(
    outcome: Outcome,
    label: str,
    bare: list[float],
    floor_ms: float,
    rates: dict[int, list[float]],
    p50s: dict[int, list[float]],
) -> None:
    for waiters in WAITERS:
        outcome.add(f"commit p50, {waiters} waiting, {label}", median(p50s[waiters]), "ms", floor_ms, "write and flush")
    for waiters in WAITERS:
        name = f"records, {waiters} waiting, {label}"
        outcome.add(name, median(rates[waiters]), "records/s", median(bare), "write and flush")
    if label == "this disk":
        ratio = median(rate / floor for rate, floor in zip(rates[512], bare, strict=True))
        outcome.add("records, 512 waiting ÷ bare loop", ratio, "×", target="wal.group")


def bare_loop(path: Path, delay_s: float, seconds: float) -> tuple[float, float]:
    """Write and flush one record at a time into reserved space; returns times a second, and the median in ms."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        os.posix_fallocate(descriptor, 0, 16 << 20)
        data = os.urandom(RECORD_BYTES)
        latencies_s: list[float] = []
        began_s = time.perf_counter()
        while (sent_s := time.perf_counter()) - began_s < seconds:
            os.pwrite(descriptor, data, len(latencies_s) * RECORD_BYTES)
            if delay_s:
                time.sleep(delay_s)
            os.fdatasync(descriptor)
            latencies_s.append(time.perf_counter() - sent_s)
        return len(latencies_s) / (time.perf_counter() - began_s), median(latencies_s) * 1000
    finally:
        os.close(descriptor)


async def _commit(folder: Path, delay_s: float, waiters: int, seconds: float) -> tuple[float, float]:
    """Return records a second and the median milliseconds of one, so many waiting at any time."""
    journal = Journal.open(SlowStorage(folder, delay_s), JournalOptions())
    await journal.start()
    latencies_s: list[float] = []
    began_s = time.perf_counter()

    async def keep_committing(first: int) -> None:
        arrival = first
        while (sent_s := time.perf_counter()) - began_s < seconds:
            record = Joined("sale", 1, arrival, order_key(arrival), user_id_of(arrival), 1, 0, 1, False)
            durable = journal.when_durable(journal.append([record]))
            if durable is not None:
                await durable
            latencies_s.append(time.perf_counter() - sent_s)
            arrival += waiters

    await asyncio.gather(*(keep_committing(first) for first in range(1, waiters + 1)))
    rate = len(latencies_s) / (time.perf_counter() - began_s)
    await journal.close()
    return rate, percentiles_ms(latencies_s)["p50"]
