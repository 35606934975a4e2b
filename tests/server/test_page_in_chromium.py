"""The waiting page in a real Chromium with JavaScript off: the whole way from the link to the shop."""

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from engine.actor import By
from tests.server.chromium import Tab, chromium
from tests.server.running import Running, running

pytestmark = pytest.mark.slow
WHY = By("ops", "the shop asked for it")
LONG = "Ein sehr langer Name: Donaudampfschifffahrtsgesellschaftskapitänsmützenversteigerung " + "x" * 80
PHONE = (320, 640)


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Running]:
    async with running(tmp_path / "data") as started:
        settings = {"return_to_origins": [started.url], "return_to": f"{started.url}/docs", "batch_interval_s": 3600}
        await started.backend.configure("e1", settings, WHY, replace=True)
        await started.backend.control("e1", "open", WHY)
        yield started


@pytest.fixture
async def tab(tmp_path: Path) -> AsyncIterator[Tab]:
    async with chromium(tmp_path / "profile") as opened:
        await opened.resize(*PHONE)
        yield opened


async def keep(tab: Tab, name: str) -> None:
    """Keep a picture where somebody wants to look at them, and see that nothing is wider than the phone."""
    picture = await tab.picture()
    assert picture.startswith(b"\x89PNG")
    if folder := os.environ.get("PICTURES_FOLDER"):
        (Path(folder) / f"{name}.png").write_bytes(picture)
    laid_out, phone = await tab.widths()
    assert laid_out <= phone == PHONE[0], name


async def test_from_the_link_to_the_shop_by_clicking(server: Running, tab: Tab) -> None:
    for index in range(3):
        await server.place(f"u{index}")
    await tab.open(f"{server.url}/w/e1")
    await tab.until("The line is open")
    await keep(tab, "event")
    await tab.click("button", "Join the line", "<h1>Position 4</h1>")
    await keep(tab, "waiting")
    cookie = (await tab.cookies())["stanchion-e1"]
    assert cookie["httpOnly"] and cookie["sameSite"] == "Lax" and cookie["path"] == "/"
    await server.backend.release("e1", 2, WHY)
    await tab.until("<h1>Position 2</h1>")  # it comes again by itself
    await server.backend.release("e1", 2, WHY)
    await tab.until("<h1>It is your turn</h1>")
    await keep(tab, "ready")
    await tab.click("button", "Give me more time", "within 2 min")
    assert (await server.backend.event("e1")).waiting == 0
    await tab.click(
        "a", "Go in now", "there is nothing at this address"
    )  # the enter address of the shop, which is this server here


async def test_a_style_is_applied_and_a_script_would_not_be(server: Running, tab: Tab) -> None:
    await server.backend.configure("e1", {"name": LONG}, WHY, replace=False)
    await server.backend.tell("e1", "<script>document.title = 'broken in'</script> \u202eמה‮ " + LONG, WHY)
    await server.backend.control("e1", "pause", By("ops", LONG))
    await tab.open(f"{server.url}/w/e1")
    html = await tab.until("&lt;script&gt;")
    assert "broken in</title>" not in html
    await tab.click("button", "Join the line", "<h1>Position 1</h1>")
    await keep(tab, "long")


async def test_leaving_and_coming_back_by_clicking(server: Running, tab: Tab) -> None:
    await tab.open(f"{server.url}/w/e1")
    await tab.until("Join the line")
    await tab.click("button", "Join the line", "<h1>Position 1</h1>")
    await tab.click("button", "Move to another device", "within five minutes")
    await keep(tab, "moving")
    await tab.click("a", "Back to your place", "<h1>Position 1</h1>")
    await tab.click("a", "Leave the line", "<h1>Leave the line?</h1>")
    await keep(tab, "leaving")
    await tab.click("button", "Yes, give my place up", "<h1>You have left</h1>")
    assert (await server.backend.event("e1")).waiting == 0
    await tab.click("button", "Join again, at the end", "<dd>2</dd>")
