"""room: what the rules cost without a log or a socket, beside the bare handler, and what a visitor weighs."""

import gc
import json
import os
from collections.abc import Callable

from bench import machine
from bench.load import HOST, post
from bench.outcome import Chart, Outcome, Setting, median, median_ratio
from bench.prefill import BENCH, user_id_of
from bench.processes import EVENT, SETTINGS, bare_handler, in_fresh_process
from bench.profiling import profile_call
from bench.targets import missed
from bench.timing import cpu_us_each, measure
from engine.room import Room
from engine.venue import Venue

ROUNDS = 5
FRESH_LIMIT_S = 120.0


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
    if missed("room", outcome.measured, quick=setting.quick):
        outcome.profile = profile_call(lambda: _costs(steps), setting.folder / "room.profile")
    outcome.notes.append("Memory is the growth of resident memory in a fresh process; ids are 36 characters long.")
    bars = {name: median(rounds) for name, rounds in costs.items()} | {"bare handler": floor_us}
    outcome.charts.append(Chart("Rules, by step", "µs", bars=bars, logarithmic=True))
    outcome.rounds = {**costs, "bare handler": bare_us}
    return outcome


def _costs(steps: int) -> dict[str, float]:
    """Return the microseconds of each verb; everything decided is drained, as it is on its way to the log."""
    venue = Venue()
    venue.configure(EVENT, SETTINGS, BENCH, 0, replace=True)
    room = venue.room(EVENT)
    room.control("open", BENCH, 0)
    ids = [user_id_of(index) for index in range(steps)]

    def for_each(act: Callable[[int], object]) -> Callable[[], None]:
        def all_steps() -> None:
            for arrival in range(1, steps + 1):
                act(arrival)

        return all_steps

    def join(arrival: int) -> None:
        room.join(ids[arrival - 1], 1, arrival)
        venue.drain()

    def complete(arrival: int) -> None:
        room.complete(ids[arrival - 1], "completed", "site", steps)
        venue.drain()

    costs = {
        "join": cpu_us_each(for_each(join), steps),
        "touch": cpu_us_each(for_each(lambda arrival: room.touch(arrival, ids[arrival - 1], steps)), steps),
        "place (rank, estimate)": cpu_us_each(
            for_each(lambda arrival: room.held_place(arrival, ids[arrival - 1])), steps
        ),
        "release, each of 1,000": cpu_us_each(lambda: _release_all(venue, room), steps),
        "complete": cpu_us_each(for_each(complete), steps),
    }
    room.check()
    return costs


def _release_all(venue: Venue, room: Room) -> None:
    while room.release(1_000, BENCH, 1, manual=True).released:
        venue.drain()


def weigh(visitors: int) -> float:
    """Return the bytes of resident memory that each waiting visitor adds; run in a fresh process."""
    venue = Venue()
    venue.configure(EVENT, SETTINGS, BENCH, 0, replace=True)
    room = venue.room(EVENT)
    room.control("open", BENCH, 0)
    gc.collect()
    before_bytes = machine.rss_bytes(os.getpid())
    for index in range(visitors):
        room.join(user_id_of(index), 1, index)
        venue.drain()
    gc.collect()
    return (machine.rss_bytes(os.getpid()) - before_bytes) / visitors
