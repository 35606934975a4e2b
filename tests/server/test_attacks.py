"""Attacks on places, passes and the word of a shop, tried on a whole server; docs/security.md lists them all."""

from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from tests.engine.forging import parts_of
from tests.server.attacking import CALM, EVENT, KEYS, asked, made_anew, registered, word_of_shop
from tests.server.rings import WallClock
from tests.server.running import Running, running
from tests.server.shop import Browser, complete, let_in, remove


@pytest.fixture
def clock() -> WallClock:
    return WallClock()


@pytest.fixture
async def server(tmp_path: Path, clock: WallClock) -> AsyncIterator[Running]:
    async with running(tmp_path / "data", wall_ms=clock) as started:
        await started.open_event("e1", **CALM)
        yield started


# ---- taking somebody's place -------------------------------------------------------------------------------------


@pytest.mark.parametrize("more", [{}, {"idempotency_key": "another-key"}, {"idempotency_key": "u1"}])
async def test_a_socket_that_only_knows_an_id_is_never_told_the_place(server: Running, more: dict[str, str]) -> None:
    place = await server.place("u1")
    async with server.client.ws_connect(f"{server.url}{EVENT}/updates") as ws:
        await ws.send_json({"join": {"user_id": "u1", **more}})
        told = await ws.receive_json(timeout=5)
        assert (told["type"], told["code"]) == ("error", "bad_token") and "number" not in told
        assert (await ws.receive(timeout=5)).type is aiohttp.WSMsgType.CLOSE and ws.close_code == 4401
    assert (await server.place("u1"))["arrival"] == place["arrival"], "its first key still proves it"


async def test_a_code_moves_a_place_of_its_event_once_in_time_and_on_its_server(
    server: Running, clock: WallClock, tmp_path: Path
) -> None:
    await server.open_event("e2", **CALM)
    token = str((await server.place("u1"))["token"])
    codes = [(await asked(server, "transfer", None, token))[1]["code"] for _ in range(3)]
    async with running(tmp_path / "other", wall_ms=clock) as other:
        await other.open_event("e1", **CALM)
        await other.place("u1")
        assert (await asked(other, "transfer/accept", {"code": codes[0]}))[0] == 401
    assert (await asked(server, "/v1/events/e2/transfer/accept", {"code": codes[0]}))[0] == 401
    clock.pass_s(300)
    assert (await asked(server, "transfer/accept", {"code": codes[0]}))[0] == 401
    late = (await asked(server, "transfer", None, token))[1]["code"]
    spare = (await asked(server, "transfer", None, token))[1]["code"]
    status, moved = await asked(server, "transfer/accept", {"code": late})
    assert status == 200
    for code in (late, spare):
        status, answer = await asked(server, "transfer/accept", {"code": code}, Idempotency_Key="thief")
        assert (status, answer["code"]) == (410, "gone")
    assert (await asked(server, "transfer", None, token))[0] == 403, "the first device makes no more codes"
    assert (await asked(server, "leave", None, token))[0] == 403
    status, known = await asked(server, "join", {"user_id": "u1"}, token, Idempotency_Key="key-u1")
    assert (status, "token" in known) == (200, False), "neither the old token nor the old key proves it any more"
    assert (await asked(server, "transfer", None, moved["token"]))[0] == 200


async def test_codes_to_move_a_place_leave_nothing_behind(server: Running) -> None:
    token = str((await server.place("u1"))["token"])
    before = server.backend.status().version
    codes = {(await asked(server, "transfer", None, token))[1]["code"] for _ in range(200)}
    assert codes and server.backend.status().version == before


async def test_a_session_or_pass_from_before_an_event_was_made_anew_is_nobody_elses(server: Running) -> None:
    """The new event counts from 1 again, so that an old session names whoever has its arrival now."""
    old_pass = await let_in(server, "thief")
    session = (await asked(server, "redeem", {"pass": old_pass}, server.keys.site))[1]["session"]
    await made_anew(server)
    victims = await let_in(server, "victim")
    assert parts_of(victims)[1]["num"] == parts_of(old_pass)[1]["num"] == 1
    assert (await asked(server, "redeem", {"pass": old_pass}, server.keys.site))[0] == 410
    assert (await asked(server, "redeem", {"pass": victims}, server.keys.site))[0] == 200
    for path, body in (
        ("complete", {"session": session, "outcome": "abandoned"}),
        ("complete", {"pass": old_pass, "outcome": "abandoned"}),
        ("extend", {"session": session}),
    ):
        assert (await asked(server, path, body, server.keys.site))[0] == 404, path
    assert (await server.place("victim"))["status"] == "active"


# ---- passes ------------------------------------------------------------------------------------------------------


async def test_a_pass_enters_once_at_its_event_on_its_server_and_before_a_removal(
    server: Running, clock: WallClock, tmp_path: Path
) -> None:
    await server.open_event("e2", **CALM)
    async with running(tmp_path / "other", wall_ms=clock) as other:
        await other.open_event("e1", **CALM)
        strange = await let_in(other, "u1")
    own, token = await let_in(server, "u1"), str((await server.place("u1"))["token"])
    elsewhere, removed = await let_in(server, "u1", "e2"), await let_in(server, "u2")
    await remove(server, "u2")
    site = server.keys.site
    for shown, status in ((strange, 401), (elsewhere, 401), (removed, 410), (token, 401), (site, 401)):
        assert (await asked(server, "redeem", {"pass": shown}, site))[0] == status
        assert (await Browser(server).enter(shown)).status == status
    assert (await asked(server, "redeem", {"pass": own}, site))[0] == 200
    assert (await asked(server, "redeem", {"pass": own}, site))[1]["code"] == "pass_used"
    await complete(server, "u1")
    assert (await asked(server, "redeem", {"pass": own}, site))[1]["code"] == "pass_used"


@pytest.mark.slow
async def test_a_pass_enters_once_however_often_the_server_starts(tmp_path: Path) -> None:
    async with running(tmp_path / "data") as first:
        await first.open_event("e1", **CALM)
        used, unused = await let_in(first, "u1"), await let_in(first, "u2")
        assert (await asked(first, "redeem", {"pass": used}, first.keys.site))[0] == 200
    async with running(tmp_path / "data") as second:
        site = second.keys.site
        assert (await asked(second, "redeem", {"pass": used}, site))[0] == 409
        assert (await asked(second, "redeem", {"pass": unused}, site))[0] == 200
        fresh = str((await second.place("u2"))["pass"])
        assert fresh == "None" and (await asked(second, "redeem", {"pass": unused}, site))[0] == 409


async def test_a_site_key_of_another_event_can_do_nothing_here(server: Running) -> None:
    await server.open_event("e2", **CALM)
    status, answer, _ = await server.call("POST", KEYS, {"kind": "site", "name": "theirs", "events": ["e2"]})
    theirs, pass_ = str(answer["secret"]), await let_in(server, "u1")
    await let_in(server, "u2")
    session = (await asked(server, "redeem", {"pass": pass_}, server.keys.site))[1]["session"]
    before = server.backend.status().version
    for path, body in (
        ("redeem", {"pass": pass_}),
        ("complete", {"user_id": "u2", "outcome": "completed"}),
        ("complete", {"session": session, "outcome": "completed"}),
        ("extend", {"session": session}),
        ("join", {"user_id": "u2"}),
        ("join", {"user_id": "newcomer"}),
    ):
        status, refused = await asked(server, path, body, theirs)
        assert (status, refused["detail"]) == (404, "there is no such event"), path
    assert server.backend.status().version == before


# ---- bans, and the word of a shop --------------------------------------------------------------------------------


async def test_a_banned_identity_stays_out_by_whatever_door(server: Running, clock: WallClock) -> None:
    key_id, token = await registered(server), str((await server.place("u1"))["token"])
    body = {"user_id": "u1", "reason": "a robot", "ban": True}
    assert (await server.call("POST", "/v1/admin/events/e1/remove", body))[0] == 200
    words: list[dict[str, object]] = [
        {"sub": "u1"},
        {"sub": "u2", "group": "u1", "size": 2},
        {"sub": "u1", "priority": 9},
    ]
    for shown in [{"user_id": "u1"}, *({"enqueue_token": word_of_shop(key_id, clock(), **word)} for word in words)]:
        for bearer in ("", token, server.keys.site):
            status, refused = await asked(server, "join", shown, bearer, Idempotency_Key="key-u1")
            assert (status, refused["code"]) == (403, "banned"), (shown, bearer)
        async with server.client.ws_connect(f"{server.url}{EVENT}/updates") as ws:
            await ws.send_json({"join": shown})
            assert (await ws.receive_json(timeout=5))["code"] == "banned"
    async with server.client.get(
        f"{server.url}{EVENT}/position", headers={"Authorization": f"Bearer {token}"}
    ) as response:
        place = await response.json()
        assert (place["status"], place["pass"], place["token"]) == ("removed", None, None)


async def test_an_enqueue_token_makes_one_place_even_after_that_was_left(server: Running, clock: WallClock) -> None:
    shown = {"enqueue_token": word_of_shop(await registered(server, "e1"), clock())}
    status, place = await asked(server, "join", shown)
    assert status == 201 and (await asked(server, "join", shown))[1]["arrival"] == place["arrival"]
    await asked(server, "leave", None, place["token"])
    status, refused = await asked(server, "join", shown)
    assert (status, refused["code"]) == (409, "enqueue_token_used")
    status, refused = await asked(server, "join", {"user_id": "u1", "enqueue_token": "x"})
    assert (status, refused["code"]) == (401, "bad_enqueue_token")


@pytest.mark.parametrize(
    "claims",
    [
        *(
            {"aud": ["e1", "e2"]},
            {"aud": "e2"},
            {"aud": []},
            {"aud": None},
            {"exp": 1_790_000_700},
            {"exp": -1},
            {"nbf": 2**52},
        ),
        *({"priority": 10}, {"priority": -1}, {"priority": "9"}, {"size": 0}, {"size": 21}, {"size": 2}, {"group": ""}),
        *({"sub": ""}, {"sub": "a\0"}, {"sub": "a\r\nb"}, {"sub": "\u202ea"}, {"sub": "a" * 129}, {"jti": ""}),
        *({"group": "a\nb", "size": 2}, {"jti": "\x7f"}, {"sub": None}, {"jti": 5}, {"nbf": 2**52}),
    ],
    ids=str,
)
async def test_a_token_that_says_more_than_a_shop_may_makes_no_place(
    server: Running, clock: WallClock, claims: dict[str, object]
) -> None:
    shown = {"enqueue_token": word_of_shop(await registered(server, "e1"), clock(), **claims)}
    status, refused = await asked(server, "join", shown)
    assert (status, refused["code"]) == (401, "bad_enqueue_token")
    assert (await server.backend.event("e1")).waiting == 0


async def test_a_shops_key_lets_nobody_into_the_line_of_another_event(server: Running, clock: WallClock) -> None:
    await server.open_event("e2", **CALM)
    shown = {"enqueue_token": word_of_shop(await registered(server, "e1"), clock(), aud="e2")}
    assert (await asked(server, "/v1/events/e2/join", shown))[0] == 401
    assert (await server.backend.event("e2")).waiting == 0
