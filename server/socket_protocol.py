"""The WebSocket of a visitor after the handshake: RFC 6455 by hand, without anything a visitor here has no use for.

There are a hundred thousand of these; each is said little and says less. So there is no task, no queue, no timer and
no parser object for one, only a protocol with a few slots on a transport. Nothing is negotiated: no extension, no
subprotocol, messages of at most `MESSAGE_LIMIT` bytes. What is said is told to a `Listener`; what is pushed goes to the
transport directly (`server.push`).

A socket ends by a close frame and the end of our side of the stream; what the peer still sends is thrown away
until it ends its own, `CLOSE_LIMIT_S` at most. (Closing at once with bytes unread would reset the connection, and the
peer might never see the code.)
"""

import asyncio
import codecs
from collections.abc import Callable
from typing import NamedTuple, Protocol

from server.audience import Socket, text_frame
from server.connections import Successor

MESSAGE_LIMIT = 4096
CLOSE_LIMIT_S = 2.0

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
NORMAL, PROTOCOL_ERROR, NO_STATUS, NOT_UTF8, AGAINST_RULES, TOO_LARGE = 1000, 1002, 1005, 1007, 1008, 1009

_CONTROL_LIMIT = 125


class Violation(Exception):
    """The peer broke the protocol; `code` is what the socket is closed with."""

    def __init__(self, code: int, why: str) -> None:
        super().__init__(why)
        self.code = code


class Frame(NamedTuple):
    """One frame of a client, unmasked; `end` is where it ends in the bytes it was read from."""

    opcode: int
    is_final: bool
    payload: bytes
    end: int


def read_frame(data: bytes, at: int) -> Frame | None:
    """Return the frame that begins at `at`, or None while it is not whole; raises Violation."""
    have = len(data) - at
    if have < 2:
        return None
    first, second = data[at], data[at + 1]
    opcode, is_final, size = first & 0x0F, first >= 0x80, second & 0x7F
    if first & 0x70:
        raise Violation(PROTOCOL_ERROR, "a reserved bit is set")
    if second < 0x80:
        raise Violation(PROTOCOL_ERROR, "a client's frames are masked")
    if opcode >= CLOSE and (not is_final or size > _CONTROL_LIMIT):
        raise Violation(PROTOCOL_ERROR, "a control frame is one frame of at most 125 bytes")
    if opcode > PONG or BINARY < opcode < CLOSE:
        raise Violation(PROTOCOL_ERROR, "there is no such opcode")
    mask_at = at + 2
    if size > _CONTROL_LIMIT:
        mask_at += 2 if size == 126 else 8
        if have < mask_at - at:
            return None
        size = int.from_bytes(data[at + 2 : mask_at], "big")
        if size > MESSAGE_LIMIT:
            raise Violation(TOO_LARGE, f"a message has at most {MESSAGE_LIMIT} bytes")
    start = mask_at + 4
    end = start + size
    if len(data) < end:
        return None
    return Frame(opcode, is_final, _unmasked(data[start:end], data[mask_at:start]), end)


def _unmasked(payload: bytes, mask: bytes) -> bytes:
    """Return a payload without its mask; as one big number, because a loop over bytes is slow here."""
    size = len(payload)
    if not size:
        return payload
    key = (mask * (size // 4 + 1))[:size]
    return (int.from_bytes(payload, "little") ^ int.from_bytes(key, "little")).to_bytes(size, "little")


def close_code_of(payload: bytes) -> int:
    """Return the code of a close frame, NO_STATUS where it has none; raises Violation."""
    if not payload:
        return NO_STATUS
    code = int.from_bytes(payload[:2], "big")
    if len(payload) == 1 or not (1000 <= code <= 1003 or 1007 <= code <= 1014 or 3000 <= code <= 4999):
        raise Violation(PROTOCOL_ERROR, "a close frame has a code that may be sent")
    _check_text(payload[2:])
    return code


def _check_text(payload: bytes) -> None:
    try:
        codecs.utf_8_decode(payload, "strict", True)
    except UnicodeDecodeError:
        raise Violation(NOT_UTF8, "text is UTF-8") from None


class Listener(Protocol):
    """Whoever is told what is said on sockets. No method awaits, and none but `lost` is called on one that is closing.

    `first_message_s` is how long a socket may be silent at first.
    """

    first_message_s: float

    def said(self, ws: "WebSocket", text: bytes) -> None:
        """A whole text message came; nothing more is told until `go_on` if the socket is held."""

    def alive(self, ws: "WebSocket") -> None:
        """Anything at all came."""

    def silent(self, ws: "WebSocket") -> None:
        """No first message came in time; the socket is to be closed."""

    def violated(self, ws: "WebSocket", violation: Violation) -> None:
        """The peer broke the protocol; the socket is to be closed."""

    def lost(self, ws: "WebSocket") -> None:
        """The connection is gone."""


class WebSocket(Successor):
    """One socket to one event; `visitor` is who it turned out to be, None until that is known."""

    __slots__ = (
        "_closing",
        "_held",
        "_listener",
        "_on_lost",
        "_parts",
        "_paused",
        "_rest",
        "_timer",
        "event_id",
        "transport",
        "visitor",
    )

    def __init__(self, event_id: str, listener: Listener) -> None:
        self.event_id = event_id
        self.visitor: Socket | None = None
        self.transport: asyncio.Transport | None = None
        self._listener = listener
        self._on_lost: Callable[[], None] | None = None
        self._parts: list[bytes] | None = None
        self._rest = b""
        self._timer: asyncio.TimerHandle | None = None
        self._held = self._paused = self._closing = False

    def begin(self, transport: asyncio.Transport, on_lost: Callable[[], None], came: bytes) -> None:
        """Take over a transport with what came already; `on_lost` is called at the end."""
        self.transport = transport
        self._on_lost = on_lost
        listener = self._listener
        self._timer = asyncio.get_running_loop().call_later(listener.first_message_s, listener.silent, self)
        if came:
            self.data_received(came)

    @property
    def is_open(self) -> bool:
        """Return whether anything may still be said."""
        return self.transport is not None and not self._closing and not self.transport.is_closing()

    # ---- what comes ------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        if self._closing:
            self._watch_for_end(data)
            return
        self._rest = self._rest + data if self._rest else data
        if not self._held:
            self._listener.alive(self)
            self._read()
        elif len(self._rest) > MESSAGE_LIMIT and self.transport is not None and not self._paused:
            self._paused = True
            self.transport.pause_reading()

    def _read(self) -> None:
        """Take whole frames until there is none, or somebody is busy with one."""
        data, at = self._rest, 0
        try:
            while not self._held and not self._closing:
                frame = read_frame(data, at)
                if frame is None:
                    break
                at = frame.end
                self._rest = b""  # or `hold` and `close` would find it there again
                self._take(frame)
        except Violation as violation:
            self._rest = b""
            self._listener.violated(self, violation)
            return
        self._rest = b"" if self._closing else data[at:]

    def _take(self, frame: Frame) -> None:
        opcode, payload = frame.opcode, frame.payload
        if opcode in (TEXT, CONTINUATION):
            self._take_part(frame)
        elif opcode == PING:
            if self.transport is not None and not self.transport.get_write_buffer_size():
                self.transport.write(b"\x8a%c%b" % (len(payload), payload))
        elif opcode == CLOSE:
            code = close_code_of(payload)
            self.close(NORMAL if code == NO_STATUS else code)
            if self.transport is not None:
                self.transport.close()
        elif opcode == BINARY:
            raise Violation(AGAINST_RULES, "messages are text")

    def _take_part(self, frame: Frame) -> None:
        """Put fragments together; nobody sends any, but they are allowed to."""
        parts, payload = self._parts, frame.payload
        if (parts is None) == (frame.opcode == CONTINUATION):
            raise Violation(PROTOCOL_ERROR, "a continuation goes on with something, and a new message does not")
        if parts is not None or not frame.is_final:
            parts = [] if parts is None else parts
            parts.append(payload)
            if sum(map(len, parts)) > MESSAGE_LIMIT or len(parts) > _CONTROL_LIMIT:
                raise Violation(TOO_LARGE, f"a message has at most {MESSAGE_LIMIT} bytes")
            self._parts = None if frame.is_final else parts
            if not frame.is_final:
                return
            payload = b"".join(parts)
        _check_text(payload)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._listener.said(self, payload)

    def hold(self) -> None:
        """Tell nothing more until `go_on`; what comes meanwhile waits, and is not even read if it is much."""
        self._held = True

    def go_on(self) -> None:
        """Go on with what came meanwhile."""
        self._held = False
        if self._paused and self.transport is not None:
            self._paused = False
            self.transport.resume_reading()
        if self._rest and self.is_open:
            self._listener.alive(self)
            self._read()

    # ---- the end ---------------------------------------------------------------------------------------

    def close(self, code: int, reason: bytes = b"", last_words: bytes = b"") -> None:
        """Say why, and end our side; a peer that does not end its own is cut off, like one that does not read."""
        transport = self.transport
        if self._closing or transport is None or transport.is_closing():
            return
        self._closing, self._held, self._rest, self._parts = True, False, b"", None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._paused:
            self._paused = False
            transport.resume_reading()
        if transport.get_write_buffer_size():
            transport.abort()
            return
        body = code.to_bytes(2, "big") + reason[: _CONTROL_LIMIT - 2]
        words = text_frame(last_words) if last_words else b""
        transport.write(b"%b\x88%c%b" % (words, len(body), body))
        transport.write_eof()
        self._timer = asyncio.get_running_loop().call_later(CLOSE_LIMIT_S, transport.abort)

    def _watch_for_end(self, data: bytes) -> None:
        """Throw away what still comes after our close frame; a close frame that comes alone is the answer to it."""
        if data[0] == 0x80 | CLOSE and self.transport is not None:
            self.transport.close()

    def connection_lost(self, exc: BaseException | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.transport = None
        self._closing, self._rest, self._parts = True, b"", None
        on_lost, self._on_lost = self._on_lost, None
        if on_lost is not None:
            on_lost()
        self._listener.lost(self)
        self.visitor = None
