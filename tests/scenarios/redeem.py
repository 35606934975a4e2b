"""A thousand redeems of one pass at once and a SIGKILL among them: one gets in, and is told the same ever after.

`python -m tests.scenarios.redeem --kills 50 --seed 1` plays so many rounds on one data folder and one port. In each, a
visitor is let in and a thousand requests redeem the one pass over many connections, each with its own
Idempotency-Key; the daemon is killed right at the beginning or after any number of answers and started again; whoever
got no answer asks again, and so do some of those who got one, the one who was let in three times at once.
"""

import argparse
import asyncio
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import msgspec

from tests.scenarios.client import Connection, PlaceReply, Reply, connections, gather_over, read_lines, request
from tests.scenarios.history import LogLine
from tests.server.daemons import Daemon

EVENT, ADMIN = "/v1/events/sale", "/v1/admin/events/sale"
PATIENT = {"presence_timeout_s": 3600, "presence_timeout_hidden_s": 3600, "claim_window_s": 3600, "claim_max_s": 3600}
SETTINGS = {"batch_size": 1, "batch_interval_s": 3600, **PATIENT}
REDEEMS, CONNECTIONS, CONNECTIONS_AFTER = 1_000, 250, 32
ASKED_AGAIN = 40
EARLY_S = (0.003, 0.01, 0.1)


class Refusal(msgspec.Struct):
    """What a refused redeem is told."""

    code: str
    detail: str = ""


class Admitted(msgspec.Struct, rename={"pass_": "pass"}):
    """What is looked at in the place of somebody let in."""

    status: str
    number: int
    pass_: str


@dataclass(slots=True)
class Attempt:
    """One who redeems: their Idempotency-Key, and everything they were answered."""

    key: str
    answers: list[Reply] = field(default_factory=list)


class Round(NamedTuple):
    """One pass: everybody's answers, how many had come before the kill and whether a good one, and the log's count."""

    attempts: Sequence[Attempt]
    before: int
    is_told: bool
    on_record: int

    def faults(self) -> list[str]:
        """Return what is wrong with it."""
        winners = [attempt for attempt in self.attempts if any(reply.status == 200 for reply in attempt.answers)]
        told = [{reply.body for reply in winner.answers} for winner in winners]
        others = [reply for attempt in self.attempts if attempt not in winners for reply in attempt.answers]
        refusals = [reply.json(Refusal) for reply in others]
        refused = Counter((refusal.code, refusal.detail) for refusal in refusals)
        found = {
            f"{len(winners)} keys got in": len(winners) == 1,
            "the one who got in was told different things": all(len(bodies) == 1 for bodies in told),
            f"the others were told {dict(refused)}": {reply.status for reply in others} <= {409}
            and {refusal.code for refusal in refusals} <= {"pass_used"},
            "somebody has no answer": all(attempt.answers for attempt in self.attempts),
            f"there are {self.on_record} redeems on record": self.on_record == 1,
        }
        return [sentence for sentence, ok in found.items() if not ok]

    def moment(self) -> str:
        """Return where the kill fell."""
        if self.is_told:
            return "after the good answer"
        return "before the good answer and after others" if self.before else "before any answer"


class Ordeal:
    """A daemon that is killed in every round and comes back on the same folder and port."""

    def __init__(self, data: Path, seed: int = 1) -> None:
        self._data = data
        self._chance = random.Random(seed)
        self._flags: tuple[str, ...] = ()
        self.daemon: Daemon | None = None
        self.rounds: list[Round] = []

    async def run(self, kills: int) -> list[str]:
        """Play so many rounds and return everything that was wrong."""
        try:
            async with asyncio.timeout(30 + 10 * kills):
                await self.start()
                for method, path, body in (("PUT", ADMIN, SETTINGS), ("POST", f"{ADMIN}/open", {})):
                    await asyncio.to_thread(self._daemon.admin, method, path, body)
                for number in range(1, kills + 1):
                    self.rounds.append(await self.play(number))
        finally:
            self.end()
        return [f"round {n}: {fault}" for n, round_ in enumerate(self.rounds, 1) for fault in round_.faults()]

    @property
    def _daemon(self) -> Daemon:
        assert self.daemon is not None
        return self.daemon

    async def start(self) -> Daemon:
        """Start the next life, on the port of the first."""
        self.daemon = await asyncio.to_thread(Daemon, self._data, *self._flags)
        self._flags = ("--port", self.daemon.url.rpartition(":")[2])
        return self.daemon

    def end(self) -> None:
        """Leave no process behind."""
        if self.daemon is not None:
            self.daemon.kill()

    async def play(self, number: int) -> Round:
        """Let one in, redeem their pass a thousand times across a kill, and read the log."""
        pass_ = await self.let_in(number)
        attempts = [Attempt(f"round-{number}-{index}") for index in range(REDEEMS)]
        before = await self._redeem_and_kill(pass_, attempts)
        await self.start()
        is_told = any(reply.status == 200 for attempt in attempts for reply in attempt.answers)
        missing = [attempt for attempt in attempts if not attempt.answers]
        await self._redeem(pass_, missing, CONNECTIONS_AFTER)
        winners = [attempt for attempt in attempts if attempt.answers[0].status == 200]
        again = self._chance.sample(attempts, ASKED_AGAIN) + 3 * winners
        await self._redeem(pass_, again, CONNECTIONS_AFTER)
        return Round(attempts, before, is_told, await self.redeems_of(number))

    async def let_in(self, number: int) -> str:
        """Let somebody new join and in, and return their pass."""
        daemon, user = self._daemon, f"u{number}"
        with connections([await Connection.open(daemon.url)]) as (connection,):
            joined = await connection.ask(request("POST", f"{EVENT}/join", {"user_id": user}, key=user))
            await asyncio.to_thread(daemon.admin, "POST", f"{ADMIN}/release", {"count": 1})
            token = joined.json(PlaceReply).token or ""
            place = (await connection.ask(request("GET", f"{EVENT}/position", bearer=token))).json(Admitted)
        assert (place.status, place.number) == ("ready", number)
        return place.pass_

    async def redeems_of(self, arrival: int) -> int:
        """Return how many redeems of somebody are on record."""
        log = await asyncio.to_thread(read_lines, self._daemon.url, self._daemon.admin_key, LogLine)
        return sum(line.kind == "redeemed" and line.arrival == arrival for line in log)

    def request_of(self, pass_: str, attempt: Attempt) -> bytes:
        """Return a redeem, as the site sends it."""
        return request("POST", f"{EVENT}/redeem", {"pass": pass_}, bearer=self._daemon.site_key, key=attempt.key)

    async def _redeem(self, pass_: str, attempts: Sequence[Attempt], count: int) -> None:
        with connections([await Connection.open(self._daemon.url) for _ in range(count)]) as pool:
            replies = await gather_over(pool, [self.request_of(pass_, attempt) for attempt in attempts])
        for attempt, reply in zip(attempts, replies, strict=True):
            attempt.answers.append(reply)

    async def _redeem_and_kill(self, pass_: str, attempts: Sequence[Attempt]) -> int:
        """Redeem over all connections at once, kill at some moment, and return how many had been answered."""
        is_early = self._chance.random() < 0.5
        kill_after, delay_s = self._chance.randrange(1, REDEEMS), 30.0
        if is_early:
            kill_after, delay_s = REDEEMS + 1, self._chance.choice(EARLY_S) * self._chance.random()
        answered, enough = 0, asyncio.Event()
        pool = [await Connection.open(self._daemon.url) for _ in range(CONNECTIONS)]
        supply = iter(self._chance.sample(attempts, len(attempts)))

        async def work(connection: Connection) -> None:
            nonlocal answered
            for attempt in supply:
                try:
                    attempt.answers.append(await connection.ask(self.request_of(pass_, attempt)))
                except ConnectionError:
                    return
                answered += 1
                if answered == kill_after:
                    enough.set()

        async def kill() -> None:
            with suppress(TimeoutError):
                await asyncio.wait_for(enough.wait(), delay_s)
            self._daemon.process.kill()

        with connections(pool):
            await asyncio.gather(kill(), *(work(connection) for connection in pool))
        await asyncio.to_thread(self._daemon.wait)
        return answered

    def summary(self) -> str:
        """Return where the kills fell."""
        moments = Counter(round_.moment() for round_ in self.rounds)
        return ", ".join(f"{count} {moment}" for moment, count in sorted(moments.items()))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a campaign; returns 1 when anything was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, help="rounds, one kill in each")
    parser.add_argument("--seed", type=int, default=1, help="what the moments are drawn from")
    chosen = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        ordeal = Ordeal(Path(folder) / "data", chosen.seed)
        faults = asyncio.run(ordeal.run(chosen.kills))
    print(f"{chosen.kills} kills, {REDEEMS} redeems of one pass around each (seed {chosen.seed}): {ordeal.summary()}")
    print("\n".join(faults) or "exactly one got in each time, and was told the same")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
