"""The crowd of a rehearsal: joins at moments fixed beforehand, whatever becomes of the servers, and the judgement.

Everybody makes one join under one Idempotency-Key. Whoever is refused with a 503, hung up on, or not answered within a
second asks the other address at once, and then again and again until there is an answer.
"""

import asyncio
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import aiohttp

TIMEOUT_S = 1.0
PAUSE_S = 0.4
TICK_S = 0.01


@dataclass(slots=True, eq=False)
class Join:
    """One visitor: when they were due, first asked and answered (monotonic seconds), with which number and token.

    `last_sent_s` is when the request was sent that was answered; `complaint` is what no join should be answered.
    """

    user_id: str
    due_s: float
    sent_s: float = 0.0
    last_sent_s: float = 0.0
    answered_s: float = 0.0
    attempts: int = 0
    number: int = 0
    token: str = ""
    complaint: str = ""

    @property
    def is_in_time(self) -> bool:
        """Whether it was answered rightly within a second of its moment, after at most one retry."""
        return self.number > 0 and self.answered_s - self.due_s <= TIMEOUT_S and self.attempts <= 2


@dataclass(slots=True)
class Crowd:
    """Joins at a steady pace over two addresses; `run` ends when it `is_over` and everybody has an answer."""

    urls: Sequence[str]
    event_id: str
    per_s: float
    session: aiohttp.ClientSession
    joins: list[Join] = field(default_factory=list)
    is_over: bool = False
    _believed: int = 0
    _asking: set[asyncio.Task[None]] = field(default_factory=set)

    async def run(self) -> None:
        """Let visitors come."""
        began_s = time.monotonic()
        while not self.is_over:
            while (due_s := began_s + len(self.joins) / self.per_s) <= time.monotonic():
                join = Join(f"visitor-{len(self.joins)}", due_s)
                self.joins.append(join)
                task = asyncio.create_task(self._ask(join))
                self._asking.add(task)
                task.add_done_callback(self._asking.discard)
            await asyncio.sleep(TICK_S)
        await asyncio.gather(*self._asking)

    async def close(self) -> None:
        """Send away whoever still asks."""
        for task in self._asking:
            task.cancel()
        await asyncio.gather(*self._asking, return_exceptions=True)

    def first_answer_after(self, moment_s: float) -> float | None:
        """Return when the first join was answered that was sent after a moment."""
        return min(
            (join.answered_s for join in self.joins if join.last_sent_s > moment_s and join.number), default=None
        )

    async def _ask(self, join: Join) -> None:
        door = self._believed
        join.sent_s = time.monotonic()
        while not join.number and not join.complaint:
            if join.attempts > 1:
                await asyncio.sleep(PAUSE_S)
            join.attempts += 1
            with suppress(aiohttp.ClientError, TimeoutError, OSError):
                await self._ask_once(join, door)
            if join.number:
                self._believed = door
            door = 1 - door

    async def _ask_once(self, join: Join, door: int) -> None:
        sent_s = time.monotonic()
        headers, timeout = {"Idempotency-Key": join.user_id}, aiohttp.ClientTimeout(TIMEOUT_S)
        url = f"{self.urls[door]}/v1/events/{self.event_id}/join"
        async with self.session.post(url, json={"user_id": join.user_id}, headers=headers, timeout=timeout) as response:
            place = await response.json(content_type=None)
        if response.status in (200, 201):
            join.last_sent_s, join.answered_s = sent_s, time.monotonic()
            join.number, join.token = place["number"], place["token"]
        elif response.status != 503:
            join.complaint = f"{response.status} {place}"


class Verdict(NamedTuple):
    """What became of everybody's join; `lost` are those who were answered and are not in line."""

    joins: int
    acknowledged: int
    lost: list[Join]
    out_of_order: int
    complaints: int
    in_time: int

    @property
    def availability(self) -> float:
        """Return the share of joins that were answered rightly within a second, after at most one retry."""
        return self.in_time / self.joins if self.joins else 1.0

    def availability_of_an_hour(self, kills: int, per_s: float) -> float:
        """Return the same for an hour with one kill, had the joins of the hour come at the same pace."""
        failed_per_kill = (self.joins - self.in_time) / max(1, kills)
        return 1 - failed_per_kill / (per_s * 3600)


def judge(joins: Sequence[Join], records: Iterable[Mapping[str, Any]]) -> Verdict:
    """Hold what visitors were answered against the log that is left; without a lobby the arrival is the number."""
    held = {record["user_id"]: record["arrival"] for record in records if record["kind"] in ("joined", "readmitted")}
    acknowledged = [join for join in joins if join.number]
    lost = [join for join in acknowledged if held.get(join.user_id) != join.number]
    return Verdict(
        len(joins),
        len(acknowledged),
        lost,
        out_of_order(acknowledged),
        sum(bool(join.complaint) for join in joins),
        sum(join.is_in_time for join in joins),
    )


def out_of_order(joins: Sequence[Join]) -> int:
    """Return how many stand before, or beside, somebody who had been answered before they first asked; O(n log n).

    A request whose answer was lost may have given the place that a later one tells, so the first one counts.
    """
    answered = sorted(joins, key=lambda join: join.answered_s)
    highest, at, found = 0, 0, 0
    for join in sorted(joins, key=lambda join: join.sent_s):
        while at < len(answered) and answered[at].answered_s < join.sent_s:
            highest = max(highest, answered[at].number)
            at += 1
        found += join.number <= highest
    return found + len(joins) - len({join.number for join in joins})
