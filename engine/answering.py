"""What a room answers: places, ranks, events, counts. Pure functions of the ledger; nothing here changes anything."""

from collections.abc import Iterator, Sequence
from itertools import islice

from msgspec.structs import replace

from engine import pacing
from engine.draw import ALGORITHM
from engine.errors import Refused
from engine.ledger import Ledger
from engine.line import NUMBER_MASK, number_of
from engine.register import (
    ACTIVE,
    CAUSE_BITS,
    CAUSES,
    COMPLETED,
    LOBBY,
    ONE_RELEASE,
    PARKED,
    REDEEMED,
    RELEASE_BITS,
    STATUSES,
    WAITING,
)
from engine.views import DrawView, Estimate, EventView, Fairness, Place, Ranking, Session, Stats

SHOWN_AS_CLOSED = frozenset((LOBBY, WAITING, PARKED))


def place(ledger: Ledger, arrival: int, now_ms: int, *, fresh: bool = False, proven: bool = False) -> Place:
    """Return the place of an arrival; O(log n)."""
    register, settings, waiting = ledger.register, ledger.settings, len(ledger.line)
    status, key, marks = register.status[arrival], register.keys[arrival], register.marks[arrival]
    position = estimate = window_ms = limit_ms = None
    if status == WAITING:
        position = waiting if fresh and ledger.line.ends_with(key) else ledger.line.rank(key) + 1
        if ledger.drawing is not None:
            position += _undrawn_ahead(ledger, key)
        estimate = _estimate(ledger, position)
    elif status >= PARKED:
        window_ms, limit_ms = _windows(ledger, arrival, now_ms)
    return Place(
        ledger.event_id,
        register.user_ids[arrival],
        "closed" if ledger.state == "closed" and status in SHOWN_AS_CLOSED else STATUSES[status],
        CAUSES[marks & CAUSE_BITS],
        arrival,
        (key & NUMBER_MASK) or None,
        position,
        waiting,
        estimate,
        window_ms,
        limit_ms,
        (marks & RELEASE_BITS) // ONE_RELEASE,
        ledger.generations.get(arrival, 0),
        register.joined_ms[arrival],
        ledger.message,
        settings.presence_timeout_s,
        settings.return_to,
        ledger.outbox.lsn,
        fresh,
        proven,
    )


def cause(ledger: Ledger, arrival: int) -> str | None:
    """Return why a place ended."""
    return CAUSES[ledger.register.marks[arrival] & CAUSE_BITS]


def was_redeemed(ledger: Ledger, arrival: int) -> bool:
    """Return whether the pass of a place was redeemed."""
    return bool(ledger.register.marks[arrival] & REDEEMED)


def session(ledger: Ledger, arrival: int, now_ms: int) -> Session | None:
    """Return the session that runs, or whose confirmation page may still be seen; None where there is none."""
    register = ledger.register
    status, event_ms = register.status[arrival], ledger.event_time_ms(now_ms)
    who = (ledger.event_id, register.user_ids[arrival], arrival, number_of(register.keys[arrival]), STATUSES[status])
    if status == ACTIVE:
        began = ledger.redemptions[arrival]
        left_ms = max(0, ledger.sessions.at_ms[arrival] - event_ms)
        limit_left_ms = max(0, ledger.limits_ms[arrival] - event_ms)
        promised = (began.jti, began.wall_ms, began.length_ms, began.limit_length_ms)
        return Session(*who, *promised, left_ms, limit_left_ms, ledger.outbox.lsn)
    grace_left_ms = register.ended_ms[arrival] + ledger.settings.exit_grace_s * 1000 - event_ms
    if status == COMPLETED and was_redeemed(ledger, arrival) and grace_left_ms > 0:
        return Session(*who, "", 0, 0, 0, grace_left_ms, grace_left_ms, ledger.outbox.lsn)
    return None


def _windows(ledger: Ledger, arrival: int, now_ms: int) -> tuple[int | None, int | None]:
    """Return what is left of grace, claim window or session, and of the most it may be extended to."""
    deadline_ms = ledger.deadline_ms(arrival)
    if deadline_ms is None:
        return None, None
    event_ms, limit_ms = ledger.event_time_ms(now_ms), ledger.limits_ms.get(arrival)
    return max(0, deadline_ms - event_ms), None if limit_ms is None else max(0, limit_ms - event_ms)


def _undrawn_ahead(ledger: Ledger, key: int) -> int:
    """Return how many of the lobby will still come in ahead: everybody not drawn yet, for who joined later."""
    return ledger.register.counts[LOBBY] if number_of(key) >= len(ledger.register.drawn) else 0


def _estimate(ledger: Ledger, position: int) -> Estimate:
    estimate = ledger.estimator.estimate(position)
    left = None if ledger.settings.admissions_left is None else ledger.admissions_left()
    if left is not None and position > left:
        return replace(estimate, reason="unlikely")
    return estimate if ledger.state == "open" else replace(estimate, reason=ledger.state)


def order(ledger: Ledger, arrival: int) -> int:
    """Return the order key of an arrival; raises Refused("not_found")."""
    if not 0 < arrival <= len(ledger.register):
        raise Refused("not_found", "there is no such place")
    return ledger.register.keys[arrival]


def ranks(ledger: Ledger, arrivals: Sequence[int]) -> Ranking:
    """Return positions and waits of arrivals given in line order, 0 for those not waiting (any more).

    One rank and one estimate at each end, and a count in between: waits are interpolated. Nobody has a position while a
    draw is under way.
    """
    register, line = ledger.register, ledger.line
    if ledger.undrawn():
        return Ranking([0] * len(arrivals), [0] * len(arrivals), ledger.outbox.lsn)
    status, keys, count = register.status, register.keys, len(register)
    waiting = [arrival for arrival in arrivals if arrival <= count and status[arrival] == WAITING]
    found = line.ranks([keys[arrival] for arrival in waiting])
    if len(waiting) == len(arrivals):
        positions = [rank + 1 for rank in found]
    else:
        rank_of = dict(zip(waiting, found, strict=True))
        positions = [rank_of.get(arrival, -1) + 1 for arrival in arrivals]
    return Ranking(positions, _waits(ledger, positions), ledger.outbox.lsn)


def _waits(ledger: Ledger, positions: list[int]) -> list[int]:
    estimate = ledger.estimator.estimate
    first, last = min(positions, default=0), max(positions, default=0)
    low, high = estimate(max(first, 1)).seconds, estimate(max(last, 1)).seconds
    slope = (high - low) / (last - first) if last > first else 0.0
    return [int(low + (position - first) * slope) for position in positions]


def view(ledger: Ledger) -> EventView:
    """Return the event as the public and the operator see it; O(knobs)."""
    tally = ledger.tally
    return EventView(
        ledger.event_id,
        ledger.settings.name,
        ledger.state,
        ledger.reason,
        ledger.message,
        ledger.outcome,
        len(ledger.line),
        tally.released + tally.manual,
        ledger.serving_number,
        ledger.estimator.rate_per_minute(),
        ledger.settings.as_map(),
        draw(ledger),
        ledger.outbox.lsn,
        ledger.revision,
    )


def draw(ledger: Ledger) -> DrawView | None:
    """Return the lobby's draw as far as it is public, None where there was no lobby."""
    its = ledger.draw
    if its is None:
        return None
    return DrawView(
        its.draw_id, ALGORITHM, its.commitment, its.beacon, its.beacon_value, its.seed, its.count, its.entries_sha256
    )


def draw_entries(ledger: Ledger, after_number: int, limit: int) -> list[tuple[int, int]]:
    """Return (arrival, number) of the drawn, in order of number, after one number; O(limit)."""
    drawn = ledger.register.drawn[after_number + 1 : after_number + 1 + limit]
    return [(arrival, number) for number, arrival in enumerate(drawn, after_number + 1)]


def stats(ledger: Ledger, now_ms: int) -> Stats:
    """Return the counts by status and the pace; O(statuses)."""
    tally = ledger.tally
    counts = dict(zip(STATUSES[1:], ledger.register.counts[1:], strict=True))
    released = tally.released + tally.manual
    return Stats(
        ledger.event_id,
        ledger.state,
        counts,
        len(ledger.register),
        tally.released,
        tally.manual,
        ledger.completed,
        ledger.estimator.rate_per_minute(),
        tally.waited_ms / released / 1000 if released else 0.0,
        next_release_ms(ledger, now_ms),
        ledger.inside(),
        ledger.admissions_left(),
        ledger.outbox.lsn,
    )


def next_release_ms(ledger: Ledger, now_ms: int) -> int | None:
    """Return in how many ms the next automatic batch is due (0: now), None while none will come."""
    if ledger.state != "open":
        return None
    return max(0, pacing.next_due_ms(ledger.settings, ledger.pace_base_ms) - ledger.event_time_ms(now_ms))


def fairness(ledger: Ledger) -> Fairness:
    """Return how fair it has been; O(1)."""
    tally = ledger.tally
    return Fairness(
        ledger.event_id,
        tally.released + tally.manual,
        tally.admitted,
        tally.overtaken["unexplained"],
        tally.overshoot,
        tally.peak_inside,
        dict(tally.overtaken),
        dict(tally.skipped),
        ledger.outbox.lsn,
    )


def visitors(ledger: Ledger, status: str | None, after_arrival: int, limit: int, now_ms: int) -> list[Place]:
    """Return places by arrival, of one status or of all, after one arrival; walks at most the whole register."""
    rows = ledger.register.status
    arrivals: Iterator[int]
    if status is None:
        arrivals = (arrival for arrival in range(after_arrival + 1, len(rows)) if rows[arrival])
    else:
        arrivals = _with_status(rows, STATUSES.index(status), after_arrival)
    return [place(ledger, arrival, now_ms) for arrival in islice(arrivals, limit)]


def _with_status(rows: bytearray, status: int, after_arrival: int) -> Iterator[int]:
    arrival = rows.find(status, after_arrival + 1)
    while arrival > 0:
        yield arrival
        arrival = rows.find(status, arrival + 1)
