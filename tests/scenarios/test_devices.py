"""A phone that sleeps, a hidden tab, a closed one, a second one, a turn missed: what becomes of the place each time."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.scenarios.devices import EVENT, Device, Doors

pytestmark = [pytest.mark.slow, pytest.mark.timeout(60)]

PRESENCE_S, HIDDEN_S, GRACE_S = 15, 60, 600
CLAIM_S, CLAIM_MAX_S, LEEWAY_S = 10, 25, 5
SETTINGS = {
    "presence_timeout_s": PRESENCE_S, "presence_timeout_hidden_s": HIDDEN_S, "grace_s": GRACE_S,
    "claim_window_s": CLAIM_S, "claim_max_s": CLAIM_MAX_S,
}  # fmt: skip
SLEEP_S = 180


@pytest.fixture
async def doors(tmp_path: Path) -> AsyncIterator[Doors]:
    async with Doors.opened(tmp_path / "data", **SETTINGS) as opened:
        yield opened


# ---- a phone that sleeps ----------------------------------------------------------------------------------


async def test_a_phone_that_slept_for_three_minutes_finds_its_place_as_it_left_it(doors: Doors) -> None:
    ahead = [await doors.comes(f"ahead{n}") for n in range(3)]
    phone = await doors.comes("phone")
    asleep = await phone.open_tab()
    assert (await asleep.next())["position"] == 4
    await doors.live(SLEEP_S, *ahead)
    assert (await ahead[0].ask("POST", "/leave"))[0] == 204
    awake = await phone.open_tab()
    place = await awake.next()
    assert (place["status"], place["number"], place["position"]) == ("waiting", 4, 3)
    assert await doors.timeline("phone") == ["joined"]
    assert await doors.release(3) == (3, 0)
    assert (await awake.until(type="ready"))["pass"]


async def test_a_phone_whose_turn_passed_while_it_slept_is_next_when_it_wakes(doors: Doors) -> None:
    ahead, phone, behind = await doors.comes("ahead"), await doors.comes("phone"), await doors.comes("behind")
    last = await doors.comes("last")
    asleep = await phone.open_tab()
    assert (await asleep.next())["position"] == 2
    await doors.live(SLEEP_S, ahead, behind, last)
    assert await doors.release(2) == (2, 1)
    assert [(await device.poll())["status"] for device in (ahead, behind)] == ["ready", "ready"]
    assert (await last.poll())["position"] == 1
    awake = await phone.open_tab()
    place = await awake.next()
    assert (place["status"], place["number"], place["position"], place["pass"]) == ("waiting", 2, 1, None)
    assert (await last.poll())["position"] == 1, "an insertion ahead halts what is shown and does not raise it"
    assert await doors.release(1) == (1, 0)
    assert (await awake.until(type="ready"))["pass"]
    assert (await last.poll())["status"] == "waiting"
    assert await doors.timeline("phone") == ["joined", "parked", "returned", "released"]


async def test_a_phone_that_never_wakes_loses_the_place_when_its_grace_is_over(doors: Doors) -> None:
    phone, other = await doors.comes("phone"), await doors.comes("other")
    await doors.live(SLEEP_S, other)
    assert await doors.release(1) == (1, 1)
    await doors.live(GRACE_S - 1, other)
    assert (await doors.counts())["parked"] == 1
    await doors.live(1, other)
    gone = await phone.poll()
    assert (gone["status"], gone["cause"], gone["pass"]) == ("expired", "absent", None)
    assert (await phone.join())["number"] == 3, "whoever joins again stands at the end"


# ---- tabs -------------------------------------------------------------------------------------------------


async def test_a_hidden_tab_is_waited_for_longer_and_then_its_turn_comes(doors: Doors) -> None:
    hidden, silent, other = await doors.comes("hidden"), await doors.comes("silent"), await doors.comes("other")
    tab = await hidden.open_tab()
    await tab.say(visible=False)
    await doors.live(HIDDEN_S - 5, other)
    assert await doors.release(2) == (2, 1)
    assert (await tab.until(type="ready"))["pass"]
    assert (await other.poll())["status"] == "ready"
    assert (await doors.counts())["parked"] == 1, "who said nothing was waited for no longer than a visible tab"
    assert (await silent.poll())["position"] == 1


async def test_a_parked_hidden_tab_stays_parked_by_its_pongs_until_it_is_looked_at(doors: Doors) -> None:
    hidden, other = await doors.comes("hidden"), await doors.comes("other")
    tab = await hidden.open_tab()
    await tab.say(visible=False)
    await doors.live(HIDDEN_S + 10, other)
    assert await doors.release(1) == (1, 1)
    assert (await tab.until(status="parked"))["position"] is None
    for _ in range(3):
        await doors.live(10)
        await tab.pong()
    assert (await hidden.ask("POST", "/heartbeat", {"visible": False}))[1]["status"] == "parked"
    assert await doors.timeline("hidden") == ["joined", "parked"]
    pushes = await tab.say(visible=True)
    back = pushes[-1] if pushes else await tab.until(status="waiting")
    assert (back["status"], back["position"]) == ("waiting", 1)
    assert await doors.release(1) == (1, 0)
    assert (await tab.until(type="ready"))["pass"]


async def test_a_closed_tab_is_reopened_by_its_cookie_and_by_its_token(doors: Doors) -> None:
    ahead, device = await doors.comes("ahead"), await doors.comes("device")
    tab = await device.open_tab()
    await tab.next()
    await tab.close()
    await doors.live(40, ahead)
    client, cookie = doors.server.client, {"Cookie": f"stanchion-e1={device.token}"}
    async with client.get(f"{doors.server.url}{EVENT}/position", headers=cookie) as response:
        place = device.took(await response.json())
    assert (place["status"], place["number"], place["position"]) == ("waiting", 2, 2)
    async with client.get(
        f"{doors.server.url}{EVENT}/updates", headers={**cookie, "Accept": "text/event-stream"}
    ) as stream:
        assert (await asyncio.wait_for(_first_of(stream.content), 5))["position"] == 2
    async with client.post(f"{doors.server.url}{EVENT}/leave", headers=cookie) as response:
        assert response.status == 401, "a cookie alone changes nothing"
    assert (await (await device.open_tab()).next())["number"] == 2
    assert (await device.poll())["position"] == 2
    assert await doors.counts() == {"waiting": 2}


async def _first_of(lines: "asyncio.StreamReader | object") -> dict[str, object]:
    async for line in lines:  # type: ignore[union-attr]
        if line.startswith(b"data: "):
            place: dict[str, object] = json.loads(line[6:])
            return place
    raise AssertionError("the stream ended without a place")


async def test_a_page_loaded_again_has_the_same_place(doors: Doors) -> None:
    await doors.comes("ahead")
    device = await doors.comes("device")
    behind = await doors.comes("behind")
    for _ in range(3):
        again = await device.join()
        assert (again["number"], again["position"], again["status"]) == (2, 2, "waiting")
    tab = await device.open_tab({"join": {"user_id": "device", "idempotency_key": device.key}})
    place = await tab.next()
    assert (place["number"], place["position"]) == (2, 2) and place["token"]
    assert await doors.counts() == {"waiting": 3}
    await doors.release(2)
    reloaded = await device.join()
    assert reloaded["status"] == "ready" and reloaded["pass"]
    assert (await behind.poll())["position"] == 1


async def test_two_tabs_of_one_visitor_are_one_place_and_one_admission(doors: Doors) -> None:
    ahead, device = await doors.comes("ahead"), await doors.comes("device")
    tabs = [await device.open_tab() for _ in range(2)]
    for tab in tabs:
        assert (await tab.next())["position"] == 2
    assert await doors.counts() == {"waiting": 2}
    assert (await ahead.ask("POST", "/leave"))[0] == 204
    for tab in tabs:
        await tab.until(position=1)
    await doors.release(1)
    passes = [(await tab.until(type="ready"))["pass"] for tab in tabs] + [(await device.poll())["pass"]]
    redeemed = [
        (await doors.site("/redeem", {"pass": pass_}, Idempotency_Key=f"{n}")) for n, pass_ in enumerate(passes)
    ]
    assert [status for status, _ in redeemed] == [200, 409, 409]
    assert await doors.counts() == {"active": 1, "left": 1}


async def heard_again(doors: Doors, arrival: int) -> None:
    """Wait until the server hears of somebody by itself."""
    presence = doors.server.backend.venue.room("e1").ledger.presence
    before_ms = presence.last_seen_ms(arrival, 10**15)
    async with asyncio.timeout(5):
        while presence.last_seen_ms(arrival, 10**15) == before_ms:  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def test_an_event_stream_is_present_as_long_as_its_connection_acknowledges(doors: Doors) -> None:
    streaming, silent, other = await doors.comes("streaming"), await doors.comes("silent"), await doors.comes("other")
    head = {"Accept": "text/event-stream", "Authorization": f"Bearer {streaming.token}"}
    async with doors.server.client.get(f"{doors.server.url}{EVENT}/updates", headers=head) as stream:
        assert (await asyncio.wait_for(_first_of(stream.content), 5))["position"] == 1
        for _ in range(2):
            await doors.live(10, other)
            await heard_again(doors, 1)
        assert await doors.release(2) == (2, 1)
        assert (await asyncio.wait_for(_first_of(stream.content), 5))["type"] == "ready"
    assert (await silent.poll())["number"] == 2


async def test_an_event_stream_whose_reader_takes_nothing_any_more_is_no_presence(doors: Doors) -> None:
    frozen, streaming, other = await doors.comes("frozen"), await doors.comes("streaming"), await doors.comes("other")
    head = {"Accept": "text/event-stream", "Authorization": f"Bearer {streaming.token}"}
    with await frozen_stream(doors, frozen):
        async with doors.server.client.get(f"{doors.server.url}{EVENT}/updates", headers=head):
            for number in range(8):
                text = {"text": f"{number} {'x' * 900}"}
                assert (await doors.server.call("POST", "/v1/admin/events/e1/message", text))[0] == 200
            for _ in range(2):
                await doors.live(10, other)
                await heard_again(doors, 2)
            assert doors.server.hub.stats()["sockets"] == 2
            assert await doors.release(1) == (1, 1), "the frozen one was stepped over"
    assert (await doors.timeline("frozen"))[-1] == "parked"
    place = await frozen.poll()
    assert (place["status"], place["number"], place["position"]) == ("waiting", 1, 1)


async def frozen_stream(doors: Doors, device: Device) -> socket.socket:
    """Open an event stream over a connection with the smallest of buffers, from which nobody reads."""
    raw, loop = socket.socket(), asyncio.get_running_loop()
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    raw.setblocking(False)
    await loop.sock_connect(raw, ("127.0.0.1", doors.server.port))
    head = f"GET {EVENT}/updates HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\n"
    await loop.sock_sendall(raw, f"{head}Authorization: Bearer {device.token}\r\n\r\n".encode())
    async with asyncio.timeout(5):
        while not doors.server.hub.stats()["sockets"]:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    return raw


# ---- a turn missed ----------------------------------------------------------------------------------------


async def test_a_turn_missed_once_leaves_the_place_at_the_head_and_only_the_second_pass_works(doors: Doors) -> None:
    device, other = await doors.comes("device"), await doors.comes("other")
    tab = await device.open_tab()
    await tab.next()
    assert await doors.release(1) == (1, 0)
    first = (await tab.until(type="ready"))["pass"]
    await doors.live(CLAIM_S + LEEWAY_S - 1, other)
    assert (await device.poll())["status"] == "ready", "the leeway belongs to the visitor"
    await doors.live(1, other)
    assert (await tab.until(status="parked"))["pass"] is None
    place = await device.poll()
    assert (place["status"], place["position"], place["pass"]) == ("waiting", 1, None)
    status, refused = await doors.site("/redeem", {"pass": first}, Idempotency_Key="late")
    assert (status, refused["code"]) == (410, "pass_expired")
    assert await doors.release(1) == (1, 0)
    second = (await device.poll())["pass"]
    status, refused = await doors.site("/redeem", {"pass": first}, Idempotency_Key="late")
    assert (status, refused["code"]) == (410, "pass_expired")
    assert (await doors.site("/redeem", {"pass": second}, Idempotency_Key="good"))[0] == 200
    assert (await doors.timeline("device"))[:5] == ["joined", "released", "lapsed", "returned", "released"]


async def test_a_turn_missed_twice_ends_the_place(doors: Doors) -> None:
    device, other = await doors.comes("device"), await doors.comes("other")
    for expected in ("waiting", "expired"):
        assert await doors.release(1) == (1, 0)
        await doors.live(CLAIM_S + LEEWAY_S, other)
        place = await device.poll()
        assert place["status"] == expected
    assert (place["cause"], place["pass"], place["position"]) == ("unclaimed", None, None)
    assert await doors.counts() == {"waiting": 1, "expired": 1}


async def test_a_claim_is_extended_up_to_its_limit_and_no_further(doors: Doors) -> None:
    device, other = await doors.comes("device"), await doors.comes("other")
    await doors.release(1)
    place = await device.poll()
    assert place["pass_expires_ms"] - place["now_ms"] == CLAIM_S * 1000
    left = []
    for _ in range(3):
        await doors.live(8, other)
        status, place = await device.ask("POST", "/extend")
        assert status == 200 and place["status"] == "ready"
        left.append(place["pass_expires_ms"] - place["now_ms"])
    assert left == [10_000, 9_000, 1_000], "another window each time, and never beyond the limit"
    assert (await doors.site("/redeem", {"pass": place["pass"]}))[0] == 200
    assert (await device.ask("POST", "/extend"))[0] == 409
    assert (await other.ask("POST", "/extend"))[0] == 409
