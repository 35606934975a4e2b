"""line: what the ordered line costs by itself, as it grows."""

import random
from array import array
from bisect import bisect_left
from collections.abc import Callable, Sequence

from bench.outcome import Chart, Outcome, Setting, median
from bench.profiling import profile_call
from bench.targets import missed
from bench.timing import cpu_us_each
from engine.line import Line, order_key

ROUNDS = 5


def run(setting: Setting) -> Outcome:
    """Measure add, rank, a hundred ranks at once and removing the head at each size."""
    outcome = Outcome()
    sizes = setting.size((10_000, 100_000, 1_000_000), (10_000, 100_000))
    steps = setting.size(50_000, 10_000)
    curves: dict[str, list[tuple[float, float]]] = {}
    for size in sizes:
        setting.say(f"line: {size:,} waiting")
        for name, cost_us in _costs(size, steps).items():
            is_target = name == "rank" and size == 1_000_000
            floor, floor_name = _floor(size, steps) if name == "rank" else (None, "")
            target = "line.rank" if is_target else ""
            outcome.add(f"{name}, {size:,} waiting", cost_us, "µs", floor, floor_name, target)
            curves.setdefault(name, []).append((size, cost_us))
    if missed("line", outcome.measured, quick=setting.quick):
        path = setting.folder / "line.profile"
        outcome.profile = profile_call(lambda: _costs(sizes[-1], steps), path)
    outcome.charts.append(Chart("The line as it grows", "µs", curves=curves, x_unit="waiting", line=3.0))
    return outcome


def _costs(size: int, steps: int) -> dict[str, float]:
    line = Line([order_key(number) for number in range(1, size + 1)])
    chosen = random.Random(7)
    keys = [order_key(chosen.randint(1, size)) for _ in range(steps)]
    rounds: dict[str, list[float]] = {"add at the end": [], "rank": [], "drop the head, by 1,000": [], "remove": []}
    next_number, first = size + 1, 1
    for _ in range(ROUNDS):
        added = [order_key(number) for number in range(next_number, next_number + steps)]
        next_number += steps
        rounds["add at the end"].append(_each_us(line.add, added))
        rounds["rank"].append(_each_us(line.rank, keys))
        rounds["remove"].append(_each_us(line.remove, chosen.sample(added, steps // 5)))
        drops = max(1, min(steps, size // ROUNDS) // 1_000)
        rounds["drop the head, by 1,000"].append(_each_us(line.drop_head, [1_000] * drops, 1_000))
        first += drops * 1_000
        keys = [order_key(chosen.randint(first, next_number - 1)) for _ in range(steps)]
    line.check()
    return {name: median(costs) for name, costs in rounds.items()}


def _each_us(act: Callable[[int], object], items: Sequence[int], a_step: int = 1) -> float:
    """Return the CPU microseconds of one step, where a call with one item makes `a_step` of them."""

    def all_items() -> None:
        for item in items:
            act(item)

    return cpu_us_each(all_items, len(items) * a_step)


def _floor(size: int, steps: int) -> tuple[float, str]:
    """Return the cost of one bisection in one flat array of the same size: no structure can rank for less."""
    flat = array("Q", range(size))
    chosen = random.Random(7)
    keys = [chosen.randrange(size) for _ in range(steps)]

    def bisect_all() -> None:
        for key in keys:
            bisect_left(flat, key)

    return median(cpu_us_each(bisect_all, steps) for _ in range(ROUNDS)), "one bisection"
