"""failover: how long nobody answers after a kill of the primary, and how far a follower is behind under load.

The drill is the one operators have (`stanchion rehearse`): joins at a steady pace, SIGKILL, the standby takes over, the
killed one comes back, again and again; at the end everybody's answer is held against the log. In sync the standby
takes over by itself, through a witness; in async it is told to at once, so that only what promoting costs is measured.

The lag is looked at from outside: both servers are asked again and again for the newest LSN they speak of, and the
follower's is held against the curve of the primary's. An answer under way blurs that by a few milliseconds.
"""

import asyncio
import time
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from bench import joiner, machine
from bench.cases.push import helper
from bench.load import percentiles_ms
from bench.outcome import BenchFailed, Chart, Outcome, Setting, median
from bench.processes import EVENT, SETTINGS, daemon
from bench.targets import missed
from engine.errors import Unreachable
from server.commands_rehearse import drill
from server.rehearsal_pair import Pair

JOINS_PER_S = 200
LOAD_PER_S = 2_000
LOOK_EVERY_S = 0.02
SETTLE_S = 1.0
LIMIT_S = 120.0
FIRST_VISITOR = 10_000_000
POINTS = 400
MODES = ("sync", "async")


@dataclass(slots=True)
class Lag:
    """What a follower was behind, over the seconds of the load, and how long joins took meanwhile."""

    at_s: list[float] = field(default_factory=list)
    records: list[float] = field(default_factory=list)
    ms: list[float] = field(default_factory=list)
    join_ms: list[float] = field(default_factory=list)


@dataclass(slots=True)
class Curve:
    """How the newest LSN of a server grew: moments in seconds and LSNs, both rising."""

    at_s: list[float] = field(default_factory=list)
    lsn: list[int] = field(default_factory=list)

    def add(self, at_s: float, lsn: int) -> None:
        """Append what was seen at a moment."""
        self.at_s.append(at_s)
        self.lsn.append(max(lsn, self.lsn[-1] if self.lsn else 0))

    def lsn_at(self, at_s: float) -> float:
        """Return the LSN at a moment, in between what was seen."""
        return _between(self.at_s, self.lsn, at_s)

    def reached_s(self, lsn: float) -> float:
        """Return when an LSN was reached, in between what was seen."""
        return _between(self.lsn, self.at_s, lsn)


def _between(xs: Sequence[float], ys: Sequence[float], x: float) -> float:
    at = bisect_right(xs, x)
    if at == 0 or at == len(xs):
        return ys[min(at, len(ys) - 1)]
    share = (x - xs[at - 1]) / (xs[at] - xs[at - 1])
    return ys[at - 1] + share * (ys[at] - ys[at - 1])


def behind(primary: Curve, follower: Curve) -> Lag:
    """Return how far a follower was behind at each moment it was asked, in records and in milliseconds."""
    lag = Lag()
    for at_s, lsn in zip(follower.at_s, follower.lsn, strict=True):
        if primary.at_s[0] <= at_s <= primary.at_s[-1]:
            lag.at_s.append(at_s - primary.at_s[0])
            lag.records.append(max(0.0, primary.lsn_at(at_s) - lsn))
            lag.ms.append(max(0.0, at_s - primary.reached_s(lsn)) * 1000 if lag.records[-1] > 0 else 0.0)
    return lag


def run(setting: Setting) -> Outcome:
    """Measure kills, then lag, in sync and in async."""
    try:
        return _run(setting)
    except Unreachable as problem:
        raise BenchFailed(str(problem)) from problem


def _run(setting: Setting) -> Outcome:
    outcome = Outcome()
    modes, kills, load_s = setting.size((MODES, 20, 20.0), (MODES[:1], 1, 2.0))
    drills = {}
    for mode in modes:
        folder = setting.folder / f"drill-{mode}"
        folder.mkdir()
        setting.say(f"failover: {kills} kills in {mode}")
        drills[mode] = asyncio.run(drill(folder, mode, JOINS_PER_S, kills, None, lambda done, total: None))
    lags = {}
    for mode in modes:
        folder = setting.folder / f"lag-{mode}"
        folder.mkdir()
        setting.say(f"failover: {LOAD_PER_S:,} joins/s in {mode}")
        lags[mode] = asyncio.run(_lag(setting, mode, load_s))
    setting.say(f"failover: {LOAD_PER_S:,} joins/s without a follower")
    alone_ms = _alone(setting, load_s)
    _report(outcome, drills, lags, alone_ms)
    if missed("failover", outcome.measured, quick=setting.quick):
        outcome.profile = [
            f"{mode}, kill {turn}: {seconds} s until the first answer"
            for mode, told in drills.items()
            for turn, seconds in enumerate(told["recovery_seconds"], 1)
        ]
    return outcome


async def _lag(setting: Setting, mode: str, load_s: float) -> Lag:
    """Let others join at a steady pace, and look at both servers meanwhile."""
    folder = setting.folder / f"lag-{mode}"
    witness = f"flock:{folder / 'witness'}" if mode == "sync" else None
    async with aiohttp.ClientSession() as session:
        pair = Pair(folder, mode, witness, session)
        try:
            await pair.start()
            await pair.admin("PUT", f"/v1/admin/events/{EVENT}", SETTINGS)
            await pair.admin("POST", f"/v1/admin/events/{EVENT}/open", {})
            await asyncio.sleep(SETTLE_S)
            port = int(pair.urls[0].rpartition(":")[2])
            with helper(joiner.serve_pipe, port, FIRST_VISITOR, LOAD_PER_S, machine.all_cores()) as joins:
                await asyncio.to_thread(joins.answer, LIMIT_S)
                joins.send(time.time_ns() + int(load_s * 1e9))
                until_s = time.monotonic() + load_s
                curves = await asyncio.gather(*(_watch(pair, index, until_s) for index in (0, 1)))
                join_ms = await asyncio.to_thread(joins.answer, LIMIT_S)
        finally:
            await pair.close()
    lag = behind(*curves)
    lag.join_ms = list(join_ms)
    return lag


async def _watch(pair: Pair, index: int, until_s: float) -> Curve:
    """Ask one server for its newest LSN until a moment; an answer counts for the middle of its time under way."""
    curve = Curve()
    while (asked_s := time.monotonic()) < until_s:
        status = await pair.admin("GET", "/v1/admin/status", index=index)
        curve.add((asked_s + time.monotonic()) / 2, status["version"])
        await asyncio.sleep(LOOK_EVERY_S)
    return curve


def _alone(setting: Setting, load_s: float) -> list[float]:
    """Return how long joins take at the same pace where there is no follower."""
    with daemon(setting.folder / "alone", "--replication", "single") as server:
        machine.pin(server.process.pid, machine.all_cores())
        with helper(joiner.serve_pipe, server.port, FIRST_VISITOR, LOAD_PER_S, machine.all_cores()) as joins:
            joins.answer(LIMIT_S)
            return list(joins.ask(time.time_ns() + int(load_s * 1e9), LIMIT_S))


def _report(outcome: Outcome, drills: dict[str, Any], lags: dict[str, Lag], alone_ms: Sequence[float]) -> None:
    for mode, told in drills.items():
        recovered = [seconds for seconds in told["recovery_seconds"] if seconds is not None]
        longest = max(recovered) if len(recovered) == told["kills"] else float("inf")
        target = f"failover.recovery_{mode}"
        outcome.add(f"{mode}, {told['kills']} kills: longest time without an answer", longest, "s", target=target)
        outcome.add(f"{mode}: median time without an answer", median(recovered or [longest]), "s")
        lost_target = "failover.lost" if mode == "sync" else ""
        outcome.add(
            f"{mode}: acknowledged joins lost", told["lost"], f"of {told['acknowledged']:,}", target=lost_target
        )
        outcome.add(f"{mode}: out of order", told["out_of_order"], "", target=f"failover.order_{mode}")
        outcome.add(
            f"{mode}: not answered within 1 s, of an hour with one kill",
            (1 - told["availability_of_an_hour_with_one_kill"]) * 100,
            "%",
        )
        outcome.rounds[f"{mode} recovery s"] = recovered
    floor = percentiles_ms(value / 1000 for value in alone_ms)
    for mode, lag in lags.items():
        joins = percentiles_ms(value / 1000 for value in lag.join_ms)
        what = f"{mode}, {LOAD_PER_S:,} joins/s"
        lag_ms, records = sorted(lag.ms), sorted(lag.records)
        at = int(0.99 * len(lag_ms))
        outcome.add(f"{what}: follower behind, p99", lag_ms[at], "ms", target=f"failover.lag_{mode}")
        outcome.add(f"{what}: follower behind, p99", records[at], "records")
        for mark in ("p50", "p99"):
            outcome.add(f"{what}: join, {mark}", joins[mark], "ms", floor[mark], "no follower")
    _chart(outcome, drills, lags)
    outcome.notes.append(f"In the drill {JOINS_PER_S} join each second; in async nobody waits to find out, it is told.")
    outcome.notes.append("The lag is seen from outside, by the newest LSN of either server, within a few milliseconds.")


def _chart(outcome: Outcome, drills: dict[str, Any], lags: dict[str, Lag]) -> None:
    recoveries = {
        mode: [
            (float(turn), seconds) for turn, seconds in enumerate(told["recovery_seconds"], 1) if seconds is not None
        ]
        for mode, told in drills.items()
    }
    outcome.charts.append(Chart("Until somebody answers again", "s", curves=recoveries, x_unit="kill"))
    for title, unit in (("Follower behind, time", "ms"), ("Follower behind, records", "records")):
        curves = {}
        for mode, lag in lags.items():
            values = lag.ms if unit == "ms" else lag.records
            step = max(1, len(values) // POINTS)
            curves[mode] = list(zip(lag.at_s[::step], values[::step], strict=True))
        outcome.charts.append(Chart(f"{title}, {LOAD_PER_S:,} joins/s", unit, curves=curves, x_unit="s"))
