"""Entering over real sockets: one browser a pass, however often it asks, and on to the shop only."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import parse_qs, quote

import pytest

from engine.errors import Refused
from tests.server.rings import WallClock
from tests.server.running import Running, running
from tests.server.shop import NAVIGATES, SETTINGS, SHOP, Browser, complete, let_in, remove

NAME = "__Host-stanchion-session-e1"
NONCE = "__Host-stanchion.enter-e1"
QUEUE = "https://queue.example"
TIMES = {"session_ttl_s": 100, "session_max_s": 250, "exit_grace_s": 30, "claim_window_s": 60}


@pytest.fixture
def clock() -> WallClock:
    return WallClock()


@pytest.fixture
async def server(tmp_path: Path, clock: WallClock) -> AsyncIterator[Running]:
    async with running(tmp_path / "data", wall_ms=clock, clock_ms=clock, url=QUEUE) as started:
        await started.open_event("e1", **SETTINGS, **TIMES)
        yield started


def redeemed(server: Running) -> int:
    return len(server.backend.venue.room("e1").ledger.redemptions)


# ---- in -----------------------------------------------------------------------------------------------


async def test_a_client_that_says_nothing_enters_at_once(server: Running) -> None:
    browser = Browser(server)
    seen = await browser.enter(await let_in(server), f"{SHOP}/seats?a=b")
    assert (seen.status, seen.text) == (303, "")
    assert seen.headers["Cache-Control"] == "no-store" and seen.headers["Referrer-Policy"] == "no-referrer"
    assert (await browser.auth()).status == 204


async def test_a_browser_is_given_a_nonce_first_and_then_enters(server: Running) -> None:
    browser = Browser(server)
    to = f"{SHOP}/seats?a=b&c#d"
    first = await browser.enter(await let_in(server), quote(to, safe=""), **NAVIGATES)
    assert first.status == 303 and first.location is not None and first.location.startswith("?event=e1&pass=")
    assert parse_qs(first.location[1:])["to"] == [to]
    assert (set(browser.cookies), redeemed(server)) == ({NONCE}, 0)
    seen = await browser.ask(f"/v1/enter{first.location}", **NAVIGATES)
    assert (seen.status, seen.location, redeemed(server)) == (303, to, 1)
    assert (await browser.auth()).status == 204


async def test_the_cookie_is_the_shops_alone_and_outlives_the_session(server: Running) -> None:
    browser = Browser(server)
    await browser.navigate(await let_in(server))
    morsel = browser.morsels[NAME]
    assert (morsel["path"], morsel["domain"], morsel["samesite"]) == ("/", "", "Lax")
    assert morsel["secure"] and morsel["httponly"]
    assert int(morsel["max-age"]) >= 250 + 30
    nonce = browser.morsels[NONCE]
    assert nonce["secure"] and nonce["httponly"] and (nonce["path"], nonce["samesite"]) == ("/", "Lax")


async def test_over_http_on_loopback_the_cookie_has_a_name_that_browsers_take(server: Running) -> None:
    browser = Browser(server, front={})
    assert (await browser.navigate(await let_in(server))).status == 303
    assert set(browser.cookies) == {"stanchion-session-e1", "stanchion.enter-e1"}
    assert not browser.morsels["stanchion-session-e1"]["secure"]
    assert (await browser.auth()).status == 204


async def test_the_log_says_that_a_browser_entered_and_not_with_which_nonce(server: Running) -> None:
    browser = Browser(server)
    await browser.navigate(await let_in(server))
    records = [str(record) async for batch in server.backend.records(1) for _, record in batch]
    assert sum("actor='enter'" in record for record in records) == 1
    assert not any(browser.cookies[NONCE] in record for record in records)


# ---- again, and somebody else -------------------------------------------------------------------------


async def test_a_reload_is_sent_on_again_and_redeems_nothing(server: Running) -> None:
    browser, pass_ = Browser(server), await let_in(server)
    await browser.enter(pass_)
    lsn, cookies = server.backend.venue.outbox.lsn, dict(browser.cookies)
    for headers in ({}, NAVIGATES):
        seen = await browser.enter(pass_, f"{SHOP}/x", **headers)
        assert (seen.status, seen.location) == (303, f"{SHOP}/x")
    assert (server.backend.venue.outbox.lsn, browser.cookies) == (lsn, cookies)


async def test_when_the_answer_is_lost_the_same_browser_gets_it_again(server: Running) -> None:
    browser, pass_ = Browser(server), await let_in(server)
    await browser.navigate(pass_)
    session = browser.cookies.pop(NAME)
    assert (await browser.enter(pass_, **NAVIGATES)).status == 303
    assert (browser.cookies[NAME], redeemed(server)) == (session, 1)


async def test_another_browser_is_told_that_the_turn_was_used(server: Running) -> None:
    pass_ = await let_in(server)
    await Browser(server).navigate(pass_)
    other = Browser(server)
    seen = await other.navigate(pass_, f"{SHOP}/x")
    assert (seen.status, NAME in other.cookies) == (409, False)
    assert seen.headers["Content-Type"].startswith("text/html")
    assert f'<a href="{QUEUE}/w/e1?return_to=https%3A%2F%2Fshop.example%2Fx">' in seen.text
    assert seen.headers["Content-Security-Policy"].startswith("default-src 'none'") and "<script" not in seen.text
    seen = await Browser(server).enter(pass_)
    assert (seen.status, seen.headers["Content-Type"]) == (409, "application/problem+json")
    assert '"pass_used"' in seen.text


async def test_a_client_that_says_nothing_enters_once_only(server: Running) -> None:
    pass_ = await let_in(server)
    assert [(await Browser(server).enter(pass_)).status for _ in range(3)] == [303, 409, 409]


async def test_of_many_browsers_at_once_one_enters(server: Running) -> None:
    pass_ = await let_in(server)
    browsers = [Browser(server) for _ in range(50)]
    seen = await asyncio.gather(*(browser.navigate(pass_) for browser in browsers))
    assert sorted(one.status for one in seen) == [303] + 49 * [409]
    assert sum(NAME in browser.cookies for browser in browsers) == 1


async def test_two_clicks_of_one_browser_are_one_entry(server: Running) -> None:
    browser, pass_ = Browser(server), await let_in(server)
    first = await browser.enter(pass_, **NAVIGATES)
    seen = await asyncio.gather(*(browser.ask(f"/v1/enter{first.location}", **NAVIGATES) for _ in range(5)))
    assert ({one.status for one in seen}, redeemed(server)) == ({303}, 1)


async def test_somebody_elses_nonce_or_a_made_up_one_is_no_way_in(server: Running) -> None:
    pass_ = await let_in(server)
    await Browser(server).navigate(pass_)
    for nonce in ("A" * 22, "", "x", "A" * 23, "%00" * 8):
        other = Browser(server, cookies={NONCE: nonce})
        assert (await other.enter(pass_)).status == 409


async def test_a_nonce_that_is_not_of_ours_is_replaced(server: Running) -> None:
    pass_ = await let_in(server)
    for nonce in ("", "x", "A" * 23, "!" * 22):
        browser = Browser(server, cookies={NONCE: nonce})
        seen = await browser.enter(pass_, **NAVIGATES)
        assert seen.location is not None and seen.location.startswith("?")
        assert len(browser.cookies[NONCE]) == 22 and browser.cookies[NONCE] != nonce


async def test_a_site_can_not_take_part_in_a_browsers_redeem(server: Running) -> None:
    browser, pass_ = Browser(server), await let_in(server)
    await browser.navigate(pass_)
    (request,) = (one.request for one in server.backend.venue.room("e1").ledger.redemptions.values())
    head = {"Authorization": f"Bearer {server.keys.site}", "Idempotency-Key": str(request)}
    async with server.client.post(f"{server.url}/v1/events/e1/redeem", json={"pass": pass_}, headers=head) as response:
        assert response.status == 400


async def test_a_browser_without_cookies_is_told_so_and_its_turn_is_not_used(server: Running) -> None:
    browser, pass_ = Browser(server), await let_in(server)
    first = await browser.enter(pass_, **NAVIGATES)
    browser.cookies.clear()
    seen = await browser.ask(f"/v1/enter{first.location}", **NAVIGATES)
    assert (seen.status, "Cookies are needed" in seen.text, redeemed(server)) == (400, True, 0)
    browser.cookies.clear()
    assert ((await browser.ask(f"/v1/enter{first.location}")).status, redeemed(server)) == (400, 0)
    assert (await browser.navigate(pass_)).status == 303


async def test_a_head_request_uses_no_turn(server: Running) -> None:
    browser, pass_ = Browser(server), await let_in(server)
    for _ in range(2):
        assert (await browser.ask(f"/v1/enter?event=e1&pass={pass_}", method="HEAD")).status == 303
    assert redeemed(server) == 0


async def test_the_next_visitor_of_a_browser_enters_over_the_last_one(server: Running) -> None:
    browser = Browser(server)
    for user_id in ("u1", "u2"):
        assert (await browser.navigate(await let_in(server, user_id))).status == 303
        assert (await browser.auth()).headers["Stanchion-User"] == user_id


# ---- not in -------------------------------------------------------------------------------------------


async def test_a_turn_that_was_not_used_in_time_is_over(server: Running, clock: WallClock) -> None:
    pass_ = await let_in(server)
    clock.pass_s(66)
    await server.backend.tick()
    seen = await Browser(server).navigate(pass_)
    assert (seen.status, "This turn is over" in seen.text) == (410, True)
    seen = await Browser(server).enter(pass_)
    assert (seen.status, '"reason":"lapsed"' in seen.text) == (410, True)


async def test_who_was_removed_is_not_sent_on(server: Running) -> None:
    browser, pass_ = Browser(server), await let_in(server)
    await browser.navigate(pass_)
    await remove(server)
    assert (await browser.navigate(pass_)).status == 409


async def test_who_has_completed_is_sent_on_while_the_confirmation_page_may_be_seen(
    server: Running, clock: WallClock
) -> None:
    browser, pass_ = Browser(server), await let_in(server)
    await browser.navigate(pass_)
    await complete(server)
    assert (await browser.enter(pass_)).status == 303
    clock.pass_s(30)
    assert (await browser.enter(pass_)).status == 409


@pytest.mark.parametrize("pass_", ["", "x", "a.b.c", "..", "%FF", "a" * 3000, "%00", "eyJhbGciOiJub25lIn0.e30."])
async def test_what_is_no_pass_is_refused(server: Running, pass_: str) -> None:
    seen = await Browser(server).enter(pass_)
    assert seen.status in (400, 401) and seen.headers["Content-Type"] == "application/problem+json"
    seen = await Browser(server).enter(pass_, **NAVIGATES)
    assert seen.status in (400, 401)


async def test_no_other_token_and_no_other_events_pass_is_a_pass(server: Running) -> None:
    place = await server.place("u0")
    browser = Browser(server)
    await browser.enter(await let_in(server))
    await server.open_event("e2", **SETTINGS)
    for token in (str(place["token"]), browser.cookies[NAME], await let_in(server, "u2", "e2"), server.keys.site):
        assert (await Browser(server).enter(token)).status == 401


async def test_raw_bytes_in_the_address_do_no_harm(server: Running) -> None:
    for where in ("pass", "to", "event"):
        query = {"pass": b"x", "to": b"", "event": b"e1"} | {where: b"\xff\xfe/\xc3"}
        line = b"GET /v1/enter?event=%b&pass=%b&to=%b HTTP/1.1\r\n" % (query["event"], query["pass"], query["to"])
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(line + b"Host: x\r\nConnection: close\r\n\r\n")
        status = int((await asyncio.wait_for(reader.readline(), 5)).split()[1])
        writer.close()
        assert status in (400, 401)


@pytest.mark.parametrize(
    ("query", "status"),
    [
        *(("", 400), ("event=e1", 400), ("pass=x", 400), ("event=E1&pass=x", 400), ("event=e1&pass=x&pass=y", 400)),
        *(("event=nope&pass=x", 404), ("event=e1&pass=x&step=3", 400), ("event=e1%0a&pass=x", 404)),
        *(("event=e1&pass=x&utm_source=mail", 401), ("event=e1&pass=x&step=2", 401)),
    ],
)
async def test_a_question_that_is_incomplete_is_refused(server: Running, query: str, status: int) -> None:
    assert (await Browser(server).ask(f"/v1/enter?{query}")).status == status


async def test_nothing_enters_by_another_method(server: Running) -> None:
    pass_ = await let_in(server)
    for method in ("POST", "PUT", "DELETE"):
        assert (await Browser(server).ask(f"/v1/enter?event=e1&pass={pass_}", method=method)).status == 405
    assert redeemed(server) == 0


async def test_a_room_that_cannot_answer_is_asked_again_later(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    browser, pass_ = Browser(server), await let_in(server)

    async def refusing(*about: object) -> None:
        raise Refused("backend_unavailable", "not now", retry_after_s=3)

    monkeypatch.setattr(server.backend, "redeem", refusing)
    seen = await browser.navigate(pass_)
    assert (seen.status, seen.headers["Retry-After"], NAME in browser.cookies) == (503, "3", False)
    monkeypatch.undo()
    assert (await browser.navigate(pass_)).status == 303


# ---- where to -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "to",
    [
        *("", "https://evil.example/", "//evil.example", "/\\evil.example", "https://shop.example@evil.example/"),
        *("javascript:alert(1)", "https:evil.example", "https://shop.example\r\nLocation: https://evil.example"),
        *(
            "http://shop.example/",
            "https://shop.example.evil.example",
            "/relative",
            "https://shop.example\\.evil.example",
        ),
    ],
)
async def test_an_address_that_is_not_the_shops_is_not_followed(server: Running, to: str) -> None:
    for browser, user_id in ((Browser(server), "u1"), (Browser(server), "u2")):
        enter = browser.navigate if user_id == "u1" else browser.enter
        seen = await enter(await let_in(server, user_id), quote(to, safe=""))
        assert (seen.status, seen.location) == (303, f"{SHOP}/")


async def test_an_address_of_the_shop_is_followed(server: Running) -> None:
    seen = await Browser(server).navigate(await let_in(server), quote(f"{SHOP}/sitzplätze?a=b", safe=""))
    assert seen.location == f"{SHOP}/sitzpl%C3%A4tze?a=b"


async def test_without_anywhere_to_go_a_browser_is_told_that_it_is_in(server: Running) -> None:
    await server.open_event("e3")
    browser = Browser(server)
    seen = await browser.enter(await let_in(server, "u1", "e3"), f"{SHOP}/", event_id="e3")
    assert (seen.status, seen.location) == (200, None)
    assert seen.headers["Content-Type"].startswith("text/plain")
    assert (await browser.auth("/v1/auth/e3")).status == 204


async def test_the_address_on_the_page_leads_here(server: Running) -> None:
    await let_in(server)
    url = str((await server.place("u1"))["enter_url"])
    assert url.startswith(f"{SHOP}/.stanchion/enter?")
    seen = await Browser(server).ask(f"/v1/enter?{url.partition('?')[2]}")
    assert (seen.status, seen.location) == (303, f"{SHOP}/")
