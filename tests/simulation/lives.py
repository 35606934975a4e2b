"""The lives that the suite leads: two thousand seeds in chunks, and the plans that once failed."""

import gc
import json
from collections.abc import Iterable
from pathlib import Path

from tests.simulation.plans import Plan, plan_from
from tests.simulation.system import run_seed

LIVES = 2_000
CHUNK = 50
FAILED = Path(__file__).with_name("seeds.txt")
TOLD_LINES = 60


def first_half() -> range:
    """Return the first seeds of the chunks of the first half."""
    return range(1, LIVES // 2 + 1, CHUNK)


def second_half() -> range:
    """Return the first seeds of the chunks of the second half."""
    return range(LIVES // 2 + 1, LIVES + 1, CHUNK)


def run_chunk(seeds: Iterable[int]) -> list[str]:
    """Lead the lives of some seeds; returns what was violated, having printed the story of the first bad one.

    Garbage is collected at the end of it only: in a life the collector would decide when something is forgotten.
    """
    gc.collect()
    gc.disable()
    violations: list[str] = []
    try:
        for seed in seeds:
            outcome = run_seed(seed)
            if outcome.violations and not violations:
                print("\n".join(outcome.trace[-TOLD_LINES:]))
                print(f"again: python -m tests.simulation --from {seed} --seeds 1 --trace")
            violations += [f"seed {seed}: {violation}" for violation in outcome.violations]
    finally:
        gc.enable()
    return violations


def plans_that_failed() -> list[Plan]:
    """Return the plans of seeds.txt."""
    lines = [line for line in FAILED.read_text().splitlines() if line and not line.startswith("#")]
    return [plan_from(line.partition(" # ")[0]) for line in lines]


def line_of(plan: Plan) -> str:
    """Return a plan as a line of seeds.txt."""
    return json.dumps(plan)
