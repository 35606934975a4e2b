"""A follower has nothing to do with a primary of an older term, above all cuts nothing off on its word."""

import asyncio

from engine.records import Started
from server.replication.following import Following, FollowingEvents
from server.replication.link import Link, LinkClosed, answer
from server.replication.messages import Follow, Welcome
from server.replication.settings import ReplicationSettings
from snapshots.journal import Journal, JournalOptions
from snapshots.memory_storage import MemoryStorage
from snapshots.segments import LogPosition
from snapshots.standby import StandbyLog
from snapshots.wal import RESTARTS_PER_TERM, first_chain

KEY = "a" * 64


class QueueLink:
    """One end of a link in this process."""

    def __init__(self, out: "asyncio.Queue[bytes | None]", into: "asyncio.Queue[bytes | None]") -> None:
        self._out, self._into = out, into

    async def send(self, data: bytes) -> None:
        self._out.put_nowait(data)

    async def receive(self) -> bytes:
        data = await self._into.get()
        if data is None:
            raise LinkClosed("closed")
        return data

    def close(self) -> None:
        self._out.put_nowait(None)


class NoKeys:
    def take(self, sealed: bytes, key: str) -> None:
        raise AssertionError("no ring is handed on here")


async def log_of_term(term: int) -> tuple[MemoryStorage, JournalOptions]:
    storage, options = MemoryStorage(), JournalOptions(segment_mib=1, least_epoch=term * RESTARTS_PER_TERM)
    journal = Journal.open(storage, options)
    await journal.start()
    lsn = journal.append([Started(at_ms, journal.epoch, at_ms, 0, None) for at_ms in range(1, 6)])
    if (durable := journal.when_durable(lsn)) is not None:
        await durable
    await journal.close()
    return storage, options


async def welcomed_by(term: int, own_term: int) -> tuple[int, int]:
    """Return where the log of a follower ended before and after a primary asked it to cut everything off."""
    storage, options = await log_of_term(own_term)
    log = StandbyLog.open(storage, options)
    there, back = asyncio.Queue[bytes | None](), asyncio.Queue[bytes | None]()

    async def open_link(url: str) -> Link:
        return QueueLink(there, back)

    async def lead() -> None:
        link = QueueLink(back, there)
        sealed, _ = await answer(link, [KEY], "primary", "queue://a")
        follow = await sealed.receive()
        assert isinstance(follow, Follow) and follow.epoch // RESTARTS_PER_TERM == own_term
        starts = [LogPosition(0, first_chain(log.log_id), 0, 0)]
        epoch = term * RESTARTS_PER_TERM
        await sealed.send(Welcome("cut", "primary", epoch, log.log_id, "queue://a", "", "sync", 1.5, b"", [], starts))

    def ignore(*_: object) -> None:
        """Nobody listens."""

    events = FollowingEvents(ignore, ignore, ignore, ignore)
    settings = ReplicationSettings("follower", "queue://b")
    clocks = (lambda: 0, lambda: 0)
    before = log.position.lsn
    following = Following(settings, lambda: [KEY], None, log, open_link, NoKeys(), clocks, events)
    leading = asyncio.create_task(lead())
    running = asyncio.create_task(following.run(lambda: ["queue://a"]))
    await asyncio.wait_for(leading, 5)
    for _ in range(200):
        await asyncio.sleep(0.001)
        if log.position.lsn != before:
            break
    running.cancel()
    await asyncio.wait([running])
    after = log.position.lsn
    await log.close()
    return before, after


async def test_a_primary_of_an_older_term_cuts_nothing_off() -> None:
    before, after = await welcomed_by(1, 2)
    assert after == before > 0


async def test_a_primary_of_a_later_term_does() -> None:
    before, after = await welcomed_by(3, 2)
    assert after < before
