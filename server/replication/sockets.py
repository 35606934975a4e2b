"""Links over WebSockets: a follower opens one at `GET /v1/replication`, the primary answers it there.

The WebSocket carries whole binary messages; everything that makes them believable is in `link`. `send` waits for the
transport to drain, so a peer that does not read holds up its own sender and nobody else's memory.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

import aiohttp
import structlog
from aiohttp import WSMsgType, hdrs, web

from engine.errors import Refused
from server.answers import Answer
from server.replication.link import MESSAGE_MAX_BYTES, Link, LinkClosed
from server.routes import Call, Listener, Route

PATH = "/v1/replication"

log = structlog.get_logger("stanchion.replication")


class SocketLink:
    """A Link over either end of a WebSocket."""

    def __init__(self, socket: "aiohttp.ClientWebSocketResponse | web.WebSocketResponse") -> None:
        self._socket = socket
        self._closing: asyncio.Task[None] | None = None
        self._is_closed = False

    async def send(self, data: bytes) -> None:
        """Send one message; waits while too much is under way."""
        if self._is_closed:
            raise LinkClosed("the link is closed")
        try:
            await self._socket.send_bytes(data)
        except (ConnectionError, RuntimeError, aiohttp.ClientError) as error:
            raise LinkClosed(str(error) or "the connection is lost") from None

    async def receive(self) -> bytes:
        """Return the next message."""
        if self._is_closed:
            raise LinkClosed("the link is closed")
        message = await self._socket.receive()
        if message.type is not WSMsgType.BINARY:
            self.close()
            raise LinkClosed("the connection ended")
        data: bytes = message.data
        return data

    def close(self) -> None:
        """End the link at once; nobody waits for the other side's farewell."""
        if not self._is_closed:
            self._is_closed = True
            self._closing = asyncio.get_running_loop().create_task(self._close())

    async def _close(self) -> None:
        with suppress(TimeoutError, ConnectionError, RuntimeError, aiohttp.ClientError):
            await asyncio.wait_for(self._socket.close(), 1.0)


async def open_link(url: str, session: aiohttp.ClientSession) -> Link:
    """Open a link to whoever listens at a URL; raises OSError, LinkClosed."""
    try:
        socket = await session.ws_connect(
            url.rstrip("/") + PATH, max_msg_size=MESSAGE_MAX_BYTES, compress=0, autoping=True
        )
    except aiohttp.ClientConnectorError as error:
        raise error.os_error from None
    except aiohttp.ClientError as error:
        raise LinkClosed(f"{url} does not take followers: {error}") from None
    return SocketLink(socket)


class ReplicationRoute:
    """The row that takes followers in; `serve` speaks with each until its link closes."""

    def __init__(self, serve: Callable[[Link], Awaitable[None]]) -> None:
        self._serve = serve

    def routes(self) -> list[Route]:
        """Return the row."""
        return [
            Route(
                "GET",
                PATH,
                self.replicate,
                "Follow this server (WebSocket, for followers only)",
                {101: None},
                problems=(403,),
                listener=Listener.REPLICATION,
                tag="replication",
            )
        ]

    async def replicate(self, call: Call) -> Answer | web.StreamResponse:
        """Take in a follower; everything else is between it and the primary."""
        request = call.request
        if hdrs.ORIGIN in request.headers:
            raise Refused("forbidden", "no page has any business here")
        if request.headers.get(hdrs.UPGRADE, "").lower() != "websocket":
            raise Refused("bad_request", "followers open a WebSocket here", field="Upgrade")
        socket = web.WebSocketResponse(compress=False, max_msg_size=MESSAGE_MAX_BYTES, timeout=1.0)
        await socket.prepare(request)
        link = SocketLink(socket)
        try:
            await self._serve(link)
        except LinkClosed as closed:
            log.warning("link_refused", address=request.remote, why=str(closed))
        finally:
            link.close()
            if link._closing is not None:
                await link._closing
        return socket
