"""The house rules, held by a test: layers, purity, dead files, sizes, words.

Sizes are a ratchet: what is over the limit is named here with its size, and may only shrink.
"""

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("engine", "snapshots", "server", "bench")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))

FUNCTION_LINES = 60
FILE_LINES = 500
LARGER_FILES: dict[str, int] = {}
LARGER_FUNCTIONS: dict[str, int] = {}

# Layer of a module: the first row whose prefix fits. Imports only go to the same layer or down.
LAYERS = (
    ("engine.errors", 0),
    ("engine.settings", 0),
    ("engine.records", 0),
    ("engine.views", 0),
    ("engine.backends", 3),
    ("engine.backend", 2),
    ("engine", 1),
    ("snapshots.journal", 3),
    ("snapshots.backup", 3),
    ("snapshots.standby", 3),
    ("snapshots", 2),
    ("server.main", 5),
    ("server.cli", 5),
    ("server.commands", 5),
    ("server", 4),
    ("bench", 6),
)
PURE = [path for path in SOURCES if path.parts[-2] == "engine"]
BANNED_IN_THE_CORE = {"time", "datetime", "asyncio", "random", "secrets", "logging", "structlog", "os", "pathlib", "io"}
STANDARD_ONLY = ("engine/errors.py", "engine/settings.py", "engine/records.py")
NOT_A_WORD = re.compile(r"\b(utils?|helpers?|manager)\b", re.IGNORECASE)
MACHINE_PATH = re.compile(r"/(root|home|work|tmp/v)/|\.\./shared")


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def layer_of(module: str) -> int:
    return next(
        layer for prefix, layer in LAYERS if module == prefix or module.startswith((prefix + ".", prefix + "_"))
    )


def imports_of(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def functions_of(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


@pytest.mark.parametrize("path", SOURCES, ids=module_of)
def test_imports_only_go_down(path: Path) -> None:
    own = layer_of(module_of(path))
    for name in imports_of(path):
        if name.split(".")[0] in PACKAGES:
            assert layer_of(name) <= own, f"{module_of(path)} (layer {own}) imports {name} (layer {layer_of(name)})"


def test_the_engine_imports_no_other_package_of_ours() -> None:
    for path in SOURCES:
        if "engine" in path.relative_to(ROOT).parts[0]:
            assert not {name.split(".")[0] for name in imports_of(path)} & {"snapshots", "server", "bench"}, path


def test_snapshots_know_records_and_errors_and_no_policy() -> None:
    for path in SOURCES:
        if path.relative_to(ROOT).parts[0] == "snapshots":
            ours = {name for name in imports_of(path) if name.split(".")[0] in ("engine", "server", "bench")}
            assert all(name.startswith(("engine.errors", "engine.records")) for name in ours), (path, ours)


@pytest.mark.parametrize("path", PURE, ids=module_of)
def test_the_core_has_no_clock_no_io_no_randomness(path: Path) -> None:
    assert not {name.split(".")[0] for name in imports_of(path)} & BANNED_IN_THE_CORE
    calls = {node.func.id for node in ast.walk(ast.parse(path.read_text())) if _is_name_call(node)}
    assert not calls & {"open", "print", "input", "exec", "eval"}


def _is_name_call(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name)


@pytest.mark.parametrize("name", STANDARD_ONLY)
def test_the_vocabulary_needs_the_standard_library_only(name: str) -> None:
    foreign = {"aiohttp", "msgspec", "msgpack", "sortedcontainers", "pydantic", "uvloop"}
    assert not {imported.split(".")[0] for imported in imports_of(ROOT / name)} & foreign


def test_no_file_is_dead() -> None:
    imported = {name for path in [*SOURCES, *TESTS] for name in imports_of(path)} | {"server.cli", "bench.__main__"}
    started = "".join(path.read_text() for path in SOURCES)
    for path in SOURCES:
        module = module_of(path)
        used = module in imported or f'"{module}"' in started
        assert path.name == "__init__.py" or used, f"nobody imports or starts {module}"


def test_imports_stand_at_the_top_except_in_the_table_of_backends_and_in_commands() -> None:
    for path in SOURCES:
        if module_of(path).startswith(("server.main", "server.cli", "server.commands")):
            continue
        for function in functions_of(path):
            inside = [node for node in ast.walk(function) if isinstance(node, ast.Import | ast.ImportFrom)]
            assert not inside, f"{path}:{function.name} imports inside"
        assert "TYPE_CHECKING" not in path.read_text(), path


def test_functions_stay_short() -> None:
    for path in SOURCES:
        for function in functions_of(path):
            lines = (function.end_lineno or 0) - function.lineno + 1
            name = f"{path.relative_to(ROOT)}:{function.name}"
            assert lines <= LARGER_FUNCTIONS.get(name, FUNCTION_LINES), f"{name} has {lines} lines"


def test_files_stay_short() -> None:
    for path in [*SOURCES, *TESTS]:
        name = str(path.relative_to(ROOT))
        lines = len(path.read_text().splitlines())
        assert lines <= LARGER_FILES.get(name, FILE_LINES), f"{name} has {lines} lines: two jobs?"


def test_every_public_thing_says_what_it_is() -> None:
    for path in SOURCES:
        tree = ast.parse(path.read_text())
        assert path.name == "__init__.py" or ast.get_docstring(tree), f"{path} has no docstring"
        for node in tree.body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith(
                "_"
            ):
                simple = isinstance(node, ast.ClassDef) and any(
                    "NamedTuple" in ast.unparse(base) for base in node.bases
                )
                assert simple or ast.get_docstring(node), f"{path}:{node.name} has no docstring"


def test_no_module_is_named_like_nothing_or_like_the_standard_library() -> None:
    for path in SOURCES:
        assert not NOT_A_WORD.search(path.stem.replace("_", " ")), path
        assert path.stem not in {"queue", "token", "types", "select", "logging", "json"}, path


def test_nothing_committed_names_a_machine() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split(
        "\n"
    )
    for name in filter(None, listed):
        path = ROOT / name
        if (
            path.suffix in {".py", ".md", ".toml", ".txt", ".sh", ".json", ""}
            and path.is_file()
            and path != Path(__file__)
        ):
            found = MACHINE_PATH.search(path.read_text(errors="replace"))
            assert not found, f"{name} holds {found and found.group()}"


def test_tests_do_not_skip() -> None:
    for path in TESTS:
        if path != Path(__file__):
            text = path.read_text()
            assert not re.search(r"pytest\.(mark\.)?(skip|skipif|xfail|importorskip)\b", text), f"{path} skips"
