"""The flood keeps its moments and insists, at the other address, under the same key; each address here is a stub."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise

import msgspec

from tests.scenarios.client import cut_answer
from tests.scenarios.flood import Flood, Join
from tests.server.proxies import free_port

UNAVAILABLE = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"
HANGS_UP, SAYS_NOTHING = b"hang up", b""


class Stub:
    """A server that answers requests as it is told: with a place, or with whatever `instead` holds for the first."""

    def __init__(self, *instead: bytes, always: bytes | None = None) -> None:
        self.instead = list(instead)
        self.always = always
        self.keys: list[str] = []
        self.given: dict[str, int] = {}

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                headers = dict(line.split(": ", 1) for line in head.decode().split("\r\n")[1:-2])
                await reader.readexactly(int(headers["Content-Length"]))
                self.keys.append(headers["Idempotency-Key"])
                answer = self.always if self.always is not None else self.instead.pop(0) if self.instead else None
                if answer == HANGS_UP:
                    break
                writer.write(self.place() if answer is None else answer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    def place(self) -> bytes:
        number = self.given.setdefault(self.keys[-1], len(self.given) + 1)
        body = msgspec.json.encode({"status": "waiting", "number": number, "arrival": number, "token": "t", "epoch": 1})
        return b"HTTP/1.1 201 Created\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)


@asynccontextmanager
async def listening(stub: Stub) -> AsyncIterator[str]:
    server = await asyncio.start_server(stub.serve, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def flood(urls: tuple[str, str], count: int, rate_per_s: float = 500, beyond: float = 0.0) -> Flood:
    """Let so many come, and wait until all are answered."""
    enough = asyncio.Event()

    def look(_: Join) -> None:
        if len(coming.joins) >= count:
            enough.set()

    coming = Flood(urls, rate_per_s, random.Random(1), beyond, timeout_s=0.05, retry_s=(0.02, 0.03), on_answer=look)
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        tasks.create_task(coming.run())
        await enough.wait()
        coming.is_over = True
    return coming


async def test_everybody_comes_at_their_own_moment_and_is_answered_once() -> None:
    async with listening(Stub()) as one, listening(Stub()) as two:
        came = await flood((one, two), 50)
    due = [join.due_s for join in came.joins]
    assert {round((later - earlier) * 1000, 3) for earlier, later in pairwise(due)} == {2.0}
    assert all(join.sent_s >= join.due_s and join.attempts == 1 for join in came.joins)
    numbers = [join.place.number for join in came.joins if join.place]
    assert sorted(numbers) == list(range(1, len(came.joins) + 1))


async def test_some_begin_at_the_other_address() -> None:
    one, two = Stub(), Stub()
    async with listening(one) as first, listening(two) as second:
        came = await flood((first, second), 60, beyond=0.3)
    assert len(one.keys) + len(two.keys) == len(came.joins)
    assert 5 < len(two.keys) < 40


async def test_whoever_is_refused_asks_the_other_one_at_once_under_the_same_key() -> None:
    one, two = Stub(always=UNAVAILABLE), Stub()
    async with listening(one) as first, listening(two) as second:
        came = await flood((first, second), 10)
    assert sorted(one.keys) == sorted(two.keys) == sorted(join.key for join in came.joins)
    assert {join.attempts for join in came.joins} == {2}
    assert all(join.is_right_within(1.0) for join in came.joins)


async def test_a_lost_connection_and_a_silent_server_are_no_answers() -> None:
    for fault in (HANGS_UP, SAYS_NOTHING):
        one, two = Stub(fault), Stub()
        async with listening(one) as first, listening(two) as second:
            came = await flood((first, second), 10)
        again = [join for join in came.joins if join.attempts == 2]
        assert [join.key for join in again] == two.keys
        assert len(again) == 1


async def test_where_nobody_listens_is_not_asked_for_long() -> None:
    two = Stub()
    async with listening(two) as second:
        came = await flood((f"http://127.0.0.1:{free_port()}", second), 40)
    assert sorted(two.keys) == sorted(join.key for join in came.joins)
    attempts = Counter(join.attempts for join in came.joins)
    assert attempts[1] > 10 and set(attempts) <= {1, 2}


async def test_whoever_is_refused_everywhere_comes_back_until_there_is_an_answer() -> None:
    one, two = Stub(*[UNAVAILABLE] * 12), Stub(always=UNAVAILABLE)
    async with listening(one) as first, listening(two) as second:
        came = await flood((first, second), 20)
    assert all(join.answered_s is not None for join in came.joins)
    assert any(join.attempts > 2 for join in came.joins)
    assert set(one.keys) >= set(two.keys)


async def test_an_answer_that_no_join_should_get_is_a_complaint() -> None:
    one, two = Stub(b"HTTP/1.1 409 Conflict\r\nContent-Length: 2\r\n\r\n{}"), Stub()
    async with listening(one) as first, listening(two) as second:
        came = await flood((first, second), 5)
    (complaint,) = [join.complaint for join in came.joins if join.complaint]
    assert "409" in complaint
    assert not two.keys


def test_an_answer_is_cut_out_of_the_stream_once_it_is_whole() -> None:
    whole = b"HTTP/1.1 201 Created\r\nContent-Length: 2\r\n\r\n{}"
    assert all(cut_answer(whole[:at]) is None for at in range(len(whole)))
    assert cut_answer(whole + b"HTTP") == (201, b"{}", b"HTTP")
