"""A browser at the front of a shop, and visitors on their way into it."""

from dataclasses import dataclass, field
from http.cookies import Morsel, SimpleCookie
from typing import NamedTuple
from urllib.parse import quote

from multidict import CIMultiDictProxy
from yarl import URL

from tests.server.running import Running

SHOP = "https://shop.example"
NAVIGATES = {"Sec-Fetch-Mode": "navigate", "Accept": "text/html,*/*;q=0.8"}
SETTINGS = {"return_to": f"{SHOP}/", "return_to_origins": [SHOP]}


class Seen(NamedTuple):
    """One answer as a browser sees it."""

    status: int
    headers: CIMultiDictProxy[str]
    text: str

    @property
    def location(self) -> str | None:
        return self.headers.get("Location")


@dataclass
class Browser:
    """A browser that keeps cookies and follows nothing by itself; the shop's front says how it was reached."""

    server: Running
    front: dict[str, str] = field(default_factory=lambda: {"Host": "shop.example", "X-Forwarded-Proto": "https"})
    cookies: dict[str, str] = field(default_factory=dict)
    morsels: dict[str, "Morsel[str]"] = field(default_factory=dict)

    async def ask(self, path: str, *, method: str = "GET", **headers: str) -> Seen:
        """Return the answer to one request; `_` in header names stands for `-`."""
        head = self.front | {name.replace("_", "-"): value for name, value in headers.items()}
        if self.cookies:
            head["Cookie"] = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
        url = URL(self.server.url + path, encoded=True)
        request = self.server.client.request(method, url, headers=head, allow_redirects=False)
        async with request as response:
            for line in response.headers.getall("Set-Cookie", ()):
                for name, morsel in SimpleCookie(line).items():
                    self.cookies[name], self.morsels[name] = morsel.value, morsel
            return Seen(response.status, response.headers, await response.text())

    async def enter(self, pass_: str, to: str = "", event_id: str = "e1", **headers: str) -> Seen:
        """Ask to enter, once."""
        return await self.ask(f"/v1/enter?event={event_id}&pass={pass_}&to={to}", **headers)

    async def navigate(self, pass_: str, to: str = "") -> Seen:
        """Enter as a browser does that is sent to the same address once more first."""
        seen = await self.enter(pass_, to, **NAVIGATES)
        if seen.location and seen.location.startswith("?"):
            seen = await self.ask(f"/v1/enter{seen.location}", **NAVIGATES)
        return seen

    async def auth(self, path: str = "/v1/auth/e1", **headers: str) -> Seen:
        """Ask forward-auth."""
        return await self.ask(path, **headers)


async def let_in(server: Running, user_id: str = "u1", event_id: str = "e1") -> str:
    """Join and be let in; returns the pass."""
    await _join(server, user_id, event_id)
    body = {"user_id": user_id, "reason": "they are expected"}
    status, _, _ = await server.call("POST", f"/v1/admin/events/{event_id}/admit", body)
    assert status == 200
    return await _join(server, user_id, event_id)


async def _join(server: Running, user_id: str, event_id: str) -> str:
    url, head = f"{server.url}/v1/events/{event_id}/join", {"Idempotency-Key": f"key-{quote(user_id)}"}
    async with server.client.post(url, json={"user_id": user_id}, headers=head) as response:
        assert response.status in (200, 201)
        return str((await response.json())["pass"])


async def inside(server: Running, user_id: str = "u1", event_id: str = "e1") -> Browser:
    """Return a browser that has entered."""
    browser = Browser(server)
    seen = await browser.enter(await let_in(server, user_id, event_id), event_id=event_id)
    assert seen.status in (200, 303)
    return browser


async def complete(server: Running, user_id: str = "u1", event_id: str = "e1") -> None:
    """End a stay, as the shop does."""
    head = {"Authorization": f"Bearer {server.keys.site}"}
    url = f"{server.url}/v1/events/{event_id}/complete"
    async with server.client.post(url, json={"user_id": user_id}, headers=head) as response:
        assert response.status == 200


async def remove(server: Running, user_id: str = "u1", event_id: str = "e1") -> None:
    """Take a place away, as an operator does."""
    body = {"user_id": user_id, "reason": "bought by a robot"}
    status, _, _ = await server.call("POST", f"/v1/admin/events/{event_id}/remove", body)
    assert status == 200
