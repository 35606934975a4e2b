"""A place that moves to a second device, and an id that somebody stole: who holds the place, and who only reads."""

from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from tests.scenarios.devices import Answer, Device, Doors

pytestmark = [pytest.mark.slow, pytest.mark.timeout(60)]

SETTINGS = {"presence_timeout_s": 15, "presence_timeout_hidden_s": 15, "grace_s": 3600}
CODE_LIFE_S = 300


@pytest.fixture
async def doors(tmp_path: Path) -> AsyncIterator[Doors]:
    async with Doors.opened(tmp_path / "data", **SETTINGS) as opened:
        yield opened


async def accept(doors: Doors, code: str, key: str) -> tuple[int, Device, Answer]:
    """Show a code on a second device; returns the status, that device and its answer."""
    device = Device(doors, "device", key)
    status, answer = await device.ask("POST", "/transfer/accept", {"code": code}, Idempotency_Key=key)
    return status, device, device.took(answer)


async def moved(doors: Doors, phone: Device) -> Device:
    """Move a place to a laptop."""
    status, laptop, place = await accept(doors, await phone.transfer_code(), "key-of-laptop")
    assert status == 200 and place["number"] == phone.number and laptop.token
    return laptop


async def test_the_second_device_has_the_place_and_its_pass_and_the_first_one_only_reads(doors: Doors) -> None:
    ahead, phone = await doors.comes("ahead"), await doors.comes("device")
    old = await phone.open_tab()
    await old.next()
    laptop = await moved(doors, phone)
    new = await laptop.open_tab()
    assert (await new.next())["position"] == 2
    assert await doors.release(2) == (2, 0)
    assert (await new.until(type="ready"))["pass"]
    told = await old.until(status="ready")
    assert (told["type"], told["pass"], told["pass_expires_ms"], told["token"]) == ("place", None, None, None)
    held, read = await laptop.poll(), await phone.poll()
    assert held["pass"] and (read["status"], read["pass"], read["enter_url"], read["token"]) == (
        "ready",
        None,
        None,
        None,
    )
    assert (await doors.site("/redeem", {"pass": held["pass"]}))[0] == 200
    assert (await ahead.poll())["status"] == "ready" and (await doors.counts()) == {"ready": 1, "active": 1}


@pytest.mark.parametrize("path", ["/heartbeat", "/leave", "/extend", "/transfer"])
async def test_what_the_first_device_writes_is_refused_after_the_move(doors: Doors, path: str) -> None:
    phone = await doors.comes("device")
    laptop = await moved(doors, phone)
    status, refused = await phone.ask("POST", path, {} if path == "/heartbeat" else None)
    assert (status, refused["code"]) == (403, "read_only")
    assert (await laptop.poll())["status"] == "waiting"


async def test_leaving_over_the_socket_of_the_first_device_does_not_end_the_place(doors: Doors) -> None:
    phone = await doors.comes("device")
    old = await phone.open_tab()
    await old.next()
    laptop = await moved(doors, phone)
    await old._ws.send_json({"leave": True})
    assert (await laptop.poll())["status"] == "waiting"
    assert "left" not in await doors.timeline("device")


async def test_the_key_of_the_first_device_proves_nothing_after_the_move(doors: Doors) -> None:
    phone = await doors.comes("device")
    laptop = await moved(doors, phone)
    before, phone.token = phone.token, ""
    seen = await phone.join()
    assert set(seen) == {"event_id", "status", "number", "position"} and not phone.token
    assert before != laptop.token
    assert (await laptop.join())["token"], "the key that the code was accepted with does"


async def test_the_first_device_is_no_presence_after_the_move_and_the_second_one_is(doors: Doors) -> None:
    phone, other = await doors.comes("device"), await doors.comes("other")
    old = await phone.open_tab()
    laptop = await moved(doors, phone)
    for _ in range(4):
        await doors.live(5, phone, other)
        await old.pong()
    assert await doors.release(1) == (1, 1), "only the first device was heard of"
    assert (await phone.poll())["status"] == "parked"
    place = await laptop.poll()
    assert (place["status"], place["position"], place["number"]) == ("waiting", 1, 1)


async def test_a_code_is_good_once_and_its_user_may_repeat_it(doors: Doors) -> None:
    phone = await doors.comes("device")
    code = await phone.transfer_code()
    answers = [await accept(doors, code, "key-of-laptop") for _ in range(3)]
    assert [status for status, _, _ in answers] == [200, 200, 200]
    facts = {msgspec.json.encode({**place, "version": 0, "waiting": 0}) for _, _, place in answers}
    assert len(facts) == 1, "the same answer, token included"
    for key in ("key-of-thief", "key-of-device"):
        status, thief, refused = await accept(doors, code, key)
        assert (status, refused["code"], refused["reason"], thief.token) == (410, "gone", "used", "")
    assert (await doors.timeline("device")).count("transferred") == 1


async def test_a_code_is_good_for_five_minutes(doors: Doors) -> None:
    phone = await doors.comes("device")
    code = await phone.transfer_code()
    await doors.live(CODE_LIFE_S + 1, phone)
    status, late, refused = await accept(doors, code, "key-of-laptop")
    assert status in (401, 410) and not late.token, refused
    code = await phone.transfer_code()
    await doors.live(CODE_LIFE_S - 2, phone)
    assert (await accept(doors, code, "key-of-laptop"))[0] == 200


async def test_two_codes_of_one_place_are_not_both_good(doors: Doors) -> None:
    phone = await doors.comes("device")
    codes = [await phone.transfer_code(), await phone.transfer_code()]
    statuses = [(await accept(doors, code, f"key-{number}"))[0] for number, code in enumerate(codes)]
    assert statuses == [200, 410]


async def test_a_parked_place_comes_back_with_the_second_device(doors: Doors) -> None:
    phone, other = await doors.comes("device"), await doors.comes("other")
    code = await phone.transfer_code()
    await doors.live(30, other)
    assert await doors.release(1) == (1, 1)
    status, laptop, place = await accept(doors, code, "key-of-laptop")
    assert (status, place["status"], place["position"]) == (200, "waiting", 1)
    assert await doors.release(1) == (1, 0)
    assert (await laptop.poll())["pass"] and (await phone.poll())["pass"] is None
    kinds = await doors.timeline("device")
    assert kinds == ["joined", "parked", "transferred", "returned", "released"]


async def test_whoever_only_knows_an_id_gets_neither_token_nor_pass_and_is_no_presence(doors: Doors) -> None:
    victim, other = await doors.comes("device"), await doors.comes("other")
    thief = Device(doors, "device", "key-of-thief")
    for _ in range(4):
        await doors.live(5, other)
        seen = await thief.join()
        assert set(seen) == {"event_id", "status", "number", "position"}
    assert await doors.release(1) == (1, 1), "asking about an id does not keep it present"
    assert (await victim.poll())["position"] == 1
    assert await doors.release(1) == (1, 0)
    assert set(await thief.join()) == {"event_id", "status", "number", "position"} and not thief.token
    tab = await thief.open_tab({"join": {"user_id": "device", "idempotency_key": thief.key}})
    refused = await tab.next()
    assert (refused["type"], refused["code"]) == ("error", "bad_token")
    assert (await thief.ask("POST", "/leave"))[0] == 401
    assert (await victim.poll())["pass"]


async def test_the_token_of_one_visitor_shows_nothing_of_another(doors: Doors) -> None:
    device, other = await doors.comes("device"), await doors.comes("other")
    await doors.release(2)
    places = [await device.poll(), await other.poll()]
    assert [place["user_id"] for place in places] == ["device", "other"]
    joined = await device.ask("POST", "/join", {"user_id": "other"})
    assert joined[0] == 200 and set(joined[1]) == {"event_id", "status", "number", "position"}
