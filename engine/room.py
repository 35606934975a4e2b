"""The room: the line and the admission rules of one event, as a pure state machine.

Theory of operation
===================
A room takes a request and the time, decides, and writes *records*: facts with all that is needed to apply
them again. `engine.applying` is the only code that changes state, and it is the same for a record just decided and
for one read back from the log, so replay equals live by construction. The room has no clock (every call is
given `now_ms`), no I/O and no randomness.

What may happen is written in the tables of `engine.transitions`. The code here only has the records written that
they name, with what `joining`, `releasing`, `steering` and `windows` know of each; `engine.answering` says what has
become of it.

The way of a visitor: lobby → waiting → ready (released, holds a pass) → active (the pass was redeemed) → completed.
Who is absent when a release reaches them is *parked*: out of the line, so nobody waits for them, and back at their
own place, the head, once they are heard of again. A turn that is not claimed parks once and expires the second
time. Ended places never change again and are kept; whoever joins again gets a new place at the end. Pausing and
closing are views of the event: no visitor is touched, whatever the number of visitors.

Time. Windows and the pacing run in event time, `now − suspended`, which stands still while the event is
paused; `now_ms` itself stands still while no process runs (DESIGN.md). Wall time never comes in here, except as
something to remember for an answer.
"""

from collections.abc import Iterable, Mapping
from typing import NoReturn

from msgspec.structs import replace

from engine import answering, applying, joining, pacing, releasing, steering, windows
from engine.actor import By, Entrant, Holder, Whom
from engine.deadlines import Deadlines
from engine.errors import Refused
from engine.estimate import Estimator
from engine.identities import subject_of
from engine.ledger import Ledger
from engine.outbox import Outbox
from engine.records import (
    Admitted,
    Banned,
    Completed,
    Configured,
    Joined,
    Left,
    Messaged,
    Readmitted,
    Record,
    Removed,
    Returned,
    Transferred,
)
from engine.register import LIVE, NONE, STATUSES
from engine.settings import settings_from
from engine.transitions import EVENT_ACTIONS, VISITOR_INPUTS
from engine.views import Place, ReleaseResult, Session

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
        steering.check_change(ledger, settings, changed, by)
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
        particulars = steering.Particulars(outcome, draw_id, secret, beacon)
        record = steering.record_of(cell, self.ledger, by, now_ms, particulars)
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
        return pacing.automatic(ledger.settings, ledger.inside(), len(ledger.line) + ledger.undrawn()).visitors

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
        if not manual:
            count = releasing.rest_of_batch(ledger, count, now_ms)
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
        cell = self._event_cell("admit")
        ledger.draw_all()
        arrival = self.find(whom)
        if self._visitor_cell("admit", arrival) == cell:
            if ledger.sizes.get(arrival, 1) > pacing.free_slots(ledger.settings, ledger.inside()):
                raise Refused("at_capacity", "the event is full", reason="capacity")
            until_ms = releasing.claim_until_ms(ledger, now_ms)
            self._write(Admitted(self.event_id, now_ms, arrival, until_ms, by.actor, by.reason or "", by.note))
        return self._answer(arrival, now_ms)

    def expire(self, now_ms: int, limit: int = pacing.SLICE) -> bool:
        """End what has run out, at most `limit` of it; returns whether there is more."""
        for _ in range(limit):
            record = windows.next_end(self.ledger, now_ms)
            if record is None:
                return False
            self._write(record)
        return True

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
        joining.check_join(ledger, entrant)
        user_id, proof, level, size = entrant.user_id, entrant.proof, entrant.level, entrant.size
        arrival, is_enqueued = len(register.user_ids), entrant.word == "enqueue"
        key = joining.key_at_joining(ledger.state, arrival, level, ledger.settings.priority_boost)
        self._write(Joined(self.event_id, now_ms, arrival, key, user_id, proof, level, size, is_enqueued))
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

    def heard(self, arrivals: Iterable[int], now_ms: int, *, visible: bool) -> None:
        """Note that many were heard of, by their tokens' holders; who holds no place any more is passed over."""
        count = len(self.ledger.register)
        for arrival in arrivals:
            if 0 < arrival <= count:
                self._hear(arrival, now_ms, visible=visible)

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
        if self._visitor_cell("extend_claim", arrival) == "extended":
            self._extend(arrival, self.ledger.claims, self.ledger.settings.claim_window_s, "visitor", now_ms)
        return self._answer(arrival, now_ms)

    def transfer(self, holder: Holder, proof: int, now_ms: int) -> Place:
        """Make whoever shows the transfer code the holder; older tokens only read from now on.

        Showing the same code with the same proof again is answered the same.
        """
        ledger, arrival = self.ledger, self._held(holder)
        generation = ledger.generations.get(arrival, 0)
        if holder.generation == generation - 1 and proof != 0 and ledger.register.proofs[arrival] == proof:
            return self.touch(replace(holder, generation=generation), now_ms)
        if holder.generation != generation:
            raise Refused("gone", "this code was used already", reason="used")
        if self._visitor_cell("transfer", arrival).startswith("transferred"):
            self._write(Transferred(self.event_id, now_ms, arrival, generation + 1, proof, False))
        return self.touch(replace(holder, generation=generation + 1), now_ms)

    def readmit(self, holder: Holder, epoch: int, issued_ms: int, now_ms: int) -> Place:
        """Take up a place that may have been lost with the tail of the log, on the word of its token.

        Only where its epoch may have been cut, its arrival lies in the gap that was left, it was issued before the gap
        was made, and the identity holds no other place; otherwise it is gone.
        """
        ledger, arrival, user_id = self.ledger, holder.arrival, holder.user_id
        register = ledger.register
        gaps = [gap for gap in ledger.gaps if gap.first <= arrival <= gap.last]
        if not gaps:
            raise Refused("not_found", "there is no such place")
        is_lost = any(epoch < gap.epoch and issued_ms <= gap.wall_ms for gap in gaps)
        held = register.by_user.get(user_id, 0)
        if not is_lost or register.status[arrival] != NONE or register.status[held] in LIVE:
            raise Refused("gone", "this place is not there any more", reason="lost")
        joining.check_may_be_here(ledger, user_id)
        key = joining.key_at_joining(ledger.state, arrival, 0, 0)
        self._write(Readmitted(self.event_id, now_ms, arrival, key, user_id, holder.generation))
        return self._answer(arrival, now_ms)

    def remove(self, whom: Whom, by: By, now_ms: int, *, ban: bool = False) -> Place:
        """Take a place away, for a reason; with `ban` the identity may not join again, even if the place had ended."""
        by.require_reason("remove somebody")
        by.check()
        if self.ledger.state == "draft":
            raise Refused("not_found", "nobody has a place at this event yet")
        arrival = self.find(whom)
        user_id = self.ledger.register.user_ids[arrival]
        why = (by.actor, by.reason or "", by.note)
        if ban and user_id not in self.ledger.banned:
            self._write(Banned(self.event_id, now_ms, user_id, *why))
        if self._visitor_cell("remove", arrival) == "removed":
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
        arrival = ledger.register.arrival_of(number) if 0 < number < joining.NUMBER_LIMIT else 0
        if not arrival or (subject is not None and subject != self._subject(arrival)):
            raise Refused("pass_expired", "nobody here holds this pass", reason="unknown")
        if release != ledger.register.releases(arrival):
            raise Refused("pass_expired", "this pass was not used in time", reason="lapsed")
        cell = self._visitor_cell("redeem", arrival)
        if cell == "redeemed":
            self._write(windows.redemption(ledger, arrival, jti, request, actor, wall_ms, now_ms))
        elif request is None or ledger.redemptions[arrival].request != request:
            raise Refused("pass_used", "this pass was redeemed already", reason="active")
        session = answering.session(ledger, arrival, now_ms)
        assert session is not None, "a redeem begins a session"
        return session

    def _subject(self, arrival: int) -> str:
        return subject_of(self.event_id, self.ledger.register.user_ids[arrival])

    def extend_session(self, whom: Whom, actor: str, now_ms: int) -> Session:
        """Give an active visitor another session TTL from now on, within session_max_s of the redeem."""
        arrival = self.find(whom)
        if self._visitor_cell("extend_session", arrival) == "extended":
            self._extend(arrival, self.ledger.sessions, self.ledger.settings.session_ttl_s, actor, now_ms)
        session = answering.session(self.ledger, arrival, now_ms)
        assert session is not None, "what was extended runs"
        return session

    def _extend(self, arrival: int, deadlines: Deadlines, length_s: int, actor: str, now_ms: int) -> None:
        record = windows.extension(self.ledger, arrival, deadlines, length_s, actor, now_ms)
        if record is not None:
            self._write(record)

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
        applying.apply(self.ledger, record)
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


def _refuse(cell: str, detail: str) -> NoReturn:
    """Raise what a cell of the tables says: "! code reason"."""
    _, code, reason = cell.split()
    raise Refused(code, detail, reason=reason)
