"""What the benches say: a table with the floor beside each figure, a verdict for each target, JSON, a plot."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
from rich.console import Console
from rich.table import Table

from bench import machine
from bench.outcome import Chart, Figure, Outcome
from bench.targets import targets_of

matplotlib.use("Agg")

from matplotlib import pyplot

COLOURS = ("#1b6ca8", "#d1495b", "#2e933c", "#edae49", "#6c757d", "#7b2d8b")
LOGARITHMIC = ("waiting", "waiters")


def number(value: float) -> str:
    """Return a number with three or four digits that mean something."""
    size = abs(value)
    if size >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if size >= 10 else f"{value:.3g}"


def print_expected(console: Console, bench: str) -> None:
    """Say what a bench is expected to show, before it runs."""
    sentences = [target.sentence() for target in targets_of(bench).values()]
    console.print(f"\n[bold]{bench}[/] expects: {'; '.join(sentences) or 'nothing'}", highlight=False)


def print_outcome(console: Console, bench: str, outcome: Outcome, *, quick: bool) -> None:
    """Print the table, the verdicts, and where the time goes if something was not reached."""
    table = Table(title=bench, title_justify="left")
    table.add_column("figure")
    table.add_column("value", justify="right")
    table.add_column("unit")
    table.add_column("floor", justify="right")
    table.add_column("target")
    for figure in outcome.figures:
        table.add_row(figure.name, number(figure.value), figure.unit, _floor(figure), _verdict(figure, quick))
    console.print(table, highlight=False)
    for note in outcome.notes:
        console.print(f"  {note}", highlight=False)
    if outcome.profile:
        console.print("  Where the time goes:", highlight=False)
        for line in outcome.profile:
            console.print(f"    {line}", highlight=False, markup=False)


def _floor(figure: Figure) -> str:
    return "" if figure.floor is None else f"{number(figure.floor)} ({figure.floor_name})"


def _verdict(figure: Figure, quick: bool) -> str:
    for targets in (targets_of(figure.target.partition(".")[0]),) if figure.target else ():
        return targets[figure.target].verdict(figure.value, quick=quick)
    return ""


def as_json(bench: str, outcome: Outcome, *, quick: bool, seconds: float) -> dict[str, Any]:
    """Return everything of one bench: machine, versions, expected and measured figures, every round."""
    targets = {
        key: {
            "expected": target.sentence(),
            "measured": _rounded(outcome.measured.get(key)),
            "verdict": target.verdict(outcome.measured.get(key), quick=quick),
        }
        for key, target in targets_of(bench).items()
    }
    return {
        "bench": bench,
        "quick": quick,
        "seconds": round(seconds, 1),
        "machine": machine.facts(),
        "targets": targets,
        "figures": [
            {
                "name": figure.name,
                "value": _rounded(figure.value),
                "unit": figure.unit,
                "floor": _rounded(figure.floor),
                "floor_name": figure.floor_name,
            }
            for figure in outcome.figures
        ],
        "rounds": {name: [_rounded(value) for value in values] for name, values in outcome.rounds.items()},
        "notes": outcome.notes,
        "profile": outcome.profile,
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.5g}")


def write(folder: Path, bench: str, result: Mapping[str, Any], outcome: Outcome) -> None:
    """Write BENCH.json and BENCH.png into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{bench}.json").write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    if outcome.charts:
        _plot(folder / f"{bench}.png", outcome.charts, str(result["machine"]["date"]))


def _plot(path: Path, charts: list[Chart], date: str) -> None:
    figure, axes = pyplot.subplots(1, len(charts), figsize=(6.4 * len(charts), 4.2), squeeze=False)
    for chart, axis in zip(charts, axes[0], strict=True):
        _draw(axis, chart)
    figure.text(0.995, 0.01, date, ha="right", fontsize=6, color="#888888")
    figure.tight_layout()
    figure.savefig(path, dpi=90, metadata={"Software": None})
    pyplot.close(figure)


def _draw(axis: Any, chart: Chart) -> None:
    axis.set_title(chart.title)
    if chart.bars:
        names = list(chart.bars)
        bars = axis.barh(names, list(chart.bars.values()), color=[_colour(name) for name in names])
        axis.bar_label(bars, [number(value) for value in chart.bars.values()], padding=3, fontsize=8)
        axis.invert_yaxis()
        axis.margins(x=0.15)
        axis.set_xlabel(chart.unit)
        if chart.logarithmic:
            axis.set_xscale("log")
        if chart.line is not None:
            axis.axvline(chart.line, color=COLOURS[1], linestyle="--")
        return
    for colour, (name, points) in zip(COLOURS, chart.curves.items(), strict=False):
        is_floor = name.startswith("bare")
        style = "--" if is_floor else "-"
        axis.plot(*zip(*points, strict=True), style, label=name, color=colour, marker="o" if len(points) < 20 else "")
    if chart.x_unit in LOGARITHMIC:
        axis.set_xscale("log")
        axis.set_yscale("log")
    if chart.line is not None:
        axis.axhline(chart.line, color=COLOURS[1], linestyle=":")
    axis.set_xlabel(chart.x_unit)
    axis.set_ylabel(chart.unit)
    axis.legend(fontsize=8)


def _colour(name: str) -> str:
    """Return a bar's colour: our own, the Redis design's, or a floor's."""
    return COLOURS[1] if "edis" in name else COLOURS[4] if "bare" in name else COLOURS[0]


def print_json(results: list[dict[str, Any]]) -> None:
    """Write all results to stdout as one JSON array."""
    json.dump(results, sys.stdout, indent=1, ensure_ascii=False)
    print()
