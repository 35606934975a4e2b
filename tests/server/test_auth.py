"""Forward-auth over real sockets: who comes in, who is sent to wait, and that every doubt is a denial."""

from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import unquote

import pytest

from engine.actor import Whom
from engine.errors import Refused
from tests.server.rings import WallClock
from tests.server.running import ORIGIN, Running, running
from tests.server.shop import NAVIGATES, SETTINGS, Browser, complete, inside, let_in, remove

QUEUE = "https://queue.example"
TIMES = {"session_ttl_s": 100, "session_max_s": 250, "exit_grace_s": 30}


@pytest.fixture
def clock() -> WallClock:
    return WallClock()


@pytest.fixture
async def server(tmp_path: Path, clock: WallClock) -> AsyncIterator[Running]:
    async with running(tmp_path / "data", wall_ms=clock, clock_ms=clock, url=QUEUE) as started:
        await started.open_event("e1", **SETTINGS, **TIMES)
        yield started


async def left_s(server: Running) -> float:
    """Return what is left of the first visitor's session."""
    session = await server.backend.session("e1", Whom(arrival=1))
    assert session is not None
    return session.left_ms / 1000


# ---- who comes in -------------------------------------------------------------------------------------


async def test_who_has_entered_comes_in_and_the_shop_learns_who_it_is(server: Running, clock: WallClock) -> None:
    browser = await inside(server)
    seen = await browser.auth()
    assert (seen.status, seen.text) == (204, "")
    assert (seen.headers["Stanchion-User"], seen.headers["Stanchion-Number"]) == ("u1", "1")
    assert int(seen.headers["Stanchion-Session-Expires"]) == clock.now_ms + 100_000
    assert seen.headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize("user_id", ["a b@c.example", "ä€😀", "x%0d%0aSet-Cookie", 'q"\\;,'])
async def test_any_user_id_fits_into_the_header(server: Running, user_id: str) -> None:
    seen = await (await inside(server, user_id)).auth()
    assert seen.headers["Stanchion-User"].isascii() and seen.headers["Stanchion-User"].isprintable()
    assert unquote(seen.headers["Stanchion-User"]) == user_id


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND"])
async def test_any_method_is_answered_the_same(server: Running, method: str) -> None:
    browser = await inside(server)
    assert (await browser.auth(method=method)).status == 204
    assert (await Browser(server).auth(method=method, Origin=ORIGIN)).status == 401


@pytest.mark.parametrize("below", ["/", "/a/b/c", "//", "/../..", "/%2e%2e/x", "/a?b=c&b=d&", "/join", "/{}", "?"])
async def test_any_address_below_is_answered_the_same(server: Running, below: str) -> None:
    browser = await inside(server)
    assert (await browser.auth(f"/v1/auth/e1{below}")).status == 204
    assert (await Browser(server).auth(f"/v1/auth/e1{below}")).status == 401


async def test_a_body_that_comes_along_is_not_taken_for_the_next_request(server: Running) -> None:
    browser = await inside(server)
    cookie = "; ".join(f"{name}={value}" for name, value in browser.cookies.items())
    head = browser.front | {"Cookie": cookie}
    for body in (b"GET /v1/auth/e2 HTTP/1.1\r\nHost: x\r\n\r\n", b"x" * 100_000):
        async with server.client.post(f"{server.url}/v1/auth/e1", data=body, headers=head) as response:
            assert response.status == 204
        assert (await browser.auth()).status == 204


async def test_who_has_completed_sees_the_confirmation_page_for_a_while(server: Running, clock: WallClock) -> None:
    browser = await inside(server)
    await complete(server)
    clock.pass_s(29)
    seen = await browser.auth()
    assert (seen.status, int(seen.headers["Stanchion-Session-Expires"])) == (204, clock.now_ms + 1_000)
    clock.pass_s(1)
    assert (await browser.auth()).status == 401


async def test_without_exit_grace_completing_ends_it_at_once(server: Running) -> None:
    await server.call("PATCH", "/v1/admin/events/e1", {"exit_grace_s": 0})
    browser = await inside(server)
    await complete(server)
    assert (await browser.auth()).status == 401


async def test_a_pause_shortens_nobodys_session_nor_the_confirmation_page(server: Running, clock: WallClock) -> None:
    shopper, buyer = await inside(server, "u1"), await inside(server, "u2")
    await complete(server, "u2")
    await server.call("POST", "/v1/admin/events/e1/pause", {"reason": "a short break"})
    clock.pass_s(3600)
    await server.backend.tick()
    assert [(await browser.auth()).status for browser in (shopper, buyer)] == [204, 204]
    await server.call("POST", "/v1/admin/events/e1/resume", {})
    assert [(await browser.auth()).status for browser in (shopper, buyer)] == [204, 204]


async def test_a_session_runs_on_after_the_event_has_closed(server: Running) -> None:
    browser = await inside(server)
    await server.call("POST", "/v1/admin/events/e1/close", {"reason": "sold out"})
    assert (await browser.auth()).status == 204
    assert (await Browser(server).auth()).status == 401


# ---- who does not -------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_noticed", [False, True])
async def test_a_session_that_is_over_lets_nobody_in(server: Running, clock: WallClock, is_noticed: bool) -> None:
    browser = await inside(server)
    clock.pass_s(99)
    await server.call("PATCH", "/v1/admin/events/e1", {"session_extend": False})
    assert (await browser.auth()).status == 204
    clock.pass_s(1)
    if is_noticed:
        await server.backend.tick()
    assert (await browser.auth()).status == 401


async def test_who_is_removed_is_out_at_once(server: Running) -> None:
    browser = await inside(server)
    await remove(server)
    assert (await browser.auth()).status == 401


async def test_whoever_joins_again_does_not_revive_the_old_session(server: Running) -> None:
    browser = await inside(server)
    await remove(server)
    await inside(server)
    assert (await browser.auth()).status == 401


async def test_a_deleted_event_that_is_made_anew_does_not_know_the_old_sessions(server: Running) -> None:
    browser = await inside(server)
    await remove(server)
    await server.call("POST", "/v1/admin/events/e1/close", {"reason": "done"})
    status, _, _ = await server.call("DELETE", "/v1/admin/events/e1")
    assert status == 204
    assert (await browser.auth()).status == 404
    await server.open_event("e1")
    assert (await browser.auth()).status == 401
    await inside(server, "somebody else")
    assert (await browser.auth()).status == 401


@pytest.mark.parametrize("state", ["draft", "closed", "passthrough", "reject"])
async def test_whatever_the_event_does_nobody_comes_in_without_a_session(server: Running, state: str) -> None:
    await server.call("PUT", "/v1/admin/events/e2", {"queueing": state} if state in ("passthrough", "reject") else {})
    if state != "draft":
        await server.call("POST", "/v1/admin/events/e2/open", {})
    if state == "closed":
        await server.call("POST", "/v1/admin/events/e2/close", {"reason": "over"})
    assert (await Browser(server).auth("/v1/auth/e2")).status == 401


async def test_an_event_that_is_not_there_is_404_whatever_is_shown(server: Running) -> None:
    browser = await inside(server)
    token = browser.cookies["__Host-stanchion-session-e1"]
    browser.cookies["__Host-stanchion-session-nope"] = token
    for path in ("/v1/auth/nope", "/v1/auth/nope/a/b", "/v1/auth/", "/v1/auth/E1", "/v1/auth", "/v1/auth/{}"):
        for headers in ({}, NAVIGATES):
            seen = await browser.auth(path, **headers)
            assert (seen.status, '"not_found"' in seen.text) == (404, True), path


async def test_a_room_that_cannot_answer_lets_nobody_in(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    browser = await inside(server)

    async def refusing(event_id: str, whom: Whom) -> None:
        raise Refused("backend_unavailable", "not now")

    monkeypatch.setattr(server.backend, "session", refusing)
    assert (await browser.auth(**NAVIGATES)).status == 503


@pytest.mark.slow
async def test_an_error_nobody_thought_of_lets_nobody_in(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    browser = await inside(server)

    async def failing(event_id: str, whom: Whom) -> None:
        raise RuntimeError("nobody thought of this")

    monkeypatch.setattr(server.backend, "session", failing)
    assert (await browser.auth(**NAVIGATES)).status == 500


# ---- how a denial looks -------------------------------------------------------------------------------


async def test_a_navigation_is_sent_to_the_waiting_page_and_everything_else_told_where_it_is(server: Running) -> None:
    browser = Browser(server)
    head = {"X-Original-URI": "/checkout?a=b"}
    page = f"{QUEUE}/w/e1?return_to=https%3A%2F%2Fshop.example%2Fcheckout%3Fa%3Db"
    for headers, status in (
        ({"Accept": "text/html"}, 302),
        ({"Sec-Fetch-Mode": "navigate"}, 302),
        ({"Accept": "application/json"}, 401),
        ({"Accept": "text/html", "Sec-Fetch-Mode": "cors"}, 401),
        ({"Accept": "text/html", "X-Forwarded-Method": "POST"}, 401),
        ({"Accept": "text/html", "X-Original-Method": "DELETE"}, 401),
    ):
        seen = await browser.auth(**head, **headers)
        assert (seen.status, seen.location) == (status, page)
    assert (await browser.auth(method="POST", **head, **NAVIGATES)).status == 401


async def test_a_plain_denial_is_a_problem_document(server: Running) -> None:
    seen = await Browser(server).auth()
    assert seen.headers["Content-Type"] == "application/problem+json" and '"bad_token"' in seen.text


async def test_deny_401_is_always_401(server: Running) -> None:
    for path in ("/v1/auth/e1?deny=401", "/v1/auth/e1/?deny=401", "/v1/auth/e1/a?b=c&deny=401"):
        seen = await Browser(server).auth(path, **NAVIGATES)
        assert (seen.status, seen.location is not None) == (401, True)
    assert (await Browser(server).auth("/v1/auth/e1?deny=4011&xdeny=401", **NAVIGATES)).status == 302


@pytest.mark.parametrize(
    ("path", "headers", "way_back"),
    [
        ("", {"X-Original-URI": "/a"}, "https%3A%2F%2Fshop.example%2Fa"),
        ("", {"X-Original-URI": "https://shop.example/a"}, "https%3A%2F%2Fshop.example%2Fa"),
        ("", {"X-Forwarded-Uri": "/a?b=c"}, "https%3A%2F%2Fshop.example%2Fa%3Fb%3Dc"),
        ("", {"X-Forwarded-Uri": "/", "X-Forwarded-Host": "evil.example"}, None),
        ("/", {"Host": "127.0.0.1", "X-Forwarded-Host": "shop.example"}, "https%3A%2F%2Fshop.example%2F"),
        ("", {"X-Forwarded-Uri": "/", "X-Forwarded-Proto": "https, http"}, "https%3A%2F%2Fshop.example%2F"),
        ("/a/b?c=d", {}, "https%3A%2F%2Fshop.example%2Fa%2Fb%3Fc%3Dd"),
        ("/a", {"X-Forwarded-Uri": "/x"}, "https%3A%2F%2Fshop.example%2Fx"),
        ("//evil.example/", {}, "https%3A%2F%2Fshop.example%2F%2Fevil.example%2F"),
        ("", {}, None),
        ("?a=b", {}, None),
        ("", {"X-Original-URI": "@evil.example/"}, None),
        ("", {"X-Original-URI": "/a", "X-Forwarded-Host": "evil.example"}, None),
        ("", {"X-Original-URI": "/a", "X-Forwarded-Host": "shop.example@evil.example"}, None),
        ("", {"X-Original-URI": "/a", "X-Forwarded-Proto": "http"}, None),
        ("", {"X-Original-URI": "/a", "X-Forwarded-Proto": "javascript"}, None),
        ("", {"X-Original-URI": "https://evil.example/"}, None),
        ("", {"X-Original-URI": "/" + "a" * 5000}, None),
    ],
)
async def test_the_way_back_is_the_original_address_if_it_is_the_shops(
    server: Running, path: str, headers: dict[str, str], way_back: str | None
) -> None:
    browser = Browser(server)
    browser.front |= headers
    seen = await browser.auth(f"/v1/auth/e1{path}", **NAVIGATES)
    page = f"{QUEUE}/w/e1"
    assert (seen.status, seen.location) == (302, page if way_back is None else f"{page}?return_to={way_back}")


async def test_bytes_that_are_no_text_do_no_harm(server: Running) -> None:
    browser = Browser(server)
    for name in ("X-Original-URI", "X-Forwarded-Host", "Cookie"):
        seen = await browser.auth(**{name: "/\udcff"})
        assert seen.status == 401


# ---- extending ----------------------------------------------------------------------------------------


async def test_a_session_in_use_is_extended_below_half_of_its_time(server: Running, clock: WallClock) -> None:
    browser = await inside(server)
    lsn = server.backend.venue.outbox.lsn
    clock.pass_s(50)
    assert (await browser.auth()).status == 204
    assert (await left_s(server), server.backend.venue.outbox.lsn) == (50, lsn)
    clock.pass_s(1)
    seen = await browser.auth()
    assert int(seen.headers["Stanchion-Session-Expires"]) == clock.now_ms + 100_000
    assert (await left_s(server), server.backend.venue.outbox.lsn) == (100, lsn + 1)


async def test_extending_ends_at_the_maximum_and_is_then_asked_for_no_more(
    server: Running, clock: WallClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    browser = await inside(server)
    for _ in range(4):
        clock.pass_s(60)
        assert (await browser.auth()).status == 204
    assert await left_s(server) == 10
    monkeypatch.setattr(server.backend, "extend_session", None)
    assert (await browser.auth()).status == 204
    clock.pass_s(10)
    assert (await browser.auth()).status == 401


async def test_without_session_extend_nothing_is_extended(server: Running, clock: WallClock) -> None:
    await server.call("PATCH", "/v1/admin/events/e1", {"session_extend": False})
    browser = await inside(server)
    clock.pass_s(90)
    assert (await browser.auth()).status == 204
    assert await left_s(server) == 10


async def test_the_confirmation_page_is_not_extended(server: Running, clock: WallClock) -> None:
    browser = await inside(server)
    await complete(server)
    clock.pass_s(25)
    assert (await browser.auth()).status == 204
    assert await left_s(server) == 5


async def test_who_is_removed_while_being_extended_does_not_come_in(
    server: Running, clock: WallClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    browser = await inside(server)
    clock.pass_s(60)
    extend = server.backend.extend_session

    async def too_late(event_id: str, whom: Whom, actor: str) -> object:
        await remove(server)
        return await extend(event_id, whom, actor)

    monkeypatch.setattr(server.backend, "extend_session", too_late)
    assert (await browser.auth()).status == 401


async def test_a_full_disk_does_not_shut_out_who_is_inside(
    server: Running, clock: WallClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    browser = await inside(server)
    clock.pass_s(60)

    async def full(event_id: str, whom: Whom, actor: str) -> object:
        raise Refused("storage_full", "no space")

    monkeypatch.setattr(server.backend, "extend_session", full)
    assert (await browser.auth()).status == 204


async def test_the_requests_of_one_page_extend_it_once(
    server: Running, clock: WallClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    browser = await inside(server)
    clock.pass_s(60)
    extend, seen, asked = server.backend.extend_session, [], 0

    async def asked_meanwhile(event_id: str, whom: Whom, actor: str) -> object:
        nonlocal asked
        asked += 1
        if asked == 1:
            seen.append((await browser.auth()).status)
        return await extend(event_id, whom, actor)

    monkeypatch.setattr(server.backend, "extend_session", asked_meanwhile)
    assert (await browser.auth()).status == 204
    assert (seen, asked, await left_s(server)) == ([204], 1, 100)


async def test_who_is_let_in_but_has_not_entered_does_not_come_in(server: Running) -> None:
    browser = Browser(server)
    browser.cookies["__Host-stanchion-session-e1"] = await let_in(server)
    assert (await browser.auth()).status == 401
