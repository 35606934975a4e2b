"""What a bench hands back: figures with their floors, what was measured against a target, charts, a profile.

A figure is printed and written as it is; whether a target was reached is decided elsewhere (`targets`), from
`measured`, so that a bench cannot be lenient with itself.
"""

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


class BenchFailed(Exception):
    """A bench found something wrong, which is worse than slow: a lost, doubled or false answer."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One row of a table: a value, and beside it the floor it is to be read against."""

    name: str
    value: float
    unit: str
    floor: float | None = None
    floor_name: str = ""
    target: str = ""


@dataclass(frozen=True, slots=True)
class Chart:
    """Bars (`bars`: label → value) or curves (`curves`: label → points), with a line to compare with."""

    title: str
    unit: str
    bars: dict[str, float] = field(default_factory=dict)
    curves: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    x_unit: str = ""
    line: float | None = None
    logarithmic: bool = False


@dataclass(slots=True)
class Outcome:
    """All of one bench. `measured` maps a target's key to what was measured, `profile` says where time goes."""

    figures: list[Figure] = field(default_factory=list)
    measured: dict[str, float] = field(default_factory=dict)
    charts: list[Chart] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    profile: list[str] = field(default_factory=list)
    rounds: dict[str, list[float]] = field(default_factory=dict)

    def add(
        self,
        name: str,
        value: float,
        unit: str,
        floor: float | None = None,
        floor_name: str = "",
        target: str = "",
    ) -> None:
        """Add a row; where it answers for a target, its value is what is judged."""
        self.figures.append(Figure(name, value, unit, floor, floor_name, target))
        if target:
            self.measured[target] = value


@dataclass(frozen=True, slots=True)
class Setting:
    """How large to measure, where to put files, and whom to tell how far it is."""

    quick: bool
    folder: Path
    say: Callable[[str], None]
    visitors: int | None = None

    def size(self, full: T, quick: T) -> T:
        """Return one of two sizes."""
        return quick if self.quick else full


def median_ratio(over: Sequence[float], under: Sequence[float]) -> float:
    """Return the median of the ratios of what was measured side by side."""
    return statistics.median(a / b for a, b in zip(over, under, strict=True))


def median(values: Iterable[float]) -> float:
    """Return the median."""
    return statistics.median(values)


def distribution(values: Iterable[float], points: int = 200) -> list[tuple[float, float]]:
    """Return (value, share of values up to it) for a curve, without the last 0.5 %, which a table tells better."""
    ordered = sorted(values)
    return [(ordered[int(step / points * len(ordered))], step / points) for step in range(points)]
