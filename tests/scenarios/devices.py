"""Devices: a visitor's phones and browser tabs before a running server, and time that goes by in between.

Every device keeps all positions it was ever told, by an answer or a push, so that none may ever rise.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import aiohttp

from tests.scenarios.moments import Clock
from tests.server.running import Running, running

WAIT_S = 5.0
STEP_S = 5
EVENT, ADMIN = "/v1/events/e1", "/v1/admin/events/e1"

Answer = dict[str, Any]


class Tab:
    """A WebSocket of a device."""

    def __init__(self, device: "Device", ws: aiohttp.ClientWebSocketResponse) -> None:
        self._device = device
        self._ws = ws

    async def next(self) -> Answer:
        """Return the next push."""
        message = await asyncio.wait_for(self._ws.receive(), WAIT_S)
        assert message.type is aiohttp.WSMsgType.TEXT, message
        return self._device.took(json.loads(message.data))

    async def until(self, **facts: object) -> Answer:
        """Return the first push in which these facts stand."""
        while True:
            push = await self.next()
            if all(push.get(name) == value for name, value in facts.items()):
                return push

    async def heard(self) -> list[Answer]:
        """Let the server hear a ping, and return the pushes that came before it was answered."""
        await self._ws.ping(b"?")
        pushes = []
        while (message := await asyncio.wait_for(self._ws.receive(), WAIT_S)).type is not aiohttp.WSMsgType.PONG:
            assert message.type is aiohttp.WSMsgType.TEXT, message
            pushes.append(self._device.took(json.loads(message.data)))
        return pushes

    async def pong(self) -> None:
        """Answer a ping, as a browser does for a tab of its own accord, and wait until that was heard."""
        await self._ws.pong(b"")
        await self.heard()

    async def say(self, **message: object) -> list[Answer]:
        """Say something, and return the pushes that came before it was heard."""
        await self._ws.send_json(message)
        return await self.heard()

    async def close(self) -> None:
        """Close the tab."""
        await self._ws.close()


class Device:
    """One phone or browser: who holds it, the Idempotency-Key it joined with, and the token it keeps."""

    def __init__(self, doors: "Doors", user_id: str, key: str, token: str = "") -> None:
        self._doors = doors
        self.user_id = user_id
        self.key = key
        self.token = token
        self.number: int | None = None
        self.positions: list[int] = []

    def took(self, answer: Answer) -> Answer:
        """Take in an answer or a push: a token is kept, and no position may be above one that was told before."""
        self.token = answer.get("token") or self.token
        if answer.get("number") not in (None, self.number):
            self.number, self.positions = answer["number"], []
        if answer.get("position") is not None:
            self.positions.append(answer["position"])
        assert all(later <= earlier for earlier, later in pairwise(self.positions)), self.positions
        return answer

    @property
    def shown(self) -> int | None:
        """Return the position this device shows."""
        return self.positions[-1] if self.positions else None

    async def ask(self, method: str, path: str, body: object = None, **headers: str) -> tuple[int, Answer]:
        """Return (status, answer) of a request with the token; `_` in header names stands for `-`."""
        head = {"Authorization": f"Bearer {self.token}"} | {n.replace("_", "-"): v for n, v in headers.items()}
        address = self._doors.server.url + EVENT + path
        async with self._doors.server.client.request(method, address, json=body, headers=head) as response:
            return response.status, await response.json(content_type=None) or {}

    async def join(self) -> Answer:
        """Load the page: join, or come back, with the key of this browser."""
        address, body = self._doors.server.url + EVENT + "/join", {"user_id": self.user_id}
        head = {"Idempotency-Key": self.key}
        async with self._doors.server.client.post(address, json=body, headers=head) as response:
            assert response.status in (200, 201)
            return self.took(await response.json())

    async def poll(self) -> Answer:
        """Ask for the place."""
        status, place = await self.ask("GET", f"/position?shown={self.shown}" if self.shown else "/position")
        assert status == 200, place
        return self.took(place)

    async def open_tab(self, first: Answer | None = None) -> Tab:
        """Open a socket by the token, or with another first message."""
        ws = await self._doors.server.client.ws_connect(self._doors.server.url + EVENT + "/updates", autoping=False)
        await ws.send_json(first or {"token": self.token, "shown": self.shown})
        return Tab(self, ws)

    async def transfer_code(self) -> str:
        """Return a code that moves the place."""
        status, offer = await self.ask("POST", "/transfer")
        assert status == 200, offer
        return str(offer["code"])


class Doors:
    """A running server with an open event, the time that it goes by, and an operator and a site who do their part."""

    def __init__(self, server: Running, clock: Clock) -> None:
        self.server = server
        self.clock = clock

    @classmethod
    @asynccontextmanager
    async def opened(cls, folder: Path, **settings: object) -> AsyncIterator["Doors"]:
        """Open an event; its batches leave only by hand."""
        clock = Clock()
        async with running(folder, wall_ms=clock.wall_ms, clock_ms=clock.monotonic_ms) as server:
            await server.open_event("e1", batch_interval_s=3600, **settings)
            yield cls(server, clock)

    async def comes(self, user_id: str) -> Device:
        """Let somebody join with a browser of their own."""
        device = Device(self, user_id, f"key-of-{user_id}")
        await device.join()
        return device

    async def release(self, count: int) -> tuple[int, int]:
        """Let the next in; returns how many were let in and how many stepped over."""
        status, told, _ = await self.server.call("POST", f"{ADMIN}/release", {"count": count})
        assert status == 200, told
        return told["released"], told["stepped_over"]  # type: ignore[return-value]

    async def live(self, seconds: int, *present: Device) -> None:
        """Let time go by, in which these poll and nobody else is heard of; what runs out runs out."""
        while seconds > 0:
            self.clock.advance(min(STEP_S, seconds))
            seconds -= STEP_S
            for device in present:
                await device.poll()
            await self.server.backend.tick()

    async def site(self, path: str, body: object, **headers: str) -> tuple[int, Answer]:
        """Return (status, answer) of a call with the site key."""
        bearer = {"Authorization": f"Bearer {self.server.keys.site}"}
        status, told, _ = await self.server.call("POST", EVENT + path, body, **bearer, **headers)
        return status, told

    async def timeline(self, user_id: str) -> list[str]:
        """Return the kinds of records about somebody."""
        _, told, _ = await self.server.call("GET", f"{ADMIN}/visitors?user_id={user_id}")
        return [entry["kind"] for entry in told["timeline"]]  # type: ignore[attr-defined]

    async def counts(self) -> dict[str, int]:
        """Return how many places there are of each status."""
        _, told, _ = await self.server.call("GET", f"{ADMIN}/stats")
        return {status: count for status, count in told["counts"].items() if count}  # type: ignore[attr-defined]
