"""Campaigns of kills against a pair: whoever leads is killed, and everybody goes on."""

import asyncio
import random
import time
from collections import defaultdict

from tests.scenarios.audience import Audience
from tests.scenarios.client import Connection, PlaceReply, connections, gather_over, read_lines, request
from tests.scenarios.flood import Flood, Join
from tests.scenarios.history import Entry, Evidence, LogLine, Report, check
from tests.scenarios.judging_failover import Failover, Outcome, entries_of, places_of
from tests.scenarios.pairs import Pair, Promotion
from tests.scenarios.people import ADMIN, EVENT

SETTINGS = {
    "batch_size": 50,
    "batch_interval_s": 1,
    **dict.fromkeys(("presence_timeout_s", "presence_timeout_hidden_s", "claim_window_s", "session_ttl_s"), 3600),
    **dict.fromkeys(("claim_max_s", "session_max_s"), 7200),
}
RECOVERY_DEADLINE_S = 30.0
ASK_AGAIN_S = 3.0
A_MOMENT_S = 0.05


class Campaign:
    """One run: a pair whose primary is killed again and again, and everybody who talks to it."""

    has_audience = True
    quiet_s = (0.5, 3.0)

    def __init__(self, pair: Pair, kills: int, seed: int, rate_per_s: float) -> None:
        self._pair = pair
        self._kills = kills
        self._chance = random.Random(seed)
        self._flood = Flood(pair.urls, rate_per_s, random.Random(f"{seed} flood"), on_answer=self._look_at)
        self._audience = Audience(pair.urls, self._flood, seed)
        self._epoch = 0
        self._recovered = asyncio.Event()
        self.failovers: list[Failover] = []
        self.remarks: list[str] = []

    async def run(self) -> Outcome:
        """Kill, let the other one take over, bring the killed one back, and judge."""
        try:
            await asyncio.to_thread(self._prepare)
            self._audience.address.move(self._pair.primary)
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._flood.run())
                for people in self._audience.everybody() if self.has_audience else ():
                    tasks.create_task(people)
                for _ in range(self._kills):
                    await asyncio.sleep(self._chance.uniform(*self.quiet_s))
                    await self._kill()
                await asyncio.sleep(1.0)
                self._flood.is_over = self._audience.address.over = True
            evidence, places = await asyncio.to_thread(self._take_evidence)
        finally:
            await asyncio.to_thread(self._pair.kill_all)
        report = check(evidence)
        self._judge(report, evidence)
        report.faults["diverged"] += places
        report.faults["lost"] += [join.complaint for join in self._flood.joins if join.complaint]
        report.faults["lost"] += self._audience.complaints
        return Outcome(report, self._flood, self.failovers, evidence, self._audience.stale_reads, self.remarks)

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
        await asyncio.to_thread(self._pair.kill, self._alone_s())
        promotion = await asyncio.to_thread(self._pair.succeed)
        async with asyncio.timeout(RECOVERY_DEADLINE_S):
            await self._recovered.wait()
        self._audience.address.move(self._pair.primary)
        if promotion is not None:
            await self._recover_losses(failover, promotion)
        await asyncio.to_thread(self._pair.come_back)
        failover.whole_s = time.monotonic()

    def _alone_s(self) -> float:
        """Return how long before the primary its follower is killed."""
        return 0.0

    async def _recover_losses(self, failover: Failover, promotion: Promotion) -> None:
        """Do what those do who may have been lost."""

    def _judge(self, report: Report, evidence: Evidence) -> None:
        """Judge what only this kind of campaign knows of."""

    def _entries(self) -> list[Entry]:
        return [*entries_of(self._flood.joins), *self._audience.entries()]

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
        return Evidence(self._entries(), log, final, epochs), differing


class LossyCampaign(Campaign):
    """A run in which a kill may lose what was acknowledged; whoever was lost takes up their place on their token.

    The last who were answered before a kill all ask, as their pages would. Nobody but the flood comes here: what a
    lost leave or redeem comes to is the word of the mode, not a fault.
    """

    has_audience = False

    def __init__(self, pair: Pair, kills: int, seed: int, rate_per_s: float) -> None:
        super().__init__(pair, kills, seed, rate_per_s)
        self._flood.keeps_tokens = True
        self._promotions: list[tuple[Failover, Promotion]] = []
        self._turned_away: list[str] = []
        self.readmitted: list[int] = []

    def _alone_s(self) -> float:
        """Every other time there was no follower for a while, so that something is lost."""
        return self._chance.uniform(0.05, 0.5) if len(self.failovers) % 2 else 0.0

    async def _recover_losses(self, failover: Failover, promotion: Promotion) -> None:
        self._promotions.append((failover, promotion))
        since_s = failover.killed_s - ASK_AGAIN_S
        newest = [join for join in reversed(self._flood.joins) if join.due_s >= since_s - 1]
        acked = [join for join in newest if join.place and join.place.epoch == failover.epoch]
        requests = [request("GET", f"{EVENT}/position", bearer=join.place.token or "") for join in acked if join.place]
        with connections([await Connection.open(self._pair.primary.url) for _ in range(8)]) as pool:
            replies = await gather_over(pool, requests)
        for join, reply in zip(acked, replies, strict=True):
            place = reply.json(PlaceReply) if reply.status == 200 else None
            if place is None or join.place is None or place.number != join.place.number:
                self._turned_away.append(f"{join.key}, {join.place} was shown {reply.status} {reply.body[:300]!r}")

    def _entries(self) -> list[Entry]:
        """Return the answers without their versions: the numbers of lost records were given out again."""
        return [entry._replace(version=None) for entry in entries_of(self._flood.joins)]

    def _judge(self, report: Report, evidence: Evidence) -> None:
        """Hold what was lost, and so readmitted, against what was said at each promotion."""
        report.faults["lost"] += self._turned_away
        answered = {join.place.arrival: join for join in self._flood.joins if join.place and join.answered_s}
        epoch = 0
        lost: defaultdict[int, list[Join]] = defaultdict(list)
        for line in evidence.log:
            epoch = line.epoch or epoch
            if line.kind == "readmitted":
                lost[epoch].append(answered[line.arrival])
        for failover, promotion in self._promotions:
            gone = lost[failover.next_epoch]
            self.readmitted.append(len(gone))
            shown = f"{promotion.lag}" if promotion.since_s else "not known, the follower was new"
            self.remarks.append(f"readmitted {len(gone)}, lag {shown}, said to be lost: {promotion.lost}")
            early = [join for join in gone if not _is_owned_up_to(join, promotion)]
            if early:
                shown = f"{len(early)} of {len(gone)} lost are of before what was said to be lost: {promotion}"
                report.faults["lost"].append(shown)


def _is_owned_up_to(join: Join, promotion: Promotion) -> bool:
    """Whether a join is among what the sentence and, where it was known, the lag said to be lost."""
    assert join.place is not None and join.place.version is not None and join.answered_s is not None
    within = promotion.since_s is None or join.answered_s >= promotion.since_s - A_MOMENT_S
    return within and promotion.may_have_lost(join.place.version)
