"""Where the time goes: the daemon under cProfile, and the top lines of what it wrote.

Run as `python -m bench.profiling OUT serve …` it is the daemon. SIGUSR1 begins a stretch that is profiled,
SIGUSR2 ends it and writes OUT, so that starting up and connecting stay out of the picture.
"""

import cProfile
import os
import pstats
import signal
import sys
import time
from collections.abc import Callable
from io import StringIO
from pathlib import Path

from server.cli import main as stanchion

LINES = 22
WRITE_LIMIT_S = 10.0


def begin(pid: int) -> None:
    """Let the daemon begin to profile itself."""
    os.kill(pid, signal.SIGUSR1)
    time.sleep(0.1)


def finish(pid: int, path: Path) -> list[str]:
    """Let the daemon write its profile, and return the top lines by own time."""
    os.kill(pid, signal.SIGUSR2)
    deadline_s = time.monotonic() + WRITE_LIMIT_S
    while not path.exists() and time.monotonic() < deadline_s:
        time.sleep(0.05)
    return top_lines(path)


def top_lines(path: Path) -> list[str]:
    """Return the functions that took most time of their own; paths are cut down to the file."""
    text = StringIO()
    pstats.Stats(str(path), stream=text).strip_dirs().sort_stats("tottime").print_stats(LINES)
    lines = [line.rstrip() for line in text.getvalue().splitlines()]
    return [line for line in lines if line and not line.startswith(("Ordered", str(path)[:4]))][1:]


def profile_call(function: Callable[[], object], path: Path) -> list[str]:
    """Return the top lines of one call in this process; `path` is written on the way."""
    profile = cProfile.Profile()
    profile.runcall(function)
    profile.dump_stats(path)
    return top_lines(path)


def main() -> None:
    """Be the daemon, with a profile that signals begin and end."""
    path = Path(sys.argv.pop(1))
    profile = cProfile.Profile()

    def on_end(*_: object) -> None:
        profile.disable()
        part = path.with_suffix(".part")
        profile.dump_stats(part)
        part.rename(path)

    signal.signal(signal.SIGUSR1, lambda *_: profile.enable())
    signal.signal(signal.SIGUSR2, on_end)
    stanchion()


if __name__ == "__main__":
    main()
