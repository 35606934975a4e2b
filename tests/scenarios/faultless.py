"""A server that does everything right, as a plain list, and what its clients would hold: to test the checker on."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.scenarios.history import INSIDE, LIVE, Entry, Evidence, FinalPlace, Limits, LogLine, Observed

BATCH = 3
CAP = 8
INTERVAL_MS = 1_000
LEEWAY_MS = 5_000
LIMITS = Limits(
    CAP,
    BATCH,
    INTERVAL_MS // 1000,
    presence_timeout_s=4,
    claim_window_s=2,
    claim_max_s=3,
    session_ttl_s=3,
    session_max_s=5,
    grace_s=6,
)


@dataclass(slots=True)
class Place:
    """One place; `turn` counts how often it was let in, `request` and `answer` are those of the redeem."""

    arrival: int
    user_id: str
    seen_ms: int
    status: str = "waiting"
    cause: str = ""
    turn: int = 0
    until_ms: int = 0
    limit_ms: int = 0
    generation: int = 0
    request: str = ""
    redeemed_turn: int = 0
    answer: str = ""

    @property
    def jti(self) -> str:
        return f"pass-{self.arrival}-{self.turn}"


class Server:
    """A server that does everything right, as a list, one decision a step; clients overlap with their neighbours."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.log: list[LogLine] = []
        self.entries: list[Entry] = []
        self.observed: list[Observed] = []
        self.epochs: list[int] = []
        self.places: list[Place] = []
        self.banned: set[str] = set()
        self.moment = 10.0
        self.at_ms = 0
        self.suspended_ms = 0
        self.paused_ms: int | None = None
        self.paced_ms = 0
        self.released = 0
        self.free_at = [0.0] * 4
        self.restart()
        self.write(kind="configured", settings=LIMITS)
        self.write(kind="opened")

    # ---- parts --------------------------------------------------------------------------------------

    def write(self, **fields: Any) -> LogLine:
        line = LogLine(lsn=len(self.log) + 1, at_ms=self.at_ms, **fields)
        self.log.append(line)
        return line

    def step(self, what: str) -> None:
        """Let one thing happen."""
        self.moment += 0.1
        self.at_ms += 100
        if self.paused_ms is not None and self.chance.random() < 0.1:
            self.suspended_ms += self.at_ms - self.paused_ms
            self.paused_ms = None
            self.write(kind="resumed")
        getattr(self, what)()

    @property
    def event_ms(self) -> int:
        return (self.at_ms if self.paused_ms is None else self.paused_ms) - self.suspended_ms

    @property
    def inside(self) -> int:
        return sum(place.status in INSIDE for place in self.places)

    def with_status(self, *statuses: str) -> list[Place]:
        return [place for place in self.places if place.status in statuses]

    def any_of(self, *statuses: str, where: Callable[[Place], bool] = lambda _: True) -> Place | None:
        found = [place for place in self.with_status(*statuses) if where(place)]
        return self.chance.choice(found) if found else None

    def hear(self, place: Place) -> None:
        if place.status == "parked":
            place.status = "waiting"
            self.write(kind="returned", arrival=place.arrival)
        place.seen_ms = self.at_ms

    def end(self, place: Place, status: str, **fields: Any) -> None:
        place.status = status
        self.write(kind=status, arrival=place.arrival, **fields)

    def answer(self, op: str, place: Place | None, **more: Any) -> None:
        """Tell a client; who is still busy with another answer gets none."""
        client = self.chance.randrange(len(self.free_at))
        sent_s = self.moment - self.chance.choice((0.01, 0.05, 0.15, 0.4))
        if sent_s < self.free_at[client]:
            sent_s = self.moment - 0.01
        who: dict[str, Any] = (
            {} if place is None else {"user_id": place.user_id, "arrival": place.arrival, "number": place.arrival}
        )
        if place is not None and "refusal" not in more:
            who |= {"generation": place.generation}
        if self.free_at[client] >= sent_s or (op == "join" and self.chance.random() < 0.1):
            if op == "join" and place is not None and "refusal" not in more:
                self.entries.append(Entry(client, op, sent_s, None, place.user_id, more["key"]))
            return
        answered_s = self.moment + self.chance.choice((0.01, 0.05, 0.15, 0.4))
        self.free_at[client] = answered_s
        self.entries.append(Entry(client, op, sent_s, answered_s, **who | more))

    def show(self, op: str, place: Place, *, is_holder: bool = True, **more: Any) -> None:
        """Answer with a place, and a pass where somebody holds one."""
        waiting = self.with_status("waiting")
        told = {
            "status": place.status,
            "position": waiting.index(place) + 1 if place.status == "waiting" else None,
            "epoch": self.epochs[-1],
            "version": len(self.log),
            "jti": place.jti if place.status == "ready" and is_holder else "",
        }
        self.answer(op, place, **told | more)

    # ---- visitors -----------------------------------------------------------------------------------

    def join(self) -> None:
        user_id = f"u{len(self.places) + 1}"
        back = self.any_of("left", "completed", "expired", "removed")
        if back is not None and self.chance.random() < 0.2:
            user_id = back.user_id
        if any(place.user_id == user_id and place.status in LIVE for place in self.places):
            return
        place = Place(len(self.places) + 1, user_id, self.at_ms)
        if user_id in self.banned:
            self.answer("join", place, key=f"key-{user_id}", arrival=0, number=0, refusal="banned")
            return
        self.places.append(place)
        key = place.arrival << 32 | place.arrival
        self.write(kind="joined", arrival=place.arrival, key=key, user_id=user_id)
        self.show("join", place, key=f"key-{user_id}")

    def retry(self) -> None:
        place = self.any_of(*LIVE, where=lambda place: not place.generation)
        if place is not None:
            self.hear(place)
            self.show("join", place, key=f"key-{place.user_id}")

    def look(self) -> None:
        """Ask with the newest token, or with the one before, which only reads."""
        if not self.places:
            return
        place = self.chance.choice(self.places)
        is_holder = not place.generation or self.chance.random() < 0.7
        if is_holder:
            self.hear(place)
        self.show("position", place, is_holder=is_holder, generation=place.generation - (not is_holder))

    def leave(self) -> None:
        place = self.any_of(*LIVE)
        if place is not None:
            self.end(place, "left")
            self.answer("leave", place)

    def extend_claim(self) -> None:
        place = self.any_of("ready")
        if place is not None:
            self._extend(place, LIMITS.claim_window_s)
            self.show("extend_claim", place)

    def transfer(self) -> None:
        place = self.any_of(*LIVE)
        if place is not None:
            place.generation += 1
            self.write(kind="transferred", arrival=place.arrival, generation=place.generation)
            self.hear(place)
            for _ in range(self.chance.choice((1, 2))):
                self.show("accept", place, key=f"device-{place.arrival}-{place.generation}")

    def transfer_again(self) -> None:
        """Show a code that was used, by whoever has another key."""
        place = self.any_of(*LIVE, where=lambda place: place.generation > 0)
        if place is not None:
            self.answer("accept", place, generation=place.generation, key="somebody", refusal="gone")

    # ---- the site -----------------------------------------------------------------------------------

    def redeem(self) -> None:
        place = self.any_of("ready")
        if place is None:
            return
        place.status, place.request, place.redeemed_turn = "active", f"redeem-{place.jti}", place.turn
        place.until_ms = self.event_ms + LIMITS.session_ttl_s * 1000
        place.limit_ms = self.event_ms + LIMITS.session_max_s * 1000
        place.answer = f"a session until {place.until_ms} of {place.arrival}"
        windows = {"until_ms": place.until_ms, "limit_ms": place.limit_ms}
        self.write(kind="redeemed", arrival=place.arrival, jti=place.jti, request=place.request, **windows)
        self.answer("redeem", place, key=place.request, jti=place.jti, answer=place.answer)

    def redeem_again(self) -> None:
        """Show a pass once more: with the same key the answer is the same, with another one there is none."""
        place = self.any_of("active", "parked", "expired", where=lambda place: place.turn > 0)
        if place is None:
            return
        is_same = place.status == "active" and self.chance.random() < 0.7
        told: dict[str, Any] = {"key": place.request, "answer": place.answer}
        if not is_same:
            is_used = place.redeemed_turn == place.turn
            told = {"key": f"other-{place.jti}", "refusal": "pass_used" if is_used else "pass_expired"}
        self.answer("redeem", place, jti=place.jti, **told)

    def extend(self) -> None:
        place = self.any_of("active")
        if place is not None:
            self._extend(place, LIMITS.session_ttl_s)
            self.answer("extend", place, status="active")

    def _extend(self, place: Place, length_s: int) -> None:
        until_ms = min(self.event_ms + length_s * 1000, place.limit_ms)
        if until_ms > place.until_ms:
            place.until_ms = until_ms
            self.write(kind="extended", arrival=place.arrival, until_ms=until_ms)

    def complete(self) -> None:
        place = self.any_of(*INSIDE, "expired", where=lambda place: place.cause in ("", "session"))
        if place is not None:
            self.end(place, "completed", late=place.status == "expired")
            self.answer("complete", place, status="completed")

    # ---- operator -----------------------------------------------------------------------------------

    def admit(self) -> None:
        place = self.any_of("waiting", "parked")
        if place is not None and self.inside < CAP:
            self._begin_turn(place)
            self.write(kind="admitted", arrival=place.arrival, until_ms=place.until_ms)
            self.answer("admit", place, status="ready")

    def remove(self) -> None:
        place = self.any_of(*LIVE)
        if place is not None:
            if self.chance.random() < 0.4:
                self.banned.add(place.user_id)
                self.write(kind="banned", user_id=place.user_id)
            self.end(place, "removed")
            self.answer("remove", place, status="removed")

    def pause(self) -> None:
        if self.paused_ms is None:
            self.write(kind="paused")
            self.paused_ms = self.at_ms

    def release(self) -> None:
        self._let_in(2, manual=True)

    def _begin_turn(self, place: Place) -> None:
        place.status, place.turn = "ready", place.turn + 1
        place.until_ms = self.event_ms + LIMITS.claim_window_s * 1000
        place.limit_ms = self.event_ms + LIMITS.claim_max_s * 1000

    def _let_in(self, count: int, *, manual: bool) -> None:
        """Let in those present at the head of the line, and step over those who are not."""
        chosen: list[Place] = []
        absent: list[Place] = []
        free = min(count, CAP - self.inside)
        for place in self.with_status("waiting"):
            if len(chosen) >= free:
                break
            is_there = self.at_ms - place.seen_ms <= LIMITS.presence_timeout_s * 1000
            (chosen if is_there else absent).append(place)
        if absent:
            numbers, seen_ms = [place.arrival for place in absent], [place.seen_ms for place in absent]
            self.write(kind="parked", numbers=numbers, last_seen_ms=seen_ms)
        for place in absent:
            place.status, place.until_ms = "parked", self.event_ms + LIMITS.grace_s * 1000
        if not chosen:
            return
        for place in chosen:
            self._begin_turn(place)
        key = f"release-{len(self.log)}" if manual and self.chance.random() < 0.5 else None
        told = {"numbers": [place.arrival for place in chosen], "until_ms": chosen[0].until_ms}
        line = self.write(kind="released", manual=manual, request=key, **told)
        if manual:
            self.answer("release", None, number=len(chosen), version=line.lsn, key=key or "")
        else:
            self.released += len(chosen)

    # ---- time ---------------------------------------------------------------------------------------

    def restart(self) -> None:
        self.epochs.append((self.epochs or [0])[-1] + self.chance.randrange(1, 3))
        self.write(kind="started", epoch=self.epochs[-1])
        self.paced_ms = self.event_ms
        for place in self.places:
            place.seen_ms = self.at_ms
            if place.status == "parked":
                place.until_ms = self.event_ms + LIMITS.grace_s * 1000

    def tick(self) -> None:
        """Hear three of four, end what has run out, and let the next batch in when it is due."""
        for place in self.with_status("waiting"):
            if place.arrival % 4:
                place.seen_ms = self.at_ms
        if self.paused_ms is None:
            for place in self.places:
                self._run_out(place)
            if self.event_ms - self.paced_ms >= INTERVAL_MS:
                self.paced_ms = self.event_ms
                self._let_in(BATCH, manual=False)
        self.observed.append(Observed(self.moment - 0.01, self.moment + 0.01, self.released))

    def _run_out(self, place: Place) -> None:
        leeway_ms = LEEWAY_MS if place.status == "ready" else 0
        if place.status not in ("ready", "active", "parked") or self.event_ms < place.until_ms + leeway_ms:
            return
        if place.status == "ready" and place.turn == 1:
            place.status, place.until_ms = "parked", self.event_ms + LIMITS.grace_s * 1000
            self.write(kind="lapsed", arrival=place.arrival)
        else:
            place.cause = {"ready": "unclaimed", "active": "session", "parked": "absent"}[place.status]
            self.end(place, "expired", cause=place.cause)

    def evidence(self) -> Evidence:
        final = {place.arrival: FinalPlace(place.user_id, place.arrival, place.status) for place in self.places}
        return Evidence(self.entries, self.log, final, self.epochs, self.observed)


WEIGHTS = {
    "join": 8,
    "look": 6,
    "tick": 3,
    "redeem": 3,
    "retry": 2,
    "redeem_again": 2,
    "extend": 2,
    "extend_claim": 2,
    "complete": 2,
    "transfer": 2,
    "transfer_again": 1,
    "leave": 1,
    "release": 1,
    "admit": 1,
    "remove": 1,
    "pause": 1,
    "restart": 1,
}
STEPS = tuple(step for step, weight in WEIGHTS.items() for _ in range(weight))


def lead(steps: list[str], seed: int) -> Evidence:
    server = Server(random.Random(seed))
    for step in steps:
        server.step(step)
    return server.evidence()


def a_long_life(seed: int) -> Evidence:
    chance = random.Random(seed)
    return lead([chance.choice(STEPS) if index % 3 else "tick" for index in range(600)], seed)
