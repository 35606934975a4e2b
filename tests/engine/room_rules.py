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
from collections.abc import Iterable, Mapping
from functools import cache
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import CodeType, ModuleType
from typing import NamedTuple

from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.engine import room_pair, room_walks
from tests.engine.room_mutants import Mutant, all_mutants

ROOT = Path(__file__).parent.parent.parent
MODULES_OF_WALKS = tuple(f"tests.engine.room_walks_{its}" for its in ("pace", "windows", "identity", "opening", "lost"))
LONGEST_S = 120
LIKELY = 150
SEEDS = (1, 2, 3)
EXAMPLES = int(os.environ.get("EXAMPLES", "200"))
MACHINE_ONLY = "--machine" in sys.argv


class Verdict(NamedTuple):
    """What became of a mutant: `killer` is a walk, "machine, seed N", or "" where it lives."""

    mutant: Mutant
    killer: str
    took_s: float


# ---- walks --------------------------------------------------------------------------------------------


def walks(about: str = "") -> list[str]:
    """Return the names of all walks: those that speak most of what a mutant is about first, rules before cells."""
    rules = [rule for name in MODULES_OF_WALKS for rule in vars(import_module(name)) if rule.startswith("rule_")]
    words = set(about.split())
    names = [*(rule.replace("_", " ") for rule in rules), *map("/".join, room_walks.cells())]
    return sorted(names, key=lambda name: -len(words & set(name.replace("/", " ").split())))


def likely(about: str) -> list[str]:
    """Return the walks that should miss a rule: the first of those that speak of it, and every rule's."""
    names = walks(about)
    return [*names[:LIKELY], *(name for name in names[LIKELY:] if name.startswith("rule "))]


def take(name: str) -> None:
    """Take one walk; raises whatever is wrong on the way."""
    if not name.startswith("rule "):
        import_module("tests.engine.room_walks").walk(*name.split("/"))
        return
    modules = map(import_module, MODULES_OF_WALKS)
    rule = next(vars(module)[name.replace(" ", "_")] for module in modules if name.replace(" ", "_") in vars(module))
    pair = rule()
    pair.check()
    pair.finish()


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


class _Anew(MetaPathFinder, Loader):
    """Imports the engine, and the tests that import it, once more; one module with a piece of its text replaced."""

    def __init__(self, code_of: Mapping[str, CodeType]) -> None:
        self.code_of = code_of

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """Take over what was imported before."""
        return ModuleSpec(name, self) if name in self.code_of else None

    def exec_module(self, module: ModuleType) -> None:
        """Run the text, compiled beforehand."""
        module.__file__ = str(_path_of(module.__name__))
        exec(self.code_of[module.__name__], module.__dict__)


def _path_of(module: str) -> Path:
    return ROOT / (module.replace(".", "/") + ".py")


@cache
def _code_of_all() -> dict[str, CodeType]:
    walks()
    paths = {name: _path_of(name) for name in sys.modules if name.startswith(("engine.", "tests.engine."))}
    return {name: compile(path.read_text(), path, "exec") for name, path in paths.items() if path.exists()}


def mutated_text(mutant: Mutant) -> str:
    """Return the module's text with the rule dropped; raises ValueError where the rule stands there no more."""
    text = _path_of(mutant.module).read_text()
    if text.count(mutant.old) != 1:
        raise ValueError(
            f"{mutant.name}: in {mutant.module} this stands {text.count(mutant.old)} times: {mutant.old!r}"
        )
    return text.replace(mutant.old, mutant.new)


def _import_anew(mutant: Mutant) -> None:
    code_of = dict(_code_of_all())
    if mutant.module:
        code_of[mutant.module] = compile(mutated_text(mutant), _path_of(mutant.module), "exec")
    for name in code_of:
        parent, _, child = name.rpartition(".")
        sys.modules.pop(name, None)
        vars(sys.modules[parent]).pop(child, None)
    sys.meta_path.insert(0, _Anew(code_of))


def _spoil(mutant: Mutant) -> None:
    """Change the engine of this process. What other modules made of a table when imported is made again."""
    if mutant.change is None or mutant.name.startswith(("VISITOR_INPUTS[join]", "VISITOR_INPUTS[touch")):
        _import_anew(mutant)
    if mutant.change is not None:
        transitions = import_module("engine.transitions")
        mutant.change(transitions)
        for module in [module for name, module in sys.modules.items() if name.startswith("engine.")]:
            for table in {"FIXED", "JOIN_REFUSALS"} & set(vars(module)):
                setattr(module, table, getattr(transitions, table))
    vars(import_module("engine.venue"))["RENUMBER_GAP"] = room_pair.SMALL_GAP


def killer_of(mutant: Mutant, examples: int) -> str:
    """Return what kills a mutant, in this process, whose engine is spoiled afterwards."""
    names = [] if MACHINE_ONLY else walks(mutant.about) if examples else likely(mutant.about)
    try:
        _spoil(mutant)
    except Exception:
        return "import"
    for name in names:
        try:
            take(name)
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
    _code_of_all()
    return [judge_mutant(mutant, examples) for mutant in mutants]


def report(verdicts: list[Verdict]) -> str:
    """Return who killed how many, and who lives."""
    by_kind = Counter(
        verdict.killer.split(" ")[0] if verdict.killer.startswith(("rule", "machine")) else "cell"
        for verdict in verdicts
        if verdict.killer
    )
    alive = [verdict.mutant.name for verdict in verdicts if not verdict.killer]
    killed = ", ".join(f"{kind}: {count}" for kind, count in by_kind.most_common())
    lines = [f"{len(verdicts) - len(alive)} of {len(verdicts)} mutants killed, by what killed them:"]
    return "\n".join([*lines, f"  {killed}", *(f"  ALIVE: {name}" for name in alive)])


def main() -> int:
    """Run the whole campaign, or the mutants whose names hold the words given; `--machine` leaves the walks out."""
    words = [word for word in sys.argv[1:] if word != "--machine"]
    chosen = [mutant for mutant in all_mutants() if all(word in mutant.name for word in words)]
    verdicts = []
    _code_of_all()
    for mutant in chosen:
        verdict = judge_mutant(mutant, EXAMPLES)
        verdicts.append(verdict)
        print(f"{verdict.took_s:6.1f} s  {mutant.name}  ←  {verdict.killer or 'ALIVE'}", flush=True)
    print(report(verdicts))
    return any(not verdict.killer for verdict in verdicts)


if __name__ == "__main__":
    sys.exit(main())
