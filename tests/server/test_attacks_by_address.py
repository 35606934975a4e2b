"""Attacks by address and by cookie: look-alikes of the shop, other hosts and origins, cookies that were planted."""

from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.server.abuse import request, send
from tests.server.attacking import CALM, EVENT, asked
from tests.server.reader import Reader
from tests.server.running import Running, running
from tests.server.shop import NAVIGATES, SHOP, Browser, inside


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Running]:
    async with running(tmp_path / "data") as started:
        await started.open_event("e1", **CALM)
        yield started


# ---- addresses ---------------------------------------------------------------------------------------------------


LOOKALIKES = [
    "http\u017f://shop.example/",
    "https://\u017fhop.example/",
    "http\u017f://shop.example:443/",
    "\u212attps://x/",
]


@pytest.mark.parametrize("address", LOOKALIKES, ids=ascii)
async def test_letters_that_only_look_like_an_address_of_the_shop_lead_nowhere(server: Running, address: str) -> None:
    shown = quote(address, safe="")
    for path in (f"/w/e1?return_to={shown}", f"/v1/enter?event=e1&pass=x&to={shown}"):
        assert (await Browser(server).ask(path, **NAVIGATES)).status in (200, 401)
    for name in ("X-Original-URI", "X-Forwarded-Uri"):
        reply = await send(server.port, request("GET", "/v1/auth/e1", f"{name}: {address}", "Accept: text/html"))
        assert reply.status == 302 and "\r\nLocation: /w/e1\r\n" in reply.head
    scheme = address.partition(":")[0]
    lines = ("X-Original-URI: /", "X-Forwarded-Host: shop.example", f"X-Forwarded-Proto: {scheme}", "Accept: text/html")
    reply = await send(server.port, request("GET", "/v1/auth/e1", *lines))
    assert reply.status == 302 and ("return_to" in reply.head) == (scheme == "https")


@pytest.mark.parametrize(
    "uri",
    [
        *("//evil.example/", "///evil.example", "/\\evil.example", "https://evil.example/", "https:evil.example"),
        *(
            "https://shop.example@evil.example/",
            "\\\\evil.example",
            "javascript:alert(1)",
            "evil.example",
            "@evil.example",
        ),
    ],
)
async def test_forward_auth_leads_to_no_other_origin_whatever_address_it_is_told(server: Running, uri: str) -> None:
    browser = Browser(server)
    for headers in ({"X_Original_URI": uri}, {"X_Forwarded_Uri": uri}):
        location = (await browser.auth(**headers, **NAVIGATES)).location or ""
        way_back = location.partition("?return_to=")[2]
        assert location.startswith("/w/e1")
        assert not way_back or way_back.startswith(quote(f"{SHOP}/", safe="")), location
    foreign = await browser.auth(X_Original_URI="/", X_Forwarded_Host="evil.example", **NAVIGATES)
    assert foreign.location == "/w/e1"


async def test_a_host_that_is_no_text_is_a_refusal_and_no_error(server: Running) -> None:
    token = (await server.place("u1"))["token"]
    for action in ("", "/move", "/leave", "/extend", "/take-over"):
        head = (
            f"POST /w/e1{action} HTTP/1.1\r\nSec-Fetch-Site: none\r\nCookie: __Host-stanchion-e1={token}\r\n".encode()
        )
        form = b"Content-Type: application/x-www-form-urlencoded\r\nContent-Length: 0\r\n\r\n"
        assert 200 <= (await send(server.port, head + b"Host: \xff\xfe\r\n" + form)).status < 500, action


# ---- cookies -----------------------------------------------------------------------------------------------------


async def test_a_page_of_another_origin_takes_nothing_over_with_a_code_of_its_own(server: Running) -> None:
    reader = Reader(server)
    page = await reader.press(await reader.get(), "Join the line")
    thief = str((await server.place("thief"))["token"])
    code = (await asked(server, "transfer", None, thief))[1]["code"]
    for headers in ({"Origin": "https://evil.example"}, {"Origin": "null", "Sec_Fetch_Site": "cross-site"}):
        refused = await reader.post("/w/e1/take-over", {"code": code, "key": "k"}, **headers)
        assert refused.status == 403 and reader.set_cookies == []
    assert (await reader.get()).heading == page.heading == "Position 1"


async def test_a_cookie_that_a_sibling_domain_planted_is_nobodys_place(server: Running) -> None:
    token = (await server.place("thief"))["token"]
    head = {"Host": "queue.example", "Accept": "text/event-stream"}
    for path in ("position", "receipt", "updates"):
        planted = {"Cookie": f"stanchion-e1={token}"}
        async with server.client.get(f"{server.url}{EVENT}/{path}", headers=head | planted) as response:
            assert response.status == 401, path
        own = {"Cookie": f"stanchion-e1=x; __Host-stanchion-e1={token}; __Host-stanchion-e1=y"}
        async with server.client.get(f"{server.url}{EVENT}/{path}", headers=head | own) as response:
            assert response.status == 200, path


async def test_a_browser_with_nothing_but_a_planted_session_stays_outside(server: Running) -> None:
    browser = await inside(server)
    (name,) = [name for name in browser.cookies if "session" in name]
    token = browser.cookies[name]
    for cookies in (
        f"{name.removeprefix('__Host-')}={token}",
        f"{name}=; {name}={token}",
        f"x={name}={token}",
        f"{name}={token[:-1]}",
        f"{name}={'a' * 7000}",
        "; ".join(f"{name}=a" for _ in range(100)),
    ):
        async with server.client.get(
            f"{server.url}/v1/auth/e1", headers=browser.front | {"Cookie": cookies}
        ) as response:
            assert response.status == 401, cookies[:100]
    assert (await browser.auth()).status == 204
