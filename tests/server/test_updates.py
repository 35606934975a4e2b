"""WebSocket and SSE over real sockets: first message, pushes, closes."""

import asyncio
import json
import socket
from base64 import b64encode
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.server.running import ORIGIN, Running, running

WAIT_S = 5.0


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Running]:
    async with running(tmp_path / "data", first_message_s=0.2) as started:
        await started.open_event("e1")
        yield started


class Client:
    """A visitor's socket that reads JSON."""

    def __init__(self, ws: aiohttp.ClientWebSocketResponse) -> None:
        self.ws = ws

    async def next(self) -> dict[str, Any]:
        message = await asyncio.wait_for(self.ws.receive(), WAIT_S)
        assert message.type is aiohttp.WSMsgType.TEXT, message
        found: dict[str, Any] = json.loads(message.data)
        return found

    async def until(self, **facts: object) -> dict[str, Any]:
        while True:
            push = await self.next()
            if all(push.get(name) == value for name, value in facts.items()):
                return push

    async def close_code(self) -> int | None:
        while (message := await asyncio.wait_for(self.ws.receive(), WAIT_S)).type is aiohttp.WSMsgType.TEXT:
            pass
        return int(message.data) if message.type is aiohttp.WSMsgType.CLOSE else self.ws.close_code


async def connect(server: Running, first: object = None, event_id: str = "e1", **headers: str) -> Client:
    ws = await server.client.ws_connect(f"{server.url}/v1/events/{event_id}/updates", headers=headers)
    if first is not None:
        await ws.send_json(first)
    return Client(ws)


async def release(server: Running, count: int) -> None:
    status, _, _ = await server.call("POST", "/v1/admin/events/e1/release", {"count": count})
    assert status == 200


async def test_a_join_over_the_socket_answers_the_place_with_a_token(server: Running) -> None:
    client = await connect(server, {"join": {"user_id": "u1", "idempotency_key": "k1"}})
    place = await client.next()
    assert (place["type"], place["number"], place["position"], place["status"]) == ("place", 1, 1, "waiting")
    again = await connect(server, {"token": place["token"]})
    assert (await again.next())["number"] == 1
    retried = await connect(server, {"join": {"user_id": "u1", "idempotency_key": "k1"}})
    assert (await retried.next())["number"] == 1


async def test_everybody_connected_is_told_the_exact_new_position(server: Running) -> None:
    clients = [await connect(server, {"join": {"user_id": f"u{index}"}}) for index in range(20)]
    for client in clients:
        await client.next()
    await release(server, 5)
    for client in clients[:5]:
        assert (await client.until(type="ready"))["status"] == "ready"
    for expected, client in enumerate(clients[5:], 1):
        push = await client.until(type="place", position=expected)
        assert push["ahead"] == expected - 1
        assert push["version"] > 0


async def test_a_leave_ahead_moves_those_behind_and_nobody_else(server: Running) -> None:
    clients = [await connect(server, {"join": {"user_id": f"u{index}"}}) for index in range(3)]
    for client in clients:
        await client.next()
    await clients[1].ws.send_json({"leave": True})
    assert (await clients[1].until(status="left"))["position"] is None
    assert (await clients[2].next())["position"] == 2
    await release(server, 1)
    assert (await clients[0].next())["type"] == "ready"


async def test_two_tabs_of_one_visitor_are_both_told(server: Running) -> None:
    ahead, place = await server.place("u0"), await server.place("u1")
    tabs = [await connect(server, {"token": place["token"]}) for _ in range(2)]
    for tab in tabs:
        await tab.next()
    await release(server, 1)
    assert ahead["number"] == 1
    for tab in tabs:
        await tab.until(position=1)


async def test_a_shown_position_is_never_exceeded(server: Running) -> None:
    places = [await server.place(f"u{index}") for index in range(4)]
    client = await connect(server, {"token": places[3]["token"], "shown": 2})
    assert (await client.next())["position"] == 2
    await release(server, 2)
    await release(server, 1)
    assert (await client.next())["position"] == 1


async def test_a_pause_and_a_message_reach_everybody(server: Running) -> None:
    client = await connect(server, {"join": {}})
    await client.next()
    await server.call("POST", "/v1/admin/events/e1/pause", {"reason": "rain"})
    assert (await client.until(type="event"))["reason"] == "rain"
    await server.call("POST", "/v1/admin/events/e1/message", {"text": "soon"})
    assert (await client.until(type="event", message="soon"))["state"] == "paused"


@pytest.mark.parametrize(
    ("first", "code"),
    [
        ({"token": "nonsense"}, 4401),
        ({"join": {"user_id": "u0"}}, 4401),
        ({}, 1008),
        ({"token": "x", "join": {}}, 1008),
        ({"colour": "red"}, 1008),
        ({"join": {"user_id": "a\nb"}}, 1008),
        ([], 1008),
        (None, 4408),
    ],
)
async def test_what_proves_nothing_is_closed_with_a_code_that_says_so(
    server: Running, first: object, code: int
) -> None:
    await server.place("u0")
    client = await connect(server, first)
    assert await client.close_code() == code
    assert server.hub.stats()["sockets"] == 0


async def test_an_event_that_is_not_there_is_closed_as_not_found(server: Running) -> None:
    client = await connect(server, {"join": {}}, event_id="nowhere")
    assert (await client.next())["code"] == "not_found"
    assert await client.close_code() == 4404


async def test_a_deleted_event_sends_its_sockets_away_for_good(server: Running) -> None:
    client = await connect(server, {"join": {}})
    await client.next()
    await server.call("POST", "/v1/admin/events/e1/close", {"reason": "over"})
    await server.call("DELETE", "/v1/admin/events/e1")
    assert await client.close_code() == 4410


async def test_a_draining_server_asks_to_come_back_later(server: Running) -> None:
    client = await connect(server, {"join": {}})
    await client.next()
    await server.hub.close()
    assert await client.close_code() == 4001


async def test_pages_of_other_origins_may_not_open_a_socket(server: Running) -> None:
    with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
        await connect(server, {"join": {}}, Origin="https://evil.example")
    assert caught.value.status == 403
    for origin in (ORIGIN, server.url):
        assert (await (await connect(server, {"join": {}}, Origin=origin)).next())["type"] == "place"


async def test_a_message_too_large_and_a_binary_one_end_the_socket(server: Running) -> None:
    client = await connect(server, {"join": {}})
    await client.next()
    await client.ws.send_str("x" * 5_000)
    assert await client.close_code() == 1009
    client = await connect(server, {"join": {}})
    await client.next()
    await client.ws.send_bytes(b"{}")
    assert await client.close_code() == 1008


async def test_a_pong_counts_as_presence_and_a_ping_is_answered(server: Running) -> None:
    client = await connect(server, {"join": {}})
    place = await client.next()
    ledger = server.backend.venue.room("e1").ledger
    ledger.presence._seen_ms[place["arrival"]] = 0
    ledger.presence._clock_ms = 10**9
    assert not ledger.presence.is_present(place["arrival"], ledger.settings)
    await client.ws.pong(b"")
    await client.ws.send_json({"visible": False})
    await client.ws.ping(b"x")
    await release(server, 1)
    await client.until(type="ready")
    assert ledger.presence.is_present(place["arrival"], ledger.settings)


async def test_sse_tells_the_place_and_then_its_changes(server: Running) -> None:
    await server.place("u0")
    place = await server.place("u1")
    headers = {"Accept": "text/event-stream", "Authorization": f"Bearer {place['token']}", "Last-Event-ID": "1-1"}
    async with server.client.get(f"{server.url}/v1/events/e1/updates", headers=headers) as response:
        assert (response.status, response.content_type) == (200, "text/event-stream")
        events = _events(response)
        event_id, first = await asyncio.wait_for(anext(events), WAIT_S)
        assert (first["type"], first["position"]) == ("place", 2)
        assert event_id == f"{first['epoch']}-{first['version']}"
        await release(server, 1)
        _, second = await asyncio.wait_for(anext(events), WAIT_S)
        assert second["position"] == 1
        await release(server, 1)
        _, third = await asyncio.wait_for(anext(events), WAIT_S)
        assert third["type"] == "ready"
    await _until_sockets(server, 0)


async def test_sse_without_a_token_is_a_401_and_a_plain_get_a_400(server: Running) -> None:
    for headers, expected in (({"Accept": "text/event-stream"}, 401), ({}, 400)):
        async with server.client.get(f"{server.url}/v1/events/e1/updates", headers=headers) as response:
            assert response.status == expected
            assert response.content_type == "application/problem+json"


@pytest.mark.slow
async def test_a_reader_that_stops_reading_costs_little_memory_and_delays_nobody(server: Running) -> None:
    reader = await connect(server, {"join": {"user_id": "reads"}})
    await reader.next()
    stalled = await _stalled_socket(server)
    for round_number in range(400):
        text = f"{round_number} " + "x" * 200
        assert (await server.call("POST", "/v1/admin/events/e1/message", {"text": text}))[0] == 200
        assert str((await reader.until(type="event"))["message"]).startswith(f"{round_number} ")
        buffered = [socket.transport.get_write_buffer_size() for socket in server.hub._all("e1")]
        assert max(buffered) < 4096
        if server.hub.stats()["sockets"] == 1:
            break
    stalled.close()
    assert server.hub.stats()["sockets"] == 1 and server.hub.stats()["slow_closed"] == 1


async def _stalled_socket(server: Running) -> socket.socket:
    """Join over a socket with the smallest of buffers and never read again."""
    loop = asyncio.get_running_loop()
    raw = socket.socket()
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    raw.setblocking(False)
    await loop.sock_connect(raw, ("127.0.0.1", server.port))
    head = (
        f"GET /v1/events/e1/updates HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {b64encode(bytes(16)).decode()}\r\n\r\n"
    )
    first = b'{"join":{"user_id":"stalls"}}'
    await loop.sock_sendall(raw, head.encode() + bytes([0x81, 0x80 | len(first), 0, 0, 0, 0]) + first)
    await _until_sockets(server, 2)
    return raw


async def _until_sockets(server: Running, count: int) -> None:
    async with asyncio.timeout(WAIT_S):
        while server.hub.stats()["sockets"] != count:  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def _events(response: aiohttp.ClientResponse) -> AsyncIterator[tuple[str, dict[str, Any]]]:
    event_id = ""
    async for line in response.content:
        if line.startswith(b"id: "):
            event_id = line[4:].strip().decode()
        elif line.startswith(b"data: "):
            yield event_id, json.loads(line[6:])
