"""An orderly end under load: what was acknowledged is there, what was running is answered, sockets are sent away."""

import asyncio
import time
from contextlib import suppress

import aiohttp
import msgspec
import pytest

from tests.scenarios.client import Connection, PlaceReply, connections, gather_over, read_lines, request
from tests.scenarios.history import Entry, Evidence, FinalPlace, LogLine, check
from tests.server.conftest import StartDaemon
from tests.server.daemons import Daemon, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

EVENT, ADMIN = "/v1/events/sale", "/v1/admin/events/sale"
CLIENTS, SOCKETS = 32, 8
BUSY = 1_000


def open_sale(daemon: Daemon) -> None:
    daemon.admin("PUT", ADMIN, {"batch_size": 20, "batch_interval_s": 1})
    daemon.admin("POST", f"{ADMIN}/open", {})


class Crowd:
    """Clients who join one after the other until the server sends them away."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.tokens: list[str] = []
        self.refused: list[bytes] = []
        self.busy = asyncio.Event()

    async def join(self, client: int, connection: Connection) -> None:
        number = 0
        with suppress(ConnectionError):
            while True:
                number += 1
                key = f"c{client}-{number}"
                reply = await connection.ask(request("POST", f"{EVENT}/join", {"user_id": key}, key=key))
                if reply.status != 201:
                    self.refused.append(reply.body)
                    continue
                place = reply.json(PlaceReply)
                self.tokens.append(place.token or "")
                if len(self.tokens) == BUSY:
                    self.busy.set()
                self.entries.append(
                    Entry(
                        client, "join", reply.sent_s, reply.answered_s, key, key, place.number, place.arrival,
                        place.status, place.position, place.epoch, place.version,
                    )
                )  # fmt: skip


class HalfSent:
    """A join of which the server has the head and not yet the whole body."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._body = b'{"user_id": "half-sent"}'

    @classmethod
    async def begin(cls, url: str) -> "HalfSent":
        host, _, port = url.removeprefix("http://").partition(":")
        half = cls(*await asyncio.open_connection(host, int(port)))
        head = f"POST {EVENT}/join HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        half._writer.write(f"{head}Content-Length: {len(half._body)}\r\n\r\n".encode() + half._body[:4])
        return half

    async def finish(self) -> bytes:
        """Send the rest and return everything that is answered until the connection ends."""
        self._writer.write(self._body[4:])
        async with asyncio.timeout(10):
            answer = await self._reader.read()
        self._writer.close()
        return answer


async def watch(session: aiohttp.ClientSession, url: str, number: int) -> int | None:
    """Join over a WebSocket, follow it to its end, and return its close code."""
    async with session.ws_connect(f"{url}{EVENT}/updates") as updates:
        await updates.send_json({"join": {"user_id": f"socket-{number}", "idempotency_key": f"s{number}"}})
        while (await updates.receive()).type is aiohttp.WSMsgType.TEXT:
            pass
        return updates.close_code


async def readiness(connection: Connection) -> tuple[int, object]:
    reply = await connection.ask(request("GET", "/readyz"))
    return reply.status, msgspec.json.decode(reply.body)["refuses"]


async def test_sigterm_under_load_answers_what_runs_loses_nothing_and_sends_sockets_away_with_4001(
    start_daemon: StartDaemon,
) -> None:
    daemon = await asyncio.to_thread(start_daemon)
    await asyncio.to_thread(open_sale, daemon)
    crowd = Crowd()
    pool = [await Connection.open(daemon.url) for _ in range(CLIENTS + 1)]
    with connections(pool):
        async with aiohttp.ClientSession() as session, asyncio.timeout(60), asyncio.TaskGroup() as tasks:
            sockets = [tasks.create_task(watch(session, daemon.url, number)) for number in range(SOCKETS)]
            for client, connection in enumerate(pool[1:]):
                tasks.create_task(crowd.join(client, connection))
            half = await HalfSent.begin(daemon.url)
            await crowd.busy.wait()
            assert await readiness(pool[0]) == (200, None)
            terminated_s = time.monotonic()
            daemon.process.terminate()
            await asyncio.to_thread(until, lambda: "draining" in daemon.log(), "draining")
            assert await readiness(pool[0]) == (503, "draining")
            with pytest.raises(OSError):
                await Connection.open(daemon.url)
            assert daemon.process.poll() is None
            answer = await half.finish()
            assert answer.startswith(b"HTTP/1.1 201 ") and b"Connection: close" in answer.split(b"\r\n\r\n")[0]
        assert await asyncio.to_thread(daemon.wait) == 0
    assert time.monotonic() - terminated_s < 10
    assert [task.result() for task in sockets] == [4001] * SOCKETS
    assert not crowd.refused
    assert len(crowd.entries) > BUSY
    await judge(await asyncio.to_thread(start_daemon), crowd)


async def judge(daemon: Daemon, crowd: Crowd) -> None:
    """Hold the next life to what was answered in the one before; it begins from the last snapshot."""
    assert "start from the newest snapshot" in daemon.first_line
    half = await asyncio.to_thread(daemon.call, "POST", f"{EVENT}/join", {"user_id": "half-sent"})
    assert half[0] == 200, "the one whose body came late has a place"
    await asyncio.to_thread(daemon.admin, "POST", f"{ADMIN}/pause", {"reason": "the end"})
    log = await asyncio.to_thread(read_lines, daemon.url, daemon.admin_key, LogLine)
    with connections([await Connection.open(daemon.url) for _ in range(CLIENTS)]) as pool:
        asked = [request("GET", f"{EVENT}/position", bearer=token) for token in crowd.tokens]
        places = [reply.json(PlaceReply) for reply in await gather_over(pool, asked)]
    final = {place.arrival: FinalPlace(place.user_id, place.number, place.status) for place in places}
    report = check(Evidence(crowd.entries, log, final))
    assert report.ok, report.explain()
