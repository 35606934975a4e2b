"""Kills of whoever leads, under a flood of joins: how long until somebody answers again, and what became of everything.

`python -m tests.scenarios.failover --kills 30 --seed 1` runs a pair in sync with a witness in PostgreSQL. Visitors
join at fixed moments and ask both addresses (`flood`); some more live a whole life (join, ask, leave, move, are let in,
redeem), an operator lets them in, and watchers ask both servers for places that were answered before. The primary is
killed at a random moment, the standby takes over, the killed one comes back as the follower, and once it is in step
the next kill hits the new primary. At the end the history checker has the last word over everything.

`--mode async` is told to promote by command, as there is no witness: what is lost must be no more than the lag that
was shown, and whoever was lost takes up their own number on the word of their token. `--mode single` is one server
that is killed and started again, for comparison.
"""

import argparse
import asyncio
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import uvloop

from tests.scenarios.audience import Audience
from tests.scenarios.client import read_lines
from tests.scenarios.flood import Flood, Join
from tests.scenarios.history import Evidence, LogLine, check
from tests.scenarios.judging_failover import Failover, Outcome, entries_of, places_of
from tests.scenarios.pairs import MODES, Pair
from tests.scenarios.people import ADMIN
from tests.server.postgres import postgres

SETTINGS = {
    "batch_size": 50,
    "batch_interval_s": 1,
    **dict.fromkeys(("presence_timeout_s", "presence_timeout_hidden_s", "claim_window_s", "session_ttl_s"), 3600),
    **dict.fromkeys(("claim_max_s", "session_max_s"), 7200),
}
QUIET_S = (0.5, 3.0)
RECOVERY_DEADLINE_S = 30.0


class Campaign:
    """One run: a pair whose primary is killed again and again, and everybody who talks to it."""

    def __init__(self, pair: Pair, kills: int, seed: int, rate_per_s: float) -> None:
        self._pair = pair
        self._kills = kills
        self._chance = random.Random(seed)
        self._flood = Flood(pair.urls, rate_per_s, random.Random(f"{seed} flood"), on_answer=self._look_at)
        self._audience = Audience(pair.urls, self._flood, seed)
        self._epoch = 0
        self._recovered = asyncio.Event()
        self.failovers: list[Failover] = []

    async def run(self) -> Outcome:
        """Kill, let the other one take over, bring the killed one back, and judge."""
        try:
            await asyncio.to_thread(self._prepare)
            self._audience.address.move(self._pair.primary)
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._flood.run())
                for people in self._audience.everybody():
                    tasks.create_task(people)
                for _ in range(self._kills):
                    await asyncio.sleep(self._chance.uniform(*QUIET_S))
                    await self._kill()
                await asyncio.sleep(1.0)
                self._flood.is_over = self._audience.address.over = True
            evidence, places = await asyncio.to_thread(self._take_evidence)
        finally:
            await asyncio.to_thread(self._pair.kill_all)
        report = check(evidence)
        report.faults["diverged"] += places
        report.faults["lost"] += [join.complaint for join in self._flood.joins if join.complaint]
        report.faults["lost"] += self._audience.complaints
        return Outcome(report, self._flood, self.failovers, evidence, self._audience.stale_reads)

    def _prepare(self) -> None:
        self._pair.start()
        primary = self._pair.primary
        primary.admin("PUT", ADMIN, SETTINGS)
        primary.admin("POST", f"{ADMIN}/open", {})
        self._epoch = primary.readiness()["epoch"]

    async def _kill(self) -> None:
        """Kill the primary, wait for the first join that a later epoch answers, and bring the killed one back."""
        self._recovered.clear()
        failover = Failover(self._epoch, time.monotonic())
        self.failovers.append(failover)
        await asyncio.to_thread(self._pair.kill)
        await asyncio.to_thread(self._pair.succeed)
        async with asyncio.timeout(RECOVERY_DEADLINE_S):
            await self._recovered.wait()
        self._audience.address.move(self._pair.primary)
        await asyncio.to_thread(self._pair.come_back)
        failover.whole_s = time.monotonic()

    def _look_at(self, join: Join) -> None:
        """Notice the first answer of a later epoch than the newest that is known."""
        assert join.place is not None
        epoch = join.place.epoch or 0
        if epoch > self._epoch and self.failovers:
            self._epoch = epoch
            self.failovers[-1].recovered_s = join.answered_s
            self.failovers[-1].next_epoch = epoch
            self._recovered.set()

    def _take_evidence(self) -> tuple[Evidence, list[str]]:
        """Pause the event, so that nothing changes any more, and ask both for everything there is."""
        primary = self._pair.primary
        primary.admin("POST", f"{ADMIN}/pause", {"reason": "the end"})
        final = places_of(primary)
        seen = [places_of(other) for other in self._pair.others]
        differing = [
            f"arrival {arrival} is {final.get(arrival)} at the primary, {places.get(arrival)} at the follower"
            for places in seen
            for arrival in final | places
            if places.get(arrival) != final.get(arrival)
        ]
        log = read_lines(primary.url, primary.admin_key, LogLine)
        self._pair.stop()
        epochs = [failover.next_epoch for failover in self.failovers]
        entries = [*entries_of(self._flood.joins), *self._audience.entries()]
        return Evidence(entries, log, final, epochs), differing


@contextmanager
def pair_in(folder: Path, mode: str) -> Iterator[Pair]:
    """A pair of this mode, with its witness where it has one."""
    if mode != "sync":
        yield Pair(folder, mode)
        return
    with postgres(folder / "witness") as url:
        yield Pair(folder, mode, url)


def main(arguments: list[str]) -> int:
    """Run from the command line; returns 0 when nothing was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.scenarios.failover", description=__doc__)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rate", type=float, default=2000, help="joins a second")
    parser.add_argument("--mode", choices=MODES, default="sync")
    parser.add_argument("--folder", type=Path, help="keep data and logs here")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="stanchion-failover-") as temporary:
        folder = options.folder or Path(temporary)
        with pair_in(folder, options.mode) as pair:
            outcome = uvloop.run(Campaign(pair, options.kills, options.seed, options.rate).run())
    print(f"{options.mode}, {options.kills} kills, seed {options.seed}")
    print(outcome.table())
    print(outcome.report.explain())
    return 0 if outcome.report.ok else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
