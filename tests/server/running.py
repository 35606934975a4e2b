"""A whole server on a free port of this loop: real sockets, a real journal in a folder, times that tests may set."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
from multidict import CIMultiDictProxy

from engine.backends.memory import MemoryBackend
from engine.tokens import QueueTokens
from server.app import App
from server.assembly import Surroundings, assemble
from server.gate import Gate
from server.health import Health
from server.keys import Keys, load_or_create
from server.metrics import Metrics
from server.ports import bind
from server.push import Hub
from server.routes import Route
from snapshots.journal import Journal, JournalOptions
from snapshots.storage import DiskStorage

ORIGIN = "https://shop.example"


def monotonic_ms() -> int:
    return time.monotonic_ns() // 1_000_000


def wall_ms() -> int:
    return time.time_ns() // 1_000_000


@dataclass(slots=True)
class Running:
    """The parts of a running server, and an HTTP client for it."""

    backend: MemoryBackend
    keys: Keys
    hub: Hub
    health: Health
    metrics: Metrics
    routes: list[Route]
    port: int
    client: aiohttp.ClientSession

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def admin(self) -> dict[str, str]:
        """Return the head of an operator's request."""
        return {"Authorization": f"Bearer {self.keys.admin}"}

    @property
    def tokens(self) -> QueueTokens:
        return QueueTokens(*self.keys.ring.secrets("queue"))

    async def call(
        self, method: str, path: str, body: object = None, **headers: str
    ) -> tuple[int, dict[str, object], CIMultiDictProxy[str]]:
        """Return (status, JSON, headers) of an operator's call; `_` in header names stands for `-`."""
        head = self.admin | {name.replace("_", "-"): value for name, value in headers.items()}
        async with self.client.request(method, self.url + path, json=body, headers=head) as response:
            return response.status, await response.json(content_type=None) or {}, response.headers

    async def open_event(self, event_id: str = "e1", **settings: object) -> None:
        """Make an event and open it."""
        status, _, _ = await self.call("PUT", f"/v1/admin/events/{event_id}", settings)
        assert status == 201
        status, _, _ = await self.call("POST", f"/v1/admin/events/{event_id}/open", {})
        assert status == 200

    async def place(self, user_id: str, event_id: str = "e1") -> dict[str, object]:
        """Join, or come back with the same Idempotency-Key, and return the place."""
        address, body = f"{self.url}/v1/events/{event_id}/join", {"user_id": user_id}
        async with self.client.post(address, json=body, headers={"Idempotency-Key": f"key-{user_id}"}) as response:
            assert response.status in (200, 201)
            place: dict[str, object] = await response.json()
            return place


@asynccontextmanager
async def running(
    folder: Path,
    *,
    body_timeout_s: float = 10.0,
    first_message_s: float = 5.0,
    wall_ms: Callable[[], int] = wall_ms,
    clock_ms: Callable[[], int] = monotonic_ms,
    url: str = "",
) -> AsyncIterator[Running]:
    """Run a server until the block ends; `url` is how visitors are told to reach it."""
    keys, _ = load_or_create(folder, wall_ms)
    journal = Journal.open(DiskStorage(folder), JournalOptions(segment_mib=1))
    backend = MemoryBackend(journal, clock_ms, wall_ms, keys.ring.draw_key)
    await backend.start()
    around = Surroundings(
        wall_ms, time.monotonic, url, allowed_origins=frozenset((ORIGIN,)), first_message_s=first_message_s
    )
    parts = assemble(backend, keys.ring, Gate(keys.ring, time.monotonic), around)
    hub, health, metrics, routes = parts.hub, parts.health, parts.metrics, parts.routes
    app = App(routes, observe=metrics.observe, allowed_origins=frozenset((ORIGIN,)), body_timeout_s=body_timeout_s)
    http = app.server()
    (bound,) = bind("127.0.0.1", 0, "port")
    listening = await asyncio.get_running_loop().create_server(http, sock=bound)
    port = bound.getsockname()[1]
    pushing = asyncio.create_task(hub.run())
    try:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=20)) as client:
            yield Running(backend, keys, hub, health, metrics, routes, port, client)
    finally:
        listening.close()
        await hub.close()
        await http.shutdown(1.0)
        pushing.cancel()
        await asyncio.wait([pushing])
        await backend.close()
