"""The audience of an event: its sockets, in the order of the line, and the frames that are written to them."""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice, takewhile
from operator import attrgetter

from sortedcontainers import SortedKeyList

from engine.actor import Holder

_HEADS = [b"\x81%c" % size for size in range(126)]


def text_frame(payload: bytes) -> bytes:
    """Return a WebSocket text frame (RFC 6455, unmasked, one piece) around a payload of at most 64 KiB."""
    size = len(payload)
    if size < 126:
        return _HEADS[size] + payload
    return b"\x81\x7e%b%b" % (size.to_bytes(2, "big"), payload)


def close_frame(code: int) -> bytes:
    """Return a WebSocket close frame."""
    return b"\x88\x02" + code.to_bytes(2, "big")


class Socket:
    """One connected visitor: who and where they are, what they were shown last, and the transport to write to."""

    __slots__ = (
        "closed",
        "event_id",
        "heard_s",
        "holder",
        "is_holder",
        "is_stream",
        "order",
        "shown",
        "slow_since_s",
        "transport",
        "visible",
    )

    def __init__(
        self,
        event_id: str,
        holder: Holder,
        order: int,
        transport: asyncio.Transport,
        *,
        shown: int | None,
        is_stream: bool,
        now_s: float,
        is_holder: bool = True,
    ) -> None:
        self.event_id = event_id
        self.holder = holder
        self.is_holder = is_holder
        self.visible = True
        self.order = order
        self.transport = transport
        self.shown = shown or 2**53
        self.is_stream = is_stream
        self.heard_s = now_s
        self.slow_since_s = 0.0
        self.closed = False

    def write(self, payload: bytes, epoch: int, version: int) -> bool:
        """Write one message if the last one has left; returns whether it was written."""
        transport = self.transport
        if transport.get_write_buffer_size() or transport.is_closing():
            return False
        if self.is_stream:
            transport.write(b"id: %d-%d\ndata: %b\n\n" % (epoch, version, payload))
        else:
            transport.write(text_frame(payload))
        return True

    def takes(self) -> bool:
        """Return whether the kernel has taken all that was written before."""
        return self.transport.get_write_buffer_size() == 0 and not self.transport.is_closing()

    def end(self, code: int) -> None:
        """Close with a code; the peer's answer is not waited for, and one that does not read is cut off."""
        self.closed = True
        if not self.takes():
            self.transport.abort()
            return
        if not self.is_stream:
            self.transport.write(close_frame(code))
        self.transport.close()


def _by_order() -> "SortedKeyList[Socket]":
    return SortedKeyList(key=attrgetter("order"))


@dataclass(slots=True)
class Audience:
    """The sockets of one event, by place in line; `dirty` when the line moved since the last sweep began."""

    sockets: "SortedKeyList[Socket]" = field(default_factory=_by_order)
    dirty: bool = False
    swept_at_s: float = 0.0

    def add(self, socket: Socket) -> None:
        """Take a socket in; O(log n)."""
        self.sockets.add(socket)

    def remove(self, socket: Socket) -> bool:
        """Take a socket out, and return whether it was there; O(log n)."""
        try:
            self.sockets.remove(socket)
        except ValueError:
            return False
        return True

    def move(self, socket: Socket, order: int) -> None:
        """Put a socket where it is in line now; O(log n)."""
        is_here = self.remove(socket)
        socket.order = order
        if is_here:
            self.add(socket)

    def at(self, order: int) -> list[Socket]:
        """Return the sockets at a place in line; O(log n)."""
        return list(self.sockets.irange_key(order, order))

    def groups(self, size: int) -> Iterator[list[Socket]]:
        """Yield the sockets in order, in groups of `size` and whoever stands at the same place as the last of them.

        What comes, moves or goes does not disturb the walk.
        """
        walk = iter(self.sockets)
        while group := list(islice(walk, size)):
            order = group[-1].order
            group += takewhile(lambda socket, last=order: socket.order == last, walk)  # type: ignore[misc]
            yield group
            walk = self.sockets.irange_key(order, inclusive=(False, True))
