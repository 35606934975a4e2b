"""Any history at all: the room against a model made of plain lists, with restarts at any commit.

Every input of docs/states.md may come at any moment, and time likes to stop one ms before, at, and one ms after
anything that is about to be over. `room_pair` gives each input to both and compares them; `room_judge` reads the
records of the whole history in the end and judges the promises from them alone.
"""

from collections.abc import Callable
from unittest.mock import patch

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from engine import pacing
from engine import venue as venues
from engine.actor import By
from tests.engine.room_model import Row
from tests.engine.room_pair import OPS, SMALL_GAP, Pair
from tests.engine.room_walks import edges

USERS = [f"u{index}" for index in range(7)]
SMALL: dict[str, object] = {
    "batch_size": 2,
    "batch_interval_s": 10,
    "max_active": 3,
    "max_waiting": 6,
    "session_ttl_s": 20,
    "session_max_s": 50,
    "claim_window_s": 12,
    "claim_max_s": 30,
    "presence_timeout_s": 16,
    "presence_timeout_hidden_s": 40,
    "grace_s": 25,
    "exit_grace_s": 12,
    "priority_boost": 2,
    "retention_s": 90,
}
PROFILES: dict[str, dict[str, object]] = {
    "plain": {},
    "margin": {"max_active": 4, "safety_margin": 1, "batch_size": 3, "admissions_left": 3},
    "lobby": {"lobby": True, "opens_at_ms": 500_000},
    "beacon": {"lobby": True, "max_waiting": None},
    "passthrough": {"queueing": "passthrough"},
    "reject": {"queueing": "reject"},
    "signed": {"join_policy": "signed", "max_active": 5, "batch_size": 3},
    "signed lobby": {"join_policy": "signed", "lobby": True, "max_active": 5, "batch_size": 3},
    "offline": {"redemption": "offline"},
    "no cap": {"max_active": None, "max_waiting": None, "grace_s": 0},
}
WITH_LOBBY = ("lobby", "beacon", "signed lobby")
NOBODY = By("ops")

anybody = st.sampled_from(USERS)
proofs = st.integers(0, 2)
older = st.sampled_from([0, 0, 0, 0, 1])
requests = st.sampled_from([None, "r1", "r2"])
operators = st.sampled_from([OPS, OPS, OPS, NOBODY])


class RoomMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.patches = [patch.object(venues, "RENUMBER_GAP", SMALL_GAP), patch.object(pacing, "SLICE", 1_000)]
        for its in self.patches:
            its.start()
        self.pair = Pair(**SMALL)
        self.profile = "plain"

    @initialize(
        profile=st.sampled_from(sorted(PROFILES)),
        slice_size=st.sampled_from([1, 2, 1_000]),
        begun=st.integers(0, 4),
    )
    def an_event_of_some_kind(self, profile: str, slice_size: int, begun: int) -> None:
        """Begin a draft, an open event or a lobby, one with a crowd, one with some let in, one with some inside."""
        pacing.SLICE = slice_size
        self.profile = profile
        self.pair = Pair(**SMALL | PROFILES[profile])
        if begun > 0:
            self._begin()
        if begun > 1:
            self.a_crowd_joins()
        if begun > 2:
            self.pair.open(OPS, "42")
            self.pair.release(2)
        if begun > 3:
            self.everybody_ready_redeems()

    def _begin(self) -> None:
        if self.profile in WITH_LOBBY:
            self.pair.lobby("noon" if self.profile == "beacon" else None)
        elif self.profile == "reject":
            self.pair.configure(queueing="fifo")
            self.pair.open()
        else:
            self.pair.open()

    def _row(self, data: st.DataObject) -> Row | None:
        """Return any place there ever was, the newer ones more often."""
        rows = self.pair.model.rows
        return rows[data.draw(st.integers(0, len(rows) - 1))] if rows else None

    def _newest(self, user_id: str) -> Row | None:
        return self.pair.model.newest(user_id)

    # ---- time -------------------------------------------------------------------------------------

    @rule(ms=st.integers(1, 30_000))
    def time_passes(self, ms: int) -> None:
        self.pair.wait(ms)

    @rule(data=st.data(), then=st.sampled_from(["expire", "tick", "nothing"]))
    def time_passes_to_an_edge(self, data: st.DataObject, then: str) -> None:
        waits = edges(self.pair)
        if waits:
            self.pair.wait(data.draw(st.sampled_from(waits)))
        if then == "expire":
            self.pair.expire()
        elif then == "tick":
            self.pair.tick()

    @rule(times=st.integers(1, 4), off_ms=st.sampled_from([-1, 0, 1]))
    def one_thing_after_the_other_runs_out(self, times: int, off_ms: int) -> None:
        """Go from one window to the next to end, a ms short of it, at it, or a ms late."""
        for _ in range(times):
            waits = edges(self.pair, windows_only=True)
            self.pair.wait(waits[0] + 1 + off_ms if waits else 0)
            self.pair.expire()
            self.pair.check()

    @rule()
    def what_has_run_out_ends(self) -> None:
        self.pair.expire()

    @rule()
    def the_pacer_ticks(self) -> None:
        self.pair.tick()

    @rule()
    def a_batch_is_due(self) -> None:
        self.pair.wait(self.pair.model.event.next_release_ms(self.pair.now_ms) or 0)
        self.pair.tick()

    @rule(data=st.data(), what=st.sampled_from(["leave", "touch", "join", "cap", "batch", "pause", "close", "wait"]))
    def something_happens_between_two_slices(self, data: st.DataObject, what: str) -> None:
        between: dict[str, Callable[[], None]] = {
            "leave": lambda: self.somebody_leaves(data.draw(anybody), 0),
            "touch": lambda: self.somebody_is_heard_of(data.draw(anybody), True, 0),
            "join": lambda: self.somebody_joins(data.draw(anybody), 1),
            "cap": lambda: self.an_operator_changes_the_cap(data.draw(st.integers(2, 6))),
            "batch": lambda: self.pair.configure(batch_size=data.draw(st.integers(1, 3))),
            "pause": self.pair.pause,
            "close": self.pair.close,
            "wait": lambda: self.time_passes(data.draw(st.integers(1, 50))),
        }
        self.pair.wait(self.pair.model.event.next_release_ms(self.pair.now_ms) or 0)
        self.pair.tick(between[what])

    # ---- visitors ---------------------------------------------------------------------------------

    @rule()
    def a_crowd_joins(self) -> None:
        for number, user_id in enumerate(USERS[:5]):
            self.somebody_joins(user_id, number % 3)

    @rule(user_id=anybody, proof=proofs)
    def somebody_joins(self, user_id: str, proof: int) -> None:
        if self.profile.startswith("signed"):
            self.somebody_joins_with_a_token(user_id, proof)
        else:
            self.pair.join(user_id, proof)

    @rule(user_id=anybody, token=st.integers(0, 3))
    def somebody_joins_with_a_token(self, user_id: str, token: int) -> None:
        self.pair.join(
            user_id, 100 + 10 * USERS.index(user_id) + token, level=token, size=1 + token // 2, word="enqueue"
        )

    @rule(data=st.data(), proof=proofs, word=st.sampled_from(["site", "visitor", "enqueue"]))
    def somebody_known_joins_again(self, data: st.DataObject, proof: int, word: str) -> None:
        row = self._row(data)
        user_id = row.user_id if row is not None else data.draw(anybody)
        if word == "enqueue":
            self.somebody_joins_with_a_token(user_id, proof)
        else:
            self.pair.join(user_id, proof, word=word)

    @rule(user_id=anybody, visible=st.sampled_from([True, True, False]), older=older)
    def somebody_is_heard_of(self, user_id: str, visible: bool, older: int) -> None:
        if self._newest(user_id) is not None:
            self.pair.touch(user_id, visible=visible, older=older)

    @rule(user_ids=st.lists(anybody, min_size=1, max_size=3, unique=True), ms=st.sampled_from([7_000, 8_000, 8_001]))
    def only_some_are_heard_of_for_a_while(self, user_ids: list[str], ms: int) -> None:
        for _ in range(3):
            self.pair.wait(ms)
            for user_id in user_ids:
                self.somebody_is_heard_of(user_id, True, 0)

    @rule(data=st.data(), older=older)
    def somebody_shows_an_old_place(self, data: st.DataObject, older: int) -> None:
        row = self._row(data)
        if row is not None:
            self.pair.touch(row, older=older)
            self.pair.look(row, older=older)

    @rule(user_id=anybody, older=older)
    def somebody_leaves(self, user_id: str, older: int) -> None:
        if self._newest(user_id) is not None:
            self.pair.leave(user_id, older=older)

    @rule(data=st.data(), older=older)
    def somebody_asks_for_more_time_to_claim(self, data: st.DataObject, older: int) -> None:
        row = self._row(data)
        if row is not None:
            self.pair.extend_claim(row, older=older)

    @rule(data=st.data(), proof=proofs, older=older, again=st.booleans())
    def somebody_moves_to_another_device(self, data: st.DataObject, proof: int, older: int, again: bool) -> None:
        row = self._row(data)
        if row is not None:
            self.pair.transfer(row, proof, older=older)
            if again:
                self.pair.transfer(row, proof, older=1)

    @precondition(lambda self: self.pair.model.gaps)
    @rule(data=st.data())
    def somebody_shows_a_token_of_a_lost_place(self, data: st.DataObject) -> None:
        known = {(row.arrival, row.user_id) for row in self.pair.model.rows}
        lost = [its for its in self.pair.issued if (its.holder.arrival, its.holder.user_id) not in known]
        if lost:
            self.pair.readmit(data.draw(st.sampled_from(lost)))

    # ---- the site and the operator ----------------------------------------------------------------

    @rule(data=st.data(), request=requests, release=st.sampled_from([0, 0, 0, 1, 2]))
    def a_pass_is_shown(self, data: st.DataObject, request: str | None, release: int) -> None:
        row = self._row(data)
        if row is not None and row.number is not None and not row.drawn_late:
            self.pair.redeem(row.number, release or max(1, row.releases), request)

    @rule(data=st.data())
    def a_pass_of_nobody_is_shown(self, data: st.DataObject) -> None:
        self.pair.redeem(data.draw(st.sampled_from([9_999, 1, 2])), 1, "r9", user_id="somebody else")

    @rule(request=requests)
    def everybody_ready_redeems(self, request: str | None = "r1") -> None:
        for row in self.pair.model.rows:
            if row.status == "ready" and row.number is not None:
                self.pair.redeem(row.number, row.releases, request)

    @rule(user_id=anybody)
    def the_site_asks_for_more_time(self, user_id: str) -> None:
        self.pair.extend_session(user_id)

    @rule(data=st.data(), by_number=st.booleans())
    def the_site_completes_somebody(self, data: st.DataObject, by_number: bool) -> None:
        row = self._row(data)
        if row is not None:
            meant = row.number if by_number and not row.drawn_late else row.user_id
            self.pair.complete(row.user_id if meant is None else meant)

    @rule(data=st.data(), by=operators)
    def an_operator_lets_somebody_in(self, data: st.DataObject, by: By) -> None:
        row = self._row(data)
        if row is not None:
            self.pair.admit(row, by)

    @rule(data=st.data(), by=operators, ban=st.sampled_from([True, False, False]))
    def an_operator_removes_somebody(self, data: st.DataObject, by: By, ban: bool) -> None:
        row = self._row(data)
        if row is not None:
            self.pair.remove(row, by, ban=ban)

    @rule(count=st.integers(1, 7))
    def an_operator_releases(self, count: int) -> None:
        self.pair.release(count)

    @rule(cap=st.integers(2, 6), batch=st.integers(1, 4), by=operators)
    def an_operator_changes_the_pace(self, cap: int, batch: int, by: By) -> None:
        self.pair.configure(by, batch_size=batch)
        if self.pair.model.settings.max_active is not None:
            self.pair.configure(by, max_active=cap)

    @rule(cap=st.integers(2, 6))
    def an_operator_changes_the_cap(self, cap: int) -> None:
        if self.pair.model.settings.max_active is not None:
            self.pair.configure(max_active=cap)

    @rule(ms=st.sampled_from([400_000, 600_000]), by=operators)
    def an_operator_moves_the_opening(self, ms: int, by: By) -> None:
        self.pair.configure(by, opens_at_ms=ms)

    @rule(
        action=st.sampled_from(["open", "open", "resume", "resume", "pause", "close", "lobby"]),
        by=st.sampled_from([OPS, OPS, NOBODY, By("schedule", "it is time")]),
    )
    def an_operator_acts(self, action: str, by: By) -> None:
        pair = self.pair
        if action == "open":
            pair.open(by, "42" if by is not NOBODY and self.profile == "beacon" else None)
        elif action == "lobby":
            pair.lobby("noon" if self.profile == "beacon" else None)
        elif action == "resume":
            pair.resume()
        elif action == "pause":
            pair.pause(by)
        else:
            pair.close(by, "sold out")

    @rule(ms=st.integers(1, 60_000))
    def the_event_is_paused_for_a_while(self, ms: int) -> None:
        self.pair.pause()
        self.pair.wait(ms)
        self.pair.expire()
        self.pair.resume()

    @rule(text=st.sampled_from(["", "soon"]))
    def an_operator_tells_everybody_something(self, text: str) -> None:
        self.pair.tell(text)

    @rule()
    def an_operator_deletes_the_event(self) -> None:
        self.pair.delete(SMALL | PROFILES[self.profile])

    @precondition(lambda self: self.pair.model.event.state == "closed")
    @rule()
    def a_closed_event_is_forgotten(self) -> None:
        for _ in range(3):
            self.pair.wait(50_000)
            self.pair.expire()

    # ---- log, draws, crashes ----------------------------------------------------------------------

    @rule(limit=st.integers(1, 6))
    def some_of_a_draw_is_written(self, limit: int) -> None:
        self.pair.draw_step(limit)

    @rule()
    def a_commit(self) -> None:
        self.pair.commit()

    @rule()
    def a_snapshot_is_taken(self) -> None:
        self.pair.capture()

    @rule()
    def the_process_is_killed_and_starts_again(self) -> None:
        self.pair.crash()

    @rule(data=st.data())
    def a_part_of_the_history_is_lost(self, data: st.DataObject) -> None:
        self.pair.crash(data.draw(st.integers(-min(4, len(self.pair.commits)), -1)), lost=True)

    @invariant()
    def room_and_model_are_the_same(self) -> None:
        self.pair.check()

    def teardown(self) -> None:
        try:
            self.pair.finish()
        finally:
            for its in reversed(self.patches):
                its.stop()


TestRoomMachine = pytest.mark.slow(pytest.mark.timeout(600)(RoomMachine.TestCase))
TestRoomMachine.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
