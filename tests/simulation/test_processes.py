"""Simulated processes die as real ones do, and their disks keep what a disk keeps."""

import asyncio

import pytest

from engine.errors import Locked, StorageFailed
from tests.simulation.network import Network
from tests.simulation.processes import Host, Process
from tests.simulation.virtual_loop import VirtualLoop, lead


def write(host: Host, name: str, *, flushed: bool) -> None:
    storage = host.disk.storage
    storage.make_folder("log")
    storage.sync_directory("")
    file = storage.create(f"log/{name}")
    file.write(0, name.encode() * 1000)
    if flushed:
        file.fdatasync()
        storage.sync_directory("log")


def test_killed_everything_written_stays_and_a_power_cut_takes_what_was_not_flushed() -> None:
    async def life(loop: VirtualLoop) -> tuple[list[str], list[str]]:
        host = Host("a", loop, Network(loop))

        async def program(process: Process) -> None:
            write(host, "flushed", flushed=True)
            write(host, "cached", flushed=False)
            await asyncio.Event().wait()

        host.start(program)
        await asyncio.sleep(1)
        host.kill()
        killed = host.disk.storage.names("log")
        host.start(program)
        await asyncio.sleep(1)
        write(host, "newest", flushed=False)
        host.cut_power()
        host.bury()
        return killed, host.disk.storage.names("log")

    after_cuts = set()
    for seed in range(20):
        killed, cut = lead(seed, life)
        assert killed == ["log/cached", "log/flushed"]
        assert "log/flushed" in cut
        after_cuts.add("log/newest" in cut)
    assert after_cuts == {True, False}


def test_a_crash_interrupts_work_in_a_thread_at_any_of_its_operations() -> None:
    async def life(loop: VirtualLoop) -> int:
        host = Host("a", loop, Network(loop))

        def work() -> None:
            for number in range(8):
                write(host, str(number), flushed=True)

        async def program(process: Process) -> None:
            await asyncio.to_thread(work)
            await asyncio.Event().wait()

        host.start(program)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        host.kill()
        host.bury()
        return len(host.disk.storage.names("log"))

    assert len({lead(seed, life) for seed in range(60)}) > 3


def test_a_dead_process_cannot_write_and_its_folder_is_free() -> None:
    async def life(loop: VirtualLoop) -> None:
        host = Host("a", loop, Network(loop))
        host.start(lambda process: asyncio.sleep(1000))
        old = host.disk.storage
        old.lock()
        with pytest.raises(Locked):
            host.disk.storage.lock()
        host.kill()
        with pytest.raises(StorageFailed):
            old.make_folder("late")
        host.disk.storage.lock()

    lead(1, life)


def test_the_clock_of_a_frozen_process_goes_on_and_that_of_a_booted_host_begins_anew() -> None:
    async def life(loop: VirtualLoop) -> None:
        host = Host("a", loop, Network(loop))
        host.start(lambda process: asyncio.sleep(1000))
        before_ns = host.boottime_ns()
        host.freeze()
        await asyncio.sleep(30)
        assert host.boottime_ns() - before_ns == pytest.approx(30e9)
        wall_ms = host.wall_ms()
        host.cut_power()
        host.start(lambda process: asyncio.sleep(1000))
        assert host.boottime_ns() < 1e9
        assert host.wall_ms() == wall_ms
        host.bury()

    lead(1, life)


def test_a_program_that_ends_takes_everything_it_started_with_it() -> None:
    async def life(loop: VirtualLoop) -> None:
        host = Host("a", loop, Network(loop))
        beats: list[float] = []

        async def beat() -> None:
            while True:
                beats.append(loop.time())
                await asyncio.sleep(1)

        async def program(process: Process) -> None:
            beating = asyncio.create_task(beat())
            await asyncio.sleep(2.5)
            raise StorageFailed(f"the disk is gone after {beating.get_name()}")

        process = host.start(program)
        ending = await process.ended
        assert isinstance(ending, StorageFailed)
        await asyncio.sleep(10)
        assert len(beats) == 3
        assert not host.is_running
        host.bury()

    lead(1, life)
