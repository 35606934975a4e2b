"""Updates: the WebSocket and the SSE stream of one visitor, thin shells around the hub.

A socket proves itself within five seconds, by a token it holds or by joining; then it is told its place, and
from then on the hub writes to it. What it says later is presence, visibility or leaving. Close codes are a
protocol of their own: 4000 retry now, 4001 retry with back-off, 4401 bad token, 4404 not found, 4408 not
authenticated in time, 4410 gone, 4429 too many, 1008 against the rules.
"""

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from typing import Any
from urllib.parse import urlsplit

import msgspec
import structlog
from aiohttp import hdrs, web

from engine.actor import Holder
from engine.backend import Backend
from engine.errors import Refused
from engine.views import Place
from server.answers import Answer, handed_over
from server.audience import Socket
from server.connections import Connection, Upgraded
from server.handshake import answer_upgrade
from server.places import PlaceDesk, holder_of
from server.push import CLOSE_BACK_OFF, Hub, place_push
from server.routes import Call
from server.socket_protocol import Violation, WebSocket
from server.strict_json import decode_strictly
from server.wire import FirstMessage, LaterMessage

FIRST_MESSAGE_S = 5.0

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


log = structlog.get_logger("stanchion.updates")

_encode = msgspec.json.Encoder().encode


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
        self.first_message_s = first_message_s
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(self, call: Call) -> Answer | web.StreamResponse:
        """Serve a WebSocket where one is asked for, else an event stream."""
        headers = call.request.headers
        if headers.get(hdrs.UPGRADE, "").lower() == "websocket":
            connection = call.request.protocol
            assert isinstance(connection, Connection)
            connection.hand_over(self.upgrade(call.event_id, headers))
            return handed_over()
        if self._hub.draining:
            raise Refused("overloaded", "this server is shutting down", retry_after_s=2)
        if "text/event-stream" in headers.get(hdrs.ACCEPT, ""):
            return await self._stream(call)
        raise Refused("bad_request", "open a WebSocket here, or accept text/event-stream", field="Accept")

    def _check_origin(self, headers: Mapping[str, str]) -> None:
        """Let in the same origin, the allowed ones, and clients that are no browser."""
        origin = headers.get("origin")
        if origin is not None and origin not in self._allowed_origins and _host_of(origin) != headers.get("host"):
            raise Refused("forbidden", "pages of this origin may not open a socket here")

    # ---- WebSocket ------------------------------------------------------------------------------------

    def upgrade(self, event_id: str, headers: Mapping[str, str]) -> Upgraded:
        """Return the socket that a request asks for, and the answer to it; raises Refused."""
        if self._hub.draining:
            raise Refused("overloaded", "this server is shutting down", retry_after_s=2)
        self._check_origin(headers)
        return Upgraded(WebSocket(event_id, self), answer_upgrade(headers))

    def silent(self, ws: WebSocket) -> None:
        """Send away who says nothing."""
        _refuse(ws, Refused("timeout", "no first message in time"))

    def said(self, ws: WebSocket, text: bytes) -> None:
        """Take a message: the first says who it is, later ones what they want."""
        visitor = ws.visitor
        try:
            if visitor is None:
                self._begin(ws, self._first(ws, decode_strictly(text, FirstMessage)))
                return
            later = decode_strictly(text, LaterMessage)
            if later.visible is not None:
                visitor.visible = later.visible
            if later.leave:
                self._begin(ws, self._backend.leave(ws.event_id, visitor.holder))
        except Refused as refused:
            _refuse(ws, refused)

    def alive(self, ws: WebSocket) -> None:
        """Note presence; a pong of a hidden tab is no more than that it is still there."""
        if ws.visitor is not None:
            self._hub.hear(ws.visitor, self._monotonic_s())

    def violated(self, ws: WebSocket, violation: Violation) -> None:
        """End a socket whose peer speaks another language."""
        ws.close(violation.code, str(violation).encode())

    def lost(self, ws: WebSocket) -> None:
        """Forget a socket."""
        if ws.visitor is not None:
            self._hub.remove(ws.visitor)

    def _begin(self, ws: WebSocket, work: Coroutine[Any, Any, None]) -> None:
        """Do what takes time, one thing after the other for each socket."""
        ws.hold()
        task = asyncio.create_task(self._do(ws, work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _do(self, ws: WebSocket, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
            ws.go_on()
        except Refused as refused:
            _refuse(ws, refused)
        except Exception:
            log.exception("unexpected_error", event_id=ws.event_id)
            _refuse(ws, Refused("internal", "something went wrong here; it was logged"))

    async def _first(self, ws: WebSocket, first: FirstMessage) -> None:
        """Find or make the place the first message speaks of, tell it, and from now on its changes."""
        place, holder, token = await self._place_of(ws.event_id, first)
        if self._hub.draining:
            raise Refused("overloaded", "this server is shutting down", retry_after_s=2)
        if ws.transport is None or not ws.is_open:
            return
        visitor = self._connect(place, holder, ws.transport, first.shown, is_stream=False)
        visitor.write(self._whole(place, token, first.shown), self._desk.epoch, place.version)
        ws.visitor = visitor
        self._hub.add(visitor, place.version, waits=place.position is not None)

    async def _place_of(self, event_id: str, first: FirstMessage) -> tuple[Place, Holder, str | None]:
        """Return the place, who holds it, and a token to hand out."""
        if (first.token is None) == (first.join is None):
            raise Refused("bad_request", "the first message carries either a token or a join")
        if first.join is not None:
            join = first.join
            place = await self._desk.join(event_id, join.user_id, join.enqueue_token, join.idempotency_key)
            if not place.proven:
                raise Refused("bad_token", "this place is held by somebody; show its token or Idempotency-Key")
            return place, Holder(place.arrival, place.user_id, place.generation), self._desk.token_for(place)
        assert first.token is not None
        claims = self._desk.check(first.token, event_id)
        place = await self._desk.touch(claims)
        return place, holder_of(claims), self._desk.renewed(claims, place)

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
        self._hub.add(socket, place.version, waits=place.position is not None)
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
        return Socket(
            place.event_id,
            holder,
            order,
            transport,
            shown=shown,
            is_stream=is_stream,
            now_s=now_s,
            is_holder=place.proven,
        )

    def _whole(self, place: Place, token: str | None, shown: int | None) -> bytes:
        return place_push(self._desk.render(place, token, shown))


def _host_of(origin: str) -> str:
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return ""


def _refuse(ws: WebSocket, refused: Refused) -> None:
    """Say why, and close with the code that tells the client what to do."""
    push = _encode(_ErrorPush(refused.code, refused.retry_after_s))
    ws.close(CLOSE_CODES.get(refused.code, CLOSE_BACK_OFF), refused.detail.encode()[:120], push)
