"""Applying: the only code that changes a ledger, one record after the other.

The same code runs for a record just decided and for one read back from the log, so replay equals live by
construction. Nothing is decided here; what cannot follow from the state is refused as damage.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from engine.draw import Drawing, mixed
from engine.errors import Damaged
from engine.ledger import TABLES, Draw, Gap, Ledger, Redemption
from engine.line import Line, number_of
from engine.records import (
    Admitted,
    Banned,
    Closed,
    Completed,
    Configured,
    Deleted,
    Expired,
    Extended,
    Joined,
    Lapsed,
    Left,
    LobbyOpened,
    Messaged,
    Opened,
    Parked,
    Paused,
    Purged,
    Readmitted,
    Record,
    Redeemed,
    Released,
    Removed,
    Reopened,
    Resumed,
    Returned,
    Started,
    Transferred,
)
from engine.register import (
    ACTIVE,
    CAUSES,
    COMPLETED,
    EXPIRED,
    LEFT,
    LIVE,
    LOBBY,
    NONE,
    ONE_RELEASE,
    PARKED,
    READMITTED,
    READY,
    REDEEMED,
    REMOVED,
    STATUSES,
    STEPPED_OVER,
    WAITING,
    Register,
)
from engine.settings import settings_from
from engine.views import EventChanged, PlacesChanged

REQUESTS_KEPT = 1_000


def apply(ledger: Ledger, record: Record) -> None:
    """Take in one record of this event; raises Damaged when it cannot follow from the state."""
    _APPLY[type(record)](ledger, record)


def started(ledger: Ledger, record: Started) -> None:
    """A process took over: everybody counts as just heard, grace begins anew, and a full interval passes first."""
    ledger.draw_all()
    register = ledger.register
    if record.gap:
        first = len(register) + 1
        register.skip(record.gap)
        ledger.gaps.append(Gap(first, len(register), record.epoch, record.wall_ms))
    ledger.started_ms = record.at_ms
    _hear_everybody(ledger, record.at_ms)
    ledger.pace_base_ms = ledger.event_time_ms(record.at_ms)


def _hear_everybody(ledger: Ledger, at_ms: int) -> None:
    ledger.presence.hear_everybody(len(ledger.register), at_ms)
    ledger.graces.restart(ledger.event_time_ms(at_ms) + ledger.settings.grace_s * 1000)


# ---- events ----------------------------------------------------------------------------------------


def _configured(ledger: Ledger, record: Configured) -> None:
    before = ledger.settings
    ledger.settings = settings_from(record.settings)
    ledger.revision += 1
    if ledger.settings.admissions_left != before.admissions_left:
        ledger.admitted_since_told = 0
    _announce_event(ledger)


def _announce_event(ledger: Ledger) -> None:
    ledger.outbox.announce(EventChanged(ledger.event_id, ledger.outbox.lsn + 1))


def _changed(ledger: Ledger, state: str, record: LobbyOpened | Opened | Paused | Resumed | Closed | Reopened) -> None:
    ledger.state = state
    ledger.reason = record.reason if isinstance(record, Paused | Closed) else None
    _announce_event(ledger)


def _lobby_opened(ledger: Ledger, record: LobbyOpened) -> None:
    ledger.draw = Draw(record.draw_id, record.commitment, record.beacon)
    _changed(ledger, "lobby", record)


def _opened(ledger: Ledger, record: Opened) -> None:
    if record.seed:
        if ledger.draw is None:
            raise Damaged(f"event {ledger.event_id}: a seed was revealed for a draw that was never bound")
        arrivals = ledger.register.with_status(LOBBY)
        if len(arrivals) != record.count:
            raise Damaged(f"event {ledger.event_id}: {len(arrivals)} are in the lobby, {record.count} were drawn")
        ledger.draw = ledger.draw._replace(seed=record.seed, beacon_value=record.beacon, count=record.count)
        ledger.drawing = Drawing(mixed(bytes.fromhex(record.seed), record.beacon), arrivals)
        ledger.register.begin_draw(record.count)
    _open(ledger, record)


def _open(ledger: Ledger, record: Opened | Reopened) -> None:
    _changed(ledger, "open", record)
    ledger.outcome = None
    ledger.opened = True
    ledger.pace_base_ms = ledger.last_batch_ms = ledger.event_time_ms(record.at_ms)
    _hear_everybody(ledger, record.at_ms)


def _paused(ledger: Ledger, record: Paused) -> None:
    _changed(ledger, "paused", record)
    ledger.stopped_at_ms = record.at_ms


def _resume_time(ledger: Ledger, at_ms: int) -> None:
    if ledger.stopped_at_ms is not None:
        ledger.suspended_ms += at_ms - ledger.stopped_at_ms
        ledger.stopped_at_ms = None


def _resumed(ledger: Ledger, record: Resumed) -> None:
    _resume_time(ledger, record.at_ms)
    _changed(ledger, "open", record)


def _closed(ledger: Ledger, record: Closed) -> None:
    _resume_time(ledger, record.at_ms)
    _changed(ledger, "closed", record)
    ledger.outcome = record.outcome
    ledger.closed_at_ms = ledger.event_time_ms(record.at_ms)


def _messaged(ledger: Ledger, record: Messaged) -> None:
    ledger.message = record.text or None
    ledger.reason = record.reason or ledger.reason
    _announce_event(ledger)


def _banned(ledger: Ledger, record: Banned) -> None:
    ledger.banned[record.user_id] = None


def _purged(ledger: Ledger, record: Purged) -> None:
    count, drawn = len(ledger.register), ledger.register.drawn
    ledger.register = Register()
    ledger.register.skip(count)
    ledger.register.drawn = drawn
    ledger.line = Line()
    for deadlines in (ledger.claims, ledger.sessions, ledger.graces):
        deadlines.forget()
    for name in TABLES:
        getattr(ledger, name).clear()
    ledger.gaps.clear()
    ledger.extra_inside = 0
    _announce_event(ledger)


# ---- places ----------------------------------------------------------------------------------------


def _joined(ledger: Ledger, record: Joined) -> None:
    register, arrival = ledger.register, record.arrival
    if arrival != len(register.user_ids):
        raise Damaged(f"event {ledger.event_id}: arrival {arrival} came where {len(register.user_ids)} was due")
    status = LOBBY if ledger.state == "lobby" else WAITING
    register.add(record.user_id, record.key, status, record.proof, record.at_ms)
    ledger.presence.add(record.at_ms, ledger.settings)
    if record.size > 1:
        ledger.sizes[arrival] = record.size
    if record.level:
        ledger.levels[arrival] = record.level
    if record.signed:
        ledger.spent[record.proof] = None
    if status == WAITING:
        ledger.line.add(record.key)


def _readmitted(ledger: Ledger, record: Readmitted) -> None:
    register, arrival = ledger.register, record.arrival
    if not any(gap.first <= arrival <= gap.last for gap in ledger.gaps) or register.status[arrival] != NONE:
        raise Damaged(f"event {ledger.event_id}: arrival {arrival} was not lost, so it cannot be readmitted")
    status = LOBBY if ledger.state == "lobby" else WAITING
    register.fill(arrival, record.user_id, record.key, status, record.at_ms)
    ledger.presence.hear(arrival, record.at_ms, ledger.settings)
    if record.generation:
        ledger.generations[arrival] = record.generation
    if status == WAITING:
        ledger.line.add(record.key)
    _announce(ledger, arrival, status)


def _parked(ledger: Ledger, record: Parked) -> None:
    grace_until_ms = ledger.event_time_ms(record.at_ms) + ledger.settings.grace_s * 1000
    register, line = ledger.register, ledger.line
    arrivals = _arrivals_of(ledger, record.numbers)
    for arrival in arrivals:
        if register.status[arrival] != WAITING:
            raise Damaged(f"event {ledger.event_id}: arrival {arrival} was parked and did not wait")
        line.remove(register.keys[arrival])
        register.set(arrival, PARKED, register.marks[arrival] | STEPPED_OVER)
        ledger.graces.set(arrival, grace_until_ms)
    ledger.tally.skipped["absent"] += len(arrivals)
    ledger.outbox.announce(PlacesChanged(ledger.event_id, arrivals, "parked", ledger.outbox.lsn + 1))


def _returned(ledger: Ledger, record: Returned) -> None:
    arrival = record.arrival
    _require(ledger, arrival, PARKED, "returned")
    ledger.graces.clear(arrival)
    ledger.register.move(arrival, WAITING)
    ledger.line.add(ledger.register.keys[arrival])
    _announce(ledger, arrival, WAITING)


def _released(ledger: Ledger, record: Released) -> None:
    numbers, register = record.numbers, ledger.register
    if [number_of(key) for key in ledger.line.head(len(numbers))] != list(numbers):
        raise Damaged(f"event {ledger.event_id}: released numbers {list(numbers[:5])}… are not the head of the line")
    arrivals = _arrivals_of(ledger, numbers)
    ledger.line.drop_head(len(numbers))
    limit_ms = ledger.event_time_ms(record.at_ms) + ledger.settings.claim_max_s * 1000
    for number, arrival in zip(numbers, arrivals, strict=True):
        _let_in(ledger, arrival, record.until_ms, limit_ms)
        if not record.manual:
            reason = _reason_for_being_late(ledger, arrival)
            waited_ms = record.at_ms - register.joined_ms[arrival]
            ledger.tally.let_in(number, ledger.levels.get(arrival, 0), waited_ms, reason)
        else:
            ledger.tally.waited_ms += record.at_ms - register.joined_ms[arrival]
    ledger.serving_number = max(ledger.serving_number, *numbers)
    if record.request is not None:
        _count_request(ledger, record.request, len(numbers))
    _count_release(ledger, record)
    ledger.outbox.announce(PlacesChanged(ledger.event_id, arrivals, "ready", ledger.outbox.lsn + 1))


def _count_release(ledger: Ledger, record: Released) -> None:
    released = len(record.numbers)
    ledger.tally.fill(ledger.inside(), ledger.settings.max_active)
    if record.manual:
        ledger.tally.manual += released
        return
    ledger.tally.released += released
    tick_ms = ledger.event_time_ms(record.at_ms)
    ledger.estimator.observe(released, tick_ms - ledger.last_batch_ms)
    ledger.batch_released = released + (ledger.batch_released if tick_ms == ledger.last_batch_ms else 0)
    ledger.pace_base_ms = ledger.last_batch_ms = tick_ms


def _reason_for_being_late(ledger: Ledger, arrival: int) -> str | None:
    marks = ledger.register.marks[arrival]
    return "returned" if marks & STEPPED_OVER else "readmitted" if marks & READMITTED else None


def _let_in(ledger: Ledger, arrival: int, until_ms: int, limit_ms: int) -> None:
    ledger.register.set(arrival, READY, ledger.register.marks[arrival] + ONE_RELEASE)
    ledger.claims.set(arrival, until_ms)
    ledger.limits_ms[arrival] = limit_ms
    ledger.admitted_since_told += 1
    if ledger.sizes:
        ledger.extra_inside += ledger.sizes.get(arrival, 1) - 1


def _count_request(ledger: Ledger, request: str, released: int) -> None:
    counts = ledger.released_under
    counts[request] = counts.pop(request, 0) + released
    if len(counts) > REQUESTS_KEPT:
        del counts[next(iter(counts))]


def _admitted(ledger: Ledger, record: Admitted) -> None:
    arrival = record.arrival
    status = ledger.register.status[arrival]
    if status == WAITING:
        ledger.line.remove(ledger.register.keys[arrival])
    elif status != PARKED:
        raise Damaged(f"event {ledger.event_id}: arrival {arrival} was admitted and did not wait")
    ledger.graces.clear(arrival)
    _let_in(ledger, arrival, record.until_ms, ledger.event_time_ms(record.at_ms) + ledger.settings.claim_max_s * 1000)
    ledger.tally.admitted += 1
    ledger.tally.fill(ledger.inside(), ledger.settings.max_active)
    _announce(ledger, arrival, READY)


def _lapsed(ledger: Ledger, record: Lapsed) -> None:
    arrival = record.arrival
    _require(ledger, arrival, READY, "lapsed")
    _leave_inside(ledger, arrival)
    ledger.admitted_since_told -= 1
    ledger.register.set(arrival, PARKED, ledger.register.marks[arrival] | STEPPED_OVER)
    ledger.graces.set(arrival, ledger.event_time_ms(record.at_ms) + ledger.settings.grace_s * 1000)
    ledger.tally.skipped["unclaimed"] += 1
    _announce(ledger, arrival, PARKED)


def _redeemed(ledger: Ledger, record: Redeemed) -> None:
    arrival = record.arrival
    _require(ledger, arrival, READY, "redeemed")
    ledger.claims.clear(arrival)
    ledger.register.set(arrival, ACTIVE, ledger.register.marks[arrival] | REDEEMED)
    ledger.sessions.set(arrival, record.until_ms)
    ledger.limits_ms[arrival] = record.limit_ms
    event_ms = ledger.event_time_ms(record.at_ms)
    lengths = (record.until_ms - event_ms, record.limit_ms - event_ms)
    ledger.redemptions[arrival] = Redemption(record.request, record.jti, record.wall_ms, *lengths)
    _announce(ledger, arrival, ACTIVE)


def _extended(ledger: Ledger, record: Extended) -> None:
    arrival = record.arrival
    deadlines = {READY: ledger.claims, ACTIVE: ledger.sessions}.get(_status(ledger, arrival))
    if deadlines is None:
        raise Damaged(f"event {ledger.event_id}: arrival {arrival} was extended and nothing runs")
    deadlines.set(arrival, record.until_ms)
    _announce(ledger, arrival, ledger.register.status[arrival])


def _expired(ledger: Ledger, record: Expired) -> None:
    if record.cause == "unclaimed":
        ledger.tally.skipped["unclaimed"] += 1
    _end(ledger, record, EXPIRED, record.cause)


def _left(ledger: Ledger, record: Left) -> None:
    if _status(ledger, record.arrival) in (LOBBY, WAITING, PARKED):
        ledger.tally.skipped["left"] += 1
    _end(ledger, record, LEFT, None)


def _completed(ledger: Ledger, record: Completed) -> None:
    if record.late:
        _require(ledger, record.arrival, EXPIRED, "completed late")
        ledger.register.move(record.arrival, COMPLETED)
        _announce(ledger, record.arrival, COMPLETED)
    else:
        _end(ledger, record, COMPLETED, None)
    ledger.completed += 1


def _removed(ledger: Ledger, record: Removed) -> None:
    if _status(ledger, record.arrival) in (LOBBY, WAITING, PARKED):
        ledger.tally.skipped["removed"] += 1
    _end(ledger, record, REMOVED, "removed")


def _transferred(ledger: Ledger, record: Transferred) -> None:
    arrival = record.arrival
    if _status(ledger, arrival) not in LIVE:
        raise Damaged(f"event {ledger.event_id}: arrival {arrival} was transferred and holds no place")
    ledger.generations[arrival] = record.generation
    ledger.register.proofs[arrival] = record.proof
    if record.signed:
        ledger.spent[record.proof] = None
    _announce(ledger, arrival, ledger.register.status[arrival])


# ---- small parts -----------------------------------------------------------------------------------


def _end(ledger: Ledger, record: Expired | Left | Completed | Removed, status: int, cause: str | None) -> None:
    arrival, register = record.arrival, ledger.register
    before = _status(ledger, arrival)
    if before not in LIVE:
        raise Damaged(f"event {ledger.event_id}: arrival {arrival} holds no place that could end")
    if before == WAITING:
        ledger.line.remove(register.keys[arrival])
    elif before in (READY, ACTIVE):
        _leave_inside(ledger, arrival)
    ledger.graces.clear(arrival)
    if before == READY and status != COMPLETED:
        ledger.admitted_since_told -= 1
    register.set(arrival, status, register.marks[arrival] | CAUSES.index(cause))
    register.ended_ms[arrival] = ledger.event_time_ms(record.at_ms)
    _announce(ledger, arrival, status)


def _leave_inside(ledger: Ledger, arrival: int) -> None:
    ledger.claims.clear(arrival)
    ledger.sessions.clear(arrival)
    ledger.limits_ms.pop(arrival, None)
    ledger.redemptions.pop(arrival, None)
    ledger.extra_inside -= ledger.sizes.get(arrival, 1) - 1


def _status(ledger: Ledger, arrival: int) -> int:
    if not 0 < arrival <= len(ledger.register):
        raise Damaged(f"event {ledger.event_id}: arrival {arrival} was never given out")
    return ledger.register.status[arrival]


def _require(ledger: Ledger, arrival: int, status: int, what: str) -> None:
    if _status(ledger, arrival) != status:
        raise Damaged(f"event {ledger.event_id}: arrival {arrival} {what} and was not {STATUSES[status]}")


def _arrivals_of(ledger: Ledger, numbers: Sequence[int]) -> tuple[int, ...]:
    if len(ledger.register.drawn) > 1:
        return tuple(map(ledger.register.arrival_of, numbers))
    return tuple(numbers)


def _announce(ledger: Ledger, arrival: int, status: int) -> None:
    ledger.outbox.announce(PlacesChanged(ledger.event_id, (arrival,), STATUSES[status], ledger.outbox.lsn + 1))


_APPLY: Mapping[type[Record], Callable[[Ledger, Any], None]] = {
    Configured: _configured,
    LobbyOpened: _lobby_opened,
    Opened: _opened,
    Reopened: _open,
    Paused: _paused,
    Resumed: _resumed,
    Closed: _closed,
    Deleted: lambda ledger, record: None,
    Messaged: _messaged,
    Joined: _joined,
    Readmitted: _readmitted,
    Parked: _parked,
    Returned: _returned,
    Released: _released,
    Admitted: _admitted,
    Lapsed: _lapsed,
    Redeemed: _redeemed,
    Extended: _extended,
    Expired: _expired,
    Left: _left,
    Completed: _completed,
    Removed: _removed,
    Banned: _banned,
    Transferred: _transferred,
    Purged: _purged,
}
