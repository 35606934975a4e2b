"""What the waiting page keeps out: other origins, other people's words as markup, addresses of nowhere, bad forms."""

from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import quote

import pytest

from engine.actor import By
from tests.server.reader import Reader, ReadPage
from tests.server.running import Running, running

WHY = By("ops", "the shop asked for it")
JOIN = "Join the line"
ELSEWHERE = "https://shop.example/seats?row=1&side=left"
NOTE = "The address to go on to is not one this event allows"
NASTY = '<script>alert("1")</script>\u202e\' onload=x &amp; {{ 7*7 }}'


async def open_event(server: Running, **settings: object) -> None:
    await server.backend.configure("e1", {"batch_interval_s": 3600} | settings, WHY, replace=True)
    await server.backend.control("e1", "open", WHY)


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Running]:
    async with running(tmp_path / "data") as started:
        await open_event(started, return_to_origins=["https://shop.example"], return_to="https://shop.example/")
        yield started


async def waiting(server: Running) -> int:
    return (await server.backend.event("e1")).waiting


# ---- who may write ----------------------------------------------------------------------------------------------

FOREIGN = {
    "another site": {"Origin": "https://evil.example", "Sec_Fetch_Site": "cross-site"},
    "another site that says nothing else": {"Origin": "https://evil.example"},
    "another site that lies": {"Origin": "https://evil.example", "Sec_Fetch_Site": "same-origin"},
    "another scheme": {"Origin": "https://{host}"},
    "another port": {"Origin": "http://127.0.0.1:1"},
    "another name of this host": {"Origin": "http://localhost:{port}"},
    "a sandbox": {"Origin": "null", "Sec_Fetch_Site": "cross-site"},
    "a page without an origin": {"Origin": "null"},
    "a null origin that was typed": {"Origin": "null", "Sec_Fetch_Site": "none"},
    "nothing at all": {"Origin": ""},
    "a subdomain": {"Origin": "", "Sec_Fetch_Site": "same-site"},
    "a list": {"Origin": "http://{host} https://evil.example"},
}
OWN = {
    "our own origin": {"Origin": "http://{host}"},
    "a browser that sends no Origin": {"Origin": "", "Sec_Fetch_Site": "same-origin"},
    "a reload by hand": {"Origin": "", "Sec_Fetch_Site": "none"},
    "a browser that hides the Origin": {"Origin": "null", "Sec_Fetch_Site": "same-origin"},
}


def at(server: Running, headers: dict[str, str]) -> dict[str, str]:
    """Return headers with this server's host and port in them."""
    return {name: value.format(host=f"127.0.0.1:{server.port}", port=server.port) for name, value in headers.items()}


@pytest.mark.parametrize("headers", FOREIGN.values(), ids=FOREIGN.keys())
async def test_no_other_origin_can_do_anything(server: Running, headers: dict[str, str]) -> None:
    reader = Reader(server)
    await reader.press(await reader.get(), JOIN)
    before = server.backend.venue.digest()
    for action, fields in (("", {"key": "k"}), ("/leave", {}), ("/extend", {}), ("/move", {})):
        refused = await reader.post(f"/w/e1{action}", fields, **at(server, headers))
        assert (refused.status, refused.heading) == (403, "Not from here")
    refused = await Reader(server).post("/w/e1/take-over", {"key": "k", "code": "c"}, **at(server, headers))
    assert refused.status == 403
    assert server.backend.venue.digest() == before


@pytest.mark.parametrize("headers", OWN.values(), ids=OWN.keys())
async def test_our_own_page_can(server: Running, headers: dict[str, str]) -> None:
    reader = Reader(server)
    page = await reader.press(await reader.get(), JOIN, **at(server, headers))
    assert (page.status, page.heading) == (200, "Position 1")


async def test_behind_a_front_the_public_url_is_our_origin(tmp_path: Path) -> None:
    async with running(tmp_path / "data", url="https://queue.example") as server:
        await open_event(server)
        form = {"key": "k1"}
        front = {"Host": "queue.example", "X-Forwarded-Proto": "https"}
        for sent in (front, {}):  # some fronts pass on the address they were told to call
            for origin, status in (("https://queue.example", 303), ("http://queue.example", 403), (server.url, 403)):
                assert (await Reader(server, **sent).post("/w/e1", form, Origin=origin)).status == status
        reader = Reader(server, **front, Origin="https://queue.example")
        await reader.post("/w/e1", form, Origin="https://queue.example")
        page = await reader.post("/w/e1/move", {}, Origin="https://queue.example")
        assert page.words["code"][0].startswith("https://queue.example/w/e1?code=")


async def test_the_cookie_alone_still_writes_nothing_over_json(server: Running) -> None:
    reader = Reader(server)
    await reader.press(await reader.get(), JOIN)
    refused = await reader.ask("POST", "/v1/events/e1/leave", {"Origin": server.url})
    assert refused.status == 401 and await waiting(server) == 1


# ---- where to go on to --------------------------------------------------------------------------------------------


async def test_an_allowed_address_to_go_on_to_survives_form_refresh_and_release(server: Running) -> None:
    reader, kept = Reader(server), f"/w/e1?return_to={quote(ELSEWHERE, safe='')}"
    page = await reader.get(kept)
    assert page.forms[0].action == kept and NOTE not in page.text
    page = await reader.press(page, JOIN)
    assert (page.url, page.refresh) == (kept, f"5;url={kept}")
    await server.backend.release("e1", 1, WHY)
    page = await reader.get(kept)
    assert page.links["Go in now"].endswith(f"&to={quote(ELSEWHERE, safe='')}")
    assert (await reader.get("/w/e1")).links["Go in now"].endswith("&to=https%3A%2F%2Fshop.example%2F")
    moved = await reader.press(page, "Move to another device")
    assert f"return_to={quote(ELSEWHERE, safe='')}&code=" in moved.words["code"][0]
    assert moved.links == {"Back to your place": kept}


@pytest.mark.parametrize(
    "address",
    [
        *(
            "https://evil.example/",
            "//evil.example/",
            "/seats",
            "javascript:alert(1)",
            "https://shop.example.evil.example/",
        ),
        *("https://shop.example@evil.example/", "https:\\\\evil.example", "https://shop.example\\@evil.example/", ""),
        *("http://shop.example/", "https://shop.example:444/", "https://shop.example/\r\nSet-Cookie: a=b", "x" * 6000),
        "https://shop.example/" + "é" * 600,
    ],
)
async def test_any_other_address_is_left_out_with_a_note(server: Running, address: str) -> None:
    reader = Reader(server)
    page = await reader.get(f"/w/e1?return_to={quote(address, safe='')}")
    assert page.status == 200 and NOTE in page.text
    assert page.forms[0].action == "/w/e1" and "evil" not in page.html
    answer = await reader.post(f"/w/e1?return_to={quote(address, safe='')}", page.forms[0].fields)
    assert (answer.status, answer.headers["Location"]) == (303, "/w/e1")
    await server.backend.release("e1", 1, WHY)
    page = await reader.get(f"/w/e1?return_to={quote(address, safe='')}")
    assert page.links["Go in now"].endswith("&to=https%3A%2F%2Fshop.example%2F") and "evil" not in page.html


async def test_links_may_have_picked_up_parameters_on_the_way(server: Running) -> None:
    assert (await Reader(server).get("/w/e1?utm_source=mail&fbclid=x")).labels == [JOIN]


# ---- what others wrote ----------------------------------------------------------------------------------------------


async def test_words_of_others_never_become_markup(tmp_path: Path) -> None:
    async with running(tmp_path / "data") as server:
        await open_event(server, name=NASTY, admissions_left=0)
        await server.backend.tell("e1", NASTY, WHY)
        await server.backend.control("e1", "pause", By("ops", NASTY))
        reader = Reader(server)
        outside = await reader.get()
        inside = await reader.press(outside, JOIN)
        await server.backend.control("e1", "close", By("ops", NASTY), NASTY)
        for page, count in ((outside, 3), (inside, 3), (await reader.get(), 4)):
            assert "script" not in page.tags and "<script" not in page.html and "{{ 7*7 }}" in page.html
            assert page.words["bdi"] == [NASTY] * count, "every one of them keeps its direction to itself"
            assert "\u202e" not in page.words["title"][0]
            assert NASTY not in repr(page.headers) and len(page.html.encode()) < 10_000


async def test_words_of_a_request_never_become_markup(server: Running) -> None:
    nasty = quote('"><script>alert(1)</script>', safe="")
    for path in (f"/w/e1?code={nasty}", f"/w/e1?return_to={nasty}", f"/w/e1?step={nasty}", f"/w/e1?{nasty}={nasty}"):
        page = await Reader(server).get(path)
        assert "script" not in page.tags and page.heading
    for path in (f"/w/e1?return_to={nasty}", f"/w/e1?return_to={nasty}&return_to={nasty}"):
        page = await Reader(server).post(path, {"key": "<script>"}, Origin="https://evil.example")
        assert page.status in (400, 403) and "script" not in page.tags


async def test_every_page_stands_alone_under_a_strict_policy(server: Running) -> None:
    reader = Reader(server)
    await reader.press(await reader.get(), JOIN)
    pages = [
        await Reader(server).get(),
        await reader.get(),
        await reader.get("/w/e1?step=leave"),
        await reader.get("/w/e1?code=abc"),
        await reader.post("/w/e1/move", {}),
        await Reader(server).get("/w/nowhere"),
        await reader.post("/w/e1", {"key": "k"}, Origin="https://evil.example"),
    ]
    for page in pages:
        policy = page.headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'; style-src 'sha256-") and "unsafe" not in policy
        assert policy.endswith("; base-uri 'none'; form-action 'self'; frame-ancestors 'none'")
        assert page.headers["Cache-Control"] == "no-store" and page.headers["X-Content-Type-Options"] == "nosniff"
        assert page.headers["Referrer-Policy"] == "no-referrer"
        assert not set(page.tags) & {"script", "img", "link", "iframe", "object"}
        assert page.tags.count("h1") == page.tags.count("main") == page.tags.count("title") == 1
        assert '<meta name="referrer" content="same-origin">' in page.html, "or browsers hide the Origin of our forms"
        assert '<html lang="en">' in page.html and 'name="viewport"' in page.html
        assert len(page.html.encode()) < 10_000


# ---- bad forms, and clients that are no browsers ------------------------------------------------------------------


async def send(
    server: Running, body: bytes, content_type: str = "application/x-www-form-urlencoded", path: str = "/w/e1"
) -> ReadPage:
    """Send bytes as a form of our own page."""
    headers = {"Content-Type": content_type, "Origin": server.url, "Accept": "text/html"}
    async with server.client.post(server.url + path, data=body, headers=headers, allow_redirects=False) as response:
        return ReadPage(response.status, response.headers, await response.text(), path)


@pytest.mark.parametrize(
    "body",
    [
        *(
            b"",
            b"key",
            b"key=",
            b"key=a&key=b",
            b"key=a&more=b",
            b"key=a;key=b&x",
            b"key=a%20b",
            b"key=%ff",
            b"key=\xff",
        ),
        *(b"key=" + b"a" * 201, b"key=%0d%0aSet-Cookie:x", b"&".join(b"a%d=1" % index for index in range(30)), b"\0"),
    ],
)
async def test_a_form_that_is_not_ours_is_a_bad_request(server: Running, body: bytes) -> None:
    page = await send(server, body)
    assert (page.status, page.heading) == (400, "That did not work") and await waiting(server) == 0


@pytest.mark.parametrize("code", ["é".encode(), b"\xff", b"%ff", b"%c3", b"%ed%a0%80"])
async def test_a_form_is_ascii_that_stands_for_utf_8(server: Running, code: bytes) -> None:
    page = await send(server, b"key=a&code=" + code, path="/w/e1/take-over")
    assert (page.status, page.heading) == (400, "That did not work")


async def test_forms_are_sent_as_forms_and_are_small(server: Running) -> None:
    assert (await send(server, b"key=a", "application/json")).status == 415
    assert (await send(server, b"key=a", "text/plain")).status == 415
    assert (await send(server, b"key=" + b"a" * 10_000)).status == 413
    assert (await send(server, b"key=a", "application/x-www-form-urlencoded; charset=UTF-8")).status == 303
    async with server.client.post(f"{server.url}/v1/events/e1/join", data={"user_id": "u"}) as response:
        assert response.status == 415, "the JSON calls take no forms, which any page could send"


async def test_whoever_does_not_ask_for_html_is_refused_in_json(server: Running) -> None:
    for path, accept in (("/w/nowhere", "application/json"), ("/w/nowhere", "*/*")):
        page = await Reader(server, Accept=accept).get(path)
        assert page.headers["Content-Type"] == "application/problem+json" and '"code":"not_found"' in page.html
    refused = await Reader(server, Accept="application/json").post("/w/e1", {"key": "k"}, Origin="https://evil.example")
    assert '"code":"forbidden"' in refused.html
    wrong = await Reader(server).ask("DELETE", "/w/e1", {})
    assert wrong.status == 405 and wrong.headers["Allow"] == "GET, POST"
