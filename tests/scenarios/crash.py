"""SIGKILLs at random moments under load, each followed by a restart; the history checker has the last word.

`python -m tests.scenarios.crash --kills 50 --seed 1` kills a real daemon fifty times while visitors join (with
an Idempotency-Key and retries, some with a server-made id, some without any key), ask, leave and join again, and move
to other devices; the site redeems, extends and completes; an operator releases by hand, lets single ones in, takes
places away, changes a large page and asks for snapshots, and the pacer releases by itself. Kills fall into full load,
right after a start, into a recovery, and into a snapshot; the large pages fill the smallest segments, so that some fall
into the cut of a segment. Others follow a batch of the pacer at once, so that a batch right after the restart would be
seen.

In the first half of the lives windows are long; then they become as short as they may be, and some visitors fall
silent. Everybody counts as heard after a start, so a campaign has one life longer than the presence timeout.
"""

import argparse
import asyncio
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from snapshots.snapshot import SNAPSHOT_FOLDER, TEMPORARY_SUFFIX
from tests.scenarios.client import Connection, PlaceReply, connections, gather_over, read_lines, request
from tests.scenarios.history import Evidence, FinalPlace, LogLine, Report, check
from tests.scenarios.people import ADMIN, EVENT, Address, Observer, Operator
from tests.scenarios.visitors import Visitor
from tests.server.daemons import CLI, Daemon, clean_environment, cli

FLAGS = ("--segment-mib", "1", "--log-level", "info")
PATIENT = {
    "presence_timeout_s": 3600,
    "presence_timeout_hidden_s": 3600,
    "claim_window_s": 3600,
    "claim_max_s": 7200,
    "session_ttl_s": 3600,
    "session_max_s": 7200,
}
HASTY = {
    "presence_timeout_s": 15,
    "presence_timeout_hidden_s": 15,
    "claim_window_s": 10,
    "claim_max_s": 14,
    "session_ttl_s": 10,
    "session_max_s": 14,
    "grace_s": 5,
}
SETTINGS = {"batch_size": 40, "batch_interval_s": 1, "max_active": 300, **PATIENT}
PATIENCES = ("long", "short", "both")
FEWEST_KILLS_FOR_A_LONG_LIFE = 20
LONG_LIFE_S = 25.0
# What a run without is one that says nothing of it; the first ones are seen in every run, however short.
ALWAYS_SEEN = ("joined", "released", "redeemed", "extended", "completed", "left", "transferred", "admitted", "removed")
KINDS_TO_SEE = (*ALWAYS_SEEN, "banned", "parked", "returned", "lapsed", "expired", "completed late")
VISITORS = 12
OVERLAP = 200
LONGEST_LIFE_S = 1.6


@dataclass(slots=True)
class Outcome:
    """How a run ended."""

    report: Report
    kills: Counter[str]
    seconds: float = 0.0
    records: int = 0
    cuts: int = 0
    losses: int = 0
    unfinished: int = 0
    batches: int = 0
    by_hand: int = 0
    kinds: Counter[str] = field(default_factory=Counter)

    def unseen(self, kinds: Iterable[str] = KINDS_TO_SEE) -> list[str]:
        """Return the kinds of records that never came, so that the run says nothing of them."""
        return [kind for kind in kinds if not self.kinds[kind]]

    def table(self) -> str:
        """Return where the kills fell, and upon what."""
        rows = [f"  {moment:<12}{count:>5}" for moment, count in sorted(self.kills.items())]
        rows.append(
            f"  {self.unfinished} of them left an unfinished snapshot, {self.cuts} segments of the log were seen"
        )
        rows.append(f"  {self.losses} connections were lost under a request")
        rows.append(f"  {self.records} records, {self.batches} batches released by the pacer, {self.by_hand} by hand")
        return "\n".join(["kills by moment:", *rows, self.told_by_kind()])

    def told_by_kind(self) -> str:
        """Return how many records of each kind the log has, and which kinds it has not."""
        counts = ", ".join(f"{kind} {count}" for kind, count in self.kinds.most_common() if count)
        unseen = f"\n  NOT SEEN, so not tested: {', '.join(self.unseen())}" if self.unseen() else ""
        return f"  by kind: {counts}{unseen}"


class Ordeal:
    """One run: a daemon that is killed and started again, and everybody who talks to it."""

    def __init__(self, folder: Path, kills: int, seed: int, patience: str = "both") -> None:
        self._data = folder / "data"
        self._kills_due = kills
        self._hasty_from = {"long": kills, "short": 0, "both": kills // 2}[patience]
        self._long_life_due = kills >= FEWEST_KILLS_FOR_A_LONG_LIFE
        self._chance = random.Random(seed)
        self._address = Address()
        self._daemon: Daemon | None = None
        self._epochs: list[int] = []
        self._log: list[LogLine] = []
        self._rewritten: list[str] = []
        self._segments: set[str] = set()
        self._unfinished = 0
        self._visitors = [Visitor(self._address, i, random.Random(f"{seed}-{i}")) for i in range(VISITORS)]
        self._operator = Operator(self._address, VISITORS, self._arrival_of_somebody)
        self._observer = Observer(self._address, VISITORS + 1)
        self.kills: Counter[str] = Counter()

    async def run(self) -> Outcome:
        """Kill, start again, and judge."""
        started_s = time.monotonic()
        try:
            async with asyncio.timeout(90 + LONG_LIFE_S + 12 * self._kills_due):
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
            kinds=Counter("completed late" if line.late else line.kind for line in evidence.log),
        )

    def _arrival_of_somebody(self, chance: random.Random) -> int | None:
        return chance.choice(self._visitors).arrival_of_somebody()

    async def _prepare(self) -> None:
        assert self._daemon is not None
        for method, path, body in (("PUT", ADMIN, SETTINGS), ("POST", f"{ADMIN}/open", {})):
            await asyncio.to_thread(self._daemon.admin, method, path, body)

    async def _kill_and_restart(self) -> None:
        while self.kills.total() < self._kills_due:
            if not self._address.is_hasty and self.kills.total() >= self._hasty_from:
                await self._lose_patience()
            moment = self._chance.choices(("load", "batch", "snapshot", "start"), (30, 25, 30, 15))[0]
            await self._let_live(moment)
            await self._kill(moment)
            while self.kills.total() < self._kills_due and self._chance.random() < 0.2:
                await asyncio.to_thread(self._die_recovering)
            await self._start()
        await asyncio.sleep(self._chance.uniform(0.5, 1.5))

    async def _lose_patience(self) -> None:
        """From now on windows are short and some fall silent."""
        assert self._daemon is not None
        await asyncio.to_thread(self._daemon.admin, "PATCH", ADMIN, HASTY)
        self._address.is_hasty = True

    async def _let_live(self, moment: str) -> None:
        """Wait for the moment of the kill."""
        is_late = self.kills.total() >= self._kills_due * 4 // 5
        if self._address.is_hasty and self._long_life_due and is_late:
            self._long_life_due = False
            await asyncio.sleep(LONG_LIFE_S)
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
        """Pause the event, so that nothing changes by itself any more, and ask for everything there is."""
        assert self._daemon is not None
        await asyncio.to_thread(self._daemon.admin, "POST", f"{ADMIN}/pause", {"reason": "the end"})
        final = await self._ask_for_places()
        await self._read_records()  # after everybody was heard: who was parked has come back with it
        self._note_segments()
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
    parser.add_argument("--patience", choices=PATIENCES, default="both", help="how long windows and timeouts are")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="stanchion-crash-") as folder:
        outcome = asyncio.run(Ordeal(Path(folder), options.kills, options.seed, options.patience).run())
    print(outcome.table())
    print(f"{options.kills} kills, seed {options.seed}, {outcome.seconds:.0f} s: {outcome.report.explain()}")
    return 0 if outcome.report.ok else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
