"""Forward-auth through real proxies, each with the configuration that the document gives."""

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.server.proxies import PROXIES, Front, free_port, proxy
from tests.server.running import running
from tests.server.shop import NAVIGATES, complete, inside, let_in, remove

QUEUE = "https://queue.example"
SHOP = "http://shop.example"

pytestmark = pytest.mark.slow


@pytest.fixture(params=sorted(PROXIES))
async def front(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Front]:
    async with running(tmp_path / "data", url=QUEUE) as server:
        await server.open_event("demo", return_to=f"{SHOP}/", return_to_origins=[SHOP])
        async with proxy(request.param, server, tmp_path / "proxy") as started:
            yield started


async def test_a_browser_waits_enters_shops_and_is_out_when_it_is_removed(front: Front) -> None:
    browser = front.browser()
    seen = await browser.ask("/seats?row=1&row=2", **NAVIGATES)
    page = f"{QUEUE}/w/demo?return_to=http%3A%2F%2Fshop.example%2Fseats%3Frow%3D1%26row%3D2"
    assert (seen.status, seen.location, front.seen) == (302, page, [])

    enter = f"/.stanchion/enter?event=demo&pass={await let_in(front.server, 'ä', 'demo')}&to={SHOP}/seats"
    seen = await browser.ask(enter, **NAVIGATES)
    assert seen.location is not None and seen.location.startswith("?")
    seen = await browser.ask(f"/.stanchion/enter{seen.location}", **NAVIGATES)
    assert (seen.status, seen.location) == (303, f"{SHOP}/seats")
    assert "__Host-stanchion-session-demo" in browser.cookies

    seen = await browser.ask("/seats?row=1", method="POST", Stanchion_User="somebody-else")
    assert (seen.status, seen.text, len(front.seen)) == (200, "the shop", 1)
    told = front.seen[0]
    assert (told.method, told.raw_path) == ("POST", "/seats?row=1")
    assert (told.headers["Stanchion-User"], told.headers["Stanchion-Number"]) == ("%C3%A4", "1")
    assert told.headers["Stanchion-Session-Expires"].isdigit()

    await remove(front.server, "ä", "demo")
    assert (await browser.ask("/seats", **NAVIGATES)).status == 302
    assert len(front.seen) == 1


async def test_whoever_is_not_inside_is_told_401_where_nobody_looks(front: Front) -> None:
    for method in ("GET", "POST", "OPTIONS"):
        for headers in ({"Accept": "application/json"}, {"Accept": "text/html", "Sec-Fetch-Mode": "cors"}):
            seen = await front.browser().ask("/api/seats", method=method, Stanchion_User="me", **headers)
            assert seen.status == 401
    assert (await front.browser().ask("/", Accept="text/html")).status == 302
    assert front.seen == []


async def test_the_question_itself_cannot_be_asked_from_outside(front: Front) -> None:
    for path in ("/.stanchion/auth", "/v1/auth/demo", "/v1/enter?event=demo&pass=x", "/.stanchion/auth?deny=0"):
        assert (await front.browser().ask(path)).status in (401, 404)
    assert front.seen == []


async def test_the_confirmation_page_is_seen_after_completing(front: Front) -> None:
    browser = front.browser()
    await browser.ask(f"/.stanchion/enter?event=demo&pass={await let_in(front.server, 'u1', 'demo')}")
    await complete(front.server, "u1", "demo")
    assert (await browser.ask("/thanks")).status == 200


async def test_without_an_event_nobody_gets_through(front: Front) -> None:
    browser = front.browser()
    await browser.ask(f"/.stanchion/enter?event=demo&pass={await let_in(front.server, 'u1', 'demo')}")
    await remove(front.server, "u1", "demo")
    await front.server.call("POST", "/v1/admin/events/demo/close", {"reason": "over"})
    await front.server.call("DELETE", "/v1/admin/events/demo")
    assert (await browser.ask("/", **NAVIGATES)).status >= 400
    assert front.seen == []


@pytest.mark.parametrize("name", sorted(PROXIES))
async def test_while_stanchion_does_not_answer_nobody_gets_through(tmp_path: Path, name: str) -> None:
    async with running(tmp_path / "data") as server:
        await server.open_event("demo")
        inside_already = await inside(server, event_id="demo")
        async with proxy(name, replace(server, port=free_port()), tmp_path / "proxy") as front:
            browser = replace(front.browser(), cookies=inside_already.cookies)
            assert (await browser.ask("/", **NAVIGATES)).status >= 400
            assert front.seen == []
