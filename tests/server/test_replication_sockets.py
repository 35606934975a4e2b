"""Links over real WebSockets, through the app of a server: sizes, slow readers, bad guests, and every kind of end."""

import asyncio
import gc
import os
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field

import aiohttp
import pytest
from aiohttp import WSMsgType, web
from structlog.testing import capture_logs

from server.app import App
from server.connections import Connection
from server.ports import bind
from server.replication import link as links
from server.replication import sockets
from server.replication.link import (
    HANDSHAKE_MAX_BYTES,
    MESSAGE_MAX_BYTES,
    Garbled,
    Link,
    LinkClosed,
    Reception,
    SealedLink,
    WrongKey,
    greet,
)
from server.replication.messages import Ack, Ship
from server.replication.sockets import PATH, PIECE_BYTES, ReplicationRoute, SocketLink, open_link

KEY, OTHER = "a" * 64, "b" * 64


@dataclass
class Site:
    """A primary of nothing: lets followers in, and gives their links to the test."""

    port: int
    client: aiohttp.ClientSession
    reception: Reception
    came: "asyncio.Queue[SealedLink]" = field(default_factory=asyncio.Queue)
    raw: "list[Link]" = field(default_factory=list)
    over: asyncio.Event = field(default_factory=asyncio.Event)
    app: App | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def serve(self, link: Link) -> None:
        self.raw.append(link)
        sealed, _ = await self.reception.admit(link)
        self.came.put_nowait(sealed)
        await self.over.wait()

    async def open(self, key: str = KEY) -> SealedLink:
        """Open a link as a follower."""
        link = await open_link(self.url, self.client)
        async with asyncio.timeout(2):  # wait_for would leave a ring of its task and what it raised
            sealed, _ = await greet(link, [key], "follower", "http://f")
        return sealed

    async def pair(self) -> tuple[SealedLink, SealedLink]:
        """Return both ends of a link that was opened."""
        mine = await self.open()
        return mine, await asyncio.wait_for(self.came.get(), 2)


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    (bound,) = bind("127.0.0.1", 0, "port")
    async with AsyncExitStack() as ending:
        client = await ending.enter_async_context(aiohttp.ClientSession(trust_env=False))
        made = Site(bound.getsockname()[1], client, Reception(lambda: [KEY], "primary", "http://p"))
        made.app = App(ReplicationRoute(made.serve).routes(), observe=lambda *_: None)
        http = made.app.server()
        listening = await asyncio.get_running_loop().create_server(http, sock=bound)
        yield made
        made.over.set()
        listening.close()
        await client.close()
        await http.shutdown(1.0)


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give a farewell no more than a moment."""
    monkeypatch.setattr(sockets, "FAREWELL_S", 0.1)


def beneath(sealed: SealedLink) -> SocketLink:
    assert isinstance(sealed._link, SocketLink)
    return sealed._link


def ship(size_bytes: int) -> Ship:
    return Ship([os.urandom(size_bytes)], 1, 2, 3, 4, 5, True)


async def until(condition: Callable[[], object], what: str) -> None:
    for _ in range(100):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"{what} did not happen")


# ---- what is carried ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "size_bytes",
    [
        0,
        1,
        PIECE_BYTES - 100,
        PIECE_BYTES,
        PIECE_BYTES + 1,
        3 * PIECE_BYTES,
        pytest.param(7 << 20, marks=pytest.mark.slow),
    ],
)
async def test_messages_of_all_sizes_arrive_whole_both_ways(site: Site, size_bytes: int) -> None:
    mine, theirs = await site.pair()
    message = ship(size_bytes)
    for one, two in ((mine, theirs), (theirs, mine)):
        sending = asyncio.create_task(one.send(message))
        assert await asyncio.wait_for(two.receive(), 5) == message
        await sending


async def test_a_piece_boundary_loses_and_adds_nothing(site: Site) -> None:
    mine, theirs = await site.pair()
    for size_bytes in range(PIECE_BYTES - 2, PIECE_BYTES + 3):
        data = os.urandom(size_bytes)
        sending = asyncio.create_task(beneath(mine).send(data))
        assert await beneath(theirs).receive() == data
        await sending
    await beneath(mine).send(b"")
    assert await beneath(theirs).receive() == b""


async def test_messages_of_several_senders_do_not_mix(site: Site) -> None:
    mine, theirs = await site.pair()
    messages = [ship(size) for size in (3 << 20, 10, 2 << 20, 300_000, 0)]
    sending = [asyncio.create_task(mine.send(message)) for message in messages]
    assert [await asyncio.wait_for(theirs.receive(), 5) for _ in messages] == messages
    await asyncio.gather(*sending)


async def test_receiving_may_be_given_up_and_taken_up_again(site: Site) -> None:
    mine, theirs = await site.pair()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(theirs.receive(), 0.02)
    message = ship(2 << 20)
    sending = asyncio.create_task(mine.send(message))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await theirs.receive()
    assert await asyncio.wait_for(theirs.receive(), 5) == message
    await sending


# ---- who does not read ----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("is_primary_slow", [True, False])
async def test_a_sender_waits_for_a_peer_that_does_not_read_and_holds_little_meanwhile(
    site: Site, is_primary_slow: bool
) -> None:
    mine, theirs = await site.pair()
    fast, slow = (mine, theirs) if is_primary_slow else (theirs, mine)
    messages = [ship(200_000) for _ in range(100)]

    async def send_all() -> None:
        for message in messages:
            await fast.send(message)

    sending = asyncio.create_task(send_all())
    transport, most_bytes, before = beneath(fast)._transport, 0, -1
    while before != (before := fast._sent):
        for _ in range(10):
            await asyncio.sleep(0.01)
            most_bytes = max(most_bytes, transport.get_write_buffer_size())
    assert not sending.done() and fast._sent < len(messages), "the sender waits"
    assert most_bytes < 3 * PIECE_BYTES
    assert [await asyncio.wait_for(slow.receive(), 5) for _ in messages] == messages
    await asyncio.wait_for(sending, 2)


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("is_primary_slow", [True, False])
async def test_a_sender_that_waits_is_told_when_its_link_is_closed(site: Site, is_primary_slow: bool) -> None:
    mine, theirs = await site.pair()
    fast, slow = (mine, theirs) if is_primary_slow else (theirs, mine)

    async def send_for_ever() -> None:
        while True:
            await fast.send(ship(1 << 20))

    sending = asyncio.create_task(send_for_ever())
    receiving = asyncio.create_task(fast.receive())
    await asyncio.sleep(0.1)
    assert not sending.done()
    fast.close()
    for task in (sending, receiving):
        with pytest.raises(LinkClosed):
            await asyncio.wait_for(task, 2)
    await asyncio.wait_for(beneath(fast).closed(), 2)
    slow.close()


# ---- how links end ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_primary", [True, False])
async def test_what_was_said_last_arrives_before_the_end(site: Site, is_primary: bool) -> None:
    mine, theirs = await site.pair()
    one, two = (theirs, mine) if is_primary else (mine, theirs)
    message = ship(100_000)
    await two.send(Ack(7, 7, 7))  # of which nobody takes notice any more
    await one.send(message)
    one.close()
    assert await asyncio.wait_for(two.receive(), 2) == message
    with pytest.raises(LinkClosed):
        await asyncio.wait_for(two.receive(), 2)


@pytest.mark.parametrize("is_primary", [True, False])
async def test_whoever_waits_for_a_message_is_told_of_the_end_on_both_sides(site: Site, is_primary: bool) -> None:
    mine, theirs = await site.pair()
    waiting = [asyncio.create_task(mine.receive()), asyncio.create_task(theirs.receive())]
    await asyncio.sleep(0.01)
    (theirs if is_primary else mine).close()
    for task in waiting:
        with pytest.raises(LinkClosed):
            await asyncio.wait_for(task, 2)
    for end in (mine, theirs):
        with pytest.raises(LinkClosed):
            await end.receive()
        with pytest.raises(LinkClosed):
            await end.send(Ack(1, 2, 3))
        end.close()


@pytest.mark.parametrize("is_primary", [True, False])
async def test_a_connection_that_breaks_is_the_end_of_the_link(site: Site, is_primary: bool) -> None:
    mine, theirs = await site.pair()
    waiting = [asyncio.create_task(mine.receive()), asyncio.create_task(theirs.receive())]
    await asyncio.sleep(0.01)
    beneath(theirs if is_primary else mine)._transport.abort()
    for task in waiting:
        with pytest.raises(LinkClosed):
            await asyncio.wait_for(task, 2)
    for end in (mine, theirs):
        with pytest.raises(LinkClosed):
            for _ in range(3):
                await end.send(Ack(1, 2, 3))


async def test_a_half_sent_message_that_is_given_up_ends_the_link(site: Site) -> None:
    mine, theirs = await site.pair()
    while True:
        sending = asyncio.create_task(mine.send(ship(4 << 20)))
        await asyncio.wait([sending], timeout=0.1)
        if not sending.done():
            break
    sending.cancel()
    await asyncio.wait([sending])
    with pytest.raises(LinkClosed):
        await mine.send(Ack(1, 2, 3))
    theirs.close()


async def test_where_nobody_or_somebody_else_listens_there_is_no_link(site: Site) -> None:
    (bound,) = bind("127.0.0.1", 0, "port")
    port = bound.getsockname()[1]
    bound.close()
    with pytest.raises(ConnectionRefusedError):
        await open_link(f"http://127.0.0.1:{port}", site.client)
    with pytest.raises(LinkClosed, match="does not take followers"):
        await open_link(site.url + "/elsewhere", site.client)
    with pytest.raises(LinkClosed, match="does not take followers"):
        await open_link("no address", site.client)


# ---- guests ----------------------------------------------------------------------------------------------


async def test_pages_and_plain_requests_are_refused(site: Site) -> None:
    for origin in (site.url, "https://shop.example", "null"):
        with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
            await site.client.ws_connect(site.url + PATH, headers={"Origin": origin})
        assert caught.value.status == 403
    async with site.client.get(site.url + PATH) as response:
        assert response.status == 400
    assert not site.raw


async def test_a_server_that_drains_does_not_wait_for_its_followers(site: Site) -> None:
    await site.pair()
    assert site.app is not None
    await asyncio.wait_for(site.app.drain(60), 2)


async def test_a_wrong_key_is_logged_with_where_it_came_from(site: Site) -> None:
    with capture_logs() as told:
        with pytest.raises(WrongKey, match="http://p does not take"):
            await site.open(OTHER)
        with pytest.raises(WrongKey):
            await site.open(OTHER)
        await until(lambda: told and site.reception.wrong_keys == 2 and not site.reception.strangers, "a line")
    assert [(line["event"], line["log_level"], line["address"]) for line in told] == [
        ("wrong_replication_key", "warning", "127.0.0.1")
    ]
    assert OTHER not in str(told) and KEY not in str(told)
    assert site.reception.wrong_keys == 2, "who goes on trying is counted, and named once a minute"


BAD_GUESTS: dict[str, list[bytes | str]] = {
    "text": ["hello"],
    "an empty piece": [b""],
    "a piece of another kind": [b"\2hello"],
    "a large hello": [b"\1" + bytes(HANDSHAKE_MAX_BYTES + 1)],
    "a large hello in small pieces": [b"\0" + bytes(1000)] * 5,
    "a large piece": [b"\0" + bytes(PIECE_BYTES + 1)],
    "no hello": [b"\1\xc1"],
}


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("said", BAD_GUESTS.values(), ids=BAD_GUESTS.keys())
async def test_who_does_not_know_how_to_behave_is_sent_away(site: Site, said: list[bytes | str]) -> None:
    socket = await site.client.ws_connect(site.url + PATH, max_msg_size=0)
    for message in said:
        await (socket.send_str(message) if isinstance(message, str) else socket.send_bytes(message))
    assert await ending_of(socket) in (WSMsgType.CLOSE, WSMsgType.CLOSED, WSMsgType.CLOSING)
    await socket.close()
    assert site.came.empty() and site.reception.strangers == 0


async def ending_of(socket: aiohttp.ClientWebSocketResponse) -> WSMsgType:
    """Return how the other side ended it; a hello may come before."""
    async with asyncio.timeout(2):
        while (message := await socket.receive()).type is WSMsgType.BINARY:
            pass
    return message.type


@pytest.mark.usefixtures("hasty")
async def test_who_says_nothing_is_sent_away(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links, "PROOF_TIMEOUT_S", 0.05)
    socket = await site.client.ws_connect(site.url + PATH)
    assert await ending_of(socket) is WSMsgType.CLOSE
    await socket.close()
    assert site.reception.strangers == 0


async def test_a_follower_gives_up_where_too_much_comes(site: Site) -> None:
    mine, theirs = await site.pair()
    sending = asyncio.create_task(beneath(theirs).send(bytes(MESSAGE_MAX_BYTES + 1)))
    with pytest.raises(Garbled):
        await asyncio.wait_for(mine.receive(), 5)
    await asyncio.wait([sending])


async def test_nothing_is_compressed(site: Site) -> None:
    socket = await site.client.ws_connect(site.url + PATH, compress=15)
    assert not socket.compress
    await socket.close()
    mine, theirs = await site.pair()
    assert not beneath(mine)._socket.compress and not beneath(theirs)._socket.compress


# ---- what is left ----------------------------------------------------------------------------------------


@pytest.fixture
def uncollected() -> Iterator[None]:
    """Let nobody collect rings of objects, as in a daemon."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


KINDS = (SocketLink, SealedLink, web.WebSocketResponse, aiohttp.ClientWebSocketResponse, Connection)


def left() -> dict[str, int]:
    counts = Counter(map(type, gc.get_objects()))
    return {kind.__name__: counts[kind] for kind in KINDS}


async def closed_by_follower(site: Site) -> None:
    mine, _ = await site.pair()
    mine.close()
    await beneath(mine).closed()


async def closed_by_primary(site: Site) -> None:
    mine, theirs = await site.pair()
    theirs.close()
    with pytest.raises(LinkClosed):
        await mine.receive()
    await beneath(mine).closed()


async def broken(site: Site) -> None:
    mine, theirs = await site.pair()
    waiting = asyncio.create_task(mine.receive())
    await asyncio.sleep(0)
    beneath(theirs)._transport.abort()
    await asyncio.wait([waiting])
    assert waiting.exception() is not None
    await beneath(mine).closed()


async def refused(site: Site) -> None:
    with suppress(WrongKey):
        await site.open(OTHER)


async def garbled(site: Site) -> None:
    socket = await site.client.ws_connect(site.url + PATH)
    await socket.send_bytes(b"\1\xc1")
    await ending_of(socket)
    await socket.close()


async def gone_at_once(site: Site) -> None:
    socket = await site.client.ws_connect(site.url + PATH)
    socket._writer.transport.abort()
    await socket.close()
    sockets._let_go(socket)


@pytest.mark.slow
@pytest.mark.usefixtures("uncollected", "hasty")
@pytest.mark.parametrize("life", [closed_by_follower, closed_by_primary, broken, refused, garbled, gone_at_once])
async def test_a_link_that_ended_leaves_nothing_behind(
    site: Site, life: Callable[[Site], "asyncio.Future[None]"]
) -> None:
    async def once() -> None:
        await life(site)
        site.over.set()
        site.raw.clear()
        while not site.came.empty():
            site.came.get_nowait()
        await until(lambda: not site.reception.strangers, "the end of the handshake")
        site.over.clear()

    await once()
    before = left()
    for _ in range(10):
        await once()
    await until(lambda: all(count <= before[name] + 2 for name, count in left().items()), f"{before}, now {left()}")
