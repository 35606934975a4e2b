"""Updates: the WebSocket and the SSE stream of one visitor, thin shells around the hub.

A socket proves itself within five seconds, by a token it holds or by joining; then it is told its place, and
from then on the hub writes to it. What it says later is presence, visibility or leaving. Close codes are a
protocol of their own: 4000 retry now, 4001 retry with back-off, 4401 bad token, 4404 not found, 4408 not
authenticated in time, 4410 gone, 4429 too many, 1008 against the rules.
"""

import asyncio
from collections.abc import Callable
from urllib.parse import urlsplit

import msgspec
from aiohttp import WSMsgType, hdrs, web

from engine.actor import Holder
from engine.backend import Backend
from engine.errors import Refused
from engine.views import Place
from server.answers import Answer
from server.app import Connection
from server.places import PlaceDesk, holder_of
from server.push import CLOSE_BACK_OFF, Hub, Socket, place_push
from server.routes import Call
from server.strict_json import decode_strictly
from server.wire import FirstMessage, LaterMessage

FIRST_MESSAGE_S = 5.0
MESSAGE_LIMIT = 4096

CLOSE_CODES = {
    "bad_token": 4401,
    "bad_enqueue_token": 4401,
    "not_found": 4404,
    "timeout": 4408,
    "closed": 4410,
    "gone": 4410,
    "too_many_requests": 4429,
    "bad_request": 1008,
}


class _ErrorPush(msgspec.Struct, tag_field="type", tag="error"):
    """Why the socket is about to be closed."""

    code: str
    retry_after_seconds: int | None


class Updates:
    """Serves `GET …/updates`. `monotonic_s` times silence."""

    def __init__(
        self,
        backend: Backend,
        desk: PlaceDesk,
        hub: Hub,
        allowed_origins: frozenset[str],
        monotonic_s: Callable[[], float],
        first_message_s: float = FIRST_MESSAGE_S,
    ) -> None:
        self._backend = backend
        self._desk = desk
        self._hub = hub
        self._allowed_origins = allowed_origins
        self._monotonic_s = monotonic_s
        self._first_message_s = first_message_s

    async def serve(self, call: Call) -> Answer | web.StreamResponse:
        """Serve a WebSocket where one is asked for, else an event stream."""
        headers = call.request.headers
        if self._hub.draining:
            raise Refused("overloaded", "this server is shutting down", retry_after_s=2)
        if headers.get(hdrs.UPGRADE, "").lower() == "websocket":
            self._check_origin(call.request)
            return await self._socket(call)
        if "text/event-stream" in headers.get(hdrs.ACCEPT, ""):
            return await self._stream(call)
        raise Refused("bad_request", "open a WebSocket here, or accept text/event-stream", field="Accept")

    def _check_origin(self, request: web.BaseRequest) -> None:
        """Let in the same origin, the allowed ones, and clients that are no browser."""
        origin = request.headers.get(hdrs.ORIGIN)
        if origin is not None and origin not in self._allowed_origins and _host_of(origin) != request.host:
            raise Refused("forbidden", "pages of this origin may not open a socket here")

    # ---- WebSocket ------------------------------------------------------------------------------------

    async def _socket(self, call: Call) -> web.StreamResponse:
        ws = web.WebSocketResponse(
            compress=False, max_msg_size=MESSAGE_LIMIT, autoping=False, decode_text=False, timeout=2.0
        )
        await ws.prepare(call.request)
        transport = call.request.transport
        try:
            if transport is None:
                return ws
            place, holder, token, shown = await self._first(ws, call.event_id)
            socket = self._connect(place, holder, transport, shown, is_stream=False)
            try:
                socket.write(self._whole(place, token, shown), self._desk.epoch, place.version)
                self._hub.add(socket)
                await self._listen(ws, socket)
            finally:
                self._hub.remove(socket)
        except Refused as refused:
            await _refuse(ws, refused)
        except (TimeoutError, ConnectionError):
            await _refuse(ws, Refused("timeout", "no first message in time"))
        finally:
            _let_go(ws)
        return ws

    async def _first(self, ws: web.WebSocketResponse, event_id: str) -> tuple[Place, Holder, str | None, int | None]:
        """Read the first message; returns the place, who holds it, a token to hand out, and what was shown last."""
        message = await ws.receive(self._first_message_s)
        if message.type is not WSMsgType.TEXT:
            raise Refused("bad_request", "the first message must be text")
        first = decode_strictly(message.data, FirstMessage)
        if (first.token is None) == (first.join is None):
            raise Refused("bad_request", "the first message carries either a token or a join")
        if first.join is not None:
            join = first.join
            place = await self._desk.join(event_id, join.user_id, join.enqueue_token, join.idempotency_key)
            if not place.proven:
                raise Refused("bad_token", "this place is held by somebody; show its token or Idempotency-Key")
            holder = Holder(place.arrival, place.user_id, place.generation)
            return place, holder, self._desk.token_for(place), first.shown
        assert first.token is not None
        claims = self._desk.check(first.token, event_id)
        place = await self._desk.touch(claims)
        return place, holder_of(claims), self._desk.renewed(claims, place), first.shown

    async def _listen(self, ws: web.WebSocketResponse, socket: Socket) -> None:
        """Take what the client says until it goes; a pong of a hidden tab is no more than that it is still there."""
        event_id, holder = socket.event_id, socket.holder
        while True:
            message = await ws.receive()
            socket.heard_s = self._monotonic_s()
            if message.type is WSMsgType.PING:
                await ws.pong(message.data)
            elif message.type is WSMsgType.TEXT:
                later = decode_strictly(message.data, LaterMessage)
                if later.leave:
                    await self._backend.leave(event_id, holder)
                    continue
                if later.visible is not None:
                    socket.visible = later.visible
            elif message.type is not WSMsgType.PONG:
                if message.type is WSMsgType.BINARY:
                    raise Refused("bad_request", "messages are text")
                return
            await self._backend.touch(event_id, holder, visible=socket.visible)

    # ---- SSE --------------------------------------------------------------------------------------------

    async def _stream(self, call: Call) -> Answer | web.StreamResponse:
        claims = self._desk.claims(call.request, call.event_id, cookie=True)
        place = await self._desk.touch(claims)
        transport = call.request.transport
        if transport is None:
            raise ConnectionResetError("the client is gone")
        response = Answer(200, b"retry: 2000\n\n", b"text/event-stream; charset=utf-8")
        response.keep_alive = False
        response.is_stream = True
        await response.prepare(call.request)
        socket = self._connect(place, holder_of(claims), transport, None, is_stream=True)
        token = self._desk.renewed(claims, place)
        socket.write(self._whole(place, token, None), self._desk.epoch, place.version)
        self._hub.add(socket)
        try:
            connection = call.request.protocol
            assert isinstance(connection, Connection)
            await connection.lost()
        finally:
            self._hub.remove(socket)
        return response

    # ---- both -------------------------------------------------------------------------------------------

    def _connect(
        self, place: Place, holder: Holder, transport: asyncio.Transport, shown: int | None, *, is_stream: bool
    ) -> Socket:
        if place.position is not None:
            shown = min(shown or place.position, place.position)
        order = self._backend.line_order(place.event_id, place.arrival)
        now_s = self._monotonic_s()
        return Socket(place.event_id, holder, order, transport, shown=shown, is_stream=is_stream, now_s=now_s)

    def _whole(self, place: Place, token: str | None, shown: int | None) -> bytes:
        return place_push(self._desk.render(place, token, shown))


def _host_of(origin: str) -> str:
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return ""


def _let_go(ws: web.WebSocketResponse) -> None:
    """Forget where a socket's last error came from.

    The traceback holds frames that hold the socket, which holds the error, and nobody collects such a ring here.
    """
    error = ws.exception()
    if error is not None:
        error.__traceback__ = error.__context__ = None


async def _refuse(ws: web.WebSocketResponse, refused: Refused) -> None:
    """Say why, and close with the code that tells the client what to do."""
    if not ws.closed:
        push = msgspec.json.encode(_ErrorPush(refused.code, refused.retry_after_s))
        try:
            await ws.send_frame(push, WSMsgType.TEXT)
            code = CLOSE_CODES.get(refused.code, CLOSE_BACK_OFF)
            await ws.close(code=code, message=refused.detail.encode()[:120], drain=False)
        except ConnectionError:
            return
