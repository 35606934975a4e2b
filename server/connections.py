"""Connections: aiohttp's, with our limits; and the door before them, where a visitor's socket turns off at once.

Most of what a request to upgrade costs is spent on an HTTP connection that is given up in the next moment. So the
first bytes of every connection are looked at before there is one: a whole, ordinary request for a socket is answered
there and then, and everything else, in whatever pieces, goes the way of all HTTP, sockets included.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import NamedTuple

import structlog
from aiohttp import web
from aiohttp.http_exceptions import LineTooLong

from engine.errors import Refused
from server.answers import Answer, problem_answer

KEEP_ALIVE_S = 15.0
LINE_LIMIT = 8190
HEADERS_LIMIT = 64

log = structlog.get_logger("stanchion.http")


class Successor(asyncio.Protocol):
    """A protocol that goes on with a connection after its request to upgrade."""

    __slots__ = ()

    def begin(self, transport: asyncio.Transport, on_lost: Callable[[], None], came: bytes) -> None:
        """Take over a transport with what came already; `on_lost` is to be called at the end."""
        raise NotImplementedError


class Upgraded(NamedTuple):
    """Who goes on with a connection, and the head that answers the request for it."""

    successor: Successor
    head: bytes


class HttpServer(web.Server):
    """aiohttp's server with our limits, and our problem documents for what its parser refuses."""

    def __init__(
        self,
        handler: Callable[[web.BaseRequest], Awaitable[Answer | web.StreamResponse]],
        upgrade: Callable[[bytes], "Upgraded | None"],
        max_connections_per_address: int | None,
    ) -> None:
        super().__init__(handler)  # type: ignore[arg-type]
        self.upgrade = upgrade
        self._max_per_address = max_connections_per_address
        self._per_address: dict[str, int] = {}
        self._others: set[asyncio.Transport] = set()

    def __call__(self) -> "Door":  # type: ignore[override]
        return Door(self)

    def connection(self, address: str) -> "Connection":
        """Return the protocol of an HTTP connection of an address that was admitted."""
        return Connection(
            self,
            address,
            loop=self._loop,
            access_log=None,
            keepalive_timeout=KEEP_ALIVE_S,
            max_line_size=LINE_LIMIT,
            max_field_size=LINE_LIMIT,
            max_headers=HEADERS_LIMIT,
            auto_decompress=False,
            lingering_time=0,
        )

    def admit(self, transport: asyncio.Transport) -> str | None:
        """Count a connection in; returns its address ("" where nobody counts), None when that has as many as it may."""
        if self._max_per_address is None:
            return ""
        address = str((transport.get_extra_info("peername") or ("",))[0])
        count = self._per_address.get(address, 0)
        if count >= self._max_per_address:
            return None
        self._per_address[address] = count + 1
        return address

    def dismiss(self, address: str) -> None:
        """Count a connection of an address out."""
        count = self._per_address.get(address, 0)
        if count > 1:
            self._per_address[address] = count - 1
        else:
            self._per_address.pop(address, None)

    def keep(self, transport: asyncio.Transport) -> None:
        """Note a connection that aiohttp does not know of, to be ended with all others."""
        self._others.add(transport)

    def forget(self, transport: asyncio.Transport) -> None:
        """Forget a connection that aiohttp did not know of."""
        self._others.discard(transport)

    def let_go(self, transport: asyncio.Transport, address: str) -> Callable[[], None]:
        """Note that a connection goes on under a protocol of its own; returns what that has to call when it is lost."""
        self._others.add(transport)

        def lost() -> None:
            self._others.discard(transport)
            if address:
                self.dismiss(address)

        return lost

    async def shutdown(self, timeout: float | None = None) -> None:  # noqa: ASYNC109
        """End all connections."""
        await super().shutdown(timeout)
        for transport in list(self._others):
            transport.abort()


class Door(asyncio.Protocol):
    """A connection nothing has come on yet: what comes first says whether it is a visitor's socket or HTTP."""

    __slots__ = ("_address", "_server", "_timer", "_transport")

    def __init__(self, server: HttpServer) -> None:
        self._server = server
        self._address = ""
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        address = self._server.admit(transport)
        if address is None:
            transport.abort()
            return
        self._address, self._transport = address, transport
        self._server.keep(transport)
        self._timer = asyncio.get_running_loop().call_later(KEEP_ALIVE_S, transport.abort)

    def data_received(self, data: bytes) -> None:
        transport = self._leave()
        if transport is None:
            return
        upgraded = self._server.upgrade(data)
        if upgraded is None:
            connection = self._server.connection(self._address)
            transport.set_protocol(connection)
            connection.connection_made(transport)
            connection.data_received(data)
        else:
            transport.set_protocol(upgraded.successor)
            transport.write(upgraded.head)
            upgraded.successor.begin(transport, self._server.let_go(transport, self._address), b"")

    def connection_lost(self, exc: BaseException | None) -> None:
        if self._leave() is not None and self._address:
            self._server.dismiss(self._address)

    def _leave(self) -> asyncio.Transport | None:
        """Stop waiting, and return the transport."""
        transport, self._transport = self._transport, None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if transport is not None:
            self._server.forget(transport)
        return transport


class Connection(web.RequestHandler):
    """One HTTP connection; what the parser refuses is answered like everything else."""

    __slots__ = ("_address", "_lost", "_server")

    def __init__(self, server: HttpServer, address: str, **limits: object) -> None:
        super().__init__(server, **limits)  # type: ignore[arg-type]
        self._server = server
        self._address = address
        self._lost: asyncio.Future[None] | None = None

    async def lost(self) -> None:
        """Wait until the peer is gone."""
        if self.transport is not None:
            self._lost = self._loop.create_future()
            await self._lost

    def hand_over(self, upgraded: Upgraded) -> None:
        """Answer a request to upgrade and let another protocol go on with this connection; it is forgotten here.

        Raises ConnectionResetError when it is lost already, Refused where the request was none to upgrade.
        """
        transport = self.transport
        if transport is None or transport.is_closing():
            raise ConnectionResetError("the client is gone")
        if not self._upgraded:
            raise Refused("bad_request", "this request upgrades nothing", field="Connection")
        came, self._message_tail = self._message_tail, b""
        transport.set_protocol(upgraded.successor)
        if self._buffer_paused:
            transport.resume_reading()
        lost = self._server.let_go(transport, self._address)
        self._address, self.transport = "", None  # or the end of this protocol would end the connection
        self.connection_lost(None)
        transport.write(upgraded.head)
        upgraded.successor.begin(transport, lost, came)

    def resume_reading(self, resume_parser: bool = True) -> None:
        """Resume only what was paused: aiohttp re-parses nothing and asks the transport after every body read."""
        if self._reading_paused:
            super().resume_reading(resume_parser)

    def connection_lost(self, exc: BaseException | None) -> None:
        if self._address:
            self._server.dismiss(self._address)
        if self._lost is not None and not self._lost.done():
            self._lost.set_result(None)
        super().connection_lost(exc)

    def handle_error(  # type: ignore[override]
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> Answer:
        """Turn what aiohttp's parser found into a problem; the connection ends, its framing is in doubt.

        The traceback holds a frame that holds the error and the connection, and nobody collects such a ring here.
        """
        if status >= 500:
            log.error("unexpected_error", exc_info=exc)
            refused = Refused("internal", "something went wrong here; it was logged")
        elif isinstance(exc, LineTooLong) or "Too many headers" in str(exc):
            refused = Refused("headers_too_large", "the request line or a header is too long, or there are too many")
        else:
            refused = Refused("bad_request", "this is not a well-formed HTTP request")
        if exc is not None:
            exc.__traceback__ = None
        answer = problem_answer(refused)
        answer.keep_alive = False
        return answer
