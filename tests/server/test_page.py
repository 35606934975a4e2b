"""The waiting page through the real server: what it says in every state, and what its forms do."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from engine.actor import By, Entrant, Whom
from engine.errors import Refused
from engine.views import EventView
from tests.server.reader import Reader
from tests.server.rings import WallClock
from tests.server.running import Running, running

WHY = By("ops", "the shop asked for it")
SHOP = {"return_to_origins": ["https://shop.example"], "return_to": "https://shop.example/basket"}
JOIN, AGAIN = "Join the line", "Join again, at the end"
MOVE, TAKE_OVER, MORE = "Move to another device", "Take the place over on this device", "Give me more time"


@pytest.fixture
def clock() -> WallClock:
    """Give the time of the room: nobody is timed out unless a test says so."""
    return WallClock(1_000_000)


@pytest.fixture
async def server(tmp_path: Path, clock: WallClock) -> AsyncIterator[Running]:
    async with running(tmp_path / "data", clock_ms=clock) as started:
        await make(started, **SHOP)
        await control(started, "open")
        yield started


async def make(server: Running, event_id: str = "e1", **settings: object) -> None:
    """Make an event, or change it where it is there; batches come by hand only."""
    is_new = event_id not in {view.event_id for view in await server.backend.events()}
    await server.backend.configure(event_id, {"batch_interval_s": 3600} | settings, WHY, replace=is_new)


async def control(server: Running, action: str, reason: str = "rain", outcome: str | None = None) -> None:
    await server.backend.control("e1", action, By("ops", reason), outcome)


async def joined(server: Running, **sent: str) -> Reader:
    """Return the browser of somebody who has pressed the button."""
    reader = Reader(server, **sent)
    page = await reader.press(await reader.get(), JOIN)
    assert page.status == 200
    return reader


async def release(server: Running, count: int = 1) -> None:
    assert (await server.backend.release("e1", count, WHY)).released == count


async def let_time_pass(server: Running, clock: WallClock, seconds: int) -> None:
    """Let time pass while somebody else is heard of, so that whoever is silent counts as absent."""
    other = await server.place("other")
    for _ in range(seconds // 20):
        clock.pass_s(20)
        headers = {"Authorization": f"Bearer {other['token']}"}
        async with server.client.get(f"{server.url}/v1/events/e1/position", headers=headers) as response:
            assert response.status == 200
    await server.backend.tick()


async def waiting(server: Running) -> int:
    return (await server.backend.event("e1")).waiting


# ---- without a place ------------------------------------------------------------------------------------------


async def test_a_get_shows_the_event_and_joins_nobody(server: Running) -> None:
    await server.place("u1")
    await server.backend.tell("e1", "Doors open late", WHY)
    for method in ("GET", "HEAD", "GET"):
        page = await Reader(server).ask(method, "/w/e1", {})
        assert (page.status, page.headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert (page.heading, page.facts, page.labels) == ("The line is open", {"Waiting now": "1 person"}, [JOIN])
    assert "A message from the organisers: Doors open late" in page.text
    assert page.refresh is None and "Set-Cookie" not in page.headers
    assert await waiting(server) == 1


async def test_before_the_opening_the_page_says_when_and_comes_again(server: Running) -> None:
    for settings, told, refresh in (
        ({}, "When it opens has not been said yet.", "60;url=/w/e2"),
        ({"opens_at_ms": 2**53 - 1}, "It opens on a day far from now", "60;url=/w/e2"),
        ({"opens_at_ms": 1_000}, "It opens on 1 January 1970, 00:00 UTC, any moment now.", "60;url=/w/e2"),
    ):
        await make(server, "e2", **settings)
        page = await Reader(server, "e2").get()
        assert (page.heading, page.labels, page.refresh) == ("Not open yet", [], refresh)
        assert told in page.text


async def test_a_lobby_takes_people_and_says_that_numbers_are_drawn(tmp_path: Path) -> None:
    async with running(tmp_path / "data") as server:
        await make(server, lobby=True)
        await control(server, "lobby")
        reader = Reader(server)
        page = await reader.get()
        assert page.heading == "The lobby is open" and "by a draw" in page.text and page.facts == {}
        page = await reader.press(page, JOIN)
        assert (page.heading, page.facts) == ("You are in the lobby", {"Your entry in the draw": "1"})
        assert "Numbers are drawn when the event opens" in page.text
        assert page.refresh == "20;url=/w/e1"
        await control(server, "open")
        page = await reader.get()
        assert (page.heading, page.facts["Your number"]) == ("Position 1", "1")


async def test_a_paused_event_gives_its_reason_and_still_takes_people(server: Running) -> None:
    await control(server, "pause", "rain on the servers")
    reader = Reader(server)
    page = await reader.get()
    assert page.heading == "The line is paused" and "The reason given: rain on the servers" in page.text
    page = await reader.press(page, JOIN)
    assert page.heading == "Position 1" and "rain on the servers" in page.text
    assert page.facts["Estimated wait"] == "less than a minute, counted from when the line goes on"


async def test_a_closed_event_gives_its_reason_and_outcome_and_takes_nobody(server: Running) -> None:
    form = (await Reader(server).get()).forms[0]
    held = await joined(server)
    await control(server, "close", "no seats left", "sold_out")
    page = await Reader(server).get()
    assert (page.status, page.heading, page.labels, page.refresh) == (200, "This event is closed", [], None)
    assert "The reason given: no seats left" in page.text and "Outcome: sold_out" in page.text
    refused = await Reader(server).post(form.action, form.fields)
    assert (refused.status, refused.heading) == (410, "This event is closed")
    page = await held.get()
    assert page.heading == "This event is closed" and "no seats left" in page.text
    assert "Should it open again, you have your place back." in page.text and page.labels == []
    assert page.facts == {"Your number": "1"}, "nobody has a position in a line that moves no more"
    await control(server, "open")
    assert (await held.get()).heading == "Position 1"


@pytest.mark.parametrize(
    ("settings", "heading"),
    [({"max_waiting": 1}, "The line is full"), ({"queueing": "reject"}, "Nobody new is taken")],
)
async def test_a_full_line_and_one_that_takes_nobody_say_when_to_try_again(
    server: Running, settings: dict[str, object], heading: str
) -> None:
    await make(server, "e2", **settings)
    await server.backend.control("e2", "open", WHY)
    if "max_waiting" in settings:
        await server.place("u1", "e2")
    reader = Reader(server, "e2")
    page = await reader.press(await reader.get(), JOIN)
    assert (page.status, page.heading, page.headers["Retry-After"]) == (503, heading, "30")
    assert "Please try again in 30 s." in page.text and page.links == {"Back to the waiting page": "/w/e2"}
    assert reader.cookies == {}


async def test_where_only_the_shop_lets_people_join_the_page_says_so(server: Running) -> None:
    await make(server, join_policy="signed")
    page = await Reader(server).get()
    assert page.labels == [] and "joined from the shop's own page" in page.text
    refused = await Reader(server).post("/w/e1", {"key": "k1"})
    assert (refused.status, refused.heading) == (401, "Please come from the shop")


async def test_an_event_that_is_not_there_is_a_page_too(server: Running) -> None:
    page = await Reader(server, "nowhere").get()
    assert (page.status, page.heading, page.links) == (404, "There is no such event", {})


async def test_a_bad_moment_of_the_server_does_not_lose_whoever_waits(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = await joined(server)

    async def refuse(event_id: str) -> EventView:
        raise Refused("overloaded", "too much at once", retry_after_s=7)

    monkeypatch.setattr(server.backend, "event", refuse)
    page = await reader.get()
    assert (page.status, page.heading, page.headers["Retry-After"]) == (503, "Just a moment", "7")
    assert page.refresh == "7;url=/w/e1" and "too much at once" in page.text
    assert (await reader.post("/w/e1", {"key": "k"})).refresh is None


# ---- a place ----------------------------------------------------------------------------------------------------


async def test_joining_shows_the_place_in_numbers(server: Running) -> None:
    await asyncio.gather(*(server.backend.join("e1", Entrant(f"u{index}")) for index in range(120)))
    reader = await joined(server)
    page = await reader.get()
    assert page.heading == "Position 121" and page.words["title"] == ["Position 121 – e1"]
    assert page.facts == {
        "Your number": "121",
        "Your position": "121",
        "People ahead of you": "120",
        "Estimated wait": "3 min",
    }
    assert page.refresh == "8;url=/w/e1", "a twentieth of the wait"
    assert len(page.html.encode()) < 10_000


async def test_a_cookie_is_for_this_host_and_no_script(server: Running) -> None:
    reader = Reader(server)
    form = (await reader.get()).forms[0]
    assert (await reader.post(form.action, form.fields)).status == 303
    (line,) = reader.set_cookies
    name, _, rest = line.partition("=")
    assert name == "stanchion-e1" and rest.split("; ")[1:] == ["Max-Age=86400", "Path=/", "HttpOnly", "SameSite=Lax"]
    other = Reader(server, Host="queue.example", Origin="https://queue.example")
    form = (await other.get()).forms[0]
    assert (await other.post(form.action, form.fields, Origin="https://queue.example")).status == 303
    (line,) = other.set_cookies
    assert line.startswith("__Host-stanchion-e1=") and line.endswith("Path=/; HttpOnly; SameSite=Lax; Secure")
    planted = Reader(server, Host="queue.example")
    planted.cookies = {"stanchion-e1": reader.cookies["stanchion-e1"]}
    assert (await planted.get()).heading == "The line is open", "anybody may have planted a name without the prefix"


async def test_a_form_sent_twice_is_one_place(server: Running) -> None:
    reader, other = Reader(server), Reader(server)
    form = (await reader.get()).forms[0]
    answers = await asyncio.gather(*(who.post(form.action, form.fields) for who in (reader, other)))
    assert [answer.status for answer in answers] == [303, 303]
    assert reader.cookies == other.cookies and await waiting(server) == 1
    assert (await reader.get()).forms[0].fields != form.fields
    keys = {(await Reader(server).get()).forms[0].fields["key"] for _ in range(3)}
    assert len(keys) == 3 and all(len(key) >= 22 for key in keys)


async def test_a_place_that_is_still_held_is_kept(server: Running) -> None:
    reader = await joined(server)
    before = dict(reader.cookies)
    answer = await reader.post("/w/e1", {"key": "another"})
    assert (answer.status, answer.headers["Location"], reader.cookies) == (303, "/w/e1", before)
    assert await waiting(server) == 1


async def test_a_cookie_nobody_can_read_is_no_place(server: Running) -> None:
    for token in ("nonsense", "x" * 3000, '"', "a=b"):
        reader = Reader(server)
        reader.cookies = {"stanchion-e1": token, "stanchion-e1.shown": "1-1-1"}
        page = await reader.get()
        assert (page.status, page.heading) == (200, "The line is open")
        assert (await reader.press(page, JOIN)).heading.startswith("Position ")


async def test_a_position_never_rises_above_what_the_page_showed(server: Running) -> None:
    for index in range(3):
        await server.place(f"u{index}")
    reader = await joined(server)
    reader.cookies["stanchion-e1.shown"] = "4-2-0"
    page = await reader.get()
    assert (page.heading, page.facts["People ahead of you"]) == ("Position 2", "1")
    reader.cookies["stanchion-e1.shown"] = "9-2-0"
    assert (await reader.get()).heading == "Position 4", "it was shown of another place"
    assert reader.cookies["stanchion-e1.shown"] == "4-4-0"


async def test_beyond_the_admissions_left_it_is_told_early(server: Running) -> None:
    await make(server, admissions_left=1)
    assert "unlikely" not in (await (await joined(server)).get()).text
    page = await (await joined(server)).get()
    assert "it is unlikely that your turn comes" in page.text
    assert page.facts["Estimated wait"].endswith(", if your turn comes at all")


async def test_whoever_was_away_is_back_at_the_own_place_and_reads_why(server: Running, clock: WallClock) -> None:
    reader = await joined(server)
    await let_time_pass(server, clock, 400)
    await release(server)
    assert (await server.backend.find("e1", Whom(number=1))).status == "parked"
    for _ in range(2):
        page = await reader.get()
        assert (page.heading, page.facts["Your number"]) == ("Position 1", "1")
        assert "You were away when your turn came: you are back at your own place." in page.text
    await release(server)
    await let_time_pass(server, clock, 140)
    page = await reader.get()
    assert "You were away" not in page.text and "have one more turn" in page.text


async def test_a_turn_that_was_missed_is_told_and_then_the_end_of_it(server: Running, clock: WallClock) -> None:
    reader = await joined(server)
    await release(server)
    assert (await reader.get()).heading == "It is your turn"
    await let_time_pass(server, clock, 140)
    page = await reader.get()
    assert page.heading == "Position 1" and "have one more turn" in page.text
    await release(server)
    assert "This is your second turn, and the last one." in (await reader.get()).text
    await let_time_pass(server, clock, 140)
    page = await reader.get()
    assert (page.heading, page.refresh, page.labels) == ("Your place has ended", None, [AGAIN])
    assert "Your turn came twice, and was not used in time." in page.text
    assert (await reader.press(page, AGAIN)).heading == "Position 2"


async def test_whose_turn_it_is_can_go_in_and_have_more_time(server: Running, clock: WallClock) -> None:
    reader = await joined(server)
    await release(server)
    page = await reader.get()
    assert page.heading == "It is your turn" and "within 2 min" in page.text
    assert page.links["Go in now"].startswith("https://shop.example/.stanchion/enter?event=e1&pass=ey")
    assert page.links["Go in now"].endswith("&to=https%3A%2F%2Fshop.example%2Fbasket")
    assert page.refresh == "60;url=/w/e1" and 'rel="noreferrer"' in page.html
    clock.pass_s(90)
    assert (await reader.get()).refresh == "15;url=/w/e1"
    page = await reader.press(page, MORE)
    assert page.heading == "It is your turn" and "within 2 min" in page.text


async def test_without_an_address_to_go_on_to_the_pass_itself_is_shown(server: Running) -> None:
    await make(server, return_to=None)
    reader = await joined(server)
    await release(server)
    page = await reader.get()
    assert "Go in now" not in page.links and page.words["code"][0].startswith("ey")


async def test_inside_and_after_it_the_page_says_so(server: Running) -> None:
    reader = await joined(server)
    await release(server)
    token = (await reader.get()).links["Go in now"].partition("pass=")[2].partition("&")[0]
    site = {"Authorization": f"Bearer {server.keys.site}"}
    for call, heading, refresh in (("redeem", "You are in", "60;url=/w/e1"), ("complete", "All done", None)):
        address = f"{server.url}/v1/events/e1/{call}"
        async with server.client.post(address, json={"pass": token}, headers=site) as response:
            assert response.status == 200
        page = await reader.get()
        assert (page.heading, page.refresh) == (heading, refresh)
    assert page.labels == [AGAIN]


async def test_a_place_that_was_taken_away_says_so(server: Running) -> None:
    reader = await joined(server)
    await server.backend.remove("e1", Whom(number=1), WHY, ban=True)
    page = await reader.get()
    assert page.heading == "Your place was removed"


async def test_a_place_of_an_event_that_was_made_anew_is_no_place(server: Running) -> None:
    reader = await joined(server)
    await control(server, "close")
    await server.backend.delete("e1", WHY)
    assert (await reader.get()).status == 404
    await make(server)
    await control(server, "open")
    page = await reader.get()
    assert (page.status, page.labels) == (200, [JOIN])


# ---- what can be done -------------------------------------------------------------------------------------------


async def test_leaving_takes_two_steps_and_is_for_good(server: Running) -> None:
    reader = await joined(server)
    page = await reader.get((await reader.get()).links["Leave the line"])
    assert (page.heading, page.links["No, keep my place"], page.refresh) == ("Leave the line?", "/w/e1", "30;url=/w/e1")
    assert await waiting(server) == 1
    for _ in range(2):
        left = await reader.press(page, "Yes, give my place up")
        assert (left.heading, left.refresh) == ("You have left", None)
    assert await waiting(server) == 0
    assert (await reader.press(left, AGAIN)).facts["Your number"] == "2"


async def test_a_place_moves_to_another_device_once_and_the_first_only_reads_on(server: Running) -> None:
    first, second, third = await joined(server), Reader(server), Reader(server)
    page = await first.press(await first.get(), MOVE)
    url, code = page.words["code"]
    assert url == f"{server.url}/w/e1?code={code}" and page.refresh == "40;url=/w/e1"
    for _ in range(2):
        page = await second.get(url.removeprefix(server.url))
        assert page.heading == "Take a place over?" and page.refresh is None and second.cookies == {}
    late = await third.get(url.removeprefix(server.url))
    answer = await second.post(page.forms[0].action, page.forms[0].fields)
    assert (answer.status, answer.headers["Location"]) == (303, "/w/e1")
    again = await second.post(page.forms[0].action, page.forms[0].fields)
    assert again.status == 303, "a double click"
    assert (await second.get()).facts["Your number"] == "1"
    refused = await third.press(late, TAKE_OVER)
    assert (refused.status, refused.heading) == (410, "This was used already")
    await release(server)
    stale = await first.get()
    assert "This place has moved to another device." in stale.text and stale.heading == "It is your turn"
    assert stale.labels == [] and "Go in now" not in stale.links and "ey" not in stale.words.get("code", "")
    for action in ("leave", "move", "extend"):
        assert (await first.post(f"/w/e1/{action}", {})).status == 403
    assert "Go in now" in (await second.get()).links


async def test_the_form_that_joined_proves_nothing_once_the_place_has_moved(server: Running) -> None:
    first, second = Reader(server), Reader(server)
    form = (await first.get()).forms[0]
    page = await first.follow(await first.post(form.action, form.fields))
    url = (await first.press(page, MOVE)).words["code"][0]
    await second.press(await second.get(url.removeprefix(server.url)), TAKE_OVER)
    first.cookies.clear()
    refused = await first.post(form.action, form.fields)
    assert (refused.status, refused.heading, first.cookies) == (403, "This place has moved", {})


async def test_a_device_with_a_place_of_its_own_is_told_before_it_takes_another_over(server: Running) -> None:
    first, second = await joined(server), await joined(server)
    url = (await first.press(await first.get(), MOVE)).words["code"][0]
    page = await second.get(url.removeprefix(server.url))
    assert "This device holds number 2 at this event." in page.text
    assert (await second.press(page, TAKE_OVER)).facts["Your number"] == "1"


async def test_a_code_that_is_none_is_refused(server: Running) -> None:
    reader = Reader(server)
    refused = await reader.press(await reader.get("/w/e1?code=nonsense"), TAKE_OVER)
    assert (refused.status, refused.heading, reader.cookies) == (401, "This is not good any more", {})


async def test_nothing_can_be_done_with_a_place_that_is_not_there(server: Running) -> None:
    for action in ("leave", "move", "extend"):
        assert (await Reader(server).post(f"/w/e1/{action}", {})).status == 401
    reader = await joined(server)
    assert (await reader.post("/w/e1/extend", {})).status == 409
    await reader.post("/w/e1/leave", {})
    assert (await reader.post("/w/e1/move", {})).status == 409
