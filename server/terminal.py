"""What commands write: tables for people, JSON for pipes, one line for what went wrong, a bar for what takes long."""

import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType

import msgspec
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

BAR_AFTER_S = 2.0

EXIT_CODES: Mapping[int, str] = MappingProxyType(
    {
        0: "done",
        64: "wrong usage",
        65: "damaged data",
        69: "unreachable",
        74: "I/O error",
        75: "the folder is in use",
        77: "the server refused",
        78: "bad configuration",
    }
)


def notes(example: str, *codes: int) -> str:
    """Return what stands below a command's options: an example and the exit codes."""
    listed = ", ".join(f"{code} {EXIT_CODES[code]}" for code in sorted({0, 64, *codes}))
    return f"Example: {escape(example)}\n\nExit codes: {listed}."


def print_json(value: object) -> None:
    """Write one JSON value, indented."""
    print(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a table; nothing in it is taken for markup."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(escape(_text(value)) for value in row))
    console = Console(soft_wrap=not sys.stdout.isatty())
    if not sys.stdout.isatty():
        console = Console(width=10_000)
    console.print(table)


def _text(value: object) -> str:
    if value is None:
        return "–"
    text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
    return "".join(char if char.isprintable() else f"\\u{ord(char):04x}" for char in text)


def complain(problem: str) -> None:
    """Write what went wrong to stderr, a line for each thing."""
    for line in problem.splitlines():
        print(f"stanchion: {line}", file=sys.stderr)


class Bar:
    """Shows how far something is, once it has taken two seconds and somebody is looking."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._since_s = time.monotonic()
        self._progress: Progress | None = None

    def __call__(self, done: int, total: int) -> None:
        """Take in that `done` of `total` are done."""
        if self._progress is None:
            if not sys.stderr.isatty() or time.monotonic() - self._since_s < BAR_AFTER_S:
                return
            columns = TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn()
            self._progress = Progress(*columns, console=Console(stderr=True), transient=True)
            self._progress.add_task(self._what, total=total)
            self._progress.start()
        self._progress.update(self._progress.task_ids[0], completed=done, total=total)

    def close(self) -> None:
        """Take the bar away."""
        if self._progress is not None:
            self._progress.stop()


@contextmanager
def bar(what: str) -> Iterator[Bar]:
    """Give a bar for as long as something runs."""
    shown = Bar(what)
    try:
        yield shown
    finally:
        shown.close()
