"""The network in memory behaves as TCP does: in order or not at all, and what happens far away shows only later."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from server.replication.link import Link, LinkClosed
from tests.simulation.network import RETRY_S, UNDER_WAY_MAX_BYTES, Network
from tests.simulation.processes import Host, Process
from tests.simulation.virtual_loop import VirtualLoop, lead


class Pair:
    """Two hosts: "b" listens and keeps what it hears, "a" is connected to it."""

    def __init__(self, loop: VirtualLoop) -> None:
        self.loop = loop
        self.network = Network(loop)
        self.a, self.b = Host("a", loop, self.network), Host("b", loop, self.network)
        self.heard: list[bytes | None] = []
        self.links: list[Link] = []
        self.a.start(self._wait)
        self.b.start(self._listen)

    async def _wait(self, process: Process) -> None:
        await asyncio.Event().wait()

    async def _listen(self, process: Process) -> None:
        process.listen(self._serve)
        await asyncio.Event().wait()

    async def _serve(self, link: Link) -> None:
        self.links.append(link)
        try:
            while True:
                self.heard.append(await link.receive())
        except LinkClosed:
            self.heard.append(None)

    async def connected(self) -> Link:
        await asyncio.sleep(0.01)
        return await self.in_a(lambda: self.network.connect(self.a.process, self.b.url))

    async def in_a(self, work: Callable[[], Awaitable[Any]]) -> Any:
        assert self.a.process is not None
        return await self.a.process.spawn(work())  # type: ignore[arg-type]


def over_seeds(life: Callable[[Pair], Awaitable[None]], seeds: int = 5) -> None:
    async def whole(loop: VirtualLoop) -> None:
        pair = Pair(loop)
        await life(pair)
        for host in (pair.a, pair.b):
            host.bury()

    for seed in range(seeds):
        lead(seed, whole)


def test_messages_arrive_whole_and_in_order() -> None:
    async def life(pair: Pair) -> None:
        link = await pair.connected()
        for number in range(20):
            await link.send(b"%d" % number)
            if number % 3 == 0:
                await asyncio.sleep(0.001)
        assert len(pair.heard) < 20
        await asyncio.sleep(1)
        assert pair.heard == [b"%d" % number for number in range(20)]

    over_seeds(life)


def test_both_ends_send_and_a_close_arrives_behind_what_was_sent() -> None:
    async def life(pair: Pair) -> None:
        link = await pair.connected()
        await asyncio.sleep(0.01)
        await pair.links[0].send(b"hello")
        assert await link.receive() == b"hello"
        await link.send(b"last")
        link.close()
        with pytest.raises(LinkClosed):
            await link.send(b"after the end")
        with pytest.raises(LinkClosed):
            await link.receive()
        await pair.links[0].send(b"nobody reads it")  # the end has not arrived there yet
        await asyncio.sleep(1)
        assert pair.heard == [b"last", None]
        with pytest.raises(LinkClosed):
            await pair.links[0].send(b"now it has")

    over_seeds(life)


def test_what_meets_a_partition_waits_for_its_end() -> None:
    async def life(pair: Pair) -> None:
        link = await pair.connected()
        pair.network.part("a", "b")
        await link.send(b"late")
        await asyncio.sleep(10)
        assert pair.heard == []
        pair.network.heal()
        await asyncio.sleep(RETRY_S * 2)
        assert pair.heard == [b"late"]

    over_seeds(life)


def test_a_way_may_be_blocked_in_one_direction_only() -> None:
    async def life(pair: Pair) -> None:
        link = await pair.connected()
        await asyncio.sleep(0.01)
        pair.network.block("a", "b")
        await link.send(b"there")
        await pair.links[0].send(b"back")
        assert await link.receive() == b"back"
        await asyncio.sleep(10)
        assert pair.heard == []

    over_seeds(life)


def test_a_reset_ends_both_sides_and_loses_what_was_on_its_way() -> None:
    async def life(pair: Pair) -> None:
        link = await pair.connected()
        await link.send(b"arrived")
        await asyncio.sleep(0.01)
        pair.network.part("a", "b")
        await link.send(b"lost")
        assert pair.network.reset("a", "b") == 1
        await asyncio.sleep(1)
        await link.send(b"it does not know yet")
        pair.network.heal()
        await asyncio.sleep(1)
        assert pair.heard == [b"arrived", None]
        with pytest.raises(LinkClosed):
            await link.receive()

    over_seeds(life)


def test_a_bit_flips_on_request_and_only_once() -> None:
    async def life(pair: Pair) -> None:
        link = await pair.connected()
        pair.network.flip_a_bit("a", "b")
        await link.send(bytes(100))
        await link.send(bytes(100))
        await asyncio.sleep(1)
        bad, good = pair.heard
        assert bad is not None
        assert sum(byte.bit_count() for byte in bad) == 1
        assert good == bytes(100)

    over_seeds(life)


def test_a_sender_waits_while_too_much_is_not_read() -> None:
    async def life(pair: Pair) -> None:
        link = await pair.connected()
        pair.b.freeze()
        await link.send(bytes(UNDER_WAY_MAX_BYTES + 1))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(5):
                await link.send(b"more")
        sending = asyncio.ensure_future(link.send(b"more"))
        await asyncio.sleep(1)
        assert not sending.done()
        pair.b.thaw()
        await sending
        await asyncio.sleep(1)
        assert pair.heard[-1] == b"more"

    over_seeds(life)


def test_a_connection_to_nobody_is_refused_and_one_into_silence_waits() -> None:
    async def life(pair: Pair) -> None:
        await pair.connected()
        pair.b.kill()
        with pytest.raises(ConnectionRefusedError):
            await pair.connected()
        pair.network.part("a", "b")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(60):
                await pair.connected()
        pair.network.heal()
        pair.b.cut_power()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(60):
                await pair.connected()

    over_seeds(life)


def test_a_killed_process_is_missed_at_once_and_one_without_power_when_its_host_is_back() -> None:
    async def life(pair: Pair) -> None:
        link = await pair.connected()
        await asyncio.sleep(0.01)
        pair.b.kill()
        with pytest.raises(LinkClosed):
            async with asyncio.timeout(0.1):
                await link.receive()
        pair.b.start(pair._listen)
        link = await pair.connected()
        pair.b.cut_power()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(100):
                await link.receive()
        pair.b.start(pair._listen)
        with pytest.raises(LinkClosed):
            async with asyncio.timeout(1):
                await link.receive()

    over_seeds(life)


def test_what_a_killed_process_had_sent_still_arrives() -> None:
    async def life(pair: Pair) -> None:
        link = await pair.connected()
        await link.send(b"its last word")
        pair.a.kill()
        await asyncio.sleep(1)
        assert pair.heard == [b"its last word", None]

    over_seeds(life)


def test_a_question_is_answered_or_times_out_or_is_cut_off_by_a_kill() -> None:
    async def life(pair: Pair) -> None:
        done: list[str] = []

        async def work(process: Process) -> str:
            await asyncio.sleep(1)
            done.append("done")
            return "answer"

        async def ask(timeout_s: float) -> str:
            return await pair.network.ask(pair.a.process, "b", work, timeout_s)  # type: ignore[arg-type]

        await asyncio.sleep(0.01)
        assert await ask(5) == "answer"
        with pytest.raises(TimeoutError):
            await ask(0.5)
        await asyncio.sleep(1)
        assert len(done) == 2, "an answer that comes too late is not a deed undone"
        pair.loop.call_later(0.5, pair.b.kill)
        with pytest.raises(ConnectionResetError):
            await ask(5)
        with pytest.raises(ConnectionRefusedError):
            await ask(5)
        await asyncio.sleep(5)
        assert len(done) == 2, "who is killed does not finish"

    over_seeds(life)
