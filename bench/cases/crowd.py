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
from bench.load import HOST, post
from bench.outcome import BenchFailed, Chart, Outcome, Setting, quantile
from bench.prefill import user_id_of
from bench.processes import EVENT, Daemon, Server, bare_handler, daemon, redis_design
from bench.timing import Measured, check_answers, measure

BATCH = 100
CONNECTIONS = 128
PHASES = ("join", "rank", "release", "complete")


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


def run(setting: Setting) -> Outcome:
    """Take a crowd through its phases, and the Redis design through the same."""
    outcome = Outcome()
    visitors = setting.visitors or setting.size(100_000, 2_000)
    if visitors % BATCH:
        raise BenchFailed(f"--visitors must be a multiple of {BATCH}")
    runs: dict[str, Measured] = {}
    peers: dict[str, Measured] = {}
    bare_runs: list[Measured] = []
    folder = setting.folder
    with bare_handler(folder) as bare, daemon(folder / "crowd") as stanchion, redis_design(folder) as peer:
        crowd, other = Crowd(stanchion, visitors), RedisCrowd(peer, visitors)
        for phase in PHASES:
            setting.say(f"crowd: {phase}, {visitors:,} visitors")
            bare_runs.append(measure(bare, join_requests("/join", visitors // 10), 201, connections=CONNECTIONS))
            runs[phase] = getattr(crowd, phase)()
            setting.say(f"crowd: {phase}, {visitors:,} visitors, Redis design")
            peers[phase] = getattr(other, phase)()
    flushes_per_s, _ = bare_loop(folder / "bare.log", 0.0, setting.size(2.0, 0.3))
    _report(outcome, visitors, runs, peers, sum(run.per_s for run in bare_runs) / len(bare_runs), flushes_per_s)
    _send_floor(setting, outcome)
    outcome.add("exact answers", 1.0, "of all", target="crowd.exact")
    outcome.notes.append(
        f"Numbers 1 … {visitors:,} in the order of asking, every rank and every batch right. {CONNECTIONS} keep-alive "
        f"connections, closed loop; batches of {BATCH}, one after the other."
    )
    return outcome


class Crowd:
    """The phases of Stanchion, each checked as a whole."""

    def __init__(self, server: Daemon, visitors: int) -> None:
        self._server = server
        self._visitors = visitors
        self._places: list[Place] = []

    def join(self) -> Measured:
        """Join: numbers 1 … N, in the order of asking."""
        bodies = (json.dumps({"user_id": user_id_of(index)}).encode() for index in range(self._visitors))
        answers = Answers()
        run = self._load([post(HOST, JOIN, body) for body in bodies], 201, answers)
        self._places = answers.places()
        numbers = [place.number for place in self._places]
        if sorted(numbers) != list(range(1, self._visitors + 1)):
            raise BenchFailed("the numbers are not 1 … N, each once")
        check_order(numbers, answers.sent_s, answers.answered_s)
        return run

    def rank(self) -> Measured:
        """Ask: everybody's position is their number, since nobody has left."""
        answers = Answers()
        run = self._load(rank_requests([place.token or "" for place in self._places]), 200, answers)
        self._check_ranks(answers, 0)
        return run

    def release(self) -> Measured:
        """Release in batches; half-way, a hundred of those who wait ask again."""
        half = self._visitors // BATCH // 2
        first = self._release(half)
        waiting = [place for place in self._places if place.number > half * BATCH]
        answers = Answers()
        tokens = [place.token or "" for place in waiting[:: max(1, len(waiting) // 100)]]
        measure(self._server, rank_requests(tokens), 200, on_answer=answers.take)
        self._check_ranks(answers, half * BATCH)
        second = self._release(self._visitors // BATCH - half)
        if released_by_lsn(self._server)[-1][1] != self._visitors:
            raise BenchFailed("not everybody was released")
        return _joined(first, second)

    def complete(self) -> Measured:
        """Complete, as the protected site tells it."""
        key = f"Authorization: Bearer {self._server.site_key}"
        bodies = [json.dumps({"user_id": place.user_id}).encode() for place in self._places]
        answers = Answers()
        run = self._load([post(HOST, f"/v1/events/{EVENT}/complete", body, key) for body in bodies], 200, answers)
        if {place.status for place in answers.places()} != {"completed"}:
            raise BenchFailed("somebody's stay was not completed")
        counts = self._server.call("GET", f"/v1/admin/events/{EVENT}/stats")["counts"]
        if counts["completed"] != self._visitors or counts["waiting"] or counts["ready"]:
            raise BenchFailed(f"the event counts {counts}")
        return run

    def _release(self, batches: int) -> Measured:
        key = f"Authorization: Bearer {self._server.admin_key}"
        body = json.dumps({"count": BATCH}).encode()
        requests = [post(HOST, f"/v1/admin/events/{EVENT}/release", body, key)] * batches
        return measure(self._server, requests, 200, connections=1)

    def _load(self, requests: list[bytes], status: int, answers: Answers) -> Measured:
        return measure(self._server, requests, status, connections=CONNECTIONS, on_answer=answers.take)

    def _check_ranks(self, answers: Answers, released: int) -> None:
        wrong = [place for place in answers.places() if place.position != place.number - released]
        if wrong:
            raise BenchFailed(f"{len(wrong)} ranks are wrong, as {wrong[0]} with {released} released")


class RedisCrowd:
    """The same phases of the Redis design."""

    def __init__(self, server: Server, visitors: int) -> None:
        self._server = server
        self._visitors = visitors
        self._joins: list[bytes] = []

    def join(self) -> Measured:
        """Join."""
        self._joins = join_requests("/join", self._visitors)
        return measure(self._server, self._joins, 201, connections=CONNECTIONS)

    def rank(self) -> Measured:
        """Ask for the rank."""
        return measure(self._server, redis_rank_requests(self._joins), 200, connections=CONNECTIONS)

    def release(self) -> Measured:
        """Release in batches."""
        request = post(HOST, "/release", json.dumps({"count": BATCH}).encode())
        return measure(self._server, [request] * (self._visitors // BATCH), 200, connections=1)

    def complete(self) -> Measured:
        """Complete."""
        bodies = [request.partition(b"\r\n\r\n")[2] for request in self._joins]
        requests = [post(HOST, "/complete", body) for body in bodies]
        return measure(self._server, requests, 200, connections=CONNECTIONS)


def check_order(numbers: list[int], sent_s: list[float], answered_s: list[float]) -> None:
    """Raise BenchFailed if somebody whose answer was there before another asked stands behind that other."""
    rows = sorted(zip(numbers, sent_s, answered_s, strict=True), reverse=True)
    earliest_s = float("inf")
    for behind, before in pairwise(rows):
        earliest_s = min(earliest_s, behind[2])
        if earliest_s < before[1]:
            raise BenchFailed(f"number {before[0]} was asked for after a higher one had been answered")


def _joined(first: Measured, second: Measured) -> Measured:
    """Return two halves of one phase as one."""
    count = first.load.answers + second.load.answers
    first.load.seconds += second.load.seconds
    first.load.statuses.update(second.load.statuses)
    first.load.latencies_s.extend(second.load.latencies_s)
    check_answers(first.load, count, 200)
    return Measured(first.load, (first.cpu_us + second.cpu_us) / 2)


# ---- the figures ------------------------------------------------------------------------------------------


def _report(
    outcome: Outcome,
    visitors: int,
    runs: dict[str, Measured],
    peers: dict[str, Measured],
    bare_per_s: float,
    flushes_per_s: float,
) -> None:
    bars: dict[str, float] = {}
    for phase in PHASES:
        is_batch = phase == "release"
        floor, floor_name = (flushes_per_s * BATCH, "write and flush") if is_batch else (bare_per_s, "bare handler")
        for label, run in ((phase, runs[phase]), (f"{phase}, Redis design", peers[phase])):
            users_per_s = visitors / run.load.seconds
            outcome.add(label, users_per_s, "users/s", floor, floor_name)
            bars[label] = users_per_s
        outcome.add(f"{phase} ÷ Redis design", bars[phase] / bars[f"{phase}, Redis design"], "×")
        for mark, value_ms in runs[phase].load.percentiles_ms().items():
            theirs_ms = peers[phase].load.percentiles_ms()[mark]
            outcome.add(
                f"{phase}{' of a batch' if is_batch else ''}, {mark}", value_ms, "ms", theirs_ms, "Redis design"
            )
    bars["bare handler"] = bare_per_s
    outcome.charts.append(Chart(f"{visitors:,} visitors", "users/s", bars=bars, logarithmic=True))
    shares = [step / 200 for step in range(200)]
    curves = {}
    for label, run in (("join", runs["join"]), ("rank", runs["rank"]), ("join, Redis design", peers["join"])):
        latencies = sorted(run.load.latencies_s)
        curves[label] = [(quantile(latencies, share) * 1000, share) for share in shares]
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
