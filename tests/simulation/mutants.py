"""Ways to break the code of replication, each of which the simulation has to find.

mutants.txt lists them: `# module` begins a part, `@ name | focus` a mutant, lines with `-` in front are what stands in
the module, exactly once, and lines with `+` what stands there instead. The focus says in what lives it shows soonest
(see `plan_of`). A mutant is installed before the module is first imported, so it needs a process of its own.
"""

import importlib.abc
import importlib.machinery
import importlib.util
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
LIST = Path(__file__).with_name("mutants.txt")


class Mutant(NamedTuple):
    """In `module`, `old` becomes `new`."""

    name: str
    focus: str
    module: str
    old: str
    new: str

    def source(self) -> str:
        """Return the text of the module with the change."""
        text = (ROOT / f"{self.module.replace('.', '/')}.py").read_text()
        assert text.count(self.old) == 1, f"{self.name}: its text stands {text.count(self.old)} times in {self.module}"
        return text.replace(self.old, self.new)


def mutants() -> Iterator[Mutant]:
    """Yield every mutant of the list."""
    module = ""
    for block in re.split(r"^(?=[#@] )", LIST.read_text(), flags=re.MULTILINE)[1:]:
        head, *lines = block.splitlines()
        if head.startswith("# "):
            module = head[2:]
            continue
        old, new = ("\n".join(line[1:] for line in lines if line[:1] == sign) for sign in "-+")
        name, _, focus = head[2:].partition(" | ")
        yield Mutant(name, focus, module, old, new)


class _Importer(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def __init__(self, mutant: Mutant) -> None:
        self._mutant = mutant

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        return importlib.util.spec_from_loader(fullname, self) if fullname == self._mutant.module else None

    def exec_module(self, module: ModuleType) -> None:
        exec(compile(self._mutant.source(), f"{module.__name__}, broken", "exec"), module.__dict__)


def install(name: str) -> str:
    """Have a mutant imported in the place of its module, which must not be there yet; returns its focus."""
    mutant = next(its for its in mutants() if its.name == name)
    assert mutant.module not in sys.modules, f"{mutant.module} is imported already"
    sys.meta_path.insert(0, _Importer(mutant))
    return mutant.focus
