"""Who is next: the head of the line among those present, within the cap, a slice at a time.

A slice looks at no more than pacing.SLICE places, so that it takes a few milliseconds however long the line is; whoever
wants more asks again. The cost of stepping over those who left is paid once: they are out of the line afterwards.
"""

from typing import NamedTuple

from engine import pacing
from engine.actor import By
from engine.ledger import Ledger
from engine.line import number_of
from engine.records import Parked, Record, Released


class Chosen(NamedTuple):
    """Numbers to release and numbers to step over, both in line order; `more` says that asking again may find more."""

    present: list[int]
    absent: list[int]
    limited_by: str | None
    more: bool


def choose(ledger: Ledger, count: int) -> Chosen:
    """Return who of the head would be let in next; O(pacing.SLICE). Nobody present is ever passed over.

    A group that is too large for what is free holds up those behind it rather than being overtaken.
    """
    present: list[int] = []
    absent: list[int] = []
    settings, register, sizes = ledger.settings, ledger.register, ledger.sizes
    is_present = ledger.presence.is_present
    free = pacing.free_slots(settings, ledger.inside())
    looked_at = ledger.line.head(pacing.SLICE)
    for key in looked_at if count > 0 else ():
        if free <= 0:
            return Chosen(present, absent, "capacity", False)
        number = number_of(key)
        arrival = register.arrival_of(number)
        if not is_present(arrival, settings):
            absent.append(number)
            continue
        size = sizes.get(arrival, 1) if sizes else 1
        if size > free:
            return Chosen(present, absent, "capacity", False)
        present.append(number)
        free -= size
        if len(present) == count:
            return Chosen(present, absent, None, False)
    more = 0 < len(looked_at) < len(ledger.line)
    return Chosen(present, absent, None if count <= 0 else "line", more and count > 0)


def rest_of_batch(ledger: Ledger, count: int, now_ms: int) -> int:
    """Return how many of `count` may still leave in the automatic batch of this moment.

    A batch that goes in slices may find `batch_size` lowered in between; what has left already counts.
    """
    if ledger.settings.queueing == "passthrough":
        return count
    has_begun = ledger.event_time_ms(now_ms) == ledger.last_batch_ms
    return min(count, max(0, ledger.settings.batch_size - has_begun * ledger.batch_released))


def records_of(ledger: Ledger, chosen: Chosen, by: By, now_ms: int, *, manual: bool) -> list[Record]:
    """Return the facts of a choice: who was stepped over, written before who was let in."""
    records: list[Record] = []
    if chosen.absent:
        arrival_of, last_seen_ms = ledger.register.arrival_of, ledger.presence.last_seen_ms
        seen_ms = [last_seen_ms(arrival_of(number), now_ms) for number in chosen.absent]
        records.append(Parked(ledger.event_id, now_ms, chosen.absent, seen_ms))
    if chosen.present:
        until_ms = claim_until_ms(ledger, now_ms)
        by_whom = (by.actor, by.reason, by.request)
        records.append(Released(ledger.event_id, now_ms, chosen.present, until_ms, manual, *by_whom))
    return records


def claim_until_ms(ledger: Ledger, now_ms: int) -> int:
    """Return the end of a claim window that begins now, in event time."""
    return ledger.event_time_ms(now_ms) + ledger.settings.claim_window_s * 1000
