"""sockets: 100,000 live WebSockets over a primary and five followers, a release each second, joins going on.

A process may hold 20,000 files here, so that many sockets need six servers, and the visitors six processes as well, all
on the cores of this machine; the floor is a bare loop of `send` with as many sockets, processes and frames in the same
run. Every frame is held against the log, and its age told (`bench.ages`): from the moment the release was answered,
and so was durable, until the kernel of whoever is told had the frame. Then everybody hangs up and comes back at once.
Before all that, one process alone with 2,000 sockets and more, to see how it grows.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from bench import bare_sender, fleet, joiner, machine
from bench.ages import Ages, Release, released
from bench.cases.push import FRAME, RELEASE, Helper, helper, profile_sweep
from bench.fleet import Storm
from bench.load import percentiles_ms
from bench.outcome import BenchFailed, Chart, Outcome, Setting, distribution, median
from bench.processes import Daemon, Server, daemon, follower
from bench.targets import missed

SERVERS = 6
JOINS_PER_S = 500
LATER_VISITORS = 10_000_000  # the index of the first visitor without a socket
STEP_S = 1.0
AHEAD_S = 0.5
LISTEN_AFTER_S = 2.5
SERIES_ROUNDS = 10
SETTLE_S = 2.0
LIMIT_S = 240.0
SERIES = (2_000, 5_000, 10_000, 19_500)


@dataclass(slots=True)
class Measured:
    """What one crowd of sockets measured; `wall_s` is how long the rounds took."""

    count: int
    ages: Ages = field(default_factory=Ages)
    bare: Ages = field(default_factory=Ages)
    connect_s: float = 0.0
    return_s: float = 0.0
    wall_s: float = 0.0
    server_cpu_s: float = 0.0
    client_cpu_s: float = 0.0
    bare_cpu_s: float = 0.0
    storm_server_cpu_s: float = 0.0
    storm_client_cpu_s: float = 0.0
    socket_bytes: float = 0.0
    answered_ms: list[float] = field(default_factory=list)
    join_ms: list[float] = field(default_factory=list)

    @property
    def push_us(self) -> float:
        """Return what a frame costs the servers, all that goes on beside it included."""
        return self.server_cpu_s * 1e6 / max(1, self.ages.told)

    @property
    def bare_us(self) -> float:
        """Return what a frame costs a bare loop of send."""
        return self.bare_cpu_s * 1e6 / max(1, self.bare.told)


@contextmanager
def servers(setting: Setting, count: int, cores: set[int]) -> Iterator[tuple[Daemon, list[Server]]]:
    """Run a primary with an open event and so many followers that there are `count` servers."""
    data = setting.folder / f"sockets-{time.monotonic_ns()}"
    with ExitStack() as stack:
        flags = ("--replication", "async") if count > 1 else ()
        primary = stack.enter_context(daemon(data, *flags))
        found: list[Server] = [primary]
        found += [stack.enter_context(follower(primary, data)) for _ in range(count - 1)]
        for server in found:
            machine.pin(server.process.pid, cores)
        yield primary, found


def measure(setting: Setting, processes: int, count: int, rounds: int, cores: tuple[set[int], set[int]]) -> Measured:
    """Measure a crowd over so many servers, and then bare senders with as many; `cores` are servers' and clients'."""
    shares = [count // processes + (at < count % processes) for at in range(processes)]
    measured = Measured(count)
    with servers(setting, processes, cores[0]) as (primary, found), ExitStack() as stack:
        empty_bytes = sum(server.rss_bytes() for server in found)
        fleets: list[Helper] = []
        for at, server in enumerate(found):
            arguments = (server.port, sum(shares[:at]), shares[at], cores[1])
            fleets.append(stack.enter_context(helper(fleet.serve_pipe, *arguments)))
        setting.say(f"sockets: {count:,} join over {processes} servers")
        measured.connect_s, _ = _storm(fleets, "connect")
        numbers = sorted(number for one in fleets for number in one.ask(("numbers",)))
        if numbers != list(range(1, count + 1)):
            raise BenchFailed("not everybody was connected and given a number")
        measured.socket_bytes = (sum(server.rss_bytes() for server in found) - empty_bytes) / count
        joins = stack.enter_context(helper(joiner.serve_pipe, primary.port, LATER_VISITORS, JOINS_PER_S, cores[1]))
        joins.answer()
        time.sleep(SETTLE_S)
        _rounds(setting, measured, primary, found, fleets, joins, rounds)
        setting.say(f"sockets: {count:,} come back")
        before_s = _cpu_s(found)
        measured.return_s, measured.storm_client_cpu_s = _storm(fleets, "come back")
        measured.storm_server_cpu_s = _cpu_s(found) - before_s
        wrong = [pair for one in fleets for pair in one.ask(("wrong", rounds * RELEASE))]
        if wrong:
            raise BenchFailed(f"{len(wrong)} came back to another place, such as number {wrong[0][0]} to {wrong[0][1]}")
    _bare(setting, measured, shares, rounds, cores)
    return measured


def _storm(fleets: Sequence[Helper], order: str) -> tuple[float, float]:
    """Let all fleets connect at once; returns the seconds from the first connect to the last place, and their CPU."""
    for one in fleets:
        one.send((order,))
    storms: list[Storm] = [one.answer(LIMIT_S) for one in fleets]
    wall_s = (max(storm.ended_ns for storm in storms) - min(storm.began_ns for storm in storms)) / 1e9
    return wall_s, sum(storm.cpu_s for storm in storms)


def _rounds(
    setting: Setting,
    measured: Measured,
    primary: Daemon,
    found: Sequence[Server],
    fleets: Sequence[Helper],
    joins: Helper,
    rounds: int,
) -> None:
    """Release once a second while everybody listens and others join, and take in what was heard."""
    began_ns = time.time_ns() + int(AHEAD_S * 1e9)
    over_ns = began_ns + int(rounds * STEP_S * 1e9)
    for one in fleets:
        one.send(("listen", over_ns + int(LISTEN_AFTER_S * 1e9)))
    joins.send(over_ns)
    moments_ns = []
    before_s, before_wall_s = _cpu_s(found), time.monotonic()
    for turn in range(rounds):
        setting.say(f"sockets: {measured.count:,}, release {turn + 1} of {rounds}")
        due_ns = began_ns + int(turn * STEP_S * 1e9)
        time.sleep(max(0, due_ns - time.time_ns()) / 1e9)
        sent_ns = time.time_ns()
        primary.release(RELEASE)
        moments_ns.append(time.time_ns())
        measured.answered_ms.append((moments_ns[-1] - sent_ns) / 1e6)
    measured.client_cpu_s = sum(one.answer(LIMIT_S) for one in fleets)
    measured.server_cpu_s = _cpu_s(found) - before_s
    measured.wall_s = time.monotonic() - before_wall_s
    measured.join_ms = list(joins.answer(LIMIT_S))
    totals = released(primary.records())
    releases = [Release(*total, at_ns) for total, at_ns in zip(totals, moments_ns, strict=True)]
    for one in fleets:
        one.send(("judge", releases))
    for one in fleets:
        measured.ages.add(one.answer(LIMIT_S))


def _bare(
    setting: Setting, measured: Measured, shares: Sequence[int], rounds: int, cores: tuple[set[int], set[int]]
) -> None:
    """Send as many frames over as many sockets from as many processes, without anything else."""
    setting.say(f"sockets: {measured.count:,} from bare senders")
    frame = b"\x81%c%b" % (len(FRAME), FRAME)
    with ExitStack() as stack:
        senders = [stack.enter_context(helper(bare_sender.serve_pipe, share, cores[0])) for share in shares]
        fleets = []
        for sender, share in zip(senders, shares, strict=True):
            fleets.append(stack.enter_context(helper(fleet.serve_pipe, sender.answer(), 0, share, cores[1])))
        _storm(fleets, "connect bare")
        if [sender.answer(LIMIT_S) for sender in senders] != list(shares):
            raise BenchFailed("not everybody was connected to the bare senders")
        began_ns = time.time_ns() + int(AHEAD_S * 1e9)
        for one in fleets:
            one.send(("listen", began_ns + int((rounds * STEP_S + LISTEN_AFTER_S) * 1e9)))
        moments_ns, before_s = [], sum(machine.cpu_s(sender.pid) for sender in senders)
        for turn in range(rounds):
            time.sleep(max(0, began_ns + int(turn * STEP_S * 1e9) - time.time_ns()) / 1e9)
            moments_ns.append(time.time_ns())
            for sender in senders:
                sender.send(frame)
            for sender in senders:
                sender.answer(LIMIT_S)
        measured.bare_cpu_s = sum(machine.cpu_s(sender.pid) for sender in senders) - before_s
        for one in fleets:
            one.answer(LIMIT_S)
        for one in fleets:
            measured.bare.add(one.ask(("bare ages", moments_ns), LIMIT_S))


def _cpu_s(found: Sequence[Server]) -> float:
    return sum(server.cpu_s() for server in found)


# ---- the figures ----------------------------------------------------------------------------------------------


def run(setting: Setting) -> Outcome:
    """Measure the series in one process, then the crowd over six."""
    outcome = Outcome()
    everywhere, apart = machine.all_cores(), ({0}, {max(machine.all_cores())})
    series = []
    for count in setting.size(SERIES, ()):
        series.append(measure(setting, 1, count, SERIES_ROUNDS, apart))
    processes, crowd = setting.size((SERVERS, setting.visitors or 100_000), (2, 400))
    measured = measure(setting, processes, crowd, setting.size(20, 2), (everywhere, everywhere))
    _report(outcome, measured, processes)
    _report_series(outcome, series)
    if missed("sockets", outcome.measured, quick=setting.quick):
        outcome.profile = _shares(measured) + profile_sweep(setting)
    return outcome


def _report(outcome: Outcome, measured: Measured, processes: int) -> None:
    what = f"{measured.count:,} sockets over {processes} servers"
    ages, bare = _percentiles(measured.ages.releases_ms), _percentiles(measured.bare.releases_ms)
    for mark in ages:
        target = "sockets.age" if mark == "p99" else ""
        outcome.add(f"{what}: release → known at a socket, {mark}", ages[mark], "ms", bare[mark], "bare send", target)
    frames = _percentiles(measured.ages.frames_ms)
    outcome.add("a frame's age when it arrives, p99", frames["p99"], "ms", bare["p99"], "bare send")
    outcome.add("frames, all exact", measured.ages.told, "", measured.bare.told, "bare send")
    outcome.add("server CPU per frame, joins and pongs included", measured.push_us, "µs", measured.bare_us, "bare send")
    outcome.add("release sent → answered, median", median(measured.answered_ms), "ms")
    joined = percentiles_ms(value / 1000 for value in measured.join_ms)
    outcome.add(f"joins meanwhile, {JOINS_PER_S}/s: p99 from schedule", joined["p99"], "ms")
    outcome.add("connect and join, all", measured.connect_s, "s")
    outcome.add("hang up and come back, all", measured.return_s, "s", target="sockets.return")
    outcome.add("coming back, server CPU each", measured.storm_server_cpu_s * 1e6 / measured.count, "µs")
    outcome.add("coming back, client CPU each", measured.storm_client_cpu_s * 1e6 / measured.count, "µs")
    outcome.add("memory per socket and place, servers", measured.socket_bytes / 1024, "KiB")
    outcome.measured["sockets.exact"] = 1.0  # or it would not have come this far
    curves = {
        "Stanchion": distribution(measured.ages.releases_ms),
        "bare send loop": distribution(measured.bare.releases_ms),
    }
    outcome.charts.append(Chart(f"Release → known, {measured.count:,} sockets", "share", curves=curves, x_unit="ms"))
    outcome.rounds["release sent → answered ms"] = measured.answered_ms
    outcome.notes += _shares(measured)
    outcome.notes.append(
        "An age counts from the answer to the release; a socket that never learnt of one counts as an hour."
    )
    outcome.notes.append(
        "Every frame was held against the log: all exact, none twice; everybody came back to their place."
    )


def _report_series(outcome: Outcome, series: Sequence[Measured]) -> None:
    curves: dict[str, list[tuple[float, float]]] = {"Stanchion, p99": [], "bare send loop, p99": []}
    for each in series:
        ages, bare = _percentiles(each.ages.releases_ms), _percentiles(each.bare.releases_ms)
        name = f"one process, {each.count:,} sockets"
        outcome.add(f"{name}: release → known, p99", ages["p99"], "ms", bare["p99"], "bare send")
        outcome.add(f"{name}: server CPU per frame", each.push_us, "µs", each.bare_us, "bare send")
        outcome.add(f"{name}: hang up and come back, all", each.return_s, "s")
        curves["Stanchion, p99"].append((each.count, ages["p99"]))
        curves["bare send loop, p99"].append((each.count, bare["p99"]))
    if len(series) > 1:
        outcome.charts.append(Chart("One process", "ms", curves=curves, x_unit="sockets"))


def _percentiles(ages_ms: Any) -> dict[str, float]:
    return percentiles_ms(value / 1000 for value in ages_ms)


def _shares(measured: Measured) -> list[str]:
    """Return who used how much of the machine while releases went on."""
    all_s = measured.wall_s * len(machine.all_cores())
    parts = {"servers": measured.server_cpu_s, "clients": measured.client_cpu_s}
    told = ", ".join(f"{name} {value:.1f} s ({value / all_s:.0%})" for name, value in parts.items())
    return [f"Of {all_s:.0f} s of CPU in {measured.wall_s:.0f} s of rounds: {told}."]
