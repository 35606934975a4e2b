"""A cable that can be told to flip one bit: a small TCP proxy in a thread of its own."""

import asyncio
import random
import threading
import time
from types import TracebackType

from tests.scenarios.namespaces import Machine

CHUNK_BYTES = 64 * 1024


class FlippingProxy:
    """Passes everything on between whoever connects to it, on a machine, and a server; counts what it flipped.

    `flip(way)` has one bit of the next chunk flipped that goes "to" the server or comes "from" it.
    """

    def __init__(self, machine: Machine, host: str, port: int, chance: random.Random) -> None:
        self._machine = machine
        self._host, self._port = host, port
        self._chance = chance
        self._due = ""
        self._loop = asyncio.new_event_loop()
        self._is_ready = threading.Event()
        self._over = asyncio.Event()
        self._thread = threading.Thread(target=self._run)
        self.address = f"{machine.address}:{port}"
        self.flipped = 0

    def __enter__(self) -> "FlippingProxy":
        self._thread.start()
        assert self._is_ready.wait(10), "the proxy did not start"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join()

    def flip(self, way: str, within_s: float = 10.0) -> None:
        """Flip one bit of what goes that way next; returns once it is done."""
        before, deadline_s = self.flipped, time.monotonic() + within_s
        self._due = way
        while self.flipped == before:
            assert time.monotonic() < deadline_s, f"nothing went {way} the server within {within_s:g} s"
            time.sleep(0.005)

    def _run(self) -> None:
        with self._machine.inside(), asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._pass_on, self._machine.address, self._port)
        self._is_ready.set()
        async with server:
            await self._over.wait()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            upstream = await asyncio.open_connection(self._host, self._port)
        except OSError:
            writer.transport.abort()
            return
        ways = (self._carry("to", reader, upstream[1]), self._carry("from", upstream[0], writer))
        tasks = [asyncio.create_task(way) for way in ways]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        writer.transport.abort()
        upstream[1].transport.abort()

    async def _carry(self, way: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while chunk := await reader.read(CHUNK_BYTES):
            writer.write(self._flipped(chunk) if way == self._due else chunk)
            await writer.drain()

    def _flipped(self, chunk: bytes) -> bytes:
        at = self._chance.randrange(8 * len(chunk))
        changed = bytearray(chunk)
        changed[at // 8] ^= 1 << at % 8
        self._due = ""
        self.flipped += 1
        return bytes(changed)
