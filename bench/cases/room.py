"""room: what the rules cost without a log or a socket, beside the bare handler, and what a visitor weighs."""

import gc
import json
import os
import time
from collections.abc import Callable

from bench import machine
from bench.load import HOST, post
from bench.outcome import BenchFailed, Chart, Outcome, Setting, median, median_ratio
from bench.prefill import BENCH, user_id_of
from bench.processes import EVENT, SETTINGS, bare_handler, in_fresh_process
from bench.profiling import profile_call
from bench.targets import missed
from bench.timing import cpu_us_each, measure
from engine.actor import Entrant, Holder, Whom
from engine.room import Room
from engine.venue import Venue

ROUNDS = 5
FRESH_LIMIT_S = 120.0
RELEASES = 20  # of 1,000 each; with 90,000 inside, one dict takes 3 ms to grow


def run(setting: Setting) -> Outcome:
    """Measure each verb of the room, joins in turn with the bare handler, and memory in a fresh process."""
    outcome = Outcome()
    steps, requests = setting.size((50_000, 6_000), (5_000, 500))
    costs: dict[str, list[float]] = {}
    bare_us: list[float] = []
    with bare_handler(setting.folder) as bare:
        for turn in range(ROUNDS):
            setting.say(f"room: round {turn + 1} of {ROUNDS}")
            bodies = [json.dumps({"user_id": user_id_of(turn * requests + i)}).encode() for i in range(requests)]
            bare_us.append(measure(bare, [post(HOST, "/join", body) for body in bodies], 201).cpu_us)
            for name, cost_us in _costs(steps).items():
                costs.setdefault(name, []).append(cost_us)
    floor_us = median(bare_us)
    for name, rounds in costs.items():
        outcome.add(name, median(rounds), "µs", floor_us, "bare handler")
    outcome.add("join ÷ bare handler", median_ratio(costs["join"], bare_us), "×", target="room.join")
    setting.say("room: memory")
    visitors = setting.size(1_000_000, 50_000)
    weight = in_fresh_process(FRESH_LIMIT_S, weigh, visitors)
    outcome.add(f"memory, {visitors:,} waiting", weight, "bytes each", target="room.memory")
    _steps(setting, outcome)
    if missed("room", outcome.measured, quick=setting.quick):
        outcome.profile = profile_call(lambda: _costs(steps), setting.folder / "room.profile")
    outcome.notes.append(
        "Slices and steps: milliseconds of CPU, the loop running nothing else; the collector stopped as in the daemon."
    )
    outcome.notes.append("Memory is the growth of resident memory in a fresh process; ids are 36 characters long.")
    bars = {name: median(rounds) for name, rounds in costs.items()} | {"bare handler": floor_us}
    outcome.charts.append(Chart("Rules, by step", "µs", bars=bars, logarithmic=True))
    outcome.rounds = {**costs, "bare handler": bare_us}
    return outcome


def _steps(setting: Setting, outcome: Outcome) -> None:
    """Measure what must not hold the loop up: a slice of a release, a step of a draw, and many who left."""
    setting.say("room: those who left, and the longest steps")
    crowd, gone = setting.size(100_000, 5_000), setting.size(10_000, 2_000)
    rounds = [in_fresh_process(FRESH_LIMIT_S, ghosts, crowd, gone) for _ in range(setting.size(3, 1))]
    first_ms, slice_ms, second_ms = (median(each) for each in zip(*rounds, strict=True))
    outcome.add(f"first batch of 100 behind {gone:,} who left", first_ms, "ms", second_ms, "the next batch")
    outcome.add("stepping over, each who left", (first_ms - second_ms) * 1000 / gone, "µs")
    outcome.add("longest slice of that batch", slice_ms, "ms", target="room.step_over")
    steps = [in_fresh_process(FRESH_LIMIT_S, longest_steps, crowd) for _ in range(setting.size(3, 1))]
    release_ms, draw_ms = (median(each) for each in zip(*steps, strict=True))
    outcome.add("longest release of 1,000", release_ms, "ms", target="room.release")
    outcome.add(f"longest step of a draw of {crowd:,}", draw_ms, "ms", target="room.draw")


def _costs(steps: int) -> dict[str, float]:
    """Return the microseconds of each verb; everything decided is drained, as it is on its way to the log."""
    venue, room = _open_room()
    ids = [user_id_of(index) for index in range(steps)]
    holders = [Holder(arrival, user_id) for arrival, user_id in enumerate(ids, 1)]

    def each(act: Callable[[Holder], object]) -> float:
        def all_steps() -> None:
            for holder in holders:
                act(holder)
                venue.drain()

        return cpu_us_each(all_steps, steps)

    costs = {
        "join": each(lambda holder: room.join(Entrant(holder.user_id, 1), holder.arrival)),
        "touch": each(lambda holder: room.touch(holder, steps)),
        "place (rank, estimate)": each(lambda holder: room.held_place(holder, steps)),
        "release, each of 1,000": cpu_us_each(lambda: _release_all(venue, room), steps),
        "redeem": each(lambda holder: room.redeem(holder.arrival, 1, None, "jti", "key", "site", 1, steps)),
        "extend a session": each(lambda holder: room.extend_session(Whom(arrival=holder.arrival), "site", steps + 1)),
        "complete": each(lambda holder: room.complete(Whom(user_id=holder.user_id), "completed", "site", steps)),
    }
    room.ledger.check()
    return costs


def _open_room(**settings: object) -> tuple[Venue, Room]:
    venue = Venue()
    venue.configure(EVENT, SETTINGS | settings, BENCH, 0, replace=True)
    room = venue.room(EVENT)
    room.control("open", BENCH, 0)
    return venue, room


def _release_all(venue: Venue, room: Room) -> None:
    while room.release(1_000, BENCH, 1, manual=True).released:
        venue.drain()


def ghosts(crowd: int, gone: int) -> tuple[float, float, float]:
    """Return the CPU ms of the first batch of 100 behind so many who left, of its longest slice, and of the next batch.

    Whoever is present says so every half minute, for longer than anybody who left is waited for; fresh process.
    """
    venue, room = _open_room(presence_timeout_s=60, presence_timeout_hidden_s=60)
    for index in range(crowd):
        room.join(Entrant(user_id_of(index), 1), index)
    for now_ms in range(crowd, crowd + 120_000, 30_000):
        for arrival in range(gone + 1, crowd + 1):
            room.touch(Holder(arrival, user_id_of(arrival - 1)), now_ms)
    venue.drain()
    _quieten()
    first, longest_ms = _batch(venue, room, now_ms)
    second, _ = _batch(venue, room, now_ms)
    if room.ledger.tally.skipped["absent"] != gone or room.ledger.register.arrival_of(gone + 1) != gone + 1:
        raise BenchFailed(f"{gone} were to be stepped over, not {room.ledger.tally.skipped['absent']}")
    return first, longest_ms, second


def _batch(venue: Venue, room: Room, now_ms: int) -> tuple[float, float]:
    """Return the CPU ms that a batch of 100 takes in all, and its longest slice."""
    slices_ms, released, more = [], 0, True
    while more:
        began_s = time.thread_time()
        result = room.release(100 - released, BENCH, now_ms, manual=True)
        venue.drain()
        slices_ms.append((time.thread_time() - began_s) * 1000)
        released, more = released + result.released, result.more
    if released != 100:
        raise BenchFailed(f"a batch of 100 let {released} in")
    return sum(slices_ms), max(slices_ms)


def longest_steps(crowd: int) -> tuple[float, float]:
    """Return the longest release of 1,000 and step of a draw of so many, in ms of CPU; run in a fresh process."""
    venue = Venue()
    venue.configure(EVENT, SETTINGS | {"lobby": True}, BENCH, 0, replace=True)
    room = venue.room(EVENT)
    room.control("lobby", BENCH, 0, draw_id="1", secret=bytes(32))
    for index in range(crowd):
        room.join(Entrant(user_id_of(index), 1), index)
    venue.drain()
    _quieten()
    draw_ms, release_ms, more = [], [], True
    room.control("open", BENCH, crowd, draw_id="1", secret=bytes(32))
    while more:
        began_s = time.thread_time()
        more = room.ledger.draw_step()
        draw_ms.append((time.thread_time() - began_s) * 1000)
    for _ in range(RELEASES):
        began_s = time.thread_time()
        room.release(1_000, BENCH, crowd, manual=True)
        venue.drain()
        release_ms.append((time.thread_time() - began_s) * 1000)
    return max(release_ms), max(draw_ms)


def _quieten() -> None:
    """Take what there is out of the collector's sight and stop it, as the daemon does."""
    gc.collect()
    gc.freeze()
    gc.disable()


def weigh(visitors: int) -> float:
    """Return the bytes of resident memory that each waiting visitor adds; run in a fresh process."""
    venue, room = _open_room()
    gc.collect()
    before_bytes = machine.rss_bytes(os.getpid())
    for index in range(visitors):
        room.join(Entrant(user_id_of(index), 1), index)
        venue.drain()
    gc.collect()
    return (machine.rss_bytes(os.getpid()) - before_bytes) / visitors
