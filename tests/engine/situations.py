"""One visitor, u1 (number 1), brought to each status of the table, by the way that real visitors take."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from engine.actor import Holder
from engine.room import Room
from engine.views import Place
from tests.engine.rooms import OPERATOR, WHY, RecordingVenue, holder, join, redeem, room_in, run_out, seen, whom

START_MS = 1_000_000
SETTINGS: Mapping[str, object] = {
    "presence_timeout_s": 20,
    "presence_timeout_hidden_s": 40,
    "claim_window_s": 60,
    "claim_max_s": 600,
    "session_ttl_s": 100,
    "session_max_s": 400,
    "grace_s": 300,
}


@dataclass
class Situation:
    """u1's place in event e1, and what time it is."""

    room: Room
    venue: RecordingVenue
    now_ms: int = START_MS

    @property
    def place(self) -> Place:
        """u1's place now."""
        return seen(self.room, 1, self.now_ms)

    @property
    def holder(self) -> Holder:
        """Whoever shows u1's newest token."""
        return holder(self.place)

    def wait(self, seconds: float) -> None:
        """Let time pass while somebody else is heard all the time, so that silence is u1's own."""
        until_ms = self.now_ms + int(seconds * 1000)
        while self.now_ms < until_ms:
            self.now_ms = min(until_ms, self.now_ms + 10_000)
            self.room.touch(Holder(2, "other"), self.now_ms)

    def run_out(self) -> None:
        """End all that has run out."""
        run_out(self.room, self.now_ms)

    def release(self, count: int = 1) -> None:
        """Let the next in."""
        self.room.release(count, OPERATOR, self.now_ms, manual=True)

    def hear(self) -> None:
        """Hear of u1."""
        self.room.touch(self.holder, self.now_ms)


def waiting(settings: Mapping[str, object] | None = None) -> Situation:
    """u1 waits at the head, and another behind."""
    room, venue = room_in("open", {**SETTINGS, **(settings or {})})
    join(room, "u1", START_MS, 11)
    join(room, "other", START_MS)
    return Situation(room, venue)


def in_lobby() -> Situation:
    """u1 is in the lobby, and another."""
    room, venue = room_in("lobby", SETTINGS)
    join(room, "u1", START_MS, 11)
    join(room, "other", START_MS)
    return Situation(room, venue)


def parked() -> Situation:
    """u1 went quiet and was stepped over."""
    situation = waiting()
    situation.wait(50)
    situation.release()
    return situation


def ready(settings: Mapping[str, object] | None = None) -> Situation:
    """u1's turn has come."""
    situation = waiting(settings)
    situation.release()
    return situation


def lapsed() -> Situation:
    """u1's first turn went by unclaimed: parked, having been let in once."""
    situation = ready()
    situation.wait(70)
    situation.run_out()
    return situation


def returned_after_lapse() -> Situation:
    """u1 waits again after a turn that went by."""
    situation = lapsed()
    situation.hear()
    return situation


def ready_again() -> Situation:
    """u1's second turn has come."""
    situation = returned_after_lapse()
    situation.release()
    return situation


def active() -> Situation:
    """u1's pass was redeemed."""
    situation = ready()
    redeem(situation.room, 1, situation.now_ms)
    return situation


def completed() -> Situation:
    """u1 was done without redeeming."""
    situation = ready()
    situation.room.complete(whom(situation.place), "completed", "site", situation.now_ms)
    return situation


def unclaimed() -> Situation:
    """u1's second turn went by, too."""
    situation = ready_again()
    situation.wait(70)
    situation.run_out()
    return situation


def session_over() -> Situation:
    """u1's session ran out."""
    situation = active()
    situation.wait(110)
    situation.run_out()
    return situation


def left() -> Situation:
    """u1 left when the turn had come."""
    situation = ready()
    situation.room.leave(situation.holder, situation.now_ms)
    return situation


def removed() -> Situation:
    """u1 was taken out when the turn had come."""
    situation = ready()
    situation.room.remove(whom(situation.place), WHY, situation.now_ms)
    return situation


AT: Mapping[str, Callable[[], Situation]] = {
    "lobby": in_lobby,
    "waiting": waiting,
    "parked": parked,
    "ready": ready,
    "active": active,
    "completed": completed,
    "expired": unclaimed,
    "left": left,
    "removed": removed,
}
