"""SIGKILLs at random moments under load, each followed by a restart; the history checker has the last word.

`python -m tests.scenarios.crash --kills 50 --seed 1` kills a real daemon fifty times while visitors join (with
an Idempotency-Key and retries, some with a server-made id, some without any key), ask, leave and join again,
the site completes, an operator releases by hand, changes a large page and asks for snapshots, and the pacer
releases by itself. Kills fall into full load, right after a start, into a recovery, and into a snapshot; the
large pages fill the smallest segments, so that some fall into the cut of a segment. Others follow a batch of the
pacer at once, so that a batch right after the restart would be seen.
"""

import argparse
import asyncio
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter, deque
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from snapshots.snapshot import SNAPSHOT_FOLDER, TEMPORARY_SUFFIX
from tests.scenarios.client import Connection, PlaceReply, Reply, connections, gather_over, read_lines, request
from tests.scenarios.history import Entry, Evidence, FinalPlace, LogLine, Observed, Report, check
from tests.server.daemons import CLI, Daemon, clean_environment, cli

EVENT = "/v1/events/sale"
ADMIN = "/v1/admin/events/sale"
FLAGS = ("--segment-mib", "1", "--log-level", "info")
SETTINGS = {"batch_size": 40, "batch_interval_s": 1, "max_active": 300}
PAGE = "page " * 10_000
VISITORS = 12
OVERLAP = 200
LONGEST_LIFE_S = 1.6


class Counts(msgspec.Struct):
    """What the observer looks at."""

    released_automatic: int


class Released(msgspec.Struct):
    """What a release by hand answers."""

    released: int
    version: int


@dataclass(slots=True)
class Address:
    """Where the daemon listens now; it moves with every restart. `life` counts the restarts."""

    url: str = ""
    life: int = 0
    site_key: str = ""
    admin_key: str = ""
    moved: asyncio.Event = field(default_factory=asyncio.Event)
    over: bool = False

    def move(self, daemon: Daemon) -> None:
        """Tell everybody of a new life."""
        self.url, self.site_key, self.admin_key = daemon.url, daemon.site_key, daemon.admin_key
        self.life += 1
        moved, self.moved = self.moved, asyncio.Event()
        moved.set()


class Client:
    """Somebody with one connection, who comes back after every loss of it, and a history of their own."""

    def __init__(self, address: Address, index: int) -> None:
        self.address = address
        self.index = index
        self.history: list[Entry] = []
        self.complaints: list[str] = []
        self.losses = 0
        self._connection: Connection | None = None
        self._life = 0

    async def ask(self, raw: bytes) -> Reply:
        """Ask once; raises OSError when the connection is lost or cannot be made."""
        if self._connection is None or self._life != self.address.life:
            self._life = self.address.life
            self._connection = await Connection.open(self.address.url)
        try:
            return await self._connection.ask(raw)
        except ConnectionError:
            self._connection = None
            self.losses += 1
            raise

    async def insist(self, raw: bytes) -> tuple[Reply, float]:
        """Ask until there is an answer that is no 503; returns it with the moment of the first attempt."""
        first_s = time.monotonic()
        while True:
            life, moved = self.address.life, self.address.moved
            try:
                reply = await self.ask(raw)
            except OSError:
                if self.address.life == life:
                    with suppress(TimeoutError):
                        await asyncio.wait_for(moved.wait(), 0.5)
                continue
            if reply.status != 503:
                return reply, first_s
            await asyncio.sleep(0.02)

    def note(self, op: str, reply: Reply, sent_s: float, place: PlaceReply, **more: Any) -> None:
        """Write down an answer."""
        entry = Entry(
            self.index,
            op,
            sent_s,
            reply.answered_s,
            place.user_id,
            "",
            place.number,
            place.arrival,
            place.status,
            place.position,
            place.epoch,
            place.version,
        )
        self.history.append(entry._replace(**more))

    def complain(self, op: str, reply: Reply, about: object) -> None:
        """Note that something acknowledged before is now refused."""
        self.complaints.append(f"{op} of {about} was answered {reply.status} {reply.body[:200]!r}")


@dataclass(slots=True)
class Held:
    """A place a visitor holds."""

    user_id: str
    number: int
    arrival: int
    token: str = field(repr=False)
    key: str
    body: dict[str, str]


class Visitor(Client):
    """A client who joins for many people, asks for their places, leaves, and completes as the site does."""

    def __init__(self, address: Address, index: int, chance: random.Random) -> None:
        super().__init__(address, index)
        self.tokens: dict[int, str] = {}
        self._chance = chance
        self._held: deque[Held] = deque()
        self._joined = 0

    async def run(self) -> None:
        """Do one thing after the other until it is over."""
        actions = {self.join: 50, self.look: 25, self.leave: 6, self.join_again: 6, self.return_: 3, self.slip: 2}
        while not self.address.over:
            action = self._chance.choices(list(actions), list(actions.values()))[0]
            await action()

    async def join(self) -> None:
        """Join for somebody new, with a key; one in four lets the server make the id."""
        self._joined += 1
        name = f"v{self.index}-{self._joined}"
        await self._join({} if self._joined % 4 == 0 else {"user_id": name}, f"key-{name}")

    async def _join(self, body: dict[str, str], key: str) -> None:
        reply, sent_s = await self.insist(request("POST", f"{EVENT}/join", body, key=key))
        assert reply.status in (200, 201), reply.body
        place = reply.json(PlaceReply)
        if place.token is None:
            self.complain("join", reply, f"key {key}, which held this place or nobody's")
            return
        self.note("join", reply, sent_s, place, key=key)
        if place.arrival not in self.tokens:
            self.tokens[place.arrival] = place.token
            self._held.append(Held(place.user_id, place.number, place.arrival, place.token, key, body))

    async def join_again(self) -> None:
        """Repeat a join that was answered before."""
        if self._held:
            held = self._chance.choice(self._held)
            await self._join(held.body, held.key)

    async def slip(self) -> None:
        """Join without key and id; when the connection is lost nobody knows what became of it."""
        sent_s = time.monotonic()
        try:
            reply = await self.ask(request("POST", f"{EVENT}/join", {}))
        except OSError:
            self.history.append(Entry(self.index, "join", sent_s, None))
            return
        if reply.status == 201:
            place = reply.json(PlaceReply)
            self.note("join", reply, reply.sent_s, place)
            self.tokens[place.arrival] = place.token or ""

    async def look(self) -> None:
        """Ask for the place of the one who waits longest, or of anybody; the site completes whoever is ready."""
        if not self._held:
            return
        held = self._held[0] if self._chance.random() < 0.7 else self._chance.choice(self._held)
        try:
            reply = await self.ask(request("GET", f"{EVENT}/position", bearer=held.token))
        except OSError:
            return
        if reply.status != 200:
            self.complain("position", reply, held)
            self._held.remove(held)
            return
        place = reply.json(PlaceReply)
        self.note("position", reply, reply.sent_s, place)
        if place.status == "ready":
            await self._complete(held)
        elif place.status != "waiting":
            self._held.remove(held)

    async def _complete(self, held: Held) -> None:
        body = {"user_id": held.user_id}
        reply, sent_s = await self.insist(request("POST", f"{EVENT}/complete", body, bearer=self.address.site_key))
        self._held.remove(held)
        if reply.status == 200:
            self.note("complete", reply, sent_s, reply.json(PlaceReply), arrival=held.arrival, position=None)
        else:
            self.complain("complete", reply, held)

    async def leave(self) -> Held | None:
        """Give somebody's place up."""
        if not self._held:
            return None
        held = self._chance.choice(self._held)
        self._held.remove(held)
        reply, sent_s = await self.insist(request("POST", f"{EVENT}/leave", {}, bearer=held.token))
        if reply.status != 204:
            self.complain("leave", reply, held)
            return None
        self.note("leave", reply, sent_s, PlaceReply("", held.number, held.user_id, held.arrival))
        return held

    async def return_(self) -> None:
        """Leave and come back with the same key: a new place at the end."""
        held = await self.leave()
        if held is not None:
            await self._join(held.body, held.key)


class Operator(Client):
    """Releases by hand and changes a large page, so that segments fill."""

    _releases = 0

    async def run(self, chance: random.Random) -> None:
        """Work until it is over."""
        while not self.address.over:
            with suppress(OSError):
                if chance.random() < 0.15:
                    await self.release(chance.randrange(1, 20))
                else:
                    await self.patch(f"{PAGE}{chance.random()}")
            await asyncio.sleep(0.02)

    async def release(self, count: int) -> None:
        """Let the next in, once, however often it must be asked for."""
        self._releases += 1
        key = f"release-{self._releases}"
        body, bearer = {"count": count}, self.address.admin_key
        reply, sent_s = await self.insist(request("POST", f"{ADMIN}/release", body, bearer=bearer, key=key))
        if reply.status == 200:
            told = reply.json(Released)
            self.note("release", reply, sent_s, PlaceReply("", told.released, version=told.version), key=key)
        if reply.status != 200 or told.released > count:
            self.complain("release", reply, f"{count}")

    async def patch(self, text: str) -> None:
        """Change the page."""
        await self.ask(request("PATCH", ADMIN, {"page": {"text": text}}, bearer=self.address.admin_key))


class Observer(Client):
    """Looks at the counts all the time."""

    def __init__(self, address: Address, index: int) -> None:
        super().__init__(address, index)
        self.observed: list[Observed] = []
        self.released_more = asyncio.Event()

    async def run(self) -> None:
        """Look until it is over."""
        while not self.address.over:
            with suppress(OSError):
                reply = await self.ask(request("GET", f"{ADMIN}/stats", bearer=self.address.admin_key))
                if reply.status == 200:
                    released = reply.json(Counts).released_automatic
                    if self.observed and released > self.observed[-1].released:
                        self.released_more.set()
                    self.observed.append(Observed(reply.sent_s, reply.answered_s, released))
            await asyncio.sleep(0.01)


@dataclass(slots=True)
class Outcome:
    """How a run ended."""

    report: Report
    kills: Counter[str]
    seconds: float
    records: int
    cuts: int
    losses: int
    unfinished: int
    batches: int
    by_hand: int

    def table(self) -> str:
        """Return where the kills fell, and upon what."""
        rows = [f"  {moment:<12}{count:>5}" for moment, count in sorted(self.kills.items())]
        rows.append(
            f"  {self.unfinished} of them left an unfinished snapshot, {self.cuts} segments of the log were seen"
        )
        rows.append(f"  {self.losses} connections were lost under a request")
        rows.append(f"  {self.records} records, {self.batches} batches released by the pacer, {self.by_hand} by hand")
        return "\n".join(["kills by moment:", *rows])


class Ordeal:
    """One run: a daemon that is killed and started again, and everybody who talks to it."""

    def __init__(self, folder: Path, kills: int, seed: int) -> None:
        self._data = folder / "data"
        self._kills_due = kills
        self._chance = random.Random(seed)
        self._address = Address()
        self._daemon: Daemon | None = None
        self._epochs: list[int] = []
        self._log: list[LogLine] = []
        self._rewritten: list[str] = []
        self._segments: set[str] = set()
        self._unfinished = 0
        self._visitors = [Visitor(self._address, i, random.Random(f"{seed}-{i}")) for i in range(VISITORS)]
        self._operator = Operator(self._address, VISITORS)
        self._observer = Observer(self._address, VISITORS + 1)
        self.kills: Counter[str] = Counter()

    async def run(self) -> Outcome:
        """Kill, start again, and judge."""
        started_s = time.monotonic()
        try:
            async with asyncio.timeout(60 + 12 * self._kills_due):
                await self._start()
                await self._prepare()
                async with asyncio.TaskGroup() as tasks:
                    for visitor in self._visitors:
                        tasks.create_task(visitor.run())
                    tasks.create_task(self._observer.run())
                    tasks.create_task(self._operator.run(self._chance))
                    await self._kill_and_restart()
                    self._address.over = True
                evidence = await self._take_evidence()
        finally:
            if self._daemon is not None:
                self._daemon.kill()
        report = check(evidence)
        report.faults["diverged"] += self._rewritten
        clients = (*self._visitors, self._operator, self._observer)
        report.faults["lost"] += [complaint for client in clients for complaint in client.complaints]
        losses = sum(client.losses for client in clients)
        released = Counter(line.manual for line in evidence.log if line.kind == "released")
        return Outcome(
            report,
            self.kills,
            seconds=time.monotonic() - started_s,
            records=len(evidence.log),
            cuts=len(self._segments),
            losses=losses,
            unfinished=self._unfinished,
            batches=released[False],
            by_hand=released[True],
        )

    async def _prepare(self) -> None:
        assert self._daemon is not None
        for method, path, body in (("PUT", ADMIN, SETTINGS), ("POST", f"{ADMIN}/open", {})):
            await asyncio.to_thread(self._daemon.admin, method, path, body)

    async def _kill_and_restart(self) -> None:
        while self.kills.total() < self._kills_due:
            moment = self._chance.choices(("load", "batch", "snapshot", "start"), (30, 25, 30, 15))[0]
            await self._let_live(moment)
            await self._kill(moment)
            while self.kills.total() < self._kills_due and self._chance.random() < 0.2:
                await asyncio.to_thread(self._die_recovering)
            await self._start()
        await asyncio.sleep(self._chance.uniform(0.5, 1.5))

    async def _let_live(self, moment: str) -> None:
        """Wait for the moment of the kill."""
        if moment == "start":
            await asyncio.sleep(self._chance.uniform(0, 0.08))
        elif moment == "batch":
            self._observer.released_more.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._observer.released_more.wait(), LONGEST_LIFE_S)
            await asyncio.sleep(self._chance.uniform(0, 0.1))
        else:
            long = self._chance.random() < 0.3
            await asyncio.sleep(self._chance.uniform(0.7, 1.5) if long else self._chance.uniform(0.1, 0.6))
        if moment == "snapshot":
            raw = request("POST", "/v1/admin/snapshot", {}, bearer=self._address.admin_key)
            connection = await Connection.open(self._address.url)
            asked = asyncio.create_task(connection.ask(raw))
            await asyncio.to_thread(self._see_snapshot)
            asked.cancel()

    def _see_snapshot(self) -> None:
        """Wait until a snapshot is being written, and a moment longer: into its writing, checking or naming."""
        deadline_s = time.monotonic() + 0.3
        while not self._is_writing_snapshot() and time.monotonic() < deadline_s:
            time.sleep(0.0005)
        time.sleep(self._chance.choice((0, 0.002, 0.01, 0.03)) * self._chance.random())

    def _is_writing_snapshot(self) -> bool:
        return any((self._data / SNAPSHOT_FOLDER).glob(f"*{TEMPORARY_SUFFIX}"))

    async def _kill(self, moment: str) -> None:
        assert self._daemon is not None
        self._note_segments()
        self._daemon.process.kill()
        await asyncio.to_thread(self._daemon.wait)
        self._unfinished += self._is_writing_snapshot()
        self.kills[moment] += 1

    def _note_segments(self) -> None:
        self._segments |= {path.name for path in (self._data / "log").glob("*.seg")}

    def _die_recovering(self) -> None:
        """Start a process and kill it at some moment between its first word and its first open port."""
        command = [*CLI, "serve", "--port", "0", "--data", str(self._data), *FLAGS]
        streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
        with subprocess.Popen(command, env=clean_environment(), **streams) as process:  # type: ignore[call-overload]
            try:
                assert b'"starting"' in process.stderr.readline()
                time.sleep(self._chance.uniform(0, 0.15))
            finally:
                process.kill()
        self.kills["recovery"] += 1

    async def _start(self) -> None:
        """Start the next life, and read what is on record since the last."""
        self._daemon = daemon = await asyncio.to_thread(Daemon, self._data, *FLAGS)
        self._epochs.append(int(daemon.first_line.partition("epoch ")[2].partition(";")[0]))
        self._address.move(daemon)
        if self._address.life > 1:
            await self._read_records()

    async def _read_records(self) -> None:
        """Read the records since the last reading; some of those read before must be as they were."""
        known = {line.lsn: line for line in self._log[-OVERLAP:]}
        from_lsn = min(known, default=1)
        address = self._address
        read = await asyncio.to_thread(read_lines, address.url, address.admin_key, LogLine, from_lsn)
        told = {line.lsn: line for line in read}
        self._rewritten += [f"{line} is {told.get(lsn)} now" for lsn, line in known.items() if told.get(lsn) != line]
        self._log += [line for line in read if not known or line.lsn > max(known)]

    async def _take_evidence(self) -> Evidence:
        """Pause the event, so that nothing changes any more, and ask for everything there is."""
        assert self._daemon is not None
        await asyncio.to_thread(self._daemon.admin, "POST", f"{ADMIN}/pause", {"reason": "the end"})
        await self._read_records()
        self._note_segments()
        final = await self._ask_for_places()
        status = await asyncio.to_thread(self._daemon.stop)
        assert status == 0, f"the daemon ended with {status}"
        verified = await asyncio.to_thread(cli, "verify", self._data)
        assert verified.returncode == 0, verified.stderr
        entries = [entry for client in (*self._visitors, self._operator) for entry in client.history]
        return Evidence(entries, self._log, final, self._epochs, self._observer.observed)

    async def _ask_for_places(self) -> dict[int, FinalPlace]:
        tokens = {arrival: token for visitor in self._visitors for arrival, token in visitor.tokens.items()}
        requests = [request("GET", f"{EVENT}/position", bearer=token) for token in tokens.values()]
        with connections([await Connection.open(self._address.url) for _ in range(8)]) as pool:
            replies = await gather_over(pool, requests)
        final = {}
        for arrival, reply in zip(tokens, replies, strict=True):
            if reply.status == 200:
                place = reply.json(PlaceReply)
                final[arrival] = FinalPlace(place.user_id, place.number, place.status)
        return final


def main(arguments: list[str]) -> int:
    """Run from the command line; returns 0 when nothing was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.scenarios.crash", description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="stanchion-crash-") as folder:
        outcome = asyncio.run(Ordeal(Path(folder), options.kills, options.seed).run())
    print(outcome.table())
    print(f"{options.kills} kills, seed {options.seed}, {outcome.seconds:.0f} s: {outcome.report.explain()}")
    return 0 if outcome.report.ok else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
