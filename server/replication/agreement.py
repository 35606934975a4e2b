"""What may be spoken of: how far the log is as safe as the mode promises. Pure: no clock, no network, no disk.

In `async` and `single` that is how far this disk is. In `sync` it is how far this disk *and* that of the standby in
step are, and going on without a standby is a step of its own:

    ALONE     answers wait for this disk only. A standby that is nearly up to date becomes the candidate.
    CATCHING  answers wait for both. Once everything that was spoken of is on the candidate's disk, it is to be
              named: the witness, where there is one, writes down who it is.
    IN_STEP   the standby is told that nothing more is spoken of without it. Only now may it ever take over. Once it
              has acknowledged that word the line is covered: a primary that ends from here on has a successor.
    LEAVING   the standby made no progress for `standby_timeout_s`. With a witness the primary has to win the
              right to go on alone, against the standby, which may want to take over at this moment; until that is
              decided answers go on waiting.

`wish` is what the witness is to be asked for; without one it is granted at once. The standby keeps its promise not
to take over for `lease_s` after each Ship it answered, so `contact_ns` is as good as a lease (RELIABILITY.md).
"""

from dataclasses import dataclass, field
from enum import Enum

CLOSE_RECORDS = 5_000


class Standing(Enum):
    """How the primary stands with its standby."""

    ALONE = "alone"
    CATCHING = "catching"
    IN_STEP = "in step"
    LEAVING = "leaving"


@dataclass(frozen=True, slots=True)
class Wish:
    """The witness is to write down that this standby is in step, or (None) that there is none."""

    standby: str | None


@dataclass(slots=True)
class Agreement:
    """The state of one primary. Times are nanoseconds of one monotonic clock.

    `committed_lsn` never falls. `acked` holds what is on the disk of each standby that is connected.
    """

    is_sync: bool
    standby_timeout_ns: int
    committed_lsn: int = 0
    flushed_lsn: int = 0
    standing: Standing = Standing.ALONE
    standby: str | None = None
    contact_ns: int = 0
    wish: Wish | None = None
    acked: dict[str, int] = field(default_factory=dict)
    _progress_ns: int = 0
    _told_from_ns: int = 0
    _is_told: bool = False

    # ---- what happens -------------------------------------------------------------------------------

    def flushed(self, lsn: int, now_ns: int) -> None:
        """This disk holds everything up to `lsn`."""
        if self.standby is not None and self.flushed_lsn <= self.acked.get(self.standby, -1):
            self._progress_ns = now_ns
        self.flushed_lsn = lsn
        self._advance()

    def joined(self, follower: str, lsn: int, now_ns: int) -> None:
        """A standby is connected and holds everything up to `lsn`.

        It may have been started anew, so it has to be told again that it is in step. If it was, and comes back with
        less than was spoken of, its disk is not the one that acknowledged: it must not take over any more.
        """
        self.acked[follower] = lsn
        if follower == self.standby:
            self._tell_from(now_ns)
        if follower == self.standby and lsn < self.committed_lsn and self.standing is Standing.IN_STEP:
            self.standing, self.wish = Standing.LEAVING, Wish(None)

    def left(self, follower: str) -> None:
        """A standby's link is gone; if it was in step, it has until the timeout to come back."""
        self.acked.pop(follower, None)
        if self.standing is Standing.CATCHING and self.standby == follower and self.wish is None:
            self._go_alone()

    def answered(self, follower: str, lsn: int, sent_ns: int, now_ns: int) -> None:
        """A standby has everything up to `lsn` on its disk, and has seen the Ship that was sent at `sent_ns`."""
        before = self.acked.get(follower)
        if before is None:
            return
        self.acked[follower] = max(lsn, before)
        if follower == self.standby:
            self.contact_ns = max(self.contact_ns, sent_ns)
            self._is_told = self._is_told or sent_ns > self._told_from_ns
            if lsn > before or lsn >= self.flushed_lsn:
                self._progress_ns = now_ns
        elif self.is_sync and self.standing is Standing.ALONE and self.flushed_lsn - lsn <= CLOSE_RECORDS:
            self.standing, self.standby = Standing.CATCHING, follower
            self._progress_ns = self.contact_ns = now_ns
        self._advance()

    def tick(self, now_ns: int) -> None:
        """Notice that the standby has been silent, or without progress, for too long."""
        quiet_ns = now_ns - min(self.contact_ns, self._progress_ns if self._is_behind() else now_ns)
        if self.standby is None or quiet_ns <= self.standby_timeout_ns:
            return
        if self.standing is Standing.CATCHING and self.wish is None:
            self._go_alone()
        elif self.standing is not Standing.LEAVING and self.wish is None:
            self.standing, self.wish = Standing.LEAVING, Wish(None)

    def granted(self, wish: Wish, now_ns: int) -> None:
        """What was wished for is written down."""
        assert wish == self.wish, "only what is wished for can be granted"
        self.wish = None
        if wish.standby is None:
            self._go_alone()
        else:
            self.standing = Standing.IN_STEP
            self._tell_from(now_ns)
            self._advance()

    # ---- what it comes to ---------------------------------------------------------------------------

    @property
    def is_covered(self) -> bool:
        """Whether a standby is in step and knows it, so that it takes over where this primary ends."""
        return self.standing is Standing.IN_STEP and self._is_told

    @property
    def is_degraded(self) -> bool:
        """Whether the mode wants a standby that could take over and there is none."""
        return self.is_sync and not self.is_covered

    def is_in_step(self, follower: str) -> bool:
        """Whether a standby may be told that nothing is spoken of without it."""
        return self.standing is Standing.IN_STEP and follower == self.standby

    def _tell_from(self, now_ns: int) -> None:
        """What is sent from now on tells the standby that it is in step; nothing earlier did."""
        self._told_from_ns, self._is_told = now_ns, False

    def _is_behind(self) -> bool:
        return self.standby is not None and self.acked.get(self.standby, -1) < self.flushed_lsn

    def _advance(self) -> None:
        if self.standing is Standing.ALONE:
            self.committed_lsn = max(self.committed_lsn, self.flushed_lsn)
            return
        assert self.standby is not None
        acked = self.acked.get(self.standby, 0)
        if self.standing is Standing.CATCHING and self.wish is None and acked >= self.committed_lsn:
            self.wish = Wish(self.standby)
        self.committed_lsn = max(self.committed_lsn, min(self.flushed_lsn, acked))

    def _go_alone(self) -> None:
        self.standing, self.standby, self.wish = Standing.ALONE, None, None
        self._advance()
