"""Copies of the package from which one flush or rename has been taken away.

Every call of a method in `FLUSHES` that is written in `snapshots/` is a site. `mutant` imports the whole package
once more under another name, with the call at one site replaced by None.
"""

import ast
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

PACKAGE = Path(__file__).parents[2] / "snapshots"
FLUSHES = frozenset({"fdatasync", "fsync", "sync_directory", "rename"})
MODULES = ("journal", "backup", "standby")
THE_DISK_ITSELF = frozenset({"storage", "memory_storage", "disk_model"})


@dataclass(frozen=True)
class Site:
    """One call that makes something durable."""

    module: str
    function: str
    call: str
    line: int

    def __str__(self) -> str:
        return f"{self.module}.{self.function}:{self.line} {self.call}"


def sites() -> list[Site]:
    """Return every site, in order of module and line."""
    found: list[Site] = []
    for path in sorted(PACKAGE.glob("*.py")):
        if path.stem in THE_DISK_ITSELF:
            continue
        for function in ast.walk(ast.parse(path.read_text())):
            if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                found += [Site(path.stem, function.name, ast.unparse(c), c.lineno) for c in _calls(function)]
    return found


def _calls(tree: ast.AST) -> list[ast.Call]:
    calls = (node for node in ast.walk(tree) if isinstance(node, ast.Call))
    return [call for call in calls if isinstance(call.func, ast.Attribute) and call.func.attr in FLUSHES]


class _Remove(ast.NodeTransformer):
    def __init__(self, site: Site) -> None:
        self.site = site
        self.removed = 0

    def visit_Await(self, node: ast.Await) -> ast.AST:
        return ast.Constant(None) if self._is_site(node.value) else self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> ast.AST:
        return ast.Constant(None) if self._is_site(node) else self.generic_visit(node)

    def _is_site(self, node: ast.AST) -> bool:
        hit = isinstance(node, ast.Call) and node.lineno == self.site.line and ast.unparse(node) == self.site.call
        self.removed += hit
        return hit


class _Importer(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def __init__(self, alias: str, site: Site | None) -> None:
        self.alias = alias
        self.site = site

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != self.alias and not fullname.startswith(self.alias + "."):
            return None
        return importlib.util.spec_from_loader(fullname, self, is_package=fullname == self.alias)

    def exec_module(self, module: ModuleType) -> None:
        stem = module.__name__.removeprefix(self.alias).removeprefix(".") or "__init__"
        source = (PACKAGE / f"{stem}.py").read_text().replace("from snapshots.", f"from {self.alias}.")
        tree: ast.AST = ast.parse(source)
        if self.site is not None and stem == self.site.module:
            remove = _Remove(self.site)
            tree = ast.fix_missing_locations(remove.visit(tree))
            assert remove.removed == 1, f"{self.site} was found {remove.removed} times"
        exec(compile(tree, f"{self.alias}/{stem}.py", "exec"), module.__dict__)


@contextmanager
def mutant(site: Site | None) -> Iterator[tuple[ModuleType, ModuleType, ModuleType]]:
    """Import the package without the call at `site`; give its modules `journal`, `backup` and `standby`."""
    alias = "snapshots_mutant"
    importer = _Importer(alias, site)
    sys.meta_path.insert(0, importer)
    try:
        journal, backup, standby = (importlib.import_module(f"{alias}.{stem}") for stem in MODULES)
        yield journal, backup, standby
    finally:
        sys.meta_path.remove(importer)
        for name in [name for name in sys.modules if name == alias or name.startswith(alias + ".")]:
            del sys.modules[name]
