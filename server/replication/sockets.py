"""Links over WebSockets: a follower opens one at `GET /v1/replication`, the primary answers it there.

The WebSocket carries binary pieces: one byte that says whether the message ends with this one, and a part of the
message. So what a stranger can make this process hold is small, however large a message of a follower may be.
Everything that makes messages believable is in `link`. `send` waits for the transport to drain, so a peer that does not
read holds up its own sender and nobody else's memory.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

import aiohttp
import structlog
from aiohttp import WSMsgType, hdrs, web

from engine.errors import Refused
from server.answers import Answer, handed_over
from server.replication.link import (
    HANDSHAKE_MAX_BYTES,
    HANDSHAKE_MESSAGES,
    MESSAGE_MAX_BYTES,
    Garbled,
    Link,
    LinkClosed,
    WrongKey,
)
from server.routes import Call, Listener, Route

PATH = "/v1/replication"
PIECE_BYTES = 256 << 10
FRAME_LIMIT_BYTES = PIECE_BYTES + 2  # aiohttp refuses what is as large as its limit
FAREWELL_S = 1.0
TELL_AGAIN_S = 60.0
_MORE, _LAST = b"\0", b"\1"

log = structlog.get_logger("stanchion.replication")

WebSocket = aiohttp.ClientWebSocketResponse[bool] | web.WebSocketResponse[bool]


class SocketLink:
    """A Link over either end of a WebSocket."""

    def __init__(self, socket: WebSocket) -> None:
        assert socket._writer is not None, "the WebSocket is open"
        self._socket = socket
        self._transport = socket._writer.transport
        self._turn = asyncio.Lock()
        self._came: list[bytes] = []
        self._came_bytes = self._messages = 0
        self._closing: asyncio.Task[None] | None = None

    async def send(self, data: bytes) -> None:
        """Send one message, after those before it; waits while too much is under way. Raises LinkClosed."""
        async with self._turn:
            try:
                for start in range(0, len(data) or 1, PIECE_BYTES):
                    piece = data[start : start + PIECE_BYTES]
                    if self._closing is not None:
                        break
                    await self._socket.send_bytes((_LAST if start + PIECE_BYTES >= len(data) else _MORE) + piece)
            except (ConnectionError, RuntimeError, aiohttp.ClientError) as error:
                self.close()
                raise LinkClosed(str(error) or "the connection is lost") from None
            except asyncio.CancelledError:
                if len(data) > PIECE_BYTES:
                    self.close()  # half a message may be out
                raise
        if self._closing is not None:
            raise LinkClosed("the link is closed")

    async def receive(self) -> bytes:
        """Return the next message; raises LinkClosed, Garbled for one that is too large."""
        limit_bytes = HANDSHAKE_MAX_BYTES if self._messages < HANDSHAKE_MESSAGES else MESSAGE_MAX_BYTES
        while True:
            if self._closing is not None:
                raise LinkClosed("the link is closed")
            try:
                message = await self._socket.receive()
            except RuntimeError as error:  # aiohttp's word for a socket that was closed meanwhile
                self.close()
                raise LinkClosed(str(error)) from None
            if message.type is not WSMsgType.BINARY:
                self.close()
                raise LinkClosed("the connection ended")
            piece: bytes = message.data
            self._came.append(piece[1:])
            self._came_bytes += len(piece) - 1
            if piece[:1] not in (_MORE, _LAST) or self._came_bytes > limit_bytes:
                self.close()
                raise Garbled("a message is larger than any that is sent, or in no pieces of ours")
            if piece[:1] == _LAST:
                whole = b"".join(self._came)
                self._came, self._came_bytes = [], 0
                self._messages += 1
                return whole

    def close(self) -> None:
        """End the link: what was sent gets a moment to leave, whether or not the other side reads it."""
        if self._closing is None:
            loop = asyncio.get_running_loop()
            loop.call_later(FAREWELL_S, self._transport.abort)
            self._closing = loop.create_task(self._close())

    async def _close(self) -> None:
        try:
            with suppress(ConnectionError, RuntimeError, aiohttp.ClientError):
                await self._socket.close()
        finally:
            self._transport.close()
            _let_go(self._socket)

    async def closed(self) -> None:
        """Close, and wait until nothing of it is under way."""
        self.close()
        if self._closing is not None:
            await asyncio.wait([self._closing])


def _let_go(socket: WebSocket) -> None:
    """Forget where a socket's last errors came from.

    The traceback holds frames that hold the socket, which holds the error, and nobody collects such a ring here.
    """
    reader = socket._reader
    for error in (socket.exception(), None if reader is None else reader.exception()):
        if error is not None:
            error.__traceback__ = error.__context__ = error.__cause__ = None


async def open_link(url: str, session: aiohttp.ClientSession) -> Link:
    """Open a link to whoever listens at a URL; raises OSError, LinkClosed."""
    try:
        socket = await session.ws_connect(
            url.rstrip("/") + PATH, max_msg_size=FRAME_LIMIT_BYTES, compress=0, autoping=True
        )
    except aiohttp.ClientConnectorError as error:
        raise error.os_error from None
    except (aiohttp.ClientError, ValueError) as error:
        raise LinkClosed(f"{url} does not take followers: {error}") from None
    return SocketLink(socket)


class ReplicationRoute:
    """The row that takes followers in; `serve` speaks with each until its link closes."""

    def __init__(self, serve: Callable[[Link], Awaitable[None]]) -> None:
        self._serve = serve
        self._told: tuple[str | None, float] = None, 0.0

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
                lasts=True,
            )
        ]

    async def replicate(self, call: Call) -> Answer | web.StreamResponse:
        """Take in a follower; everything else is between it and the primary."""
        request = call.request
        if hdrs.ORIGIN in request.headers:
            raise Refused("forbidden", "no page has any business here")
        if request.headers.get(hdrs.UPGRADE, "").lower() != "websocket":
            raise Refused("bad_request", "followers open a WebSocket here", field="Upgrade")
        socket = web.WebSocketResponse(compress=False, max_msg_size=FRAME_LIMIT_BYTES, timeout=FAREWELL_S)
        try:
            await socket.prepare(request)
        except ConnectionError:
            return handed_over()  # it went away meanwhile, and there is nobody to answer
        address, link = request.remote, SocketLink(socket)
        try:
            await self._serve(link)
        except WrongKey as wrong:
            self._tell(address, wrong)
        except LinkClosed as closed:
            log.info("link_refused", address=address, why=str(closed))
        finally:
            await link.closed()
        return socket

    def _tell(self, address: str | None, wrong: WrongKey) -> None:
        """Log a wrong key; whoever goes on trying is named once a minute."""
        now_s = asyncio.get_running_loop().time()
        last, at_s = self._told
        if address != last or now_s - at_s >= TELL_AGAIN_S:
            self._told = address, now_s
            log.warning("wrong_replication_key", address=address, why=str(wrong))
