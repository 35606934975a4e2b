"""What may be spoken of, by mode and standing; the witness's word is a step of its own."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from server.replication.agreement import CLOSE_RECORDS, Agreement, Standing, Wish

SECOND = 1_000_000_000


def agreement(*, is_sync: bool = True) -> Agreement:
    return Agreement(is_sync, 2 * SECOND)


def in_step(lsn: int = 10) -> Agreement:
    made = agreement()
    made.flushed(lsn, 0)
    made.joined("b", lsn, 0)
    made.answered("b", lsn, 1, 1)
    assert made.wish == Wish("b")
    made.granted(Wish("b"), 2)
    assert made.is_in_step("b")
    return made


def test_without_a_standby_this_disk_is_enough_and_that_is_called_degraded() -> None:
    made = agreement()
    made.flushed(7, 0)
    assert made.committed_lsn == 7
    assert made.is_degraded


def test_async_never_waits_for_anybody_and_is_not_degraded() -> None:
    made = agreement(is_sync=False)
    made.joined("b", 0, 0)
    made.flushed(9, 0)
    made.answered("b", 0, 1, 1)
    assert (made.committed_lsn, made.standing, made.is_degraded) == (9, Standing.ALONE, False)


def test_a_standby_far_behind_is_not_waited_for() -> None:
    made = agreement()
    made.flushed(CLOSE_RECORDS + 2, 0)
    made.joined("b", 0, 0)
    made.answered("b", 1, 1, 1)
    assert made.standing is Standing.ALONE
    made.answered("b", 2, 2, 2)
    assert made.standing is Standing.CATCHING


def test_it_is_named_only_once_it_has_everything_that_was_spoken_of() -> None:
    made = agreement()
    made.flushed(10, 0)
    made.joined("b", 4, 0)
    made.answered("b", 4, 1, 1)
    made.flushed(12, 2)
    assert (made.committed_lsn, made.wish) == (10, None)
    made.answered("b", 9, 3, 3)
    assert made.wish is None
    made.answered("b", 11, 4, 4)
    assert (made.committed_lsn, made.wish, made.is_in_step("b")) == (11, Wish("b"), False)


def test_in_step_nothing_is_spoken_of_that_the_standby_lacks() -> None:
    made = in_step(10)
    made.flushed(15, 2)
    assert made.committed_lsn == 10
    made.answered("b", 13, 3, 3)
    assert made.committed_lsn == 13
    made.answered("b", 20, 4, 4)
    assert made.committed_lsn == 15


def test_a_silent_standby_is_left_only_when_that_is_granted() -> None:
    made = in_step(10)
    made.flushed(15, SECOND)
    made.tick(3 * SECOND)
    assert (made.standing, made.wish, made.committed_lsn) == (Standing.LEAVING, Wish(None), 10)
    made.granted(Wish(None), 4 * SECOND)
    assert (made.standing, made.committed_lsn, made.standby) == (Standing.ALONE, 15, None)


def test_a_standby_that_answers_and_makes_no_progress_is_left_too() -> None:
    made = in_step(10)
    made.flushed(15, SECOND)
    for tenth in range(10, 35):
        made.answered("b", 10, tenth * SECOND // 10, tenth * SECOND // 10)
        made.tick(tenth * SECOND // 10)
    assert made.standing is Standing.LEAVING


def test_an_idle_standby_that_answers_stays_in_step() -> None:
    made = in_step(10)
    for second in range(1, 60):
        made.answered("b", 10, second * SECOND, second * SECOND)
        made.tick(second * SECOND + SECOND)
    assert made.is_in_step("b")


def test_the_line_is_covered_once_the_standby_has_acknowledged_that_it_was_named() -> None:
    made = agreement()
    made.flushed(10, 0)
    made.joined("b", 10, 0)
    made.answered("b", 10, 1, 2)
    assert (made.standing, made.is_covered, made.is_degraded) == (Standing.CATCHING, False, True)
    made.granted(Wish("b"), 5)
    made.answered("b", 10, 5, 8)
    assert (made.is_in_step("b"), made.is_covered, made.is_degraded) == (True, False, True), "sent before it was named"
    made.answered("b", 10, 6, 9)
    assert (made.is_covered, made.is_degraded) == (True, False)
    made.tick(60 * SECOND)
    assert (made.standing, made.is_covered, made.is_degraded) == (Standing.LEAVING, False, True)


def test_a_standby_that_comes_back_covers_the_line_once_it_was_told_anew() -> None:
    made = in_step(10)
    made.answered("b", 10, 3, 4)
    made.left("b")
    assert made.is_covered, "it knows, and may be alive"
    made.joined("b", 10, 20)
    made.answered("c", 10, 21, 22)
    assert (made.is_in_step("b"), made.is_covered) == (True, False)
    made.answered("b", 10, 21, 23)
    assert made.is_covered


def test_a_candidate_that_goes_before_it_was_named_costs_nothing() -> None:
    made = agreement()
    made.flushed(10, 0)
    made.joined("b", 4, 0)
    made.answered("b", 4, 1, 1)
    made.flushed(12, 2)
    made.left("b")
    assert (made.standing, made.committed_lsn) == (Standing.ALONE, 12)


def test_a_candidate_that_goes_while_it_is_being_named_is_left_by_the_witness_too() -> None:
    made = agreement()
    made.flushed(10, 0)
    made.joined("b", 10, 0)
    made.answered("b", 10, 1, 1)
    made.left("b")
    made.flushed(12, 2)
    assert made.committed_lsn == 10, "the witness may name it at any moment"
    made.granted(Wish("b"), 2)
    made.tick(5 * SECOND)
    assert made.wish == Wish(None)


def test_a_standby_that_comes_back_with_a_wiped_disk_is_left() -> None:
    made = in_step(10)
    made.left("b")
    made.joined("b", 0, 0)
    assert (made.is_in_step("b"), made.wish) == (False, Wish(None))


class AgreementMachine(RuleBasedStateMachine):
    """Any order of flushes, answers, losses and grants; a plain model remembers who may take over."""

    @initialize(is_sync=st.booleans())
    def begin(self, is_sync: bool) -> None:
        self.agreement = agreement(is_sync=is_sync)
        self.now_ns = 0
        self.flushed_lsn = self.highest = 0
        self.disks: dict[str, int] = {"b": 0, "c": 0}
        self.named: str | None = None
        self.wiped: set[str] = set()

    @rule(count=st.integers(1, 50))
    def flush(self, count: int) -> None:
        self.flushed_lsn += count
        self.agreement.flushed(self.flushed_lsn, self.now_ns)

    @rule(who=st.sampled_from("bc"))
    def join(self, who: str) -> None:
        self.agreement.joined(who, self.disks[who], self.now_ns)

    @rule(who=st.sampled_from("bc"))
    def leave(self, who: str) -> None:
        self.agreement.left(who)

    @rule(who=st.sampled_from("bc"), part=st.integers(0, 4))
    def answer(self, who: str, part: int) -> None:
        if who in self.agreement.acked:
            self.disks[who] += (self.flushed_lsn - self.disks[who]) * part // 4
            self.agreement.answered(who, self.disks[who], self.now_ns, self.now_ns)

    @rule(who=st.sampled_from("bc"))
    def wipe(self, who: str) -> None:
        """Its disk is lost; whoever the witness names may still be asked, and is not in step."""
        self.agreement.left(who)
        self.disks[who] = 0
        self.wiped.add(who)

    @rule(tenths=st.integers(1, 30))
    def wait(self, tenths: int) -> None:
        self.now_ns += tenths * SECOND // 10
        self.agreement.tick(self.now_ns)

    @precondition(lambda self: self.agreement.wish is not None)
    @rule()
    def grant(self) -> None:
        wish = self.agreement.wish
        assert wish is not None
        self.named = wish.standby
        self.agreement.granted(wish, self.now_ns)

    @invariant()
    def what_was_spoken_of_is_with_whoever_may_take_over(self) -> None:
        committed_lsn = self.agreement.committed_lsn
        assert self.highest <= committed_lsn <= self.flushed_lsn
        self.highest = committed_lsn
        for who in "bc":
            if self.agreement.is_in_step(who) and who in self.agreement.acked:
                assert committed_lsn <= self.disks[who], "whoever is told that it is in step has everything"
        if self.named is not None and self.named not in self.wiped:
            assert committed_lsn <= self.disks[self.named]

    @invariant()
    def a_line_that_is_covered_has_somebody_to_take_over(self) -> None:
        if self.agreement.is_covered:
            assert self.named == self.agreement.standby is not None
        assert self.agreement.is_degraded == (self.agreement.is_sync and not self.agreement.is_covered)

    @invariant()
    def async_waits_for_nobody(self) -> None:
        if not self.agreement.is_sync:
            assert self.agreement.committed_lsn == self.flushed_lsn


TestAgreement = AgreementMachine.TestCase
TestAgreement.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
