"""push: 19,000 sockets told their exact new place after each release, beside a bare loop of send.

Every frame is held against the log: who has number n stands, at a version, behind n − 1 visitors less those
released up to that version. A frame that says anything else fails the bench, as does a missing or a second one.
"""

import json
import multiprocessing
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from bench import bare_sender, machine, profiling, sockets
from bench.load import percentiles_ms
from bench.outcome import BenchFailed, Chart, Outcome, Setting, distribution, median, median_ratio
from bench.processes import Daemon, daemon
from bench.sockets import Collected, payloads_of
from bench.targets import missed

RELEASE = 100
COLLECT_LIMIT_S = 6.0
READY_LIMIT_S = 120.0
SETTLE_S = 0.15
FRAME = b'{"type":"place","position":18900,"ahead":18899,"estimated_wait_seconds":6804,"version":19107}'
IN_TIME_MS = 1000.0


@dataclass(slots=True)
class Rounds:
    """What each round of both sides measured."""

    push_us: list[float] = field(default_factory=list)
    bare_us: list[float] = field(default_factory=list)
    sweep_s: list[float] = field(default_factory=list)
    bare_s: list[float] = field(default_factory=list)
    ages_ms: list[float] = field(default_factory=list)
    bare_ages_ms: list[float] = field(default_factory=list)
    missing: int = 0


class Helper:
    """A process of the bench, talked to over a pipe; every wait for it has an end."""

    def __init__(self, function: Callable[..., None], *arguments: object) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe: Connection
        self._pipe, far_end = context.Pipe()
        self._process = context.Process(target=function, args=(far_end, *arguments), daemon=True)
        self._process.start()
        far_end.close()

    @property
    def pid(self) -> int:
        """Return the process id."""
        assert self._process.pid is not None
        return self._process.pid

    def ask(self, order: object, limit_s: float = READY_LIMIT_S) -> Any:
        """Send an order and return the answer."""
        self.send(order)
        return self.answer(limit_s)

    def send(self, order: object) -> None:
        """Send an order."""
        self._pipe.send(order)

    def answer(self, limit_s: float = READY_LIMIT_S) -> Any:
        """Return the next answer."""
        if not self._pipe.poll(limit_s):
            raise BenchFailed(f"a helper process said nothing within {limit_s:g} s")
        try:
            return self._pipe.recv()
        except EOFError:
            raise BenchFailed("a helper process died") from None

    def end(self) -> None:
        """End it."""
        self._process.terminate()
        self._process.join(10.0)


@contextmanager
def helper(function: Callable[..., None], *arguments: object) -> Iterator[Helper]:
    """Run a helper process as long as the block."""
    running = Helper(function, *arguments)
    try:
        yield running
    finally:
        running.end()


def run(setting: Setting) -> Outcome:
    """Measure releases and bare loops in turns."""
    outcome = Outcome()
    count, rounds = setting.size((19_000, 24), (500, 4))
    with daemon(setting.folder / "push") as server, helper(bare_sender.serve_pipe, count) as sender:
        empty_bytes = server.rss_bytes()
        setting.say(f"push: connecting {count:,} sockets twice")
        began_s, began_cpu_s = time.perf_counter(), server.cpu_s()
        with (
            helper(sockets.serve_pipe, server.port, count, True) as reader,
            helper(sockets.serve_pipe, sender.answer(), count, False) as bare_reader,
        ):
            numbers = reader.answer()
            connect_s, connect_us = time.perf_counter() - began_s, (server.cpu_s() - began_cpu_s) * 1e6 / count
            bare_reader.answer()
            if sender.answer() != count or sorted(numbers) != list(range(1, count + 1)):
                raise BenchFailed("not everybody was connected and given a number")
            weight = (server.rss_bytes() - empty_bytes) / count
            outcome.add("connect and join over the socket, server CPU", connect_us, "µs")
            outcome.add("connect and join, all", connect_s, "s")
            outcome.add("memory per socket and place, server", weight / 1024, "KiB")
            time.sleep(setting.size(2.0, 0.6))
            taken = _measure(setting, server, reader, bare_reader, sender, count, rounds, numbers)
    _report(outcome, taken, count, rounds)
    if missed("push", outcome.measured, quick=setting.quick):
        outcome.profile = _share_of_core(taken, count) + profile_sweep(setting)
    return outcome


def _measure(
    setting: Setting,
    server: Daemon,
    reader: Helper,
    bare_reader: Helper,
    sender: Helper,
    count: int,
    rounds: int,
    numbers: list[int],
) -> Rounds:
    taken = Rounds()
    collected: list[Collected] = []
    for turn in range(rounds):
        setting.say(f"push: round {turn + 1} of {rounds}")
        expected = count - turn * RELEASE
        reader.send((expected, COLLECT_LIMIT_S))
        time.sleep(SETTLE_S)
        before_s, sent_ns = server.cpu_s(), time.time_ns()
        server.release(RELEASE)
        got: Collected = reader.answer()
        taken.push_us.append((server.cpu_s() - before_s) * 1e6 / expected)
        taken.ages_ms += [(at_ns - sent_ns) / 1e6 for at_ns in got.times_ns]
        taken.missing += expected - len(set(got.owners))
        collected.append(got)
        reader.ask(())
        time.sleep(SETTLE_S)
        taken.sweep_s.append(server.metric("stanchion_sweep_last_seconds"))
        bare_reader.send((count, COLLECT_LIMIT_S))
        time.sleep(SETTLE_S)
        before_s = machine.cpu_s(sender.pid)
        sender.send(b"\x81%c%b" % (len(FRAME), FRAME))
        began_ns, bare_s = sender.answer()
        bare: Collected = bare_reader.answer()
        taken.bare_us.append((machine.cpu_s(sender.pid) - before_s) * 1e6 / count)
        taken.bare_s.append(bare_s)
        taken.bare_ages_ms += [(at_ns - began_ns) / 1e6 for at_ns in bare.times_ns]
    check_frames(numbers, collected, released_by_lsn(server))
    return taken


# ---- exactness ---------------------------------------------------------------------------------------------


def released_by_lsn(server: Daemon) -> list[tuple[int, int]]:
    """Return (LSN, how many had been released by then), as the log tells it; raises when the order is not 1, 2, 3 …"""
    totals, next_number = [(0, 0)], 1
    for record in server.records():
        if record["kind"] == "released":
            numbers = record["numbers"]
            if numbers != list(range(next_number, next_number + len(numbers))):
                raise BenchFailed(f"LSN {record['lsn']} released others than the first in line")
            next_number += len(numbers)
            totals.append((record["lsn"], next_number - 1))
    return totals


def check_frames(numbers: list[int], rounds: list[Collected], totals: list[tuple[int, int]]) -> None:
    """Raise BenchFailed unless every frame tells its owner's exact place and nobody is left out or told twice."""
    shown: dict[int, int] = {}
    ready: set[int] = set()
    for got, (_, released) in zip(rounds, totals[1:], strict=True):
        told: set[int] = set()
        for index, chunk in zip(got.owners, got.chunks, strict=True):
            for payload in payloads_of(chunk):
                frame = json.loads(payload)
                number = numbers[index]
                if frame["type"] == "ready":
                    ready.add(number)
                elif frame["type"] == "place":
                    before = next(total for lsn, total in reversed(totals) if lsn <= frame["version"])
                    if frame["position"] != number - before or frame["ahead"] != frame["position"] - 1:
                        raise BenchFailed(f"number {number} was told {frame} where {number - before} is right")
                    if frame["position"] >= shown.get(number, number + 1) or index in told:
                        raise BenchFailed(f"number {number} was told {frame} a second time")
                    shown[number] = frame["position"]
                told.add(index)
        late = [n for n in numbers if n > released and shown.get(n) != n - released]
        if ready != set(range(1, released + 1)) or late:
            raise BenchFailed(f"after {released} releases {len(ready)} were told, and {len(late)} not their new place")


# ---- the figures ----------------------------------------------------------------------------------------------


def _report(outcome: Outcome, taken: Rounds, count: int, rounds: int) -> None:
    warm = slice(rounds // 2, None)
    push_us, bare_us = taken.push_us[warm], taken.bare_us[warm]
    outcome.add(f"push per socket, {count:,} sockets, server CPU", median(push_us), "µs", median(bare_us), "bare send")
    outcome.add("push ÷ bare send, CPU", median_ratio(push_us, bare_us), "×", target="push.cost")
    cold = slice(1, min(5, rounds))
    cold_ratio = median_ratio(taken.push_us[cold], taken.bare_us[cold])
    outcome.add("push ÷ bare send, CPU, a socket's first frames", cold_ratio, "×")
    outcome.add("sweep", median(taken.sweep_s[warm]), "s", median(taken.bare_s[warm]), "bare loop")
    ages, bare_ages = percentiles_ms(_seconds(taken.ages_ms)), percentiles_ms(_seconds(taken.bare_ages_ms))
    for mark in ages:
        outcome.add(f"release sent → frame received, {mark}", ages[mark], "ms", bare_ages[mark], "bare loop")
    total = len(taken.ages_ms) + taken.missing
    in_time = sum(age_ms <= IN_TIME_MS for age_ms in taken.ages_ms) / total
    bare_in_time = sum(age_ms <= IN_TIME_MS for age_ms in taken.bare_ages_ms) / (rounds * count)
    outcome.add("reached within 1 s", in_time, f"of {total:,}", bare_in_time, "bare loop", "push.in_time")
    outcome.rounds = {
        "push CPU µs": taken.push_us,
        "bare send CPU µs": taken.bare_us,
        "sweep s": taken.sweep_s,
        "bare loop s": taken.bare_s,
    }
    curves = {"Stanchion": distribution(taken.ages_ms), "bare send loop": distribution(taken.bare_ages_ms)}
    outcome.charts.append(Chart("Age of a position when it arrives", "share", curves=curves, x_unit="ms"))
    costs = {name: _by_round(each) for name, each in (("Stanchion", taken.push_us), ("bare send loop", taken.bare_us))}
    outcome.charts.append(Chart("Server CPU per socket", "µs", curves=costs, x_unit="round"))
    outcome.notes.append("Every pushed position was held against the log: all exact, none missing, none twice.")
    outcome.notes.append("What answers to pings cost the server is not in it: they are sent between the rounds.")
    outcome.notes.append("Warm rounds are judged: the kernel charges more for the first frames of a socket, to both.")


def _by_round(values: list[float]) -> list[tuple[float, float]]:
    return [(float(turn), value) for turn, value in enumerate(values, 1)]


def _seconds(values_ms: list[float]) -> list[float]:
    return [value_ms / 1000 for value_ms in values_ms]


# ---- where the time goes ----------------------------------------------------------------------------------------


def _share_of_core(taken: Rounds, count: int) -> list[str]:
    """Return how much of its core each side had: where that is little, others on this machine explain the wall time."""
    lines = []
    sides = (("sweep", taken.push_us, taken.sweep_s), ("bare loop", taken.bare_us, taken.bare_s))
    for name, cost_us, wall_s in sides:
        shares = [us * count / 1e6 / wall for us, wall in zip(cost_us, wall_s, strict=True)]
        lines.append(
            f"{name}: median {median(wall_s):.3f} s, longest {max(wall_s):.3f} s of wall time for "
            f"{median(cost_us) * count / 1e6:.3f} s of CPU; least share of the core in a round {min(shares):.0%}"
        )
    return lines


def profile_sweep(setting: Setting) -> list[str]:
    """Return the top lines of the daemon's profile over a few releases."""
    setting.say("push: profiling sweeps")
    path: Path = setting.folder / "push.profile"
    count = setting.size(10_000, 300)
    with (
        daemon(setting.folder / "push-profiled", profile=path) as server,
        helper(sockets.serve_pipe, server.port, count, True) as reader,
    ):
        reader.answer()
        time.sleep(1.0)
        profiling.begin(server.process.pid)
        for turn in range(5):
            reader.send((count - turn * RELEASE, COLLECT_LIMIT_S))
            time.sleep(SETTLE_S)
            server.release(RELEASE)
            reader.answer()
        return profiling.finish(server.process.pid, path)
