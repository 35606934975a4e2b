"""A crowd joins one event over real connections, and random visitors ask for their positions all the while.

`python -m tests.scenarios.ranks --visitors 100000` lets so many join over keep-alive connections while others
leave, the pacer releases and an operator releases by hand. At 24 moments a thousand random visitors ask for
their positions by their tokens, and at the end everybody does. Each answer is then held against the rank that
the records give at the answer's `version` (a Fenwick tree over numbers, nothing of the engine), and numbers
against the order of arrival: whoever was answered before another one asked has the lower number.
"""

import argparse
import asyncio
import random
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import uvloop

from tests.scenarios.client import Connection, PlaceReply, Reply, connections, gather_over, read_lines, request
from tests.scenarios.history import Entry, Evidence, FinalPlace, LogLine, Report, check
from tests.server.daemons import Daemon

EVENT = "/v1/events/sale"
ADMIN = "/v1/admin/events/sale"
PATIENT = {"presence_timeout_s": 3600, "presence_timeout_hidden_s": 3600, "claim_window_s": 3600, "claim_max_s": 3600}
SETTINGS = {"batch_size": 300, "batch_interval_s": 1, **PATIENT}
JOINING, ASKING = 64, 16
MOMENTS_WHILE_JOINING, MOMENTS_AFTER = 20, 4
ASKED = 1_000
LEAVE_EVERY = 20


class Released(msgspec.Struct):
    """What a release by hand answers."""

    released: int
    version: int


@dataclass(slots=True)
class Outcome:
    """How a run ended; `moments` holds how many were asked at each."""

    report: Report
    seconds: dict[str, float]
    moments: list[int]
    asked: int
    leaves: int
    released: int

    def line(self) -> str:
        """Return one line for people."""
        times = ", ".join(f"{what} {seconds:.1f} s" for what, seconds in self.seconds.items())
        return (
            f"{self.asked} ranks asked, {sum(self.moments)} of them at {len(self.moments)} moments during "
            f"{self.leaves} leaves and {self.released} releases; {self.report.summary()} ({times})"
        )


@dataclass(slots=True)
class Crowd:
    """The visitors and what they were answered; `chance` decides who asks and who leaves."""

    daemon: Daemon
    visitors: int
    chance: random.Random
    entries: list[Entry] = field(default_factory=list)
    tokens: list[str] = field(default_factory=list)
    places: list[tuple[str, int]] = field(default_factory=list)
    moments: list[int] = field(default_factory=list)
    leaves: int = 0
    released: int = 0
    reached: dict[int, asyncio.Event] = field(default_factory=dict)

    def note(self, client: int, op: str, reply: Reply, key: str = "") -> PlaceReply:
        """Write an answer down."""
        place = reply.json(PlaceReply)
        self.entries.append(
            Entry(
                client, op, reply.sent_s, reply.answered_s, place.user_id, key, place.number, place.arrival,
                place.status, place.position, place.epoch, place.version,
            )
        )  # fmt: skip
        return place

    async def join(self, pool: Sequence[Connection]) -> None:
        """Let everybody join, each connection one after the other."""
        supply = iter(range(self.visitors))

        async def work(client: int, connection: Connection) -> None:
            for index in supply:
                user_id = f"visitor-{index}"
                reply = await connection.ask(request("POST", f"{EVENT}/join", {"user_id": user_id}, key=user_id))
                assert reply.status == 201, reply.body
                place = self.note(client, "join", reply, user_id)
                self.tokens.append(place.token or "")
                self.places.append((place.user_id, place.arrival))
                if len(self.tokens) in self.reached:
                    self.reached[len(self.tokens)].set()

        async with asyncio.TaskGroup() as tasks:
            for client, connection in enumerate(pool):
                tasks.create_task(work(client, connection))

    async def look(self, pool: Sequence[Connection]) -> None:
        """Let random visitors ask for their positions."""
        holders = self.chance.sample(self.tokens, min(ASKED, len(self.tokens)))
        await self.ask(pool, holders)
        self.moments.append(len(holders))

    async def ask(self, pool: Sequence[Connection], tokens: Sequence[str]) -> list[PlaceReply]:
        """Return the places that tokens stand for."""
        replies = await gather_over(pool, [request("GET", f"{EVENT}/position", bearer=token) for token in tokens])
        assert all(reply.status == 200 for reply in replies)
        return [self.note(-1 - index, "position", reply) for index, reply in enumerate(replies)]

    async def leave(self, connection: Connection) -> None:
        """Let a random visitor leave."""
        index = self.chance.randrange(len(self.tokens))
        user_id, arrival = self.places[index]
        reply = await connection.ask(request("POST", f"{EVENT}/leave", {}, bearer=self.tokens[index]))
        assert reply.status == 204, reply.body
        self.entries.append(Entry(-1, "leave", reply.sent_s, reply.answered_s, user_id, "", arrival, arrival))
        self.leaves += 1

    async def release(self, connection: Connection, count: int) -> None:
        """Release by hand."""
        asked = request("POST", f"{ADMIN}/release", {"count": count}, bearer=self.daemon.admin_key)
        reply = await connection.ask(asked)
        assert reply.status == 200, reply.body
        told = reply.json(Released)
        self.entries.append(
            Entry(-2, "release", reply.sent_s, reply.answered_s, number=told.released, version=told.version)
        )


async def run(daemon: Daemon, visitors: int, seed: int) -> Outcome:
    """Let a crowd through one event of a daemon and judge all that it was told."""
    crowd = Crowd(daemon, visitors, random.Random(seed))
    steps = range(1, MOMENTS_WHILE_JOINING + 1)
    crowd.reached = {max(1, visitors * step // (MOMENTS_WHILE_JOINING + 1)): asyncio.Event() for step in steps}
    await asyncio.to_thread(daemon.admin, "PUT", ADMIN, SETTINGS)
    await asyncio.to_thread(daemon.admin, "POST", f"{ADMIN}/open", {})
    seconds: dict[str, float] = {}

    async def timed(what: str, work: Coroutine[None, None, object]) -> None:
        started_s = time.perf_counter()
        await work
        seconds[what] = time.perf_counter() - started_s

    pool = [await Connection.open(daemon.url) for _ in range(JOINING + ASKING + 2)]
    with connections(pool):
        asking, (leaver, operator) = pool[JOINING : JOINING + ASKING], pool[-2:]
        async with asyncio.TaskGroup() as tasks:
            joining = tasks.create_task(timed("joins", crowd.join(pool[:JOINING])))
            tasks.create_task(_leave_and_release(crowd, leaver, operator, joining.done))
            tasks.create_task(_ask_at_moments(crowd, asking))
        for _ in range(MOMENTS_AFTER):
            await asyncio.gather(crowd.look(asking), crowd.leave(leaver), crowd.release(operator, 50))
        await asyncio.to_thread(daemon.admin, "POST", f"{ADMIN}/pause", {"reason": "the end"})
        shown: list[PlaceReply] = []

        async def everybody() -> None:
            shown.extend(await crowd.ask(pool[: JOINING + ASKING], crowd.tokens))

        await timed("everybody's position", everybody())
    log = await asyncio.to_thread(read_lines, daemon.url, daemon.admin_key, LogLine)
    crowd.released = sum(len(line.numbers) for line in log)
    final = {place.arrival: FinalPlace(place.user_id, place.number, place.status) for place in shown}
    started_s = time.perf_counter()
    report = check(Evidence(crowd.entries, log, final))
    seconds["checking"] = time.perf_counter() - started_s
    asked = sum(entry.op == "position" for entry in crowd.entries)
    return Outcome(report, seconds, crowd.moments, asked, crowd.leaves, crowd.released)


async def _ask_at_moments(crowd: Crowd, asking: Sequence[Connection]) -> None:
    """Ask each time another twentieth has joined."""
    for reached in crowd.reached.values():
        await reached.wait()
        await crowd.look(asking)


async def _leave_and_release(crowd: Crowd, leaver: Connection, operator: Connection, over: Callable[[], bool]) -> None:
    """Let one leave for every twenty who join, and release a few by hand now and then."""
    while not over():
        if crowd.leaves * LEAVE_EVERY < len(crowd.tokens):
            await crowd.leave(leaver)
            if crowd.leaves % 50 == 0:
                await crowd.release(operator, crowd.chance.randrange(1, 100))
        else:
            await asyncio.sleep(0.002)


def main(arguments: list[str]) -> int:
    """Run from the command line; returns 0 when nothing was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.scenarios.ranks", description=__doc__)
    parser.add_argument("--visitors", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="stanchion-ranks-") as folder:
        daemon = Daemon(Path(folder) / "data")
        try:
            outcome = uvloop.run(run(daemon, options.visitors, options.seed))
        finally:
            daemon.kill()
    print(f"{options.visitors} visitors, seed {options.seed}: {outcome.line()}")
    if not outcome.report.ok:
        print(outcome.report.explain())
    return 0 if outcome.report.ok else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
