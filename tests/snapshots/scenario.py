"""A scripted life of a journal, and the judgement of what a recovery brings back.

The script is written against classes that are handed in, so that the same life can be led by a mutated copy of
the package. Each visitor's `user_id` names its LSN and its generation, so an invented, moved or stale record shows.
"""

import asyncio
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from engine.records import Joined, Record
from snapshots.journal import Journal, JournalOptions
from snapshots.memory_storage import CrashState, MemoryStorage

SMALL = {"segment_mib": 1 / 256, "idle_frame_ms": 3_600_000}


@dataclass(frozen=True)
class Promise:
    """What had been promised: the newest epoch, and every record acknowledged so far."""

    epoch: int = 0
    acknowledged: tuple[str, ...] = ()


@dataclass
class Life:
    """A journal driven step by step, noting in the trace what it promised."""

    storage: MemoryStorage
    journal_class: Any = Journal
    options: Any = None
    generation: int = 0
    history: list[str] = field(default_factory=list)
    ever: dict[int, set[str]] = field(default_factory=dict)
    journal: Any = None

    def __post_init__(self) -> None:
        self.options = self.options or JournalOptions(**SMALL)

    async def open(self) -> None:
        self.generation += 1
        self.journal = self.journal_class.open(self.storage, self.options)
        self.history = state_of(self.journal)
        await self.journal.start()
        self.promise()

    def promise(self) -> None:
        self.storage.mark(Promise(self.journal.epoch, tuple(self.history[: self.journal.durable_lsn])))

    def append(self, count: int) -> int:
        records = []
        for _ in range(count):
            lsn = len(self.history) + 1
            user_id = f"{self.generation}-{lsn}"
            self.history.append(user_id)
            self.ever.setdefault(lsn, set()).add(user_id)
            records.append(joined(lsn, user_id))
        return int(self.journal.append(records))

    async def commit(self, *counts: int) -> None:
        for count in counts:
            waiter = self.journal.when_durable(self.append(count))
            if waiter is not None:
                await waiter
            self.promise()

    async def snapshot(self) -> None:
        lsn = self.journal.durable_lsn
        rows = self.history[:lsn]
        info = await self.journal.snapshot(lsn, 1_000, [rows[at : at + 40] for at in range(0, lsn, 40)])
        assert info.name in self.storage.names("snapshots")

    async def close(self) -> None:
        await self.journal.close()

    async def die_before(self, action: str, count: int) -> None:
        """Append, and be killed just before the commit thread's next such call; the machine runs on."""
        self.storage.faults.die_before = action
        waiter = self.journal.when_durable(self.append(count))
        await asyncio.wait([waiter, self.journal.failed], return_when=asyncio.FIRST_COMPLETED)
        if waiter.done() and waiter.exception() is None:
            self.promise()
        self.kill()

    def kill(self) -> None:
        self.storage = self.storage.kill()
        self.journal._thread.stop()
        self.journal._thread.join()


def joined(lsn: int, user_id: str) -> Record:
    return Joined("event", 1_000 + lsn, lsn, lsn, user_id, 0, 0, 1, False)


def state_of(journal: Any) -> list[str]:
    """Return the user ids of all records a journal brings back, from its snapshot and its log, in order."""
    users: list[str] = [user_id for part in journal.snapshot_parts() for user_id in part]
    assert len(users) == journal.snapshot_lsn
    for lsn, record in journal.replay():
        users.append(record.user_id)
        assert len(users) == lsn, "the replay skips or repeats an LSN"
    assert len(users) == journal.last_lsn, "the replay ends elsewhere than the journal says"
    return users


async def lead_a_life(life: Life) -> Life:
    """Appends, cuts, snapshots, prunes, orderly and sudden ends; about 200 storage operations."""
    await life.open()
    await life.commit(1, 3, 14, 110, 120)
    await life.snapshot()
    await life.commit(30, 2)
    await life.die_before("fdatasync", 6)
    await life.open()
    await life.commit(1, 12)
    await life.snapshot()
    await life.commit(40)
    await life.close()
    await life.open()
    await life.commit(2)
    await life.snapshot()
    await life.commit(25)
    await life.snapshot()
    await life.die_before("write", 2)
    await life.open()
    await life.commit(1, 3)
    await life.close()
    return life


def judge(state: CrashState, ever: dict[int, set[str]], journal_class: Any = Journal, options: Any = None) -> Any:
    """Recover from a crash and hold the result to what had been promised; return the journal."""
    storage = MemoryStorage(state.image)
    journal = journal_class.open(storage, options or JournalOptions(**SMALL))
    check_promise(journal, state.promised or Promise(), ever)
    return journal


def check_promise(journal: Any, promise: Any, ever: dict[int, set[str]]) -> None:
    users = state_of(journal)
    kept = tuple(users[: len(promise.acknowledged)])
    assert kept == tuple(promise.acknowledged), "an acknowledged record is lost or changed"
    for lsn, user_id in enumerate(users, 1):
        assert user_id in ever[lsn], "a record was invented"
    assert journal.epoch > promise.epoch, "an epoch is used twice"
    assert not journal.found.alarms, f"a crash raises an alarm: {journal.found.alarms}"


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop turn until something in another thread has happened."""
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0)


class Gate:
    """Holds the commit thread before its next fdatasync, so that a test decides what happens meanwhile."""

    def __init__(self, storage: MemoryStorage, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reached = threading.Event()
        self.opened = threading.Event()
        perform = storage.perform

        def held(action: str, *arguments: object) -> object:
            if action == "fdatasync":
                self.reached.set()
                assert self.opened.wait(10)
            return perform(action, *arguments)

        monkeypatch.setattr(storage, "perform", held)

    async def wait(self) -> None:
        await asyncio.to_thread(self.reached.wait, 10)
