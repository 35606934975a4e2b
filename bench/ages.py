"""How old a pushed position is when it arrives, and whether it is exact: each frame is held against the log.

Numbers are given in order and nobody leaves, so the position of number n is n less those released before it, whatever
the version; anything else in the log, or a frame that says anything else, fails the bench. Two ages are told. That of
a frame: from the newest release it knows of until it was received. That of a release at a socket: from the release
until the first frame received there that knows of it, or of a later one; it is the longest that what is shown there
was behind the truth. A release that a socket never learnt of counts as infinitely old.
"""

import re
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from bench.outcome import BenchFailed
from bench.sockets import payloads_of

NEVER_MS = 3_600_000.0
MOVES_THE_LINE = frozenset(("parked", "returned", "admitted", "lapsed", "left", "removed", "readmitted"))
_POSITION = re.compile(rb'"position":(\d+),"ahead":(\d+),.*"version":(\d+)')
_VERSION = re.compile(rb'"version":(\d+)')


class Release(NamedTuple):
    """One release: its LSN, how many are released with it, and the moment it counts from."""

    lsn: int
    total: int
    moment_ns: int


@dataclass(slots=True)
class Ages:
    """In milliseconds: of every frame, and of every release at every socket that was to be told of it."""

    frames_ms: "array[float]" = field(default_factory=lambda: array("f"))
    releases_ms: "array[float]" = field(default_factory=lambda: array("f"))
    told: int = 0

    def add(self, other: "Ages") -> None:
        """Add what another process found."""
        self.frames_ms.extend(other.frames_ms)
        self.releases_ms.extend(other.releases_ms)
        self.told += other.told


@dataclass(slots=True)
class Heard:
    """What was pushed: for each read, whose socket (index), the kernel's receive time in ns, and the bytes."""

    owners: "array[int]" = field(default_factory=lambda: array("l"))
    times_ns: "array[int]" = field(default_factory=lambda: array("q"))
    chunks: list[bytes] = field(default_factory=list)


def released(records: Iterable[Mapping[str, Any]]) -> list[tuple[int, int]]:
    """Return (LSN, how many are released with it) of every release; raises when the line moved in any other way."""
    totals: list[tuple[int, int]] = []
    next_number = 1
    for record in records:
        if record["kind"] == "released":
            numbers = record["numbers"]
            if numbers != list(range(next_number, next_number + len(numbers))):
                raise BenchFailed(f"LSN {record['lsn']} released others than the first in line")
            next_number += len(numbers)
            totals.append((record["lsn"], next_number - 1))
        elif record["kind"] in MOVES_THE_LINE:
            raise BenchFailed(f"LSN {record['lsn']} is {record['kind']}, which nobody asked for")
    return totals


def judge(numbers: Sequence[int], heard: Heard, releases: Sequence[Release]) -> Ages:
    """Return the ages of everything that was pushed; raises BenchFailed for a frame that is wrong or told twice.

    `numbers` are by socket; `releases` are all there ever were, in order, with a moment of 0 for those before.
    """
    ages, lsns = Ages(), [release.lsn for release in releases]
    begun = next((at for at, release in enumerate(releases) if release.moment_ns), len(releases))
    known = array("l", [begun]) * len(numbers)  # by socket: how many releases it has been told of
    for index, time_ns, chunk in zip(heard.owners, heard.times_ns, heard.chunks, strict=True):
        for payload in payloads_of(chunk):
            at = _told(numbers[index], payload, releases, lsns)
            if at <= known[index]:
                raise BenchFailed(f"number {numbers[index]} was told {payload!r} and knew it")
            ages.told += 1
            ages.frames_ms.append((time_ns - releases[at - 1].moment_ns) / 1e6)
            for release in releases[known[index] : at]:
                ages.releases_ms.append((time_ns - release.moment_ns) / 1e6)
            known[index] = at
    for number, at in zip(numbers, known, strict=True):
        total = releases[at - 1].total if at else 0
        for release in releases[at:]:
            if number <= total:
                break
            ages.releases_ms.append(NEVER_MS)
            total = release.total
    return ages


def _told(number: int, payload: bytes, releases: Sequence[Release], lsns: Sequence[int]) -> int:
    """Return how many releases a frame knows of; raises BenchFailed when it is not exactly right."""
    version = _VERSION.search(payload)
    at = bisect_right(lsns, int(version[1])) if version else 0
    total = releases[at - 1].total if at else 0
    if payload.startswith(b'{"type":"ready",'):
        if at and number <= total:
            return at
    elif payload.startswith(b'{"type":"place",'):
        found = _POSITION.search(payload)
        if found and int(found[1]) == number - total and int(found[2]) == number - total - 1:
            return at
    raise BenchFailed(f"number {number} was told {payload!r} where {number - total} is right")
