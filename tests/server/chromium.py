"""A real Chromium without JavaScript, driven over its DevTools protocol: opens pages, clicks, reads, takes pictures."""

import asyncio
import json
import shutil
import time
from base64 import b64decode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp

DEADLINE_S = 20.0
POLL_S = 0.02
CLICKS = 5
FLAGS = (
    *("--headless=new", "--remote-debugging-port=0", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
    *("--no-first-run", "--no-default-browser-check", "--disable-extensions", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--hide-scrollbars"),
)


class Tab:
    """One tab; every wait is bounded."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._last_id = 0

    async def ask(self, method: str, **params: object) -> dict[str, Any]:
        """Return the answer to one command of the protocol."""
        self._last_id += 1
        await self._socket.send_json({"id": self._last_id, "method": method, "params": params})
        async with asyncio.timeout(DEADLINE_S):
            while True:
                message = json.loads((await self._socket.receive()).data)
                if message.get("id") == self._last_id:
                    assert "error" not in message, message
                    found: dict[str, Any] = message["result"]
                    return found

    async def open(self, url: str) -> None:
        """Go to an address."""
        assert "errorText" not in await self.ask("Page.navigate", url=url)

    async def html(self) -> str:
        """Return the page as it is now; "" while another one is being loaded."""
        try:
            root = (await self.ask("DOM.getDocument"))["root"]["nodeId"]
            return str((await self.ask("DOM.getOuterHTML", nodeId=root))["outerHTML"])
        except AssertionError:
            return ""

    async def until(self, text: str, deadline_s: float = DEADLINE_S) -> str:
        """Wait until the page says something; returns it."""
        deadline = time.monotonic() + deadline_s
        while text not in (html := await self.html()):
            assert time.monotonic() < deadline, f"nothing says {text!r}: {html}"
            await asyncio.sleep(POLL_S)
        return html

    async def click(self, selector: str, text: str, expected: str) -> None:
        """Click on something until the page says what is expected; a page may be replaced under the mouse."""
        for _ in range(CLICKS):
            with suppress(AssertionError):
                await self._click(selector, text)
                await self.until(expected, DEADLINE_S / CLICKS)
                return
        raise AssertionError(f"clicking on {text!r} does not lead to {expected!r}: {await self.html()}")

    async def _click(self, selector: str, text: str) -> None:
        """Click with the mouse on the element of a selector that has this text."""
        root = (await self.ask("DOM.getDocument"))["root"]["nodeId"]
        for node in (await self.ask("DOM.querySelectorAll", nodeId=root, selector=selector))["nodeIds"]:
            if f">{text}<" in (await self.ask("DOM.getOuterHTML", nodeId=node))["outerHTML"]:
                await self.ask("DOM.scrollIntoViewIfNeeded", nodeId=node)
                left, top, _, _, right, bottom, *_ = (await self.ask("DOM.getContentQuads", nodeId=node))["quads"][0]
                at = {"x": (left + right) / 2, "y": (top + bottom) / 2, "button": "left", "clickCount": 1}
                await self.ask("Input.dispatchMouseEvent", type="mousePressed", **at)
                await self.ask("Input.dispatchMouseEvent", type="mouseReleased", **at)
                return
        raise AssertionError(f"there is no {selector} that says {text!r}")

    async def resize(self, width: int, height: int) -> None:
        """Make the tab as large as a phone."""
        await self.ask(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=2, mobile=True
        )

    async def widths(self) -> tuple[int, int]:
        """Return how wide what is laid out is, and how wide the tab is, in CSS pixels."""
        metrics = await self.ask("Page.getLayoutMetrics")
        return metrics["cssContentSize"]["width"], metrics["cssLayoutViewport"]["clientWidth"]

    async def picture(self) -> bytes:
        """Return a picture of the whole page as PNG."""
        taken = await self.ask("Page.captureScreenshot", captureBeyondViewport=True)
        return b64decode(taken["data"])

    async def cookies(self) -> dict[str, dict[str, Any]]:
        """Return the cookies that this page would be sent with, by name."""
        return {cookie["name"]: cookie for cookie in (await self.ask("Network.getCookies"))["cookies"]}


@asynccontextmanager
async def chromium(folder: Path) -> AsyncIterator[Tab]:
    """Run a browser with an empty profile and give its one tab, in which no script runs."""
    program = shutil.which("chromium")
    assert program, "chromium is not installed (make test installs it)"
    command = [program, *FLAGS, f"--user-data-dir={folder}", "about:blank"]
    with (folder.parent / "chromium.log").open("wb") as told:
        process = await asyncio.create_subprocess_exec(*command, stdout=told, stderr=told)
    try:
        async with aiohttp.ClientSession() as client:
            port = await _port(folder, process)
            async with client.get(f"http://127.0.0.1:{port}/json/list") as response:
                (page,) = [one for one in await response.json() if one["type"] == "page"]
            async with client.ws_connect(page["webSocketDebuggerUrl"], max_msg_size=0) as socket:
                tab = Tab(socket)
                await tab.ask("Emulation.setScriptExecutionDisabled", value=True)
                yield tab
    finally:
        if process.returncode is None:
            process.terminate()
        try:
            await asyncio.wait_for(process.wait(), DEADLINE_S)
        except TimeoutError:
            process.kill()
            await process.wait()


async def _port(folder: Path, process: asyncio.subprocess.Process) -> int:
    """Return the port it listens on, which it writes into its profile."""
    written = folder / "DevToolsActivePort"
    async with asyncio.timeout(DEADLINE_S):
        while not (written.exists() and written.read_text().count("\n")):
            assert process.returncode is None, "chromium ended at once"
            await asyncio.sleep(POLL_S)
    return int(written.read_text().split("\n")[0])
