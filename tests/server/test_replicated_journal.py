"""Who waits for an LSN is answered when it may be spoken of, and only by a process that may speak."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from engine.errors import Refused
from engine.records import Left
from server.replication.agreement import Agreement, Wish
from server.replication.replicated_journal import ReplicatedJournal
from snapshots.journal import Journal, JournalOptions
from snapshots.memory_storage import MemoryStorage

REFUSED = Refused("not_primary", "no right")


@dataclass
class Stage:
    """A journal in memory, an agreement, and a right to speak that the test gives and takes."""

    journal: ReplicatedJournal
    agreement: Agreement
    rights: list[bool] = field(default_factory=lambda: [True])

    def append(self, count: int = 1) -> int:
        return self.journal.append([Left("e1", 0, number + 1) for number in range(count)])

    async def flushed(self, lsn: int) -> None:
        async with asyncio.timeout(5):
            while self.agreement.flushed_lsn < lsn:  # noqa: ASYNC110
                await asyncio.sleep(0.001)

    def in_step(self) -> None:
        self.agreement.joined("b", self.agreement.flushed_lsn, 0)
        self.agreement.answered("b", self.agreement.flushed_lsn, 1, 1)
        self.agreement.granted(Wish("b"), 0)

    def acknowledge(self, lsn: int) -> None:
        self.agreement.answered("b", lsn, 2, 2)
        self.journal.speak()


@asynccontextmanager
async def stage(*, is_sync: bool = True) -> AsyncIterator[Stage]:
    rights = [True]
    agreement = Agreement(is_sync, 2_000_000_000)
    inner = Journal.open(MemoryStorage(), JournalOptions(segment_mib=1))
    journal = ReplicatedJournal(inner, agreement, lambda: 0, lambda: rights[0], lambda: REFUSED)
    await journal.start()
    try:
        yield Stage(journal, agreement, rights)
    finally:
        journal.retire()
        await journal.close()


async def test_alone_an_answer_waits_for_this_disk() -> None:
    async with stage() as on:
        lsn = on.append(3)
        waiting = on.journal.when_durable(lsn)
        assert waiting is not None
        await asyncio.wait_for(waiting, 5)
        assert on.journal.durable_lsn == lsn
        assert on.journal.when_durable(lsn) is None


async def test_in_step_an_answer_waits_for_the_standby_too() -> None:
    async with stage() as on:
        on.in_step()
        lsn = on.append()
        waiting = on.journal.when_durable(lsn)
        await on.flushed(lsn)
        assert waiting is not None
        assert not waiting.done()
        on.acknowledge(lsn)
        await asyncio.wait_for(waiting, 5)


async def test_each_is_answered_at_its_own_lsn() -> None:
    async with stage() as on:
        on.in_step()
        first, second = on.append(), on.append()
        waiting = [on.journal.when_durable(first), on.journal.when_durable(second)]
        await on.flushed(second)
        on.acknowledge(first)
        assert [one is not None and one.done() for one in waiting] == [True, False]
        on.acknowledge(second)
        assert all(one is not None and one.done() for one in waiting)


async def test_without_the_right_nobody_is_answered_until_it_is_back() -> None:
    async with stage() as on:
        on.rights[0] = False
        waiting = on.journal.when_durable(on.append())
        await on.flushed(1)
        assert waiting is not None
        assert not waiting.done()
        assert on.journal.refusal(essential=True) is REFUSED
        on.rights[0] = True
        on.journal.speak()
        await asyncio.wait_for(waiting, 5)


async def test_who_waits_when_the_right_is_gone_is_refused() -> None:
    async with stage() as on:
        on.rights[0] = False
        waiting = on.journal.when_durable(on.append())
        on.journal.refuse_waiting()
        assert waiting is not None
        with pytest.raises(Refused, match="no right"):
            await waiting


async def test_whoever_resigned_takes_nothing_and_answers_nobody() -> None:
    async with stage() as on:
        on.in_step()
        waiting = on.journal.when_durable(on.append())
        on.journal.resign(Refused("not_primary", "another leads"))
        on.acknowledge(1)
        later = on.journal.when_durable(on.append())
        assert waiting is not None and later is not None
        for refused in (waiting, later):
            with pytest.raises(Refused, match="another leads"):
                await refused
        refusal = on.journal.refusal(essential=True)
        assert refusal is not None and refusal.detail == "another leads"


async def test_while_the_line_is_handed_over_what_was_taken_is_still_answered() -> None:
    async with stage() as on:
        waiting = on.journal.when_durable(on.append())
        on.journal.stop_taking(Refused("not_primary", "handing over"))
        assert on.journal.refusal(essential=True) is not None
        assert waiting is not None
        await asyncio.wait_for(waiting, 5)
        on.journal.go_on_taking()
        assert on.journal.refusal(essential=True) is None


async def test_records_are_read_only_as_far_as_they_may_be_spoken_of() -> None:
    async with stage() as on:
        first = on.append(2)
        await on.flushed(first)
        on.in_step()
        await on.flushed(on.append(3))
        read = [lsn async for batch in on.journal.read_records(1) for lsn, _ in batch]
        assert read == [1, 2]


async def test_each_who_is_refused_has_an_error_of_their_own() -> None:
    """One error for all would hold the tracebacks of all, and no collector runs in a daemon."""
    async with stage() as on:
        on.in_step()
        lsn = on.append()
        waiting = [on.journal.when_durable(lsn), on.journal.when_durable(lsn)]
        on.journal.resign(Refused("not_primary", "another leads", retry_after_s=1))
        waiting.append(on.journal.when_durable(on.append()))
        errors = [one.exception() for one in waiting if one is not None]
        assert len({id(error) for error in errors}) == 3
        assert all(isinstance(error, Refused) and error.retry_after_s == 1 for error in errors)
