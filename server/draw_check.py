"""What is checked about a published draw, a sentence each, in the order in which it makes sense.

No check trusts another party: everything is computed again from what was published, and from what the one who
verifies kept from before the opening. The first thing that does not hold ends it.
"""

from collections.abc import Callable, Iterator, Sequence
from hashlib import sha256
from itertools import pairwise
from typing import NamedTuple

from engine.draw import ALGORITHM, entries_digest, mixed, sort_key
from server.draw_source import Entries, PublishedDraw

REPORT_EVERY = 10_000


class Check(NamedTuple):
    """One thing that was looked at; `value` is the figure that was found, where a program may want it."""

    name: str
    ok: bool
    sentence: str
    value: int | None = None


class Kept(NamedTuple):
    """What the one who verifies knows from elsewhere, None where they do not."""

    commitment: str | None = None
    beacon: str | None = None


def check_commitment(draw: PublishedDraw, kept: Kept) -> Iterator[Check]:
    """Check what can be checked before the opening too."""
    if draw.algorithm != ALGORITHM:
        yield Check("algorithm", False, f"The algorithm {draw.algorithm!r} is unknown; known is {ALGORITHM}.")
        return
    yield Check("algorithm", True, f"The algorithm is {ALGORITHM}.")
    if kept.commitment is not None:
        ok = kept.commitment == draw.commitment
        good, bad = "The commitment is the one you kept.", f"The commitment is {draw.commitment}, not the one you kept."
        yield Check("commitment", ok, good if ok else bad)


def check_seed(draw: PublishedDraw, kept: Kept) -> Iterator[Check]:
    """Check the seed and the beacon of a draw that was opened."""
    assert draw.seed is not None
    ok = sha256(bytes.fromhex(draw.seed)).hexdigest() == draw.commitment
    yield Check("seed", ok, f"The SHA-256 of the seed is {'' if ok else 'not '}the commitment.")
    if draw.beacon is not None and draw.beacon.value is None:
        yield Check("beacon", False, f"The beacon {draw.beacon.name!r} was named, and its value is not published.")
    elif kept.beacon is not None:
        value = draw.beacon.value if draw.beacon is not None else None
        ok = value == kept.beacon
        good, bad = "The beacon has the value you gave.", f"The beacon's value is {value!r}, not the one you gave."
        yield Check("beacon", ok, good if ok else "There is no beacon." if draw.beacon is None else bad)


def check_entries(draw: PublishedDraw, entries: Entries, progress: Callable[[int, int], None]) -> Iterator[Check]:
    """Check the list and the order; O(n log n), and about 60 bytes for each entry while the list is sorted."""
    arrivals = entries.arrivals
    found = len(arrivals)
    ok = found == draw.count
    sentence = f"There are {found} entries, {'as' if ok else f'and {draw.count} was'} published."
    yield Check("count", ok, sentence)
    numbers = f"The numbers are 1…{found}, each once, in order." if found else "There are no numbers to check."
    wrong = f"The numbers do not fit: {entries.problem}." if entries.problem is not None else None
    yield Check("numbers", wrong is None, wrong or numbers)
    ascending = sorted(arrivals)
    twice = next((one for one, other in pairwise(ascending) if one == other), None)
    sentence = "No arrival is listed twice." if twice is None else f"Arrival {twice} is listed twice."
    yield Check("arrivals", twice is None, sentence)
    ok = entries_digest(ascending) == draw.entries_sha256
    yield Check("list", ok, f"The SHA-256 of the list of arrivals is {'' if ok else 'not '}the published one.")
    wrong = _first_out_of_order(draw, arrivals, progress)
    yield Check("order", wrong is None, wrong or "The order is the one that the seed gives.")


def until_one_fails(checks: Iterator[Check]) -> Iterator[Check]:
    """Give the checks up to and including the first that does not hold."""
    for check in checks:
        yield check
        if not check.ok:
            return


def _first_out_of_order(
    draw: PublishedDraw, arrivals: Sequence[int], progress: Callable[[int, int], None]
) -> str | None:
    """Return what is wrong with the order, None if nothing: the keys must rise from each number to the next."""
    assert draw.seed is not None
    seed = mixed(bytes.fromhex(draw.seed), draw.beacon.value if draw.beacon is not None else None)
    before = b""
    for number, arrival in enumerate(arrivals, 1):
        key = sort_key(seed, arrival)
        if key <= before:
            return (
                f"The order is not the one that the seed gives: number {number}, arrival {arrival}, "
                f"must come before number {number - 1}, arrival {arrivals[number - 2]}."
            )
        before = key
        if number % REPORT_EVERY == 0:
            progress(number, len(arrivals))
    return None
