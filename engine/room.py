"""The room: the line and the admission rules of one event, as a pure state machine.

Theory of operation
===================
A room takes a request and the time, decides, and writes *records*: facts with all that is needed to apply
them again. `Ledger.apply` is the only code that changes state, and it is the same for a record just decided and
for one read back from the log, so replay equals live by construction. The room has no clock (every call is
given `now_ms`), no I/O and no randomness.

What may happen is written in the tables of `engine.transitions`; the code here only builds the records they
name, and `engine.answering` says what has become of it.

The way of a visitor: lobby → waiting → ready (released, holds a pass) → active (the pass was redeemed) → completed.
Who is absent when a release reaches them is *parked*: out of the line, so nobody waits for them, and back at their
own place, the head, once they are heard of again. A turn that is not claimed parks once and expires the second
time. Ended places never change again and are kept; whoever joins again gets a new place at the end. Pausing and
closing are views of the event: no visitor is touched, whatever the number of visitors.

Time. Windows and the pacing run in event time, `now − suspended`, which stands still while the event is
paused; `now_ms` itself stands still while no process runs (DESIGN.md). Wall time never comes in here, except as
something to remember for an answer.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple, NoReturn

from engine import answering, pacing, releasing
from engine.actor import By, Entrant, Holder, Whom
from engine.deadlines import Deadlines
from engine.draw import commitment_of
from engine.errors import Refused
from engine.estimate import Estimator
from engine.identities import subject_of
from engine.ledger import Ledger, key_at_joining
from engine.outbox import Outbox
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
    Paused,
    Purged,
    Readmitted,
    Record,
    Redeemed,
    Removed,
    Reopened,
    Resumed,
    Returned,
    Transferred,
)
from engine.register import LIVE, LOBBY, NONE, STATUSES
from engine.settings import Settings, settings_from
from engine.transitions import EVENT_ACTIONS, FIXED, JOIN_REFUSALS, VISITOR_INPUTS
from engine.views import Place, ReleaseResult, Session

NUMBER_LIMIT = 2**32
CLAIM_LEEWAY_MS = 5_000
LOBBY_AFTER_START_MS = 60_000
SCHEDULE = "schedule"
ASSUMED = "assumed"

_CELLS_OF_JOIN = tuple(VISITOR_INPUTS["join"][status] for status in STATUSES)
_CELLS_OF_TOUCH = tuple(
    tuple(VISITOR_INPUTS[what].get(status, "=") for status in STATUSES) for what in ("touch_hidden", "touch")
)


class Room:
    """One event. Calls that decide take `now_ms` last; they raise Refused and then have changed nothing."""

    def __init__(self, event_id: str, outbox: Outbox, estimator: Estimator) -> None:
        self.event_id = event_id
        self.ledger = Ledger(event_id, outbox, estimator)
        self._outbox = outbox

    # ---- decide: events -------------------------------------------------------------------------

    def configure(self, changes: Mapping[str, object], by: By, now_ms: int, *, replace: bool = False) -> bool:
        """Merge settings (or replace them all); returns whether anything changed. The first call makes the event."""
        ledger = self.ledger
        settings = settings_from(changes, None if replace else ledger.settings)
        before, after = ledger.settings.as_map(), settings.as_map()
        changed = [name for name in after if after[name] != before[name]]
        fixed = [name for name in changed if FIXED[ledger.state](name)]
        if fixed:
            detail = f"{', '.join(fixed)} cannot change while the event is {ledger.state}"
            raise Refused("conflict", detail, reason=ledger.state)
        if ledger.state != "draft" and _lowers_rate(ledger.settings, settings):
            by.require_reason("lower the rate")
        if "opens_at_ms" in changed and ledger.settings.opens_at_ms is not None:
            by.require_reason("move the opening")
        if changed or not ledger.revision:
            by.check()
            ledger.draw_all()
            self._write(Configured(self.event_id, now_ms, after, by.actor, by.reason, by.note))
        return bool(changed)

    def control(
        self,
        action: str,
        by: By,
        now_ms: int,
        *,
        outcome: str | None = None,
        draw_id: str = "",
        secret: bytes = b"",
        beacon: str | None = None,
    ) -> bool:
        """Open the lobby or the event, pause, resume, close or delete; returns False where the table says "=".

        `secret` is that of the lobby's draw; `beacon` is the name of a public value when the lobby opens, and that
        value when the event does.
        """
        cell = self._event_cell(action)
        if action in ("pause", "close"):
            by.require_reason(action)
        by.check()
        if cell == "=":
            return False
        self.ledger.draw_all()
        record = _CONTROL_RECORDS[cell](self, by, now_ms, Particulars(outcome, draw_id, secret, beacon))
        if record is not None:
            self._write(record)
        return record is not None

    def tell(self, text: str, by: By, now_ms: int) -> None:
        """Set the operator's message to everyone in line; an empty text takes it away."""
        self._write(Messaged(self.event_id, now_ms, text, None, by.actor, by.note))

    # ---- decide: releases -----------------------------------------------------------------------

    def tick(self, now_ms: int) -> int:
        """Return the size of the batch that is due and start the next interval; 0 when none is."""
        ledger = self.ledger
        if self._event_cell("tick") == "=" or answering.next_release_ms(ledger, now_ms) != 0:
            return 0
        ledger.pace_base_ms = ledger.event_time_ms(now_ms)
        return pacing.automatic(ledger.settings, ledger.inside(), len(ledger.line)).visitors

    def release(self, count: int, by: By, now_ms: int, *, manual: bool) -> ReleaseResult:
        """Release the next `count` in line who are present, as far as one slice goes. Checks the cap every time.

        Where `more` is set the caller comes again for the rest, with the same `now_ms`, so that nobody waits long.
        """
        if manual:
            by.check()
        ledger = self.ledger
        if self._event_cell("release" if manual else "tick") == "=":
            return ReleaseResult(0, 0, None, False, self._outbox.lsn)
        ledger.draw_all()
        chosen = releasing.choose(ledger, min(count, pacing.SLICE))
        for record in releasing.records_of(ledger, chosen, by, now_ms, manual=manual):
            self._write(record)
        released = len(chosen.present)
        more = chosen.more or (released == pacing.SLICE and released < count)
        return ReleaseResult(
            released, len(chosen.absent), chosen.limited_by if not more else None, more, self._outbox.lsn
        )

    def released_under(self, request: str | None) -> int:
        """Return how many were released under an Idempotency-Key before, of the newest keys that are kept."""
        return self.ledger.released_under.get(request, 0) if request is not None else 0

    def admit(self, whom: Whom, by: By, now_ms: int) -> Place:
        """Let one visitor in ahead of the others: outside the rate, inside the cap."""
        by.require_reason("admit somebody")
        by.check()
        ledger = self.ledger
        if self._event_cell("admit") == "=":
            raise AssertionError("admitting always does something or is refused")
        ledger.draw_all()
        arrival = self.find(whom)
        if self._visitor_cell("admit", arrival) == "admitted":
            if ledger.sizes.get(arrival, 1) > pacing.free_slots(ledger.settings, ledger.inside()):
                raise Refused("at_capacity", "the event is full", reason="capacity")
            until_ms = releasing.claim_until_ms(ledger, now_ms)
            self._write(Admitted(self.event_id, now_ms, arrival, until_ms, by.actor, by.reason or "", by.note))
        return self._answer(arrival, now_ms)

    def expire(self, now_ms: int, limit: int = pacing.SLICE) -> bool:
        """End what has run out, at most `limit` of it; returns whether there is more."""
        for _ in range(limit):
            record = self._next_end(now_ms)
            if record is None:
                return False
            self._write(record)
        return True

    def _next_end(self, now_ms: int) -> Record | None:
        ledger, cell = self.ledger, EVENT_ACTIONS["windows"][self.ledger.state]
        if cell == "=":
            return None
        event_ms = ledger.event_time_ms(now_ms)
        for kind, (deadlines_of, leeway_ms, input_of) in _WINDOWS.items():
            if cell == "inside" and kind == "grace":
                continue
            arrival = deadlines_of(ledger).due(event_ms - leeway_ms)
            if arrival is not None:
                what = VISITOR_INPUTS[input_of(ledger, arrival)][STATUSES[ledger.register.status[arrival]]]
                return _END_RECORDS[what](self, arrival, now_ms)
        return self._purge_if_due(now_ms)

    def _purge_if_due(self, now_ms: int) -> Record | None:
        ledger = self.ledger
        if ledger.state != "closed" or ledger.inside() or ledger.register.counts[NONE] == len(ledger.register):
            return None
        closed_for_ms = ledger.event_time_ms(now_ms) - ledger.closed_at_ms
        is_over = closed_for_ms >= ledger.settings.retention_s * 1000
        return Purged(self.event_id, now_ms) if is_over else None

    # ---- decide: visitors -----------------------------------------------------------------------

    def join(self, entrant: Entrant, now_ms: int) -> Place:
        """Give a new place at the end, or answer the place already held; O(log n).

        The answer's `proven` says whether what the entrant showed proves holding it; then it is a touch as well.
        """
        ledger = self.ledger
        register = ledger.register
        arrival = register.by_user.get(entrant.user_id, 0)
        if _CELLS_OF_JOIN[register.status[arrival]] == "=":
            return self._join_again(arrival, entrant, now_ms)
        self._check_join(entrant)
        settings = ledger.settings
        arrival = len(register) + 1
        key = key_at_joining(ledger.state, arrival, entrant.level, settings.priority_boost)
        what = (entrant.proof, entrant.level, entrant.size, entrant.word == "enqueue")
        self._write(Joined(self.event_id, now_ms, arrival, key, entrant.user_id, *what))
        return answering.place(ledger, arrival, now_ms, fresh=True, proven=True)

    def _join_again(self, arrival: int, entrant: Entrant, now_ms: int) -> Place:
        """Answer a place that is held; a word of the shop takes it over, unless it is an old one."""
        ledger, proof = self.ledger, entrant.proof
        proven = proof != 0 and ledger.register.proofs[arrival] == proof
        takes_over = entrant.word == "site" or (entrant.word == "enqueue" and proof not in ledger.spent)
        if takes_over and not proven:
            generation = ledger.generations.get(arrival, 0) + 1
            self._write(Transferred(self.event_id, now_ms, arrival, generation, proof, entrant.word == "enqueue"))
            proven = True
        if proven:
            self._hear(arrival, now_ms, visible=True)
        return answering.place(ledger, arrival, now_ms, proven=proven)

    def touch(self, holder: Holder, now_ms: int, *, visible: bool = True) -> Place:
        """Note that the holder was heard of and answer the place; brings somebody parked back to their own place.

        A token from before a transfer only reads: the answer is not `proven`.
        """
        arrival = self._held(holder)
        is_holder = holder.generation >= self.ledger.generations.get(arrival, 0)
        if is_holder:
            self._hear(arrival, now_ms, visible=visible)
        return answering.place(self.ledger, arrival, now_ms, proven=is_holder)

    def _hear(self, arrival: int, now_ms: int, *, visible: bool) -> None:
        ledger = self.ledger
        cell = _CELLS_OF_TOUCH[visible][ledger.register.status[arrival]]
        if cell != "=":
            ledger.presence.hear(arrival, now_ms, ledger.settings, visible=visible)
        if cell == "returned":
            self._write(Returned(self.event_id, now_ms, arrival))

    def held_place(self, holder: Holder, now_ms: int) -> Place:
        """Return the place a token speaks of; Refused("not_found") when there is no such place; O(log n)."""
        arrival = self._held(holder)
        is_holder = holder.generation >= self.ledger.generations.get(arrival, 0)
        return answering.place(self.ledger, arrival, now_ms, proven=is_holder)

    def leave(self, holder: Holder, now_ms: int) -> None:
        """Give the place up for good; nothing happens where it has ended already."""
        arrival = self._held_for_writing(holder)
        if self._visitor_cell("leave", arrival) == "left":
            self._write(Left(self.event_id, now_ms, arrival))

    def extend_claim(self, holder: Holder, now_ms: int) -> Place:
        """Give a ready visitor another claim window from now on, within claim_max_s of being released."""
        arrival = self._held_for_writing(holder)
        self._visitor_cell("extend_claim", arrival)
        self._extend(arrival, self.ledger.claims, self.ledger.settings.claim_window_s, "visitor", now_ms)
        return self._answer(arrival, now_ms)

    def transfer(self, holder: Holder, proof: int, now_ms: int) -> Place:
        """Make whoever shows the transfer code the holder; older tokens only read from now on.

        Showing the same code with the same proof again is answered the same.
        """
        ledger, arrival = self.ledger, self._held(holder)
        generation = ledger.generations.get(arrival, 0)
        if holder.generation == generation - 1 and proof != 0 and ledger.register.proofs[arrival] == proof:
            return self.touch(holder._replace(generation=generation), now_ms)
        if holder.generation != generation:
            raise Refused("gone", "this code was used already", reason="used")
        if self._visitor_cell("transfer", arrival):
            self._write(Transferred(self.event_id, now_ms, arrival, generation + 1, proof, False))
        return self.touch(holder._replace(generation=generation + 1), now_ms)

    def readmit(self, holder: Holder, epoch: int, issued_ms: int, now_ms: int) -> Place:
        """Take up a place that may have been lost with the tail of the log, on the word of its token.

        Only where its epoch may have been cut, its arrival lies in the gap that was left, it was issued before the gap
        was made, and the identity holds no other place; otherwise it is gone.
        """
        ledger, arrival, user_id = self.ledger, holder.arrival, holder.user_id
        register = ledger.register
        is_lost = any(
            gap.first <= arrival <= gap.last and epoch < gap.epoch and issued_ms <= gap.wall_ms for gap in ledger.gaps
        )
        held = register.by_user.get(user_id, 0)
        if not is_lost or register.status[arrival] != NONE or register.status[held] in LIVE:
            raise Refused("gone", "this place is not there any more", reason="lost")
        self._check_open(user_id)
        key = key_at_joining(ledger.state, arrival, 0, 0)
        self._write(Readmitted(self.event_id, now_ms, arrival, key, user_id))
        return self._answer(arrival, now_ms)

    def remove(self, whom: Whom, by: By, now_ms: int, *, ban: bool = False) -> Place:
        """Take a place away, for a reason; with `ban` the identity may not join again, with or without a place."""
        by.require_reason("remove somebody")
        by.check()
        if self.ledger.state == "draft":
            raise Refused("not_found", "nobody has a place at this event yet")
        arrival = self.find(whom)
        user_id = self.ledger.register.user_ids[arrival]
        why = (by.actor, by.reason or "", by.note)
        if ban and user_id not in self.ledger.banned:
            self._write(Banned(self.event_id, now_ms, user_id, *why))
        self._visitor_cell("remove", arrival)
        self._write(Removed(self.event_id, now_ms, arrival, *why))
        return self._answer(arrival, now_ms)

    # ---- decide: the site -------------------------------------------------------------------------

    def redeem(
        self,
        number: int,
        release: int,
        subject: str | None,
        jti: str,
        request: str | None,
        actor: str,
        wall_ms: int,
        now_ms: int,
    ) -> Session:
        """Redeem the pass of a number's `release` (1 or 2): once; the same `request` is answered the same again."""
        ledger = self.ledger
        arrival = ledger.register.arrival_of(number) if 0 < number < NUMBER_LIMIT else 0
        if not arrival or (subject is not None and subject != self._subject(arrival)):
            raise Refused("pass_expired", "nobody here holds this pass", reason="unknown")
        if release != ledger.register.releases(arrival):
            raise Refused("pass_expired", "this pass was not used in time", reason="lapsed")
        cell = self._visitor_cell("redeem", arrival)
        if cell == "redeemed":
            self._write(self._redemption(arrival, jti, request, actor, wall_ms, now_ms))
        elif request is None or ledger.redemptions[arrival].request != request:
            raise Refused("pass_used", "this pass was redeemed already", reason="active")
        session = answering.session(ledger, arrival, now_ms)
        assert session is not None, "a redeem begins a session"
        return session

    def _subject(self, arrival: int) -> str:
        return subject_of(self.event_id, self.ledger.register.user_ids[arrival])

    def _redemption(
        self, arrival: int, jti: str, request: str | None, actor: str, wall_ms: int, now_ms: int
    ) -> Redeemed:
        settings, event_ms = self.ledger.settings, self.ledger.event_time_ms(now_ms)
        limit_ms = event_ms + settings.session_max_s * 1000
        until_ms = event_ms + settings.session_ttl_s * 1000
        assumed = actor == ASSUMED
        return Redeemed(self.event_id, now_ms, arrival, jti, request, wall_ms, until_ms, limit_ms, assumed, actor)

    def extend_session(self, whom: Whom, actor: str, now_ms: int) -> Session:
        """Give an active visitor another session TTL from now on, within session_max_s of the redeem."""
        arrival = self.find(whom)
        self._visitor_cell("extend_session", arrival)
        self._extend(arrival, self.ledger.sessions, self.ledger.settings.session_ttl_s, actor, now_ms)
        session = answering.session(self.ledger, arrival, now_ms)
        assert session is not None, "what was extended runs"
        return session

    def _extend(self, arrival: int, deadlines: Deadlines, length_s: int, actor: str, now_ms: int) -> None:
        ledger = self.ledger
        until_ms = min(ledger.event_time_ms(now_ms) + length_s * 1000, ledger.limits_ms[arrival])
        if until_ms > deadlines.at_ms[arrival]:
            self._write(Extended(self.event_id, now_ms, arrival, until_ms, actor))

    def complete(self, whom: Whom, outcome: str, actor: str, now_ms: int) -> Place:
        """End a released visitor's stay, freeing the slot; answering the same when it is repeated."""
        arrival = self.find(whom)
        cell = self._visitor_cell("complete", arrival)
        late = cell == "late"
        if late and answering.cause(self.ledger, arrival) != "session":
            raise Refused("not_active", "cannot complete: this place has expired", reason="ended")
        if cell != "=":
            self._write(Completed(self.event_id, now_ms, arrival, outcome, late, actor))
        return self._answer(arrival, now_ms)

    # ---- small parts ------------------------------------------------------------------------------

    def find(self, whom: Whom) -> int:
        """Return the arrival somebody means; Refused("not_found")."""
        register = self.ledger.register
        if whom.user_id is not None:
            arrival = register.by_user.get(whom.user_id, 0)
        elif whom.number is not None:
            arrival = register.arrival_of(whom.number)
        else:
            arrival = whom.arrival or 0
        if not 0 < arrival <= len(register) or register.status[arrival] == NONE:
            raise Refused("not_found", "nobody of this description has a place at this event")
        return arrival

    def _answer(self, arrival: int, now_ms: int) -> Place:
        return answering.place(self.ledger, arrival, now_ms, proven=True)

    def _write(self, record: Record) -> None:
        self.ledger.apply(record)
        self._outbox.write(record)

    def _event_cell(self, action: str) -> str:
        ledger = self.ledger
        cell = EVENT_ACTIONS[action][ledger.state]
        if cell.startswith("!"):
            _refuse(cell, f"cannot {action} an event that is {ledger.state}")
        if cell == "deleted" and ledger.inside():
            raise Refused("conflict", f"{ledger.inside()} released visitors are still inside", reason="not_empty")
        return "opened" if cell == "reopened" and not ledger.opened else cell

    def _visitor_cell(self, what: str, arrival: int) -> str:
        ledger = self.ledger
        status = STATUSES[ledger.register.status[arrival]]
        cell = VISITOR_INPUTS[what][status]
        if cell.startswith("!"):
            if what == "redeem" and answering.was_redeemed(ledger, arrival):
                cell = "! pass_used ended"
            _refuse(cell, f"cannot {what.replace('_', ' ')}: this place is {status}")
        return cell

    def _held(self, holder: Holder) -> int:
        """Return the arrival when that row belongs to this visitor; the same 404 for not there and not theirs."""
        register, arrival = self.ledger.register, holder.arrival
        known = 0 < arrival <= len(register) and register.status[arrival] != NONE
        if not known or register.user_ids[arrival] != holder.user_id:
            raise Refused("not_found", "there is no such place")
        return arrival

    def _held_for_writing(self, holder: Holder) -> int:
        arrival = self._held(holder)
        if holder.generation < self.ledger.generations.get(arrival, 0):
            raise Refused("read_only", "this place has moved to another device; this token only reads")
        return arrival

    def _check_join(self, entrant: Entrant) -> None:
        ledger, settings = self.ledger, self.ledger.settings
        self._check_open(entrant.user_id)
        if entrant.word == "enqueue" and entrant.proof in ledger.spent:
            raise Refused("enqueue_token_used", "this enqueue token has made its place already", reason="used")
        if settings.join_policy == "signed" and entrant.word == "visitor":
            raise Refused(
                "bad_enqueue_token", "this event is joined with an enqueue token of the shop", field="enqueue_token"
            )
        if settings.queueing == "reject":
            raise Refused("rejecting", "this event takes nobody new", retry_after_s=30)
        if settings.max_waiting is not None and ledger.queued() >= settings.max_waiting:
            raise Refused("queue_full", "the line is full", retry_after_s=30)
        if len(ledger.register) + 1 >= NUMBER_LIMIT:
            raise Refused("queue_full", "this event has given out all its numbers")
        if entrant.size > 1 and entrant.size > pacing.free_slots(settings, 0):
            raise Refused(
                "at_capacity", f"a group of {entrant.size} could never enter together", reason="group_too_large"
            )

    def _check_open(self, user_id: str) -> None:
        refusal = JOIN_REFUSALS.get(self.ledger.state)
        if refusal:
            raise Refused(refusal[0], refusal[1], reason=self.ledger.state)
        if user_id in self.ledger.banned:
            raise Refused("banned", "this visitor may not join this event")


class Particulars(NamedTuple):
    """What some actions need to be told beside who acts and why."""

    outcome: str | None
    draw_id: str
    secret: bytes
    beacon: str | None


def _refuse(cell: str, detail: str) -> NoReturn:
    """Raise what a cell of the tables says: "! code reason"."""
    _, code, reason = cell.split()
    raise Refused(code, detail, reason=reason)


def _lowers_rate(before: Settings, after: Settings) -> bool:
    return after.batch_size * before.batch_interval_s < before.batch_size * after.batch_interval_s


def _lobby_opened(room: Room, by: By, now_ms: int, what: Particulars) -> LobbyOpened:
    if not room.ledger.settings.lobby:
        raise Refused("conflict", "this event has no lobby; set lobby to true first", reason="no_lobby")
    commitment = commitment_of(what.secret)
    return LobbyOpened(room.event_id, now_ms, what.draw_id, commitment, what.beacon, by.actor, by.note)


def _opened(room: Room, by: By, now_ms: int, what: Particulars) -> Opened:
    ledger = room.ledger
    if ledger.draw is None:
        return Opened(room.event_id, now_ms, "", None, 0, by.actor)
    if by.actor == SCHEDULE and now_ms - ledger.started_ms < LOBBY_AFTER_START_MS:
        raise Refused("conflict", "the server started less than a minute ago", reason="just_started")
    if commitment_of(what.secret) != ledger.draw.commitment:
        raise Refused("conflict", "the draw key is not the one this lobby was bound with", reason="draw_key")
    if ledger.draw.beacon is not None and not what.beacon:
        raise Refused("bad_request", f"beacon: the value of {ledger.draw.beacon} is required to open", field="beacon")
    beacon = what.beacon if ledger.draw.beacon is not None else None
    count = ledger.register.counts[LOBBY]
    return Opened(room.event_id, now_ms, what.secret.hex(), beacon, count, by.actor)


def _held(room: Room, by: By, now_ms: int, what: Particulars) -> Configured | None:
    """Pausing a lobby holds its opening back until somebody opens it or sets a time again."""
    settings = room.ledger.settings
    if settings.opens_at_ms is None:
        return None
    held = settings.as_map() | {"opens_at_ms": None}
    return Configured(room.event_id, now_ms, held, by.actor, by.reason, by.note)


# Record to write for an action → how to build it.
_CONTROL_RECORDS: Mapping[str, Callable[[Room, By, int, Particulars], Record | None]] = MappingProxyType(
    {
        "lobbyopened": _lobby_opened,
        "opened": _opened,
        "held": _held,
        "reopened": lambda room, by, now, _: Reopened(room.event_id, now, by.actor, by.note),
        "paused": lambda room, by, now, _: Paused(room.event_id, now, by.actor, by.reason or "", by.note),
        "messaged": lambda room, by, now, _: Messaged(
            room.event_id, now, room.ledger.message or "", by.reason, by.actor, by.note
        ),
        "resumed": lambda room, by, now, _: Resumed(room.event_id, now, by.actor, by.note),
        "closed": lambda room, by, now, what: Closed(
            room.event_id, now, by.actor, by.reason or "", what.outcome, by.note
        ),
        "deleted": lambda room, by, now, _: Deleted(room.event_id, now, by.actor, by.note),
    }
)


def _input_when_claim_is_over(ledger: Ledger, arrival: int) -> str:
    if ledger.settings.redemption == "offline":
        return "claim_over_offline"
    return "claim_over_first" if ledger.register.releases(arrival) == 1 else "claim_over_again"


# Each window: where its deadlines are, how much later it ends than said, and what happens to whom it ends for.
_WINDOWS: Mapping[str, tuple[Callable[[Ledger], Deadlines], int, Callable[[Ledger, int], str]]] = MappingProxyType(
    {
        "claim": (lambda ledger: ledger.claims, CLAIM_LEEWAY_MS, _input_when_claim_is_over),
        "session": (lambda ledger: ledger.sessions, 0, lambda ledger, arrival: "session_over"),
        "grace": (lambda ledger: ledger.graces, 0, lambda ledger, arrival: "grace_over"),
    }
)

_END_RECORDS: Mapping[str, Callable[[Room, int, int], Record]] = MappingProxyType(
    {
        "lapsed": lambda room, arrival, now: Lapsed(room.event_id, now, arrival),
        "expired absent": lambda room, arrival, now: Expired(room.event_id, now, arrival, "absent"),
        "expired unclaimed": lambda room, arrival, now: Expired(room.event_id, now, arrival, "unclaimed"),
        "expired session": lambda room, arrival, now: Expired(room.event_id, now, arrival, "session"),
        "redeemed": lambda room, arrival, now: room._redemption(arrival, "", None, ASSUMED, 0, now),
    }
)
