"""The journal in virtual time is the real journal: what it calls durable survives a crash at any moment."""

import asyncio

from engine.records import Left
from snapshots.journal import Journal, JournalOptions
from tests.simulation.commits import VirtualCommits
from tests.simulation.network import Network
from tests.simulation.processes import Host, Process
from tests.simulation.virtual_loop import VirtualLoop, lead

OPTIONS = JournalOptions(segment_mib=1 / 256, commit_thread=VirtualCommits)
RECORD = Left("event", 1, 1)


def test_a_commit_takes_time_and_an_orderly_end_keeps_everything() -> None:
    async def life(loop: VirtualLoop) -> None:
        host = Host("a", loop, Network(loop))
        journal = Journal.open(host.disk.storage, OPTIONS)
        await journal.start()
        began_s = loop.time()
        for _ in range(60):
            durable = journal.when_durable(journal.append([RECORD]))
            assert durable is not None
            await durable
        assert 60 * 0.0001 < loop.time() - began_s < 60
        await journal.close()
        again = Journal.open(host.disk.storage, OPTIONS)
        assert again.last_lsn == 60
        assert again.found.torn_bytes == 0

    for seed in range(3):
        lead(seed, life)


def test_what_was_called_durable_is_there_after_a_kill_or_a_power_cut_at_any_moment() -> None:
    async def life(loop: VirtualLoop) -> tuple[bool, int]:
        host = Host("a", loop, Network(loop))
        durable_lsn = appended_lsn = 0

        async def program(process: Process) -> None:
            nonlocal durable_lsn, appended_lsn
            journal = Journal.open(host.disk.storage, OPTIONS)
            await journal.start()
            while True:
                appended_lsn = journal.append([RECORD] * loop.random.randint(1, 5))
                durable = journal.when_durable(appended_lsn)
                assert durable is not None
                await durable
                durable_lsn = appended_lsn

        host.start(program)
        await asyncio.sleep(loop.random.uniform(0, 0.2))
        is_cut = loop.random.random() < 0.5
        host.cut_power() if is_cut else host.kill()
        again = Journal.open(host.disk.storage, OPTIONS)
        assert durable_lsn <= again.last_lsn <= appended_lsn
        assert sum(1 for _ in again.replay()) == again.last_lsn
        host.bury()
        return is_cut, again.last_lsn - durable_lsn

    found = {lead(seed, life) for seed in range(80)}
    assert {(True, 0), (False, 0)} < found, "a batch in flight is there after some crashes and gone after others"
