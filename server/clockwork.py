"""Clockwork: what a daemon does by itself. It runs due batches, follows opening and closing times, writes snapshots.

Each function here is a core task: it runs until cancelled, and when it ends otherwise, the process ends. A
refusal (a full disk, an overloaded log) is no such end; it is tried again.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

import structlog

from engine.actor import By
from engine.backend import Backend
from engine.errors import Refused, StorageFailed
from engine.views import BackendChanged, EventChanged, EventGone, EventView

RETRY_S = 0.25
LOOK_EVERY_S = 0.5
SCHEDULE = "schedule"

log = structlog.get_logger("stanchion.clockwork")


async def release_due(backend: Backend) -> None:
    """Run the batches of all events as they come due."""
    while True:
        try:
            nap_s = await backend.tick() / 1000
        except Refused as refused:
            if refused.code != "not_primary":  # between two roles there is nothing to put off
                log.warning("release_put_off", code=refused.code, detail=refused.detail)
            nap_s = RETRY_S
        await asyncio.sleep(nap_s)


# ---- opening and closing times ----------------------------------------------------------------------


class Due(NamedTuple):
    """What is to be done about an event, and when, in Unix milliseconds."""

    at_ms: int
    action: str


class Schedule:
    """Opens lobbies and events, and closes them, at their times.

    `wall_ms` is Unix time; this is the one place where it decides.
    """

    def __init__(self, backend: Backend, wall_ms: Callable[[], int]) -> None:
        self._backend = backend
        self._wall_ms = wall_ms
        self._due: dict[str, Due] = {}
        self._closed: dict[str, object] = {}

    async def run(self) -> None:
        """Follow changes of events and act on their times."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._follow())
            await asyncio.sleep(0)  # changes are followed before the events are read, so none is missed
            await self._look_at_all()
            while True:
                await self.act()
                await asyncio.sleep(LOOK_EVERY_S)

    async def _follow(self) -> None:
        async for notices in self._backend.notices():
            for notice in notices:
                if isinstance(notice, BackendChanged):
                    await self._look_at_all()
                elif isinstance(notice, EventChanged):
                    await self._look_at(notice)
                elif isinstance(notice, EventGone):
                    self._due.pop(notice.event_id, None)
                    self._closed.pop(notice.event_id, None)

    async def _look_at(self, notice: EventChanged) -> None:
        try:
            self.note(await self._backend.event(notice.event_id, least_version=notice.version))
        except Refused:
            self._due.pop(notice.event_id, None)

    async def _look_at_all(self) -> None:
        """Take in how every event is now; where nobody can say, somebody will, and then it is looked at again."""
        with suppress(Refused):
            views = await self._backend.events()
            self._due.clear()
            for view in views:
                self.note(view)

    def note(self, view: EventView) -> None:
        """Take in how an event now is.

        A closing time that has passed does not count for an event that was reopened after it.
        """
        opens_at_ms, closes_at_ms = view.settings["opens_at_ms"], view.settings["closes_at_ms"]
        self._due.pop(view.event_id, None)
        if view.state == "closed":
            self._closed[view.event_id] = closes_at_ms
            return
        over = isinstance(closes_at_ms, int) and closes_at_ms <= self._wall_ms()
        lobby_opens_at_ms = view.settings["lobby_opens_at_ms"]
        if view.state == "draft" and isinstance(lobby_opens_at_ms, int) and not over:
            self._due[view.event_id] = Due(lobby_opens_at_ms, "lobby")
        elif view.state in ("draft", "lobby") and isinstance(opens_at_ms, int) and not over:
            self._due[view.event_id] = Due(opens_at_ms, "open")
        elif isinstance(closes_at_ms, int) and not (over and self._closed.get(view.event_id) == closes_at_ms):
            self._due[view.event_id] = Due(closes_at_ms, "close")

    async def act(self) -> None:
        """Do what is due, where it is decided."""
        if self._backend.status().role != "primary":
            return
        now_ms = self._wall_ms()
        for event_id, due in [(event_id, due) for event_id, due in self._due.items() if due.at_ms <= now_ms]:
            try:
                reason = "closing time" if due.action == "close" else None
                await self._backend.control(event_id, due.action, By(SCHEDULE, reason))
            except Refused as refused:
                if refused.reason == "just_started":
                    continue
                log.warning("schedule_put_off", event_id=event_id, action=due.action, detail=refused.detail)
                if refused.status < 500:
                    self._due.pop(event_id, None)


# ---- snapshots ----------------------------------------------------------------------------------------


class Snapshots:
    """Writes a snapshot when records were added and the interval is over, or very many were added.

    A snapshot that fails is an alarm and not the end: the log has everything.
    """

    def __init__(
        self, backend: Backend, clock: Callable[[], float], interval_s: float, every_records: int, version: int = 0
    ) -> None:
        self._backend = backend
        self._clock = clock
        self._interval_s = interval_s
        self._every_records = every_records
        self._version = version
        self._tried_s = clock()
        self.alarm: str | None = None

    async def run(self) -> None:
        """Write snapshots as they come due."""
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            if self.is_due():
                await self.write()

    def is_due(self) -> bool:
        """Return whether there is enough to write, and long enough since the last attempt."""
        status = self._backend.status()
        added = status.version - self._version if status.role != "none" else 0
        waited_s = self._clock() - self._tried_s
        if self.alarm is None and added >= self._every_records:
            return True
        return added > 0 and waited_s >= self._interval_s

    async def write(self) -> None:
        """Write one if anything was added since the last; never raises for a disk that refuses it."""
        version = self._backend.status().version
        if version == self._version:
            return
        self._tried_s = self._clock()
        try:
            await self._backend.snapshot()
        except (StorageFailed, Refused, ValueError) as error:
            self.alarm = f"the last snapshot failed: {error}"
            log.error("snapshot_failed", problem=str(error))
            return
        self._version, self.alarm = version, None
        log.info("snapshot_written", version=version, seconds=round(self._clock() - self._tried_s, 3))
