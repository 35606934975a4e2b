"""Frames and the socket: RFC 6455 from the server's side, over a transport that the test controls."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.socket_protocol import (
    AGAINST_RULES,
    MESSAGE_LIMIT,
    NO_STATUS,
    NOT_UTF8,
    PROTOCOL_ERROR,
    TOO_LARGE,
    Violation,
    WebSocket,
    close_code_of,
    read_frame,
)

MASK = b"\x12\x34\x56\x78"


def frame(payload: bytes = b"", opcode: int = 1, *, final: bool = True, mask: bytes = MASK) -> bytes:
    """Return a client's frame."""
    size = len(payload)
    length = bytes([0x80 | size]) if size < 126 else b"\xfe" + size.to_bytes(2, "big")
    masked = bytes(byte ^ mask[index % 4] for index, byte in enumerate(payload))
    return bytes([(0x80 if final else 0) | opcode]) + length + mask + masked


class Wire:
    """A transport that remembers what was done to it."""

    def __init__(self) -> None:
        self.sent = b""
        self.unread = 0
        self.reads = True
        self.eof = self.closed = self.aborted = False

    def write(self, data: bytes) -> None:
        assert not self.closed and not self.eof
        self.sent += data

    def write_eof(self) -> None:
        self.eof = True

    def get_write_buffer_size(self) -> int:
        return self.unread

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = self.aborted = True

    def pause_reading(self) -> None:
        assert self.reads
        self.reads = False

    def resume_reading(self) -> None:
        assert not self.reads
        self.reads = True


class Ear:
    """Notes what it is told."""

    first_message_s = 60.0

    def __init__(self) -> None:
        self.texts: list[bytes] = []
        self.signs = self.ends = 0
        self.holds = False
        self.silences = 0

    def said(self, ws: WebSocket, text: bytes) -> None:
        self.texts.append(text)
        if self.holds:
            ws.hold()

    def alive(self, ws: WebSocket) -> None:
        self.signs += 1

    def silent(self, ws: WebSocket) -> None:
        self.silences += 1
        ws.close(4408)

    def violated(self, ws: WebSocket, violation: Violation) -> None:
        ws.close(violation.code, str(violation).encode())

    def lost(self, ws: WebSocket) -> None:
        self.ends += 1


class Pair:
    """A socket, its wire and whoever listens."""

    def __init__(self) -> None:
        self.ear, self.wire, self.freed = Ear(), Wire(), 0
        self.ws = WebSocket("e1", self.ear)

    def begin(self, came: bytes = b"") -> None:
        self.ws.begin(self.wire, self._free, came)  # type: ignore[arg-type]

    def _free(self) -> None:
        self.freed += 1

    def close_code(self) -> int:
        """Return the code of the close frame that was sent last."""
        at = self.wire.sent.rindex(b"\x88")
        return int.from_bytes(self.wire.sent[at + 2 : at + 4], "big")


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    made = Pair()
    made.begin()
    yield made
    made.ws.connection_lost(None)
    assert made.freed == 1 and made.ear.ends == 1


@given(st.binary(max_size=MESSAGE_LIMIT), st.binary(min_size=4, max_size=4), st.sampled_from([0, 1, 2]), st.booleans())
def test_a_frame_is_read_as_it_was_written_and_not_before_it_is_whole(
    payload: bytes, mask: bytes, opcode: int, final: bool
) -> None:
    data = frame(payload, opcode, final=final, mask=mask)
    found = read_frame(b"??" + data + b"more", 2)
    assert found == (opcode, final, payload, 2 + len(data))
    for cut in {*range(min(len(data), 16)), len(data) - 1}:
        assert read_frame(data[:cut], 0) is None


@pytest.mark.slow
@settings(max_examples=30)
@given(st.lists(st.text(max_size=200), max_size=5), st.data())
async def test_texts_arrive_whole_and_in_order_however_they_are_cut(texts: list[str], data: st.DataObject) -> None:
    pair = Pair()
    pair.begin()
    stream = b"".join(frame(text.encode()) + frame(b"", 10) for text in texts)
    while stream:
        cut = data.draw(st.integers(1, len(stream)))
        pair.ws.data_received(stream[:cut])
        stream = stream[cut:]
    assert pair.ear.texts == [text.encode() for text in texts]
    assert not pair.wire.sent
    pair.ws.connection_lost(None)


async def test_fragments_are_put_together_around_a_ping(pair: Pair) -> None:
    snow = "snow ☃".encode()
    pair.ws.data_received(frame(snow[:6], final=False) + frame(b"!", 9) + frame(snow[6:7], 0, final=False))
    assert pair.ear.texts == [] and pair.wire.sent == b"\x8a\x01!"
    pair.ws.data_received(frame(snow[7:], 0))
    assert pair.ear.texts == [snow]


BROKEN = {
    "unmasked": (b"\x81\x01x", PROTOCOL_ERROR),
    "a reserved bit": (b"\xc1\x80" + MASK, PROTOCOL_ERROR),
    "an opcode for data nobody knows": (frame(b"", 3), PROTOCOL_ERROR),
    "an opcode for control nobody knows": (frame(b"", 11), PROTOCOL_ERROR),
    "a continuation of nothing": (frame(b"", 0), PROTOCOL_ERROR),
    "a new message within another": (frame(b"a", final=False) + frame(b"b"), PROTOCOL_ERROR),
    "a ping in pieces": (frame(b"", 9, final=False), PROTOCOL_ERROR),
    "a ping too long": (frame(b"a" * 126, 9), PROTOCOL_ERROR),
    "a message too long": (frame(b"a" * (MESSAGE_LIMIT + 1)), TOO_LARGE),
    "a message that will be too long": (b"\x81\xff" + (2**40).to_bytes(8, "big"), TOO_LARGE),
    "fragments too long": (frame(b"a" * 4000, final=False) + frame(b"a" * 200, 0, final=False), TOO_LARGE),
    "fragments too many": (frame(b"", final=False) + frame(b"", 0, final=False) * 200, TOO_LARGE),
    "binary": (frame(b"{}", 2), AGAINST_RULES),
    "no UTF-8": (frame(b"\xff"), NOT_UTF8),
    "half a character": (frame("☃".encode()[:2]), NOT_UTF8),
    "a close frame of one byte": (frame(b"x", 8), PROTOCOL_ERROR),
    "a close code nobody sends": (frame((1005).to_bytes(2, "big"), 8), PROTOCOL_ERROR),
    "a reason that is no UTF-8": (frame(b"\x03\xe8\xff", 8), NOT_UTF8),
}


@pytest.mark.parametrize(("data", "code"), BROKEN.values(), ids=BROKEN.keys())
async def test_what_breaks_the_protocol_ends_the_socket_with_its_code(pair: Pair, data: bytes, code: int) -> None:
    pair.ws.data_received(data + frame(b"not heard any more"))
    assert pair.close_code() == code and pair.wire.eof and not pair.wire.closed
    assert pair.ear.texts == []
    pair.ws.data_received(b"rubbish" * 1000)
    assert not pair.wire.closed, "or what is under way would be lost with a reset"
    pair.ws.data_received(frame(b"\x03\xe8", 8))
    assert pair.wire.closed


def test_a_close_frame_may_have_no_code_or_a_private_one() -> None:
    assert close_code_of(b"") == NO_STATUS
    assert [close_code_of(code.to_bytes(2, "big") + b"bye") for code in (1000, 1014, 3000, 4999)] == [
        1000,
        1014,
        3000,
        4999,
    ]


@pytest.mark.parametrize(("said", "echoed"), [(b"", 1000), (b"\x03\xe9gone", 1001), (b"\x0f\xa0", 4000)])
async def test_a_polite_close_is_answered_and_ends_the_connection(pair: Pair, said: bytes, echoed: int) -> None:
    pair.ws.data_received(frame(said, 8) + frame(b"not heard any more"))
    assert pair.close_code() == echoed and pair.wire.closed and not pair.wire.aborted
    assert pair.ear.texts == []


async def test_a_socket_that_is_held_tells_nothing_more_until_it_goes_on(pair: Pair) -> None:
    pair.ear.holds = True
    pair.ws.data_received(frame(b"1") + frame(b"2") + frame(b"3")[:4])
    assert pair.ear.texts == [b"1"]
    pair.ws.data_received(frame(b"3")[4:])
    pair.ws.go_on()
    assert pair.ear.texts == [b"1", b"2"]
    pair.ear.holds = False
    pair.ws.go_on()
    assert pair.ear.texts == [b"1", b"2", b"3"]


async def test_who_says_much_while_held_is_not_read_until_it_goes_on(pair: Pair) -> None:
    pair.ear.holds = True
    pair.ws.data_received(frame(b"1"))
    for _ in range(45):
        if pair.wire.reads:
            pair.ws.data_received(frame(b"a" * 100))
    assert not pair.wire.reads
    pair.ear.holds = False
    pair.ws.go_on()
    assert pair.wire.reads and len(pair.ear.texts) == 40


async def test_who_says_nothing_at_first_is_sent_away_and_who_says_something_is_not() -> None:
    quick, slow, quiet = Pair(), Pair(), Pair()
    for pair, came in ((quick, frame(b"hello")), (slow, frame(b"hel", final=False)), (quiet, frame(b"", 10))):
        pair.ear.first_message_s = 0.01
        pair.begin(came)
    async with asyncio.timeout(5):
        while not (slow.ear.silences and quiet.ear.silences):  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    assert quick.ear.silences == 0 and quick.ear.texts == [b"hello"] and not quick.wire.sent
    assert slow.close_code() == quiet.close_code() == 4408
    for pair in (quick, slow, quiet):
        pair.ws.connection_lost(None)


async def test_last_words_come_before_the_close_and_only_once(pair: Pair) -> None:
    pair.ws.close(4401, b"r" * 200, b'{"type":"error"}')
    pair.ws.close(1008)
    assert pair.wire.sent == b'\x81\x10{"type":"error"}\x88\x7d' + (4401).to_bytes(2, "big") + b"r" * 123
    assert not pair.ws.is_open


async def test_a_reader_that_does_not_read_is_cut_off_instead_of_told(pair: Pair) -> None:
    pair.wire.unread = 10
    pair.ws.data_received(frame(b"x", 9))
    assert not pair.wire.sent, "a ping is not answered while the last answer is still on its way"
    pair.ws.close(4001)
    assert pair.wire.aborted and not pair.wire.sent
