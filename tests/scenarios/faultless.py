"""A server that does everything right, as a plain list, and what its clients would hold: to test the checker on."""

import random
from typing import Any

from tests.scenarios.history import LIVE, Entry, Evidence, FinalPlace, Limits, LogLine, Observed

BATCH = 3
CAP = 8
INTERVAL_MS = 1_000


class Server:
    """A server that does everything right, as a list, one decision a tick; clients overlap with their neighbours."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.log: list[LogLine] = []
        self.entries: list[Entry] = []
        self.observed: list[Observed] = []
        self.epochs: list[int] = []
        self.users: list[str] = []
        self.status: list[str] = []
        self.moment = 10.0
        self.at_ms = 0
        self.paced_ms = 0
        self.released = 0
        self.free_at = [0.0] * 4
        self.restart()
        self.write(kind="configured", settings=Limits(CAP, BATCH, INTERVAL_MS // 1000))
        self.write(kind="opened")

    def write(self, **fields: Any) -> LogLine:
        line = LogLine(lsn=len(self.log) + 1, at_ms=self.at_ms, **fields)
        self.log.append(line)
        return line

    def step(self, what: str) -> None:
        """Let one thing happen."""
        self.moment += 0.1
        self.at_ms += 100
        getattr(self, what)()

    def restart(self) -> None:
        self.epochs.append((self.epochs or [0])[-1] + self.chance.randrange(1, 3))
        self.write(kind="started", epoch=self.epochs[-1])
        self.paced_ms = self.at_ms

    def waiting(self) -> list[int]:
        return [index for index, status in enumerate(self.status, 1) if status == "waiting"]

    def answer(self, op: str, arrival: int, status: str = "", key: str = "", **more: Any) -> None:
        """Tell a client; who is still busy with another answer gets none."""
        client = self.chance.randrange(len(self.free_at))
        sent_s = self.moment - self.chance.choice((0.01, 0.05, 0.15, 0.4))
        if sent_s < self.free_at[client]:
            sent_s = self.moment - 0.01
        waiting = self.waiting()
        position = waiting.index(arrival) + 1 if status == "waiting" else None
        user_id = self.users[arrival - 1] if arrival else ""
        answered_s: float | None = self.moment + self.chance.choice((0.01, 0.05, 0.15, 0.4))
        if self.free_at[client] >= sent_s or (op == "join" and self.chance.random() < 0.1):
            if op == "join":
                self.entries.append(Entry(client, op, sent_s, None, user_id, key))
            return
        self.free_at[client] = answered_s or 0
        entry = Entry(client, op, sent_s, answered_s, user_id, key, arrival, arrival, status, position)
        if op in ("join", "position"):
            entry = entry._replace(epoch=self.epochs[-1], version=len(self.log))
        self.entries.append(entry._replace(**more))

    def join(self) -> None:
        arrival = len(self.users) + 1
        user_id = f"u{arrival}"
        self.users.append(user_id)
        self.status.append("waiting")
        self.write(kind="joined", arrival=arrival, key=arrival << 32 | arrival, user_id=user_id)
        self.answer("join", arrival, "waiting", f"key-{user_id}")

    def retry(self) -> None:
        if self.users:
            arrival = self.chance.randrange(len(self.users)) + 1
            if self.status[arrival - 1] in LIVE:
                self.answer("join", arrival, self.status[arrival - 1], f"key-u{arrival}")

    def look(self) -> None:
        if self.users:
            arrival = self.chance.randrange(len(self.users)) + 1
            self.answer("position", arrival, self.status[arrival - 1])

    def leave(self) -> None:
        live = [index for index, status in enumerate(self.status, 1) if status in LIVE]
        if live:
            arrival = self.chance.choice(live)
            self.status[arrival - 1] = "left"
            self.write(kind="left", arrival=arrival)
            self.answer("leave", arrival)

    def complete(self) -> None:
        ready = [index for index, status in enumerate(self.status, 1) if status == "ready"]
        if ready:
            arrival = self.chance.choice(ready)
            self.status[arrival - 1] = "completed"
            self.write(kind="completed", arrival=arrival)
            self.answer("complete", arrival, "completed")

    def _let_in(self, count: int, *, manual: bool) -> None:
        numbers = self.waiting()[: min(count, CAP - self.status.count("ready"))]
        if numbers:
            for number in numbers:
                self.status[number - 1] = "ready"
            key = f"release-{len(self.log)}" if manual and self.chance.random() < 0.5 else None
            line = self.write(kind="released", numbers=numbers, manual=manual, request=key)
            if manual:
                self.answer("release", 0, number=len(numbers), version=line.lsn, key=key or "")
            else:
                self.released += len(numbers)

    def release(self) -> None:
        self._let_in(2, manual=True)

    def tick(self) -> None:
        if self.at_ms - self.paced_ms >= INTERVAL_MS:
            self.paced_ms = self.at_ms
            self._let_in(BATCH, manual=False)
        self.observed.append(Observed(self.moment - 0.01, self.moment + 0.01, self.released))

    def evidence(self) -> Evidence:
        final = {
            index: FinalPlace(user_id, index, status)
            for index, (user_id, status) in enumerate(zip(self.users, self.status, strict=True), 1)
        }
        return Evidence(self.entries, self.log, final, self.epochs, self.observed)


STEPS = ("join", "join", "join", "join", "retry", "look", "look", "leave", "complete", "release", "tick", "restart")


def lead(steps: list[str], seed: int) -> Evidence:
    server = Server(random.Random(seed))
    for step in steps:
        server.step(step)
    return server.evidence()


def a_long_life(seed: int) -> Evidence:
    chance = random.Random(seed)
    return lead([chance.choice(STEPS) if index % 3 else "tick" for index in range(600)], seed)
