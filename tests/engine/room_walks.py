"""Walks: short fixed histories, one for each cell of the tables, given to a room and its model side by side.

A walk brings u1 to a status, the event to a phase, applies an input twice, and then lets time pass to the edges of
whatever runs, so that what the input changed unseen comes to light.
"""

from collections.abc import Callable, Iterator

from engine.actor import By
from engine.records import Released
from tests.engine.room_model import LEEWAY_MS
from tests.engine.room_pair import Pair

SETTINGS: dict[str, object] = {
    "batch_size": 2,
    "batch_interval_s": 10,
    "max_active": 4,
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
NOBODY = By("ops")
Step = Callable[[Pair], None]


def opened(**knobs: object) -> Pair:
    """Return an open event."""
    pair = Pair(**SETTINGS | knobs)
    pair.open()
    return pair


def in_lobby(beacon: str | None = None, **knobs: object) -> Pair:
    """Return an event in its lobby."""
    pair = Pair(**SETTINGS | {"lobby": True} | knobs)
    pair.lobby(beacon)
    return pair


# ---- statuses: what brings u1 there --------------------------------------------------------------------


def nowhere() -> Pair:
    pair = opened()
    pair.join("u2", 2)
    return pair


def waiting() -> Pair:
    pair = opened()
    for number in (1, 2, 3):
        pair.join(f"u{number}", number)
    return pair


def lobby() -> Pair:
    pair = in_lobby()
    for number in (1, 2, 3):
        pair.join(f"u{number}", number)
    return pair


def drawing() -> Pair:
    pair = lobby()
    pair.open()
    pair.draw_step(4)
    return pair


def absent(pair: Pair) -> None:
    """Let u1 and u3 be silent for too long, while u2 is heard."""
    for _ in range(3):
        pair.wait(8_000)
        pair.touch("u2")


def gone_quiet() -> Pair:
    pair = waiting()
    absent(pair)
    return pair


def parked() -> Pair:
    pair = gone_quiet()
    pair.release(1)
    return pair


def ready() -> Pair:
    pair = waiting()
    pair.release(1)
    return pair


def lapsed() -> Pair:
    pair = ready()
    pair.wait(17_000)
    pair.expire()
    return pair


def ready_again() -> Pair:
    pair = lapsed()
    pair.touch("u1")
    pair.release(1)
    return pair


def active() -> Pair:
    pair = ready()
    pair.redeem(1, 1, "r1")
    return pair


def active_again() -> Pair:
    pair = ready_again()
    pair.redeem(1, 2, "r1")
    return pair


def completed() -> Pair:
    pair = active()
    pair.complete("u1")
    return pair


def completed_unseen() -> Pair:
    pair = ready()
    pair.complete("u1")
    return pair


def expired_absent() -> Pair:
    pair = parked()
    pair.wait(25_000)
    pair.expire()
    return pair


def expired_unclaimed() -> Pair:
    pair = ready_again()
    pair.wait(17_000)
    pair.expire()
    return pair


def expired_session() -> Pair:
    pair = active()
    pair.wait(20_000)
    pair.expire()
    return pair


def left() -> Pair:
    pair = waiting()
    pair.leave("u1")
    return pair


def left_inside() -> Pair:
    pair = active()
    pair.leave("u1")
    return pair


def left_unclaimed() -> Pair:
    pair = ready()
    pair.leave("u1")
    return pair


def removed_unclaimed() -> Pair:
    pair = ready()
    pair.remove("u1")
    return pair


def overdue() -> Pair:
    pair = ready()
    pair.wait(20_000)
    return pair


def removed() -> Pair:
    pair = waiting()
    pair.remove("u1")
    return pair


def banned() -> Pair:
    pair = active()
    pair.remove("u1", ban=True)
    return pair


STATUSES: dict[str, Callable[[], Pair]] = {
    "none": nowhere,
    "lobby": lobby,
    "drawing": drawing,
    "waiting": waiting,
    "quiet waiting": gone_quiet,
    "parked": parked,
    "lapsed parked": lapsed,
    "ready": ready,
    "overdue ready": overdue,
    "again ready": ready_again,
    "active": active,
    "again active": active_again,
    "completed": completed,
    "unseen completed": completed_unseen,
    "absent expired": expired_absent,
    "unclaimed expired": expired_unclaimed,
    "session expired": expired_session,
    "left": left,
    "inside left": left_inside,
    "unclaimed left": left_unclaimed,
    "unclaimed removed": removed_unclaimed,
    "removed": removed,
    "banned removed": banned,
}


# ---- phases: what has become of the event meanwhile -----------------------------------------------------


def _stopped(pair: Pair) -> None:
    pair.pause()
    pair.wait(11_000)


def _resumed(pair: Pair) -> None:
    _stopped(pair)
    pair.expire()
    pair.resume()


def _closed(pair: Pair) -> None:
    pair.wait(1_000)
    pair.close()


def _reopened(pair: Pair) -> None:
    _closed(pair)
    pair.wait(7_000)
    pair.open()


def _restarted(pair: Pair) -> None:
    pair.wait(7_000)
    pair.tell("soon")
    pair.commit()
    pair.crash()


def _restarted_from_a_snapshot(pair: Pair) -> None:
    pair.capture()
    pair.wait(7_000)
    pair.tell("soon")
    pair.commit()
    pair.crash()


PHASES: dict[str, Step] = {
    "as it was": lambda pair: None,
    "paused": _stopped,
    "resumed": _resumed,
    "closed": _closed,
    "reopened": _reopened,
    "restarted": _restarted,
    "restarted from a snapshot": _restarted_from_a_snapshot,
}


# ---- inputs ---------------------------------------------------------------------------------------------


def _if_there(step: Step) -> Step:
    return lambda pair: step(pair) if pair.model.newest("u1") is not None else None


def _number(pair: Pair) -> int:
    row = pair.model.newest("u1")
    return row.number or 999 if row is not None and not row.drawn_late else 999


def _stale(pair: Pair) -> None:
    """After a transfer the older token only reads."""
    pair.transfer("u1", 7)
    pair.check()
    pair.touch("u1", older=1)
    pair.look("u1", older=1)
    pair.leave("u1", older=1)
    pair.extend_claim("u1", older=1)
    pair.transfer("u1", 8, older=1)
    pair.join("u1", 1)


def _let_time_decide(pair: Pair) -> None:
    """Stop at every edge, and see what is over."""
    for _ in range(12):
        waits = edges(pair)
        if not waits:
            return
        pair.wait(waits[0])
        pair.expire()
        pair.check()


def _ban(pair: Pair) -> None:
    pair.remove("u1", ban=True)
    pair.check()
    pair.join("u1", 1)
    pair.join("u1", 901, word="enqueue")


def _pause_again(pair: Pair) -> None:
    pair.pause()
    pair.pause(By("ops", "the till is broken"))


INPUTS: dict[str, Step] = {
    "join with proof": lambda pair: pair.join("u1", 1) and None,
    "join without proof": lambda pair: pair.join("u1") and None,
    "join with another proof": lambda pair: pair.join("u1", 5) and None,
    "join site": lambda pair: pair.join("u1", 6, word="site") and None,
    "join enqueue": lambda pair: pair.join("u1", 900, level=2, word="enqueue") and None,
    "touch": lambda pair: pair.touch("u1"),
    "touch hidden": lambda pair: pair.touch("u1", visible=False),
    "look": lambda pair: pair.look("u1"),
    "leave": lambda pair: pair.leave("u1"),
    "extend claim": lambda pair: pair.extend_claim("u1"),
    "extend session": lambda pair: pair.extend_session("u1"),
    "redeem": lambda pair: pair.redeem(_number(pair), 1, "r1"),
    "redeem again": lambda pair: pair.redeem(_number(pair), 2, "r1"),
    "redeem without key": lambda pair: pair.redeem(_number(pair), 1, None),
    "redeem with another key": lambda pair: pair.redeem(_number(pair), 1, "r2"),
    "redeem for another": lambda pair: pair.redeem(_number(pair), 1, "r1", user_id="u2"),
    "complete": lambda pair: pair.complete("u1"),
    "complete by number": lambda pair: pair.complete(_number(pair), "abandoned"),
    "admit": lambda pair: pair.admit("u1"),
    "admit without reason": lambda pair: pair.admit("u1", NOBODY),
    "remove": lambda pair: pair.remove("u1"),
    "remove without reason": lambda pair: pair.remove("u1", NOBODY, ban=True),
    "remove ban": _ban,
    "transfer": _if_there(lambda pair: pair.transfer("u1", 7)),
    "transfer without proof": _if_there(lambda pair: pair.transfer("u1", 0)),
    "transfer stale": _if_there(_stale),
    "release one": lambda pair: pair.release(1),
    "release many": lambda pair: pair.release(9),
    "time claim session grace windows": _let_time_decide,
    "tick": lambda pair: pair.tick(),
    "open": lambda pair: pair.open(),
    "pause": lambda pair: pair.pause(),
    "pause without reason": lambda pair: pair.pause(NOBODY),
    "pause with another reason": _pause_again,
    "resume": lambda pair: pair.resume(),
    "close": lambda pair: pair.close(outcome="sold out"),
    "close without reason": lambda pair: pair.close(NOBODY),
    "lobby": lambda pair: pair.lobby(),
    "delete": lambda pair: pair.delete(SETTINGS),
}


def _aftermath(pair: Pair) -> None:
    """What an input changed unseen shows later: who is present, what runs out, who is next."""
    pair.wait(7_999)
    if pair.model.newest("u3") is not None:
        pair.touch("u3")
    pair.expire()
    pair.check()
    pair.wait(8_001)
    if pair.model.newest("u3") is not None:
        pair.touch("u3")
    pair.expire()
    pair.tick()
    pair.check()
    if pair.model.event.state in ("open", "paused"):
        pair.release(9)
    pair.check()
    _let_time_decide(pair)


def cells() -> Iterator[tuple[str, str, str]]:
    """Yield every status, phase and input."""
    for phase in PHASES:
        for status in STATUSES:
            for what in INPUTS:
                yield status, phase, what


def walk(status: str, phase: str, what: str) -> None:
    """Bring u1 to a status and the event to a phase, apply an input twice, and see what comes of it."""
    pair = STATUSES[status]()
    pair.check()
    PHASES[phase](pair)
    pair.check()
    for _ in range(2):
        INPUTS[what](pair)
        pair.check()
    _aftermath(pair)
    pair.finish()


# ---- steps that several walks share ----------------------------------------------------------------------


def crowd(pair: Pair, count: int, first: int = 1) -> None:
    """Let so many join, u1 and so on."""
    for number in range(first, first + count):
        pair.join(f"u{number}", number)
    pair.check()


def to_edge(pair: Pair, ms: int, *steps: Callable[[], object]) -> None:
    """Go to one ms before, to, and one ms after a moment; do and compare at each."""
    pair.wait(ms - 1)
    for _ in range(3):
        for step in steps:
            step()
        pair.check()
        pair.wait(1)


def batches(pair: Pair) -> list[tuple[int, int]]:
    """Return when releases left, counted from the opening, and how many each let in."""
    records = [*pair.venue.log, *pair.venue.outbox.records]
    return [(its.at_ms - 1_000, len(its.numbers)) for its in records if isinstance(its, Released)]


def edges(pair: Pair, *, windows_only: bool = False) -> list[int]:
    """Return the waits that lead to one ms before, to, and one ms after anything the model is waiting for.

    With `windows_only` only to one ms before the end of a window that runs.
    """
    model, now_ms = pair.model, pair.now_ms
    event_ms = model.event.time_ms(now_ms)
    if windows_only:
        running = [row for row in model.rows if row.status in ("ready", "active", "parked")]
        ends = [row.until_ms + (LEEWAY_MS if row.status == "ready" else 0) for row in running]
        return sorted(end - 1 - event_ms for end in ends if end - 1 > event_ms)
    due = [row.until_ms + (LEEWAY_MS if row.status == "ready" else 0) - event_ms for row in model.rows]
    due += [row.until_ms - event_ms for row in model.rows] + [model.event.next_release_ms(now_ms) or 0]
    return sorted({wait + off for wait in due for off in (-1, 0, 1) if wait + off > 0})
