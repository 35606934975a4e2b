"""http: durable joins and rank queries over HTTP, beside the bare handler and the Redis design; growth of the line."""

import json
from itertools import count
from pathlib import Path

import msgspec

from bench import profiling
from bench.load import HOST, get, percentiles_ms, post
from bench.outcome import Chart, Outcome, Setting, median, median_ratio
from bench.prefill import make_folder, user_id_of
from bench.processes import EVENT, Daemon, Server, bare_handler, daemon, redis_design
from bench.targets import missed
from bench.timing import Measured, latencies_of, measure

ROUNDS = 15
JOIN = f"/v1/events/{EVENT}/join"
POSITION = f"/v1/events/{EVENT}/position"
_ids = count()


class Joined(msgspec.Struct):
    """What is used of an answer to a join."""

    number: int
    token: str


def join_requests(path: str, amount: int) -> list[bytes]:
    """Return joins of visitors nobody has seen."""
    bodies = (json.dumps({"user_id": f"n{user_id_of(next(_ids))[1:]}"}).encode() for _ in range(amount))
    return [post(HOST, path, body) for body in bodies]


def run(setting: Setting) -> Outcome:
    """Measure in turns: bare handler, Stanchion, Redis design; then two daemons with lines of different length."""
    outcome = Outcome()
    _side_by_side(setting, outcome)
    _growth(setting, outcome)
    if missed("http", outcome.measured, quick=setting.quick):
        outcome.profile = profile_joins(setting)
    return outcome


# ---- bare handler, Stanchion, Redis design ------------------------------------------------------------


def _side_by_side(setting: Setting, outcome: Outcome) -> None:
    amount, slow_amount = setting.size((6_000, 2_500), (1_000, 400))
    rounds = setting.size(ROUNDS, 2)
    runs: dict[str, list[Measured]] = {name: [] for name in ("bare", "join", "redis join", "rank", "redis rank")}
    folder = setting.folder
    with bare_handler(folder) as bare, daemon(folder / "http") as stanchion, redis_design(folder) as peer:
        _warm_up(bare, stanchion, peer)
        for turn in range(rounds):
            setting.say(f"http: round {turn + 1} of {rounds}")
            runs["bare"].append(measure(bare, join_requests("/join", amount), 201))
            tokens: list[str] = []
            runs["join"].append(_join(stanchion, amount, tokens))
            redis_joins = join_requests("/join", slow_amount)
            runs["redis join"].append(measure(peer, redis_joins, 201))
            runs["rank"].append(measure(stanchion, rank_requests(tokens), 200))
            runs["redis rank"].append(measure(peer, redis_rank_requests(redis_joins), 200))
    _report(outcome, runs)


def _warm_up(bare: Server, stanchion: Server, peer: Server) -> None:
    for server, path in ((bare, "/join"), (stanchion, JOIN), (peer, "/join")):
        measure(server, join_requests(path, 300), 201)


def _join(server: Daemon, amount: int, tokens: list[str]) -> Measured:
    bodies: list[bytes] = []
    run = measure(server, join_requests(JOIN, amount), 201, on_answer=lambda _, __, body: bodies.append(body))
    tokens += [msgspec.json.decode(body, type=Joined).token for body in bodies]
    return run


def rank_requests(tokens: list[str]) -> list[bytes]:
    """Return a rank query of each holder of a token."""
    return [get(HOST, POSITION, f"Authorization: Bearer {token}") for token in tokens]


def redis_rank_requests(joins: list[bytes]) -> list[bytes]:
    """Return a rank query of everybody who joined the Redis design."""
    bodies = (json.loads(request.partition(b"\r\n\r\n")[2]) for request in joins)
    return [get(HOST, f"/position/{body['user_id']}") for body in bodies]


def _report(outcome: Outcome, runs: dict[str, list[Measured]]) -> None:
    per_s = {name: [run.per_s for run in each] for name, each in runs.items()}
    cpu_us = {name: [run.cpu_us for run in each] for name, each in runs.items()}
    p99_ms = {name: [run.load.percentiles_ms()["p99"] for run in each] for name, each in runs.items()}
    bare_per_s, bare_us = median(per_s["bare"]), median(cpu_us["bare"])
    for name in runs:
        outcome.add(f"{name}, rate", median(per_s[name]), "per s", bare_per_s, "bare handler")
        outcome.add(f"{name}, server CPU", median(cpu_us[name]), "µs", bare_us, "bare handler")
        for mark, value_ms in percentiles_ms(latencies_of(runs[name])).items():
            outcome.add(f"{name} {mark}", value_ms, "ms")
    outcome.add("joins/s ÷ bare handler", median_ratio(per_s["join"], per_s["bare"]), "×", target="http.join")
    outcome.add("join CPU ÷ bare handler", median_ratio(cpu_us["join"], cpu_us["bare"]), "×")
    for verb in ("join", "rank"):
        saved = median_ratio(cpu_us[f"redis {verb}"], cpu_us[verb])
        outcome.add(f"{verb} CPU, Redis design ÷ Stanchion", saved, "×")
    for verb in ("join", "rank"):
        rate = median_ratio(per_s[verb], per_s[f"redis {verb}"])
        late = median_ratio(p99_ms[verb], p99_ms[f"redis {verb}"])
        outcome.add(f"{verb}s/s ÷ Redis design", rate, "×", target=f"http.{verb}_redis")
        outcome.add(f"{verb} p99 ÷ Redis design", late, "×", target=f"http.{verb}_p99")
    outcome.rounds = {f"{name} per s": values for name, values in per_s.items()}
    outcome.rounds |= {f"{name} CPU µs": values for name, values in cpu_us.items()}
    bars = {name: median(values) for name, values in per_s.items()}
    outcome.charts.append(Chart("Requests a second on one core", "per s", bars=bars, line=bare_per_s))
    outcome.notes.append(
        "64 keep-alive connections, closed loop. Servers share one core, the generator has the other; "
        "redis-server may use both, and its CPU counts for the Redis design."
    )


# ---- as the line grows -----------------------------------------------------------------------------------


def _growth(setting: Setting, outcome: Outcome) -> None:
    few, many = setting.size((10_000, 1_000_000), (1_000, 20_000))
    amount, rounds = setting.size((5_000, 7), (500, 2))
    folders = [prefilled(setting, visitors) for visitors in (few, many)]
    short_us, long_us = [], []
    with daemon(folders[0], fresh=False) as short, daemon(folders[1], fresh=False) as long:
        for server in (short, long):
            measure(server, join_requests(JOIN, 300), 201)
        for turn in range(rounds):
            setting.say(f"http: growth, round {turn + 1} of {rounds}")
            short_us.append(measure(short, join_requests(JOIN, amount), 201).cpu_us)
            long_us.append(measure(long, join_requests(JOIN, amount), 201).cpu_us)
    floor_us = median(short_us)
    outcome.add(f"join CPU, {many:,} waiting", median(long_us), "µs", floor_us, f"{few:,} waiting")
    outcome.add(f"join CPU, {many:,} ÷ {few:,} waiting", median_ratio(long_us, short_us), "×", target="http.growth")
    outcome.rounds |= {"join CPU µs, short line": short_us, "join CPU µs, long line": long_us}


def prefilled(setting: Setting, visitors: int) -> Path:
    """Return a data folder with so many waiting, made with a snapshot."""
    setting.say(f"preparing {visitors:,} visitors")
    folder = setting.folder / f"filled-{visitors}"
    make_folder(folder, visitors, snapshot=True)
    return folder


# ---- where the time goes ---------------------------------------------------------------------------------


def profile_joins(setting: Setting) -> list[str]:
    """Return the top lines of the daemon's profile over as many joins as ranks."""
    setting.say("http: profiling joins")
    path = setting.folder / "http.profile"
    with daemon(setting.folder / "http-profiled", profile=path) as server:
        measure(server, join_requests(JOIN, 300), 201)
        profiling.begin(server.process.pid)
        tokens: list[str] = []
        _join(server, setting.size(10_000, 1_000), tokens)
        measure(server, rank_requests(tokens), 200)
        return profiling.finish(server.process.pid, path)
