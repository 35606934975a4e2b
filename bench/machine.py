"""The machine a figure was measured on: who it is, which core does what, and what a process has cost.

Where there are two cores the server under test has the first and the generator the second. CPU time is summed
over a process's threads in nanoseconds as the scheduler counts it, because other load on a shared core
lengthens wall time but not this.
"""

import os
import platform
import resource
import subprocess
from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

LIBRARIES = ("stanchion", "aiohttp", "uvloop", "msgspec", "msgpack", "sortedcontainers", "redis", "hiredis")


def all_cores() -> set[int]:
    """Return every core of this machine."""
    return set(range(os.cpu_count() or 1))


def pin(pid: int, cores: Iterable[int]) -> None:
    """Keep a process, with all its threads, on some cores; does nothing where that is not allowed."""
    with suppress(OSError):
        for thread in Path(f"/proc/{pid or 'self'}/task").iterdir():
            os.sched_setaffinity(int(thread.name), set(cores))


def pin_server(pid: int) -> None:
    """Put a server under test on its core."""
    pin(pid, {0})


def pin_generator() -> None:
    """Put this process on the generator's core."""
    pin(0, {max(all_cores())})


def cpu_s(*pids: int) -> float:
    """Return the CPU seconds that processes have used so far, all threads together."""
    return sum(_cpu_of(pid) for pid in pids)


def _cpu_of(pid: int) -> float:
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9
    except (OSError, IndexError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def rss_bytes(pid: int) -> int:
    """Return the resident memory of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def raise_file_limit() -> int:
    """Allow this process as many open files as the system does; returns how many."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def facts() -> dict[str, object]:
    """Return what a figure must be quoted with."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "kernel": platform.release(),
        "system": platform.system(),
        "python": platform.python_version(),
        "libraries": {name: version(name) for name in LIBRARIES},
        "commit": _commit(),
        "load_average": [round(load, 2) for load in os.getloadavg()],
    }


def _commit() -> str | None:
    """Return the commit that is checked out, None outside a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    with suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(command, capture_output=True, text=True, timeout=5.0, check=True).stdout.strip()
    return None


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()
