"""`python -m bench [NAME …]`: measure, beside floors and peers in the same run, and say what was not reached.

Every bench says what it expects before it runs. A target that is missed is printed as missed, with a profile of
where the time goes, and does not fail the command; a false answer does. `--quick` goes through everything with
little, for CI: it shows that the benches work, and judges nothing that means nothing at that size.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from rich.console import Console

from bench import machine, report
from bench.cases import admission, crowd, failover, line, over_http, push, recovery, room, sockets, wal
from bench.outcome import BenchFailed, Outcome, Setting

RESULTS = Path(__file__).parent / "results"

BENCHES: Mapping[str, Callable[[Setting], Outcome]] = MappingProxyType(
    {
        "line": line.run,
        "room": room.run,
        "wal": wal.run,
        "admission": admission.run,
        "http": over_http.run,
        "push": push.run,
        "sockets": sockets.run,
        "failover": failover.run,
        "recovery": recovery.run,
        "crowd": crowd.run,
    }
)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Return what the command line says."""
    parser = argparse.ArgumentParser("python -m bench", description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"benches to run: {', '.join(BENCHES)} (default: all)")
    parser.add_argument("--quick", action="store_true", help="about a minute for everything; most targets not judged")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where to write JSON and plots")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument("--visitors", type=int, metavar="N", help="size of the crowd (default: 100,000)")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.names if name not in BENCHES]
    if unknown:
        parser.error(f"there is no bench named {', '.join(unknown)}; there are {', '.join(BENCHES)}")
    return options


def main(arguments: Sequence[str]) -> int:
    """Run what is asked for; returns 1 when a bench found something wrong."""
    options = parse(arguments)
    errors = Console(stderr=True)
    console = errors if options.json else Console(width=None if sys.stdout.isatty() else 150)
    folder = options.out or (RESULTS / "quick" if options.quick else RESULTS)
    machine.raise_file_limit()
    machine.pin_generator()
    results: list[dict[str, Any]] = []
    failed = False
    with errors.status("") as status:
        for name in options.names or BENCHES:
            report.print_expected(console, name)
            try:
                results.append(_run(name, options, console, folder, lambda text: status.update(text)))
            except BenchFailed as failure:
                failed = True
                errors.print(f"{name} FAILED: {failure}", highlight=False, markup=False)
    if options.json:
        report.print_json(results)
    return int(failed)


def _run(
    name: str, options: argparse.Namespace, console: Console, folder: Path, say: Callable[[str], None]
) -> dict[str, Any]:
    began_s = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="stanchion-bench-", ignore_cleanup_errors=True) as temporary:
        outcome = BENCHES[name](Setting(options.quick, Path(temporary), say, options.visitors))
    result = report.as_json(name, outcome, quick=options.quick, seconds=time.perf_counter() - began_s)
    if not options.json:
        report.print_outcome(console, name, outcome, quick=options.quick)
    report.write(folder, name, result, outcome)
    return result


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
