"""The dispatcher at its end: whoever is being answered is waited for, and a link that lasts is not."""

import asyncio

from aiohttp import HttpVersion11
from multidict import CIMultiDict

from server.answers import Answer
from server.app import App
from server.routes import Call, Route


class Request:
    """As much of a request as the dispatcher looks at."""

    method, version = "GET", HttpVersion11

    def __init__(self, path: str) -> None:
        self.raw_path = path
        self.headers: CIMultiDict[str] = CIMultiDict()


class Scene:
    """An app with a row that answers when it is let, one that lasts until then, and one that fails."""

    def __init__(self) -> None:
        self.let = asyncio.Event()
        rows = [
            Route("GET", "/slow", self.slow, "Slow", {200: None}),
            Route("GET", "/link", self.slow, "A link", {101: None}, lasts=True),
            Route("GET", "/broken", self.broken, "Broken", {200: None}),
        ]
        self.app = App(rows, observe=lambda *_: None)

    async def slow(self, call: Call) -> Answer:
        await self.let.wait()
        return Answer(200)

    async def broken(self, call: Call) -> Answer:
        raise ZeroDivisionError

    async def begin(self, path: str) -> "asyncio.Task[Answer]":
        """Send a request; returns once it is with its handler."""
        task = asyncio.create_task(self.app.handle(Request(path)))  # type: ignore[arg-type]
        await asyncio.sleep(0)
        return task  # type: ignore[return-value]


async def test_a_drain_waits_for_the_answers_under_way_and_ends_their_connections() -> None:
    scene = Scene()
    running = await scene.begin("/slow")
    drained = asyncio.create_task(scene.app.drain(5))
    await asyncio.sleep(0)
    assert not drained.done()
    scene.let.set()
    await asyncio.wait_for(drained, 2)
    assert (await running).keep_alive is False


async def test_a_drain_does_not_wait_for_links_nor_for_what_failed() -> None:
    scene = Scene()
    link = await scene.begin("/link")
    assert (await (await scene.begin("/broken"))).status == 500
    await asyncio.wait_for(scene.app.drain(60), 2)
    scene.let.set()
    await link
    assert scene.app._running == 0


async def test_a_drain_gives_up_after_its_time() -> None:
    scene = Scene()
    await scene.begin("/slow")
    await asyncio.wait_for(scene.app.drain(0.01), 2)
    assert not scene.let.is_set()
    scene.let.set()


async def test_before_the_end_connections_stay() -> None:
    scene = Scene()
    running = await scene.begin("/slow")
    scene.let.set()
    assert (await running).keep_alive is True
