"""admission: a poll, a poll that hands out a pass, a durable redeem, a completion and a release, beside their floors.

The floor of every call is the bare handler (HTTP and nothing else); a poll that mints adds one Ed25519 signature, a
redeem one verification and its share of a flush, and those are measured by themselves in the same run.
"""

import asyncio
import gc
import json
import os
import time
from pathlib import Path

import msgspec
import uvloop

from bench.cases.over_http import JOIN, join_requests, rank_requests
from bench.cases.recovery import longest_stall_ms, started
from bench.load import HOST, post
from bench.outcome import BenchFailed, Chart, Outcome, Setting, median, median_ratio
from bench.prefill import BENCH, make_folder
from bench.processes import EVENT, Daemon, bare_handler, daemon, in_fresh_process
from bench.timing import Measured, cpu_us_each, measure
from engine.passes import Passes
from engine.signatures import public_of

ROUNDS = 7
SLICE = 1_000
LIMIT_S = 120.0
HOLD = "admission.release"
REDEEM, COMPLETE = f"/v1/events/{EVENT}/redeem", f"/v1/events/{EVENT}/complete"
CALLS = ("poll", "poll with a pass", "redeem", "redeem again", "complete")


class Turn(msgspec.Struct, rename={"pass_": "pass"}):
    """What is used of a place."""

    token: str | None = None
    pass_: str | None = None


def run(setting: Setting) -> Outcome:
    """Measure the calls in turns with the bare handler, the signatures alone, and the loop during releases."""
    outcome = Outcome()
    amount, rounds = setting.size((3_000, ROUNDS), (300, 2))
    runs: dict[str, list[Measured]] = {name: [] for name in ("bare", *CALLS)}
    with bare_handler(setting.folder) as bare, daemon(setting.folder / "admission") as stanchion:
        for turn in range(rounds):
            setting.say(f"admission: round {turn + 1} of {rounds}")
            runs["bare"].append(measure(bare, join_requests("/join", amount), 201))
            for name, measured in _one_round(stanchion, amount).items():
                runs[name].append(measured)
    mint_us, check_us = _signatures(setting.size(2_000, 200))
    _report(outcome, runs, mint_us, check_us)
    _held_up(setting, outcome)
    return outcome


def _one_round(server: Daemon, amount: int) -> dict[str, Measured]:
    """Let so many through the whole way, and measure each call."""
    joined: list[Turn] = []
    measure(server, join_requests(JOIN, amount), 201, on_answer=lambda _, __, body: joined.append(_turn(body)))
    tokens = [turn.token or "" for turn in joined]
    measured = {"poll": measure(server, rank_requests(tokens), 200)}
    server.release(amount)
    turns: list[Turn] = []
    ask = measure(server, rank_requests(tokens), 200, on_answer=lambda _, __, body: turns.append(_turn(body)))
    measured["poll with a pass"] = ask
    passes = [turn.pass_ for turn in turns]
    if None in passes or len(set(passes)) != amount:
        raise BenchFailed(f"{amount} were let in, {len(set(passes))} passes came")
    head = f"Authorization: Bearer {server.site_key}"
    redeems = [
        post(HOST, REDEEM, json.dumps({"pass": pass_}).encode(), head, f"Idempotency-Key: k{index}")
        for index, pass_ in enumerate(passes)
    ]
    measured["redeem"] = measure(server, redeems, 200)
    measured["redeem again"] = measure(server, redeems, 200)
    bodies = (json.dumps({"pass": pass_}).encode() for pass_ in passes)
    measured["complete"] = measure(server, [post(HOST, COMPLETE, body, head) for body in bodies], 200)
    return measured


def _turn(body: bytes) -> Turn:
    return msgspec.json.decode(body, type=Turn)


def _signatures(count: int) -> tuple[float, float]:
    """Return the µs of minting a pass and of checking one that was never seen, without HTTP or a room."""
    seed = os.urandom(32)
    passes = Passes(("k1", seed), {"k1": public_of(seed)}, os.urandom(32), "stanchion")
    minted: list[str] = []

    def mint() -> None:
        minted.extend(passes.mint(EVENT, f"u{number}", number, 1, 1, 1, 100) for number in range(1, count + 1))

    def check() -> None:
        for pass_ in minted:
            passes.check(pass_, EVENT, 1)

    return cpu_us_each(mint, count), cpu_us_each(check, count)


def _report(outcome: Outcome, runs: dict[str, list[Measured]], mint_us: float, check_us: float) -> None:
    cpu_us = {name: [run.cpu_us for run in each] for name, each in runs.items()}
    bare_us = median(cpu_us["bare"])
    outcome.add("mint a pass, by itself", mint_us, "µs", bare_us, "bare handler")
    outcome.add("check a pass, by itself", check_us, "µs", bare_us, "bare handler")
    for name in CALLS:
        outcome.add(f"{name}, rate", median(run.per_s for run in runs[name]), "per s")
        outcome.add(f"{name}, server CPU", median(cpu_us[name]), "µs", bare_us, "bare handler")
        outcome.add(f"{name} p99", median(run.load.percentiles_ms()["p99"] for run in runs[name]), "ms")
    floors = {"poll": 0.0, "poll with a pass": mint_us, "redeem": check_us, "redeem again": 0.0, "complete": 0.0}
    for name, key in (("poll", "poll"), ("poll with a pass", "pass"), ("redeem", "redeem"), ("complete", "complete")):
        floor_us = [each + floors[name] for each in cpu_us["bare"]]
        ratio = median_ratio(cpu_us[name], floor_us)
        outcome.add(f"{name} CPU ÷ its floor", ratio, "×", target=f"admission.{key}")
    bars = {name: median(values) for name, values in cpu_us.items()}
    outcome.charts.append(Chart("Server CPU of a call", "µs", bars=bars, line=bare_us))
    outcome.rounds |= {f"{name} CPU µs": values for name, values in cpu_us.items()}
    outcome.notes.append("The floor of a call is the bare handler plus the signature it cannot do without.")


def _held_up(setting: Setting, outcome: Outcome) -> None:
    """Release 1,000 at a time over a real log, and watch how long the loop is held."""
    setting.say("admission: the loop during releases of 1,000")
    batches = setting.size(40, 3)
    make_folder(setting.folder / "held", (batches + 1) * SLICE, snapshot=True)
    with_ms, without_ms = in_fresh_process(LIMIT_S, holds, setting.folder / "held", batches)
    outcome.add("longest hold, release of 1,000", max(with_ms), "ms", max(without_ms), "control without it")
    outcome.add("median hold, release of 1,000", median(with_ms), "ms", median(without_ms), "control without it")
    added_ms = [a - b for a, b in zip(with_ms, without_ms, strict=True)]
    outcome.add("hold of the loop by a release of 1,000 − control, p90", at_share(added_ms, 0.9), "ms", target=HOLD)
    outcome.rounds |= {"hold with a release ms": with_ms, "hold without ms": without_ms}


def at_share(values: list[float], share: float) -> float:
    """Return the value that so many are at or below."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def holds(data: Path, batches: int) -> tuple[list[float], list[float]]:
    """Return the longest holds in ms of each release and of as long a time without; run in a fresh process."""
    return uvloop.run(_holds(data, batches))


async def _holds(data: Path, batches: int) -> tuple[list[float], list[float]]:
    backend = await started(data)
    gc.collect()
    gc.freeze()
    gc.disable()
    with_ms, without_ms = [], []
    for _ in range(batches):
        began_s = time.perf_counter()
        with_ms.append(await longest_stall_ms(asyncio.create_task(backend.release(EVENT, SLICE, BENCH))))
        took_s = time.perf_counter() - began_s
        without_ms.append(await longest_stall_ms(asyncio.create_task(asyncio.sleep(took_s))))
    await backend.close()
    return with_ms, without_ms
