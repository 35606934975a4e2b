"""The room: the line and the admission rules of one event, as a pure state machine.

Theory of operation
===================
A room takes a request and the time, decides, and writes *records*: facts with all that is needed to apply
them again. `apply` is the only code that changes state, and it is the same for a record just decided and for
one read back from the log, so replay equals live by construction. The room has no clock (every call is
given `now_ms`), no I/O and no randomness.

What may happen is written in the tables of `engine.transitions`; the code here only builds the records they
name. Everybody in line counts as present.

Statuses: waiting → ready (released) → completed; left from any live status. Ended places never change again
and are kept; whoever joins again gets a new place at the end. Pausing and closing are views of the event:
no visitor is touched, whatever the number of visitors.

Time. Windows and the pacing run in event time, `now − suspended`, which stands still while the event is
paused; `now_ms` itself stands still while no process runs (DESIGN.md). Wall time never comes in here.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import copy
from types import MappingProxyType
from typing import Any

from engine import pacing
from engine.actor import By
from engine.errors import Damaged, Refused
from engine.estimate import Estimator
from engine.line import Line, number_of, order_key
from engine.outbox import Outbox
from engine.records import (
    Closed,
    Completed,
    Configured,
    Deleted,
    Joined,
    Left,
    Messaged,
    Opened,
    Paused,
    Record,
    Released,
    Reopened,
    Resumed,
)
from engine.register import ACTIVE, COMPLETED, LEFT, LIVE, NONE, PARKED, READY, STATUSES, WAITING, Register
from engine.settings import Settings, settings_from
from engine.transitions import EVENT_ACTIONS, FIXED, JOIN_REFUSALS, VISITOR_INPUTS
from engine.views import EventChanged, EventView, Place, PlacesChanged, Ranking, ReleaseResult, Stats

NUMBER_LIMIT = 2**32
REQUESTS_KEPT = 1_000

_LEAVES_LINE = frozenset((WAITING,))
_CELLS_OF_JOIN = tuple(VISITOR_INPUTS["join"][status] for status in STATUSES)


class Room:
    """One event. Calls that decide take `now_ms` last; they raise Refused and then have changed nothing."""

    def __init__(self, event_id: str, outbox: Outbox, estimator: Estimator) -> None:
        self.event_id = event_id
        self.settings = Settings()
        self.state = "draft"
        self.reason: str | None = None
        self.message: str | None = None
        self.outcome: str | None = None
        self.revision = 0
        self.line = Line()
        self.register = Register()
        self.ready_until_ms: dict[int, int] = {}
        self._outbox = outbox
        self._estimator = estimator
        self._suspended_ms = 0
        self._stopped_at_ms: int | None = None
        self._pace_base_ms = 0
        self._last_batch_ms = 0
        self._opened = False
        self._serving_number = 0
        self._released = [0, 0]
        self._waited_ms = 0
        self._released_under: dict[str, int] = {}

    # ---- decide: events -------------------------------------------------------------------------

    def configure(self, changes: Mapping[str, object], by: By, now_ms: int, *, replace: bool = False) -> bool:
        """Merge settings (or replace them all); returns whether anything changed. The first call makes the event."""
        settings = settings_from(changes, None if replace else self.settings)
        before, after = self.settings.as_map(), settings.as_map()
        changed = [name for name in after if after[name] != before[name]]
        fixed = [name for name in changed if FIXED[self.state](name)]
        if fixed:
            detail = f"{', '.join(fixed)} cannot change while the event is {self.state}"
            raise Refused("conflict", detail, reason=self.state)
        if self.state != "draft" and _lowers_rate(self.settings, settings):
            by.require_reason("lower the rate")
        if "opens_at_ms" in changed and self.settings.opens_at_ms is not None:
            by.require_reason("move the opening")
        if changed or not self.revision:
            by.check()
            self._write(Configured(self.event_id, now_ms, after, by.actor, by.reason, by.note))
        return bool(changed)

    def control(self, action: str, by: By, now_ms: int, outcome: str | None = None) -> bool:
        """Open, pause, resume, close or delete; returns False where the table says "="."""
        cell = self._event_cell(action)
        if action in ("pause", "close"):
            by.require_reason(action)
        by.check()
        if cell == "=":
            return False
        self._write(_CONTROL_RECORDS[cell](self, by, now_ms, outcome))
        return True

    def tell(self, text: str, by: By, now_ms: int) -> None:
        """Set the operator's message to everyone in line; an empty text takes it away."""
        self._write(Messaged(self.event_id, now_ms, text, None, by.actor, by.note))

    # ---- decide: releases -----------------------------------------------------------------------

    def next_release_ms(self, now_ms: int) -> int | None:
        """Return in how many ms the next automatic batch is due (0: now), None while none will come."""
        if self.state != "open":
            return None
        return max(0, pacing.next_due_ms(self.settings, self._pace_base_ms) - self.event_time_ms(now_ms))

    def tick(self, now_ms: int) -> int:
        """Return the size of the batch that is due and start the next interval; 0 when none is."""
        if self._event_cell("tick") == "=" or self.next_release_ms(now_ms) != 0:
            return 0
        self._pace_base_ms = self.event_time_ms(now_ms)
        return pacing.automatic(self.settings, self._inside(), len(self.line)).visitors

    def release(self, count: int, by: By, now_ms: int, *, manual: bool) -> ReleaseResult:
        """Release the next `count` in line, at most pacing.SLICE of them: O(count). Checks the cap every time.

        A batch larger than a slice is a series of calls with the same `now_ms`, so that nobody waits long.
        """
        if manual:
            by.check()
        if self._event_cell("release" if manual else "tick") == "=":
            return ReleaseResult(0, 0, None, self._outbox.lsn)
        allowed = pacing.manual(self.settings, self._inside(), len(self.line), min(count, pacing.SLICE))
        if allowed.visitors:
            numbers = [number_of(key) for key in self.line.head(allowed.visitors)]
            until_ms = self.event_time_ms(now_ms) + self.settings.claim_window_s * 1000
            by_whom = (by.actor, by.reason, by.request)
            self._write(Released(self.event_id, now_ms, numbers, until_ms, manual, *by_whom))
        return ReleaseResult(allowed.visitors, 0, allowed.limited_by, self._outbox.lsn)

    def released_under(self, request: str | None) -> int:
        """Return how many were released under an Idempotency-Key before, of the newest REQUESTS_KEPT keys."""
        return self._released_under.get(request, 0) if request is not None else 0

    # ---- decide: visitors -----------------------------------------------------------------------

    def join(self, user_id: str, proof: int, now_ms: int, level: int = 0) -> Place:
        """Give a new place at the end, or answer the place already held; O(log n).

        `proof` is a 64-bit digest of what proves holding the place (0: nothing was offered); the answer's
        `proven` says whether it matched.
        """
        register = self.register
        arrival = register.by_user.get(user_id, 0)
        if _CELLS_OF_JOIN[register.status[arrival]] == "=":
            proven = proof != 0 and register.proofs[arrival] == proof
            if proven:
                register.seen_ms[arrival] = now_ms
            return self.place(arrival, proven=proven)
        self._check_join()
        arrival = len(register) + 1
        key = order_key(arrival, level, self.settings.priority_boost)
        self._write(Joined(self.event_id, now_ms, arrival, key, user_id, proof))
        return self.place(arrival, fresh=True, proven=True)

    def touch(self, arrival: int, user_id: str, now_ms: int) -> None:
        """Note that the holder was heard of; no record."""
        self._held(arrival, user_id)
        self.register.seen_ms[arrival] = now_ms

    def leave(self, arrival: int, user_id: str, now_ms: int) -> None:
        """Give the place up for good; nothing happens where it has ended already."""
        if self._visitor_cell("leave", self._held(arrival, user_id)) == "left":
            self._write(Left(self.event_id, now_ms, arrival))

    def complete(self, user_id: str, outcome: str, actor: str, now_ms: int) -> Place:
        """End a released visitor's stay, freeing the slot; answering the same when it is repeated."""
        arrival = self.register.by_user.get(user_id, 0)
        if not arrival:
            raise Refused("not_found", "nobody of this user_id has a place at this event")
        if self._visitor_cell("complete", arrival) == "completed":
            self._write(Completed(self.event_id, now_ms, arrival, outcome, actor))
        return self.place(arrival, proven=True)

    # ---- answer ---------------------------------------------------------------------------------

    def held_place(self, arrival: int, user_id: str) -> Place:
        """Return the place a token speaks of; Refused("not_found") when there is no such place; O(log n)."""
        return self.place(self._held(arrival, user_id), proven=True)

    def place(self, arrival: int, *, fresh: bool = False, proven: bool = False) -> Place:
        """Return the place of an arrival; O(log n)."""
        register, line = self.register, self.line
        status, key = register.status[arrival], register.keys[arrival]
        position = estimate = None
        if status == WAITING:
            position = (line.rank_of_newest(key) if fresh else line.rank(key)) + 1
            estimate = self._estimator.estimate(position)
            if self.state != "open":
                estimate = estimate._replace(reason=self.state)
        shown = "closed" if self.state == "closed" and status in (WAITING, PARKED) else STATUSES[status]
        return Place(
            self.event_id,
            register.user_ids[arrival],
            shown,
            None,
            arrival,
            number_of(key),
            position,
            len(line),
            estimate,
            self.ready_until_ms.get(arrival) if status == READY else None,
            self.message,
            self.settings.presence_timeout_s,
            self._outbox.lsn,
            fresh,
            proven,
        )

    def order(self, arrival: int) -> int:
        """Return the order key of an arrival; raises Refused("not_found")."""
        if not 0 < arrival <= len(self.register):
            raise Refused("not_found", "there is no such place")
        return self.register.keys[arrival]

    def ranks(self, arrivals: Sequence[int]) -> Ranking:
        """Return positions and waits of arrivals given in line order, 0 for those not waiting (any more).

        One rank and one estimate at each end, and a count in between: waits are interpolated.
        """
        register, line = self.register, self.line
        waiting = [a for a in arrivals if a <= len(register) and register.status[a] == WAITING]
        ranks = line.ranks([register.keys[arrival] for arrival in waiting])
        if len(waiting) == len(arrivals):
            positions = [rank + 1 for rank in ranks]
        else:
            rank_of = dict(zip(waiting, ranks, strict=True))
            positions = [rank_of.get(arrival, -1) + 1 for arrival in arrivals]
        return Ranking(positions, self._waits(positions), self._outbox.lsn)

    def _waits(self, positions: list[int]) -> list[int]:
        first, last = min(positions, default=0), max(positions, default=0)
        low, high = self._estimator.estimate(max(first, 1)).seconds, self._estimator.estimate(max(last, 1)).seconds
        slope = (high - low) / (last - first) if last > first else 0.0
        return [int(low + (position - first) * slope) for position in positions]

    def view(self) -> EventView:
        """Return the event as the public and the operator see it; O(knobs)."""
        return EventView(
            self.event_id,
            self.settings.name,
            self.state,
            self.reason,
            self.message,
            self.outcome,
            len(self.line),
            sum(self._released),
            self._serving_number,
            self._estimator.rate_per_minute(),
            self.settings.as_map(),
            self._outbox.lsn,
            self.revision,
        )

    def stats(self, now_ms: int) -> Stats:
        """Return the counts by status and the pace; O(statuses)."""
        counts = dict(zip(STATUSES[1:], self.register.counts[1:], strict=True))
        released = sum(self._released)
        return Stats(
            self.event_id,
            self.state,
            counts,
            len(self.register),
            self._released[False],
            self._released[True],
            counts["completed"],
            self._estimator.rate_per_minute(),
            self._waited_ms / released / 1000 if released else 0.0,
            self.next_release_ms(now_ms),
            self._outbox.lsn,
        )

    def version(self) -> int:
        """Return the LSN up to which this state has come."""
        return self._outbox.lsn

    def event_time_ms(self, now_ms: int) -> int:
        """Return the time that stands still while the event is paused."""
        return (now_ms if self._stopped_at_ms is None else self._stopped_at_ms) - self._suspended_ms

    # ---- apply: the only code that changes state --------------------------------------------------

    def apply(self, record: Record) -> None:
        """Take in one record of this event; raises Damaged when it cannot follow from the state."""
        _APPLY[type(record)](self, record)

    def started(self, at_ms: int, gap: int) -> None:
        """A process took over: everybody counts as just heard, and a full interval passes before a batch."""
        self.register.skip(gap)
        self.register.hear_everybody(at_ms)
        self._pace_base_ms = self.event_time_ms(at_ms)

    def _configured(self, record: Configured) -> None:
        self.settings = settings_from(record.settings)
        self.revision += 1
        self._outbox.announce(EventChanged(self.event_id, self._outbox.lsn + 1))

    def _changed(self, state: str, record: Opened | Paused | Resumed | Closed | Reopened) -> None:
        self.state = state
        self.reason = record.reason if isinstance(record, Paused | Closed) else None
        self._outbox.announce(EventChanged(self.event_id, self._outbox.lsn + 1))

    def _opened_now(self, record: Opened | Reopened) -> None:
        self._changed("open", record)
        self.outcome = None
        self._opened = True
        self._pace_base_ms = self._last_batch_ms = self.event_time_ms(record.at_ms)
        self.register.hear_everybody(record.at_ms)

    def _paused(self, record: Paused) -> None:
        self._changed("paused", record)
        self._stopped_at_ms = record.at_ms

    def _resume_time(self, at_ms: int) -> None:
        if self._stopped_at_ms is not None:
            self._suspended_ms += at_ms - self._stopped_at_ms
            self._stopped_at_ms = None

    def _resumed(self, record: Resumed) -> None:
        self._resume_time(record.at_ms)
        self._changed("open", record)

    def _closed(self, record: Closed) -> None:
        self._resume_time(record.at_ms)
        self._changed("closed", record)
        self.outcome = record.outcome

    def _messaged(self, record: Messaged) -> None:
        self.message = record.text or None
        self.reason = record.reason or self.reason
        self._outbox.announce(EventChanged(self.event_id, self._outbox.lsn + 1))

    def _joined(self, record: Joined) -> None:
        if record.arrival <= len(self.register):
            raise Damaged(f"event {self.event_id}: arrival {record.arrival} was given out before")
        self.register.add(record.user_id, record.key, WAITING, record.proof, record.at_ms)
        self.line.add(record.key)

    def _released_now(self, record: Released) -> None:
        numbers, register = record.numbers, self.register
        arrivals = tuple(numbers)
        if [number_of(key) for key in self.line.head(len(numbers))] != list(numbers):
            raise Damaged(f"event {self.event_id}: released numbers {list(numbers[:5])}… are not the head of the line")
        self.line.drop_head(len(numbers))
        for arrival in arrivals:
            register.move(arrival, READY)
            self.ready_until_ms[arrival] = record.until_ms
            self._waited_ms += record.at_ms - register.joined_ms[arrival]
        self._released[record.manual] += len(numbers)
        self._serving_number = max(self._serving_number, *numbers)
        if record.request is not None:
            self._count_request(record.request, len(numbers))
        if not record.manual:
            tick_ms = self.event_time_ms(record.at_ms)
            self._estimator.observe(len(numbers), tick_ms - self._last_batch_ms)
            self._pace_base_ms = self._last_batch_ms = tick_ms
        self._outbox.announce(PlacesChanged(self.event_id, arrivals, "ready", self._outbox.lsn + 1))

    def _count_request(self, request: str, released: int) -> None:
        counts = self._released_under
        counts[request] = counts.pop(request, 0) + released
        if len(counts) > REQUESTS_KEPT:
            del counts[next(iter(counts))]

    def _end(self, arrival: int, status: int) -> None:
        if not 0 < arrival <= len(self.register) or self.register.status[arrival] not in LIVE:
            raise Damaged(f"event {self.event_id}: arrival {arrival} holds no place that could end")
        if self.register.status[arrival] in _LEAVES_LINE:
            self.line.remove(self.register.keys[arrival])
        self.ready_until_ms.pop(arrival, None)
        self.register.move(arrival, status)
        self._outbox.announce(PlacesChanged(self.event_id, (arrival,), STATUSES[status], self._outbox.lsn + 1))

    def _left(self, record: Left) -> None:
        self._end(record.arrival, LEFT)

    def _completed(self, record: Completed) -> None:
        self._end(record.arrival, COMPLETED)

    # ---- dump and load ----------------------------------------------------------------------------

    def capture(self) -> Iterator[object]:
        """Return the whole state as of now in parts, to be read later and elsewhere; the call itself is short."""
        facts = {name: copy(getattr(self, name)) for name in _DUMPED}
        facts |= {"settings": self.settings.as_map(), "estimator": self._estimator.dump()}
        facts |= {"released": list(self._released), "digest": self.register.digest(), "rows": len(self.register)}
        until = list(self.ready_until_ms.items())
        rows = self.register.capture()
        return _parts(facts, until, rows)

    def load(self, facts: Mapping[str, Any], parts: Iterable[Sequence[Any]], now_ms: int) -> None:
        """Take up a captured state; raises Damaged when rows and digest disagree."""
        for name in _DUMPED:
            setattr(self, name, facts[name])
        self.settings = settings_from(facts["settings"])
        self._estimator.load(facts["estimator"])
        self._released = list(facts["released"])
        for what, body in parts:
            if what == "until":
                self.ready_until_ms.update(body)
            else:
                self.register.load(body)
        self.register.settle(now_ms)
        self.line = Line(self.register.keys_with(WAITING))
        if (len(self.register), self.register.digest()) != (facts["rows"], facts["digest"]):
            raise Damaged(f"event {self.event_id}: the snapshot's rows do not add up to its digest")

    def check(self) -> None:
        """Assert every invariant of the room; O(n), for tests and `stanchion verify`."""
        self.line.check()
        self.register.check()
        assert len(self.line) == self.register.counts[WAITING], "line and register count differently"
        assert all(key in self.line for key in self.register.keys_with(WAITING)), "somebody waiting is not in line"
        assert set(self.ready_until_ms) == {a for a, s in enumerate(self.register.status) if s == READY}
        for user_id, arrival in self.register.by_user.items():
            assert self.register.user_ids[arrival] == user_id

    # ---- small parts ------------------------------------------------------------------------------

    def _write(self, record: Record) -> None:
        _APPLY[type(record)](self, record)
        self._outbox.write(record)

    def _inside(self) -> int:
        return self.register.counts[READY] + self.register.counts[ACTIVE]

    def _event_cell(self, action: str) -> str:
        cell = EVENT_ACTIONS[action][self.state]
        if cell.startswith("!"):
            reason = cell[2:].partition(":")[0]
            raise Refused("conflict", f"cannot {action} an event that is {self.state}", reason=reason)
        if cell == "deleted" and self._inside():
            raise Refused("conflict", f"{self._inside()} released visitors are still inside", reason="not_empty")
        return "opened" if cell == "reopened" and not self._opened else cell

    def _visitor_cell(self, what: str, arrival: int) -> str:
        status = STATUSES[self.register.status[arrival]]
        cell = VISITOR_INPUTS[what][status]
        if cell.startswith("!"):
            raise Refused("not_active", f"cannot {what}: this place is {status}", reason=cell[2:])
        return cell

    def _held(self, arrival: int, user_id: str) -> int:
        """Return `arrival` when that row belongs to this visitor; the same 404 for not there and not theirs."""
        register = self.register
        known = 0 < arrival <= len(register) and register.status[arrival] != NONE
        if not known or register.user_ids[arrival] != user_id:
            raise Refused("not_found", "there is no such place")
        return arrival

    def _check_join(self) -> None:
        refusal = JOIN_REFUSALS.get(self.state)
        if refusal:
            raise Refused(refusal[0], refusal[1], reason=self.state)
        settings = self.settings
        if settings.queueing == "reject":
            raise Refused("rejecting", "this event takes nobody new", retry_after_s=30)
        counts = self.register.counts
        if settings.max_waiting is not None and counts[WAITING] + counts[PARKED] >= settings.max_waiting:
            raise Refused("queue_full", "the line is full", retry_after_s=30)
        if len(self.register) + 1 >= NUMBER_LIMIT:
            raise Refused("queue_full", "this event has given out all its numbers")


def _parts(facts: Mapping[str, object], until: list[tuple[int, int]], rows: Iterator[object]) -> Iterator[object]:
    yield ["room", facts]
    for first in range(0, len(until), 4_000):
        yield ["until", until[first : first + 4_000]]
    for body in rows:
        yield ["rows", body]


def _lowers_rate(before: Settings, after: Settings) -> bool:
    return after.batch_size * before.batch_interval_s < before.batch_size * after.batch_interval_s


_DUMPED = (
    "event_id",
    "state",
    "reason",
    "message",
    "outcome",
    "revision",
    "_suspended_ms",
    "_stopped_at_ms",
    "_last_batch_ms",
    "_opened",
    "_serving_number",
    "_waited_ms",
    "_released_under",
)

_CONTROL_RECORDS: Mapping[str, Callable[[Room, By, int, str | None], Record]] = MappingProxyType(
    {
        "opened": lambda room, by, now, _: Opened(room.event_id, now, "", 0, by.actor),
        "reopened": lambda room, by, now, _: Reopened(room.event_id, now, by.actor, by.note),
        "paused": lambda room, by, now, _: Paused(room.event_id, now, by.actor, by.reason or "", by.note),
        "messaged": lambda room, by, now, _: Messaged(
            room.event_id, now, room.message or "", by.reason, by.actor, by.note
        ),
        "resumed": lambda room, by, now, _: Resumed(room.event_id, now, by.actor, by.note),
        "closed": lambda room, by, now, out: Closed(room.event_id, now, by.actor, by.reason or "", out, by.note),
        "deleted": lambda room, by, now, _: Deleted(room.event_id, now, by.actor, by.note),
    }
)

_APPLY: Mapping[type[Record], Callable[[Room, Any], None]] = {
    Configured: Room._configured,
    Opened: Room._opened_now,
    Reopened: Room._opened_now,
    Paused: Room._paused,
    Resumed: Room._resumed,
    Closed: Room._closed,
    Deleted: lambda room, record: None,
    Messaged: Room._messaged,
    Joined: Room._joined,
    Released: Room._released_now,
    Left: Room._left,
    Completed: Room._completed,
}
