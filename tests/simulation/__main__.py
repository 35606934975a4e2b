"""Lead many simulated lives: `python -m tests.simulation --seeds 20000 --from 1`; `--trace` tells them in full."""

import argparse
import gc
import json
import time
from importlib import import_module
from typing import Any

from tests.simulation.mutants import install

TOLD_LINES = 400


def main() -> int:
    """Run what the command line asks for; returns 1 where a promise was broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=2000, help="how many lives (2000)")
    parser.add_argument("--from", type=int, default=1, dest="first", help="the first seed (1)")
    parser.add_argument("--trace", action="store_true", help="tell what happens in each life")
    parser.add_argument("--go-on", action="store_true", help="do not stop at the first life that fails")
    parser.add_argument("--focus", default="", help='what to draw plans from, for instance "sync, slow, blackout, 3"')
    parser.add_argument("--plan", help="a line that a failing life printed behind PLAN; only it is led")
    parser.add_argument("--mutant", help="break the code in this way first (see mutants.txt)")
    options = parser.parse_args()
    if options.mutant:
        options.focus = options.focus or install(options.mutant)
    plans, system = (import_module(f"tests.simulation.{name}") for name in ("plans", "system"))  # a mutant comes first
    if options.plan:
        outcome = system.run_plan(plans.plan_from(options.plan))
        tell(outcome)
        return 1 if outcome.violations else 0
    gc.disable()
    began, failed, steps = time.perf_counter(), 0, 0
    for count, seed in enumerate(range(options.first, options.first + options.seeds), 1):
        outcome = system.run_seed(seed, options.focus)
        steps += outcome.steps
        if outcome.violations or options.trace:
            tell(outcome)
        if outcome.violations:
            failed += 1
            if not options.go_on:
                break
        if count % 50 == 0:
            gc.collect()
        if count % 500 == 0:
            print(f"{count} lives, {failed} failed, {time.perf_counter() - began:.0f} s", flush=True)
    seconds = time.perf_counter() - began
    print(f"{count} lives, {failed} failed; {1000 * seconds / count:.0f} ms and {steps // count} steps a life")
    return 1 if failed else 0


def tell(outcome: Any) -> None:
    """Print a life for people: its plan, what happened, what was violated."""
    print("\n".join(outcome.trace[-TOLD_LINES:]))
    if outcome.violations:
        print(f"PLAN {json.dumps(outcome.plan)}")
    for violation in outcome.violations:
        print(f"VIOLATION in seed {outcome.plan.seed}: {violation}")


raise SystemExit(main())
