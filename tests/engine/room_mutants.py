"""Mutants: the room with one rule of docs/states.md dropped, each to be missed by the machine.

A cell mutant changes one cell of `engine.transitions`. A rule mutant takes a piece of text out of a module, which must
stand there exactly once: rules.txt lists them. `about` are words that bring the walks most likely to miss the rule to
the front.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import NamedTuple

from engine.ledger import _DEADLINES, _DUMPED, TABLES
from engine.settings import KNOBS
from engine.transitions import EVENT_ACTIONS, FIXED, JOIN_REFUSALS, VISITOR_INPUTS

RULES = Path(__file__).with_name("rules.txt")
REFUSAL = "! conflict mutant"


# Cells that nothing can tell from another, and why; whatever begins with one of these is no mutant.
NO_DIFFERENCE: Mapping[str, str] = MappingProxyType(
    {
        "EVENT_ACTIONS[tick][draft]": "nobody stands in line before the opening",
        "EVENT_ACTIONS[tick][lobby]": "nobody stands in line before the opening",
        "EVENT_ACTIONS[windows][draft]": "nothing runs before the opening",
        "EVENT_ACTIONS[windows][lobby]": "nothing runs before the opening",
        "EVENT_ACTIONS[admit][draft]: ! not_open draft → admitted": "there is nobody to be admitted",
        "VISITOR_INPUTS[redeem][lobby]": "nobody in the lobby has a number, so there is no pass for them",
        "VISITOR_INPUTS[redeem][active]: repeat → =": "both mean: no record, the same answer",
        "VISITOR_INPUTS[admit][lobby]": "refused for the event; and a draw is finished before anybody is admitted",
        "VISITOR_INPUTS[reached": "test_room.py holds releases to these; they stand in code, as rules here",
        "a snapshot keeps started_ms": "loading is always followed by a start",
    }
)


class Mutant(NamedTuple):
    """One rule dropped: either `change` is applied to `engine.transitions`, or `old` becomes `new` in `module`."""

    name: str
    about: str
    change: Callable[[ModuleType], None] | None = None
    module: str = ""
    old: str = ""
    new: str = ""


def all_mutants() -> list[Mutant]:
    """Return every mutant that makes a difference, the cells first."""
    found = [*cell_mutants(), *rule_mutants(), *snapshot_mutants()]
    return [mutant for mutant in found if not any(mutant.name.startswith(cell) for cell in NO_DIFFERENCE)]


# ---- cells --------------------------------------------------------------------------------------------


def cell_mutants() -> Iterator[Mutant]:
    """Yield mutants of every cell of every table."""
    yield from _of_table("EVENT_ACTIONS", EVENT_ACTIONS)
    yield from _of_table("VISITOR_INPUTS", VISITOR_INPUTS)
    for state in JOIN_REFUSALS:
        yield Mutant(f"JOIN_REFUSALS[{state}] dropped", f"join {state}", lambda t, state=state: _open_door(t, state))  # type: ignore[misc]
    for state in FIXED:
        for name in KNOBS:
            yield Mutant(
                f"FIXED[{state}]({name}) turned round",
                f"settings {state}",
                lambda t, state=state, name=name: _turn(t, state, name),  # type: ignore[misc]
            )


def _of_table(table: str, rows: Mapping[str, Mapping[str, str]]) -> Iterator[Mutant]:
    for row, cells in rows.items():
        for column, cell in cells.items():
            for other in _others(row, cells, cell):
                name = f"{table}[{row}][{column}]: {cell} → {other}"

                def change(transitions: ModuleType, row: str = row, column: str = column, other: str = other) -> None:
                    getattr(transitions, table)[row][column] = other

                yield Mutant(name, f"{row.replace('_', ' ')} {column}", change)


def _others(row: str, cells: Mapping[str, str], cell: str) -> list[str]:
    """Return what a cell may wrongly be: nothing done, refused, or what other cells of the row do."""
    does = [its for its in dict.fromkeys(cells.values()) if its[0] not in "!=" and its != "seen"]
    if row == "windows":
        return [its for its in ("=", "all", "inside") if its != cell]
    if cell.startswith("!"):
        code = "! not_found x" if "conflict" in cell else REFUSAL
        return ["=", code, *does[:1]]
    if cell == "=":
        return [REFUSAL, *does[:1]] if row not in ("touch", "touch_hidden", "tick", "join") else [*does, "seen"][:1]
    if row in ("touch", "touch_hidden"):
        return ["="] if cell == "seen" else ["=", "seen"]
    if row in ("tick", "join"):
        return ["="]
    return ["=", REFUSAL] if "_over" not in row and "reached" not in row else _ends(cell)


def _ends(cell: str) -> list[str]:
    ends = ("lapsed", "expired absent", "expired unclaimed", "expired session", "redeemed")
    return [its for its in ends if its != cell]


def _open_door(transitions: ModuleType, state: str) -> None:
    closed = {its: refusal for its, refusal in JOIN_REFUSALS.items() if its != state}
    vars(transitions)["JOIN_REFUSALS"] = MappingProxyType(closed)


def _turn(transitions: ModuleType, state: str, name: str) -> None:
    fixed = transitions.FIXED[state]
    turned = {state: lambda its: fixed(its) != (its == name)}
    vars(transitions)["FIXED"] = MappingProxyType({**transitions.FIXED, **turned})


# ---- rules and what a snapshot keeps ------------------------------------------------------------------


def rule_mutants() -> Iterator[Mutant]:
    """Yield a mutant for every rule of rules.txt."""
    module = ""
    for block in re.split(r"^(?=[#@] )", RULES.read_text(), flags=re.MULTILINE)[1:]:
        head, *lines = block.splitlines()
        if head.startswith("# "):
            module = head[2:]
            continue
        rule, _, about = head[2:].partition(" | ")
        old, new = ("\n".join(line[1:] for line in lines if line[:1] == sign) for sign in "-+")
        yield Mutant(f"{module}: {rule}", about, module=module, old=old, new=new)


def snapshot_mutants() -> Iterator[Mutant]:
    """Yield a mutant for every attribute that a snapshot keeps."""
    for name in _DUMPED:
        yield Mutant(f"a snapshot keeps {name}", "snapshot", module="engine.ledger", old=f'    "{name}",\n', new="")
    for table, names in (("TABLES", TABLES), ("_DEADLINES", _DEADLINES)):
        for name in names:
            old, new = (f"{table} = {str(its).replace(chr(39), chr(34))}" for its in (names, _without(names, name)))
            yield Mutant(f"a snapshot keeps {name}", "snapshot", module="engine.ledger", old=old, new=new)


def _without(names: tuple[str, ...], name: str) -> tuple[str, ...]:
    return tuple(its for its in names if its != name)
