"""recovery: how long a restart takes with a million in line, and what writing a snapshot does to the loop."""

import asyncio
import gc
import os
import shutil
import time
from pathlib import Path

import uvloop

from bench.outcome import BenchFailed, Chart, Outcome, Setting, median
from bench.prefill import DRAW_KEY, copy_with_snapshot, make_folder, user_id_of
from bench.processes import EVENT, in_fresh_process
from bench.profiling import profile_call
from bench.targets import missed
from engine.actor import Entrant, Holder
from engine.backends.memory import MemoryBackend
from server.main import monotonic_ms, wall_ms
from snapshots.journal import Journal, JournalOptions
from snapshots.storage import DiskStorage

ROUNDS = 3
LIMIT_S = 240.0
SAMPLE_S = 0.001
JOINS_EACH_S = 0.005


def run(setting: Setting) -> Outcome:
    """Restore from a snapshot and from the log alone, in turns; then stalls with and without a snapshot, in turns."""
    outcome = Outcome()
    visitors = setting.size(1_000_000, 30_000)
    rounds = setting.size(ROUNDS, 1)
    setting.say(f"recovery: preparing {visitors:,} visitors")
    log_only, with_snapshot = setting.folder / "log-only", setting.folder / "with-snapshot"
    make_folder(log_only, visitors, snapshot=False)
    copy_with_snapshot(log_only, with_snapshot)
    sources = {"snapshot": with_snapshot, "log": log_only}
    seconds: dict[str, list[float]] = {name: [] for name in sources}
    cpu_s: dict[str, list[float]] = {name: [] for name in sources}
    reading: dict[str, list[float]] = {name: [] for name in sources}
    for turn in range(rounds):
        setting.say(f"recovery: round {turn + 1} of {rounds}")
        for name, source in sources.items():
            folder = _cold_copy(source, setting.folder / f"{name}-{turn}")
            reading[name].append(_read_all(folder))
            _drop_cache(folder)
            wall_s, busy_s = in_fresh_process(LIMIT_S, restore, folder, visitors)
            seconds[name].append(wall_s)
            cpu_s[name].append(busy_s)
            shutil.rmtree(folder)
    for name in sources:
        label = f"restore {visitors:,} from the {name}"
        outcome.add(label, median(seconds[name]), "s", median(reading[name]), "reading the files", f"recovery.{name}")
        outcome.add(f"{label}, CPU", median(cpu_s[name]), "s")
    outcome.rounds = {f"restore from {name} s": values for name, values in seconds.items()}
    outcome.rounds |= {f"restore from {name} CPU s": values for name, values in cpu_s.items()}
    outcome.charts.append(Chart("Restart", "s", bars={name: median(each) for name, each in seconds.items()}, line=5.0))
    _stalls(setting, outcome, with_snapshot, visitors, rounds)
    slow = missed("recovery", outcome.measured, quick=setting.quick)
    if slow:
        source = log_only if "recovery.log" in slow else with_snapshot
        outcome.profile = in_fresh_process(LIMIT_S, profile_restore, source)
    return outcome


# ---- restart --------------------------------------------------------------------------------------------


def restore(data: Path, visitors: int) -> tuple[float, float]:
    """Return seconds of wall and CPU from opening the journal to a backend that answers; run in a fresh process."""
    return uvloop.run(_restore(data, visitors))


async def _restore(data: Path, visitors: int) -> tuple[float, float]:
    began_s, began_cpu_s = time.perf_counter(), time.process_time()
    backend = await started(data)
    seconds = time.perf_counter() - began_s, time.process_time() - began_cpu_s
    view = await backend.event(EVENT)
    last = await backend.place(EVENT, Holder(visitors, user_id_of(visitors - 1)))
    if (view.waiting, last.position) != (visitors, visitors):
        raise BenchFailed(f"{visitors} were to be restored; {view.waiting} are there")
    await backend.close()
    return seconds


async def started(data: Path) -> MemoryBackend:
    """Return a backend over a data folder that answers."""
    backend = MemoryBackend(Journal.open(DiskStorage(data), JournalOptions()), monotonic_ms, wall_ms, DRAW_KEY)
    await backend.start()
    return backend


def _cold_copy(source: Path, folder: Path) -> Path:
    shutil.copytree(source, folder)
    _drop_cache(folder)
    return folder


def _drop_cache(folder: Path) -> None:
    """Flush every file and take it out of the page cache, so that the next read is one from the disk."""
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def _read_all(folder: Path) -> float:
    """Return the seconds that reading the folder once takes: no restart is faster."""
    began_s = time.perf_counter()
    for path in folder.rglob("*"):
        if path.is_file():
            path.read_bytes()
    return time.perf_counter() - began_s


def profile_restore(data: Path) -> list[str]:
    """Return the top lines of a restart's profile; run in a fresh process."""
    return profile_call(lambda: uvloop.run(started(data)), data.parent / "recovery.profile")


# ---- snapshots and the loop ---------------------------------------------------------------------------------


def _stalls(setting: Setting, outcome: Outcome, source: Path, visitors: int, rounds: int) -> None:
    setting.say("recovery: stalls while a snapshot is written")
    with_ms, without_ms, snapshot_s = in_fresh_process(LIMIT_S, stalls, source, rounds + 2)
    label = f"longest stall, snapshot of {visitors:,} written"
    outcome.add(label, median(with_ms), "ms", median(without_ms), "control without it")
    added_ms = median(a - b for a, b in zip(with_ms, without_ms, strict=True))
    outcome.add("longest stall − control", added_ms, "ms", target="recovery.stall")
    outcome.add("writing the snapshot", median(snapshot_s), "s")
    outcome.rounds |= {"stall with snapshot ms": with_ms, "stall without ms": without_ms}
    outcome.notes.append(f"Stalls: the loop sampled every {SAMPLE_S * 1000:g} ms, 200 joins/s meanwhile, one core.")


def stalls(data: Path, rounds: int) -> tuple[list[float], list[float], list[float]]:
    """Return the longest stalls with and without a snapshot in ms, and how long snapshots took; fresh process."""
    return uvloop.run(_stall_rounds(data, rounds))


async def _stall_rounds(data: Path, rounds: int) -> tuple[list[float], list[float], list[float]]:
    backend = await started(data)
    gc.collect()
    gc.freeze()
    gc.disable()
    with_ms, without_ms, snapshot_s = [], [], []
    loading = asyncio.create_task(_join_lightly(backend))
    for _ in range(rounds):
        began_s = time.perf_counter()
        with_ms.append(await longest_stall_ms(asyncio.create_task(backend.snapshot())))
        snapshot_s.append(time.perf_counter() - began_s)
        without_ms.append(await longest_stall_ms(asyncio.create_task(asyncio.sleep(snapshot_s[-1]))))
    loading.cancel()
    await asyncio.wait([loading])
    await backend.close()
    return with_ms, without_ms, snapshot_s


async def longest_stall_ms(meanwhile: "asyncio.Task[object]") -> float:
    """Return the longest time the loop was held while a task ran."""
    longest_s = 0.0
    while not meanwhile.done():
        before_s = time.perf_counter()
        await asyncio.sleep(SAMPLE_S)
        longest_s = max(longest_s, time.perf_counter() - before_s - SAMPLE_S)
    await meanwhile
    return longest_s * 1000


async def _join_lightly(backend: MemoryBackend) -> None:
    index = 0
    while True:
        await backend.join(EVENT, Entrant(f"late-{index}-{time.monotonic_ns()}", 1))
        index += 1
        await asyncio.sleep(JOINS_EACH_S)
