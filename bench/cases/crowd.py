"""crowd: everybody joins over HTTP, asks for their rank, is released in batches and completes; and is it all exact?

The seed's Redis design goes through the same, phase by phase in turn. Floors stand beside each phase: the bare
handler for requests, the bare loop of write and flush for a batch that has to be durable, the bare send loop
for telling somebody. Exact means: numbers are 1 … N, nobody stands before one whose answer was there before they
asked, every rank is right, and releases follow the numbers.
"""

import json
from dataclasses import dataclass, field
from itertools import pairwise

import msgspec

from bench import bare_sender, sockets
from bench.cases.over_http import JOIN, join_requests, rank_requests, redis_rank_requests
from bench.cases.push import FRAME, helper, released_by_lsn
from bench.cases.wal import bare_loop
from bench.load import HOST, percentiles_ms, post
from bench.outcome import BenchFailed, Chart, Outcome, Setting, distribution, median, median_ratio
from bench.prefill import user_id_of
from bench.processes import EVENT, Daemon, Server, bare_handler, daemon, redis_design
from bench.timing import Measured, measure

BATCH = 100
CONNECTIONS = 128
TURNS = 10
ASKED_BETWEEN = 20
PHASES = ("join", "rank", "release", "complete")
STATUS_OF = {"join": 201, "rank": 200, "release": 200, "complete": 200}


class Place(msgspec.Struct):
    """What is checked of an answer."""

    user_id: str
    status: str
    number: int
    position: int | None = None
    token: str | None = None


@dataclass(slots=True)
class Answers:
    """All answers of a phase: when asked, when answered, and the place."""

    sent_s: list[float] = field(default_factory=list)
    answered_s: list[float] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)

    def take(self, sent_s: float, answered_s: float, body: bytes) -> None:
        """Note one answer."""
        self.sent_s.append(sent_s)
        self.answered_s.append(answered_s)
        self.bodies.append(body)

    def places(self) -> list[Place]:
        """Return the answers decoded."""
        decode = msgspec.json.Decoder(Place).decode
        return [decode(body) for body in self.bodies]


@dataclass(slots=True)
class Phase:
    """One phase of one side, turn by turn."""

    users_per_s: list[float] = field(default_factory=list)
    cpu_us: list[float] = field(default_factory=list)
    latencies_s: list[float] = field(default_factory=list)
    seconds: float = 0.0

    def add(self, run: Measured, users: int) -> None:
        """Take in one turn."""
        self.users_per_s.append(users / run.load.seconds)
        self.cpu_us.append(run.cpu_us * run.load.answers / users)
        self.latencies_s += run.load.latencies_s
        self.seconds += run.load.seconds


def run(setting: Setting) -> Outcome:
    """Take a crowd through its phases, and the Redis design through the same."""
    outcome = Outcome()
    visitors = setting.visitors or setting.size(100_000, 2_000)
    if visitors % (BATCH * TURNS):
        raise BenchFailed(f"--visitors must be a multiple of {BATCH * TURNS}")
    folder = setting.folder
    with bare_handler(folder) as bare, daemon(folder / "crowd") as stanchion, redis_design(folder) as peer:
        crowd, other = Crowd(stanchion, visitors), RedisCrowd(peer, visitors)
        sides = {phase: _phase(setting, phase, crowd, other, bare) for phase in PHASES}
    flushes_per_s, _ = bare_loop(folder / "bare.log", 0.0, setting.size(2.0, 0.3))
    _report(outcome, visitors, sides, flushes_per_s)
    _send_floor(setting, outcome)
    outcome.add("exact answers", 1.0, "of all", target="crowd.exact")
    outcome.notes.append(
        f"Numbers 1 … {visitors:,} in the order of asking, every rank and every batch right. {CONNECTIONS} keep-alive "
        f"connections, closed loop; batches of {BATCH}, one after the other. Each phase goes in {TURNS} turns: "
        "bare handler, Stanchion, Redis design; ratios are medians over the turns."
    )
    return outcome


def _phase(setting: Setting, phase: str, crowd: "Crowd", other: "RedisCrowd", bare: Server) -> dict[str, Phase]:
    """Take both sides through one phase in turns, and check all of Stanchion's answers."""
    sides = {name: Phase() for name in ("bare", "Stanchion", "Redis design")}
    connections = 1 if phase == "release" else CONNECTIONS
    ours, theirs = crowd.requests(phase), other.requests(phase)
    each, users = len(ours) // TURNS, crowd.visitors // TURNS
    answers = Answers()
    for turn in range(TURNS):
        setting.say(f"crowd: {phase}, turn {turn + 1} of {TURNS}")
        mine = slice(turn * each, (turn + 1) * each)
        bare_joins = join_requests("/join", max(users // 2, CONNECTIONS))
        sides["bare"].add(measure(bare, bare_joins, 201, connections=CONNECTIONS), len(bare_joins))
        status = STATUS_OF[phase]
        run = measure(crowd.server, ours[mine], status, connections=connections, on_answer=answers.take)
        sides["Stanchion"].add(run, users)
        sides["Redis design"].add(measure(other.server, theirs[mine], status, connections=connections), users)
        if phase == "release":
            crowd.check_waiting((turn + 1) * users)
    crowd.check(phase, answers)
    return sides


class Crowd:
    """What visitors and site ask Stanchion, and whether the answers are right."""

    def __init__(self, server: Daemon, visitors: int) -> None:
        self.server = server
        self.visitors = visitors
        self._places: list[Place] = []

    def requests(self, phase: str) -> list[bytes]:
        """Return all requests of a phase."""
        if phase == "join":
            ids = map(user_id_of, range(self.visitors))
            return [post(HOST, JOIN, json.dumps({"user_id": user_id}).encode()) for user_id in ids]
        if phase == "rank":
            return self._ask(self._places)
        if phase == "release":
            key, body = f"Authorization: Bearer {self.server.admin_key}", json.dumps({"count": BATCH}).encode()
            return [post(HOST, f"/v1/admin/events/{EVENT}/release", body, key)] * (self.visitors // BATCH)
        key = f"Authorization: Bearer {self.server.site_key}"
        bodies = (json.dumps({"user_id": place.user_id}).encode() for place in self._places)
        return [post(HOST, f"/v1/events/{EVENT}/complete", body, key) for body in bodies]

    def check(self, phase: str, answers: Answers) -> None:
        """Raise BenchFailed unless the answers of a phase are exactly right, all together."""
        getattr(self, f"_check_{phase}")(answers)

    def check_waiting(self, released: int) -> None:
        """Let some of those who still wait ask; they must stand behind fewer by those released."""
        waiting = [place for place in self._places if place.number > released]
        if waiting:
            answers = Answers()
            some = waiting[:: max(1, len(waiting) // ASKED_BETWEEN)]
            measure(self.server, self._ask(some), 200, connections=1, on_answer=answers.take)
            self._check_rank(answers, released)

    def _ask(self, places: list[Place]) -> list[bytes]:
        return rank_requests([place.token or "" for place in places])

    def _check_join(self, answers: Answers) -> None:
        self._places = answers.places()
        numbers = [place.number for place in self._places]
        if sorted(numbers) != list(range(1, self.visitors + 1)):
            raise BenchFailed("the numbers are not 1 … N, each once")
        check_order(numbers, answers.sent_s, answers.answered_s)

    def _check_rank(self, answers: Answers, released: int = 0) -> None:
        wrong = [place for place in answers.places() if place.position != place.number - released]
        if wrong:
            raise BenchFailed(f"{len(wrong)} ranks are wrong, as {wrong[0]} with {released} released")

    def _check_release(self, answers: Answers) -> None:
        if released_by_lsn(self.server)[-1][1] != self.visitors:
            raise BenchFailed("not everybody was released")

    def _check_complete(self, answers: Answers) -> None:
        if {place.status for place in answers.places()} != {"completed"}:
            raise BenchFailed("somebody's stay was not completed")
        counts = self.server.call("GET", f"/v1/admin/events/{EVENT}/stats")["counts"]
        if counts["completed"] != self.visitors or counts["waiting"] or counts["ready"]:
            raise BenchFailed(f"the event counts {counts}")


class RedisCrowd:
    """The same asked of the Redis design."""

    def __init__(self, server: Server, visitors: int) -> None:
        self.server = server
        self._visitors = visitors
        self._joins = join_requests("/join", visitors)

    def requests(self, phase: str) -> list[bytes]:
        """Return all requests of a phase."""
        if phase == "join":
            return self._joins
        if phase == "rank":
            return redis_rank_requests(self._joins)
        if phase == "release":
            return [post(HOST, "/release", json.dumps({"count": BATCH}).encode())] * (self._visitors // BATCH)
        return [post(HOST, "/complete", request.partition(b"\r\n\r\n")[2]) for request in self._joins]


def check_order(numbers: list[int], sent_s: list[float], answered_s: list[float]) -> None:
    """Raise BenchFailed if somebody whose answer was there before another asked stands behind that other."""
    rows = sorted(zip(numbers, sent_s, answered_s, strict=True), reverse=True)
    earliest_s = float("inf")
    for behind, before in pairwise(rows):
        earliest_s = min(earliest_s, behind[2])
        if earliest_s < before[1]:
            raise BenchFailed(f"number {before[0]} was asked for after a higher one had been answered")


# ---- the figures ------------------------------------------------------------------------------------------


def _report(outcome: Outcome, visitors: int, sides: dict[str, dict[str, Phase]], flushes_per_s: float) -> None:
    bars: dict[str, float] = {}
    for phase, side in sides.items():
        is_batch = phase == "release"
        ours, theirs, bare = side["Stanchion"], side["Redis design"], side["bare"]
        floor = (flushes_per_s * BATCH, "write and flush") if is_batch else (median(bare.users_per_s), "bare handler")
        for label, one in ((phase, ours), (f"{phase}, Redis design", theirs)):
            bars[label] = visitors / one.seconds
            outcome.add(label, bars[label], "users/s", *floor)
            bare_us = () if is_batch else (median(bare.cpu_us), "bare handler")
            outcome.add(f"{label}, server CPU", median(one.cpu_us), "µs a user", *bare_us)
            outcome.rounds[f"{label}, users/s"] = one.users_per_s
        outcome.rounds[f"bare handler beside {phase}, per s"] = bare.users_per_s
        outcome.add(f"{phase} ÷ Redis design", median_ratio(ours.users_per_s, theirs.users_per_s), "×")
        if not is_batch:
            outcome.add(f"{phase} ÷ bare handler", median_ratio(ours.users_per_s, bare.users_per_s), "×")
        theirs_ms = percentiles_ms(theirs.latencies_s)
        for mark, value_ms in percentiles_ms(ours.latencies_s).items():
            what = f"{phase} of a batch" if is_batch else phase
            outcome.add(f"{what}, {mark}", value_ms, "ms", theirs_ms[mark], "Redis design")
    bars["bare handler"] = median(sides["join"]["bare"].users_per_s)
    outcome.charts.append(Chart(f"{visitors:,} visitors", "users/s", bars=bars))
    curves = {
        f"{phase}, {name}": distribution(latency_s * 1000 for latency_s in sides[phase][name].latencies_s)
        for phase in ("join", "rank")
        for name in ("Stanchion", "Redis design")
    }
    outcome.charts.append(Chart("Latency", "share", curves=curves, x_unit="ms"))


def _send_floor(setting: Setting, outcome: Outcome) -> None:
    """Add what telling somebody over a socket costs at the least."""
    count = setting.size(1_000, 100)
    seconds: list[float] = []
    with (
        helper(bare_sender.serve_pipe, count) as sender,
        helper(sockets.serve_pipe, sender.answer(), count, False) as reader,
    ):
        reader.answer()
        sender.answer()
        for _ in range(20):
            sender.send(b"\x81%c%b" % (len(FRAME), FRAME))
            seconds.append(sender.answer()[1])
            reader.ask((count, 2.0))
    outcome.add("telling one over a socket (bare send loop)", min(seconds) / count * 1e6, "µs")
