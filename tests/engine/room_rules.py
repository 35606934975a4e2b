"""The campaign that asks whether the machine would miss a rule: `python -m tests.engine.room_rules`.

Each mutant lives in a process of its own, forked before the engine is imported anew with one rule changed. There the
walks run, the likely ones first, and where all of them hold, the machine itself with a fixed seed. A mutant is killed
when anything at all fails; one that lives is a rule nobody would miss.
"""

import os
import select
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.engine.room_mutants import Mutant, all_mutants

ROOT = Path(__file__).parent.parent.parent
MODULES_OF_WALKS = ("room_walks_pace", "room_walks_windows", "room_walks_identity", "room_walks_opening")
LONGEST_S = 120
LIKELY = 150
SEEDS = (1, 2, 3)
EXAMPLES = int(os.environ.get("EXAMPLES", "200"))


class Verdict(NamedTuple):
    """What became of a mutant: `killer` is a walk, "machine, seed N", or "" where it lives."""

    mutant: Mutant
    killer: str
    took_s: float


# ---- walks --------------------------------------------------------------------------------------------


def rule_walks() -> Iterator[tuple[str, Callable[[], None]]]:
    """Yield the walks for the rules around the tables, by name."""
    for name in MODULES_OF_WALKS:
        for rule, walk in vars(import_module(f"tests.engine.{name}")).items():
            if rule.startswith("rule_"):
                yield f"rule/{rule[5:].replace('_', ' ')}", lambda walk=walk: _finished(walk())  # type: ignore[misc]


def _finished(pair: object) -> None:
    pair.check()  # type: ignore[attr-defined]
    pair.finish()  # type: ignore[attr-defined]


def walks(about: str = "") -> list[tuple[str, Callable[[], None]]]:
    """Return all walks: those that speak most of what a mutant is about first, rules before cells."""
    its = list(import_module("tests.engine.room_walks").cell_walks())
    found = [*rule_walks(), *((walk.name, walk.run) for walk in its)]
    words = set(about.split())
    return sorted(found, key=lambda walk: -len(words & set(walk[0].replace("/", " ").split())))


def likely(about: str) -> list[tuple[str, Callable[[], None]]]:
    """Return the walks that should miss a rule: the first of those that speak of it, and every rule's."""
    found = walks(about)
    return [*found[:LIKELY], *(walk for walk in found[LIKELY:] if walk[0].startswith("rule/"))]


def machine_fails(number: int, examples: int) -> bool:
    """Run the machine with one seed; return whether anything failed."""
    machine = import_module("tests.engine.test_room_machine").RoomMachine
    quick = settings(
        max_examples=examples,
        stateful_step_count=40,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
    )
    try:
        run_state_machine_as_test(seed(number)(machine), settings=quick)
    except BaseException:
        return True
    return False


# ---- one mutant ---------------------------------------------------------------------------------------


class _Mutated(MetaPathFinder, Loader):
    """Imports one module with a piece of its text replaced."""

    def __init__(self, mutant: Mutant) -> None:
        self.mutant = mutant

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """Take over the mutant's module only."""
        return ModuleSpec(name, self, origin=str(_path_of(name))) if name == self.mutant.module else None

    def exec_module(self, module: ModuleType) -> None:
        """Run the changed text."""
        path = _path_of(module.__name__)
        exec(compile(mutated_text(self.mutant), str(path), "exec"), module.__dict__)


def _path_of(module: str) -> Path:
    return ROOT / (module.replace(".", "/") + ".py")


def mutated_text(mutant: Mutant) -> str:
    """Return the module's text with the rule dropped; raises ValueError where the rule stands there no more."""
    text = _path_of(mutant.module).read_text()
    if text.count(mutant.old) != 1:
        raise ValueError(
            f"{mutant.name}: in {mutant.module} this stands {text.count(mutant.old)} times: {mutant.old!r}"
        )
    return text.replace(mutant.old, mutant.new)


def _spoil(mutant: Mutant) -> None:
    """Change the engine of this process. What other modules made of a table when imported is made again."""
    derived = mutant.change is None or mutant.name.startswith(("VISITOR_INPUTS[join]", "VISITOR_INPUTS[touch"))
    if derived:
        for name in [name for name in sys.modules if name.startswith(("engine.", "tests.engine."))]:
            del sys.modules[name]
    if mutant.module:
        sys.meta_path.insert(0, _Mutated(mutant))
    elif mutant.change is not None:
        transitions = import_module("engine.transitions")
        mutant.change(transitions)
        for module in [module for name, module in sys.modules.items() if name.startswith("engine.")]:
            for table in {"FIXED", "JOIN_REFUSALS"} & set(vars(module)):
                setattr(module, table, getattr(transitions, table))
    import_module("engine.venue").RENUMBER_GAP = 3


def killer_of(mutant: Mutant, examples: int) -> str:
    """Return what kills a mutant, in this process, whose engine is spoiled afterwards."""
    try:
        _spoil(mutant)
        found = walks(mutant.about) if examples else likely(mutant.about)
    except Exception:
        return "import"
    for name, walk in found:
        try:
            walk()
        except BaseException:
            return name
    return next((f"machine, seed {number}" for number in SEEDS if examples and machine_fails(number, examples)), "")


def judge_mutant(mutant: Mutant, examples: int) -> Verdict:
    """Try a mutant in a process of its own; one that does not end is killed too."""
    began, (reading, writing) = time.monotonic(), os.pipe()
    child = os.fork()
    if child == 0:
        _be_the_mutant(mutant, examples, writing)
    os.close(writing)
    ready, _, _ = select.select([reading], [], [], LONGEST_S)
    killer = os.read(reading, 1_000).decode() if ready else "no end in sight"
    os.close(reading)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return Verdict(mutant, killer.removeprefix("+"), time.monotonic() - began)


def _be_the_mutant(mutant: Mutant, examples: int, writing: int) -> None:
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    killer = "killed itself"
    try:
        killer = killer_of(mutant, examples)
    finally:
        os.write(writing, b"+" + killer.encode()[:900])
        os._exit(0)


# ---- the campaign -------------------------------------------------------------------------------------


def campaign(mutants: Iterable[Mutant], examples: int) -> list[Verdict]:
    """Try every mutant; returns the verdicts in order."""
    walks()
    return [judge_mutant(mutant, examples) for mutant in mutants]


def report(verdicts: list[Verdict]) -> str:
    """Return who killed how many, and who lives."""
    by_kind = Counter(verdict.killer.partition("/")[0] for verdict in verdicts if verdict.killer)
    alive = [verdict.mutant.name for verdict in verdicts if not verdict.killer]
    killed = ", ".join(f"{kind}: {count}" for kind, count in by_kind.most_common())
    lines = [f"{len(verdicts) - len(alive)} of {len(verdicts)} mutants killed, by the first word of what killed them:"]
    return "\n".join([*lines, f"  {killed}", *(f"  ALIVE: {name}" for name in alive)])


def main() -> int:
    """Run the whole campaign, or the mutants whose names hold the words given."""
    words = sys.argv[1:]
    chosen = [mutant for mutant in all_mutants() if all(word in mutant.name for word in words)]
    verdicts = []
    walks()
    for mutant in chosen:
        verdict = judge_mutant(mutant, EXAMPLES)
        verdicts.append(verdict)
        print(f"{verdict.took_s:6.1f} s  {mutant.name}  ←  {verdict.killer or 'ALIVE'}", flush=True)
    print(report(verdicts))
    return any(not verdict.killer for verdict in verdicts)


if __name__ == "__main__":
    sys.exit(main())
