"""A browser without JavaScript, by hand: reads a page, keeps its cookies, follows its links and sends its forms."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from html.parser import HTMLParser
from http.cookies import SimpleCookie
from typing import Any

from tests.server.running import Running

VOID = frozenset(("meta", "input", "br"))
HTML = "text/html,application/xhtml+xml;q=0.9,*/*;q=0.8"


@dataclass(slots=True)
class ReadForm:
    """A form as it stands on a page."""

    action: str
    fields: dict[str, str] = field(default_factory=dict)
    label: str = ""


class ReadPage(HTMLParser):
    """An answer, and what its HTML says; every tag must be closed, and none carries a script or a style."""

    def __init__(self, status: int, headers: Mapping[str, str], html: str, url: str) -> None:
        super().__init__()
        self.status, self.headers, self.html, self.url = status, headers, html, url
        self.open: list[str] = []
        self.tags: list[str] = []
        self.words: dict[str, list[str]] = {}
        self.text = ""
        self.forms: list[ReadForm] = []
        self.links: dict[str, str] = {}
        self.refresh: str | None = None
        self._href = ""
        if headers.get("Content-Type", "").startswith("text/html"):
            self.feed(html)
        assert self.open == [], self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        assert len(given) == len(attrs) and not any(name.startswith("on") or name == "style" for name in given)
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        if tag == "form":
            assert given["method"] == "post"
            self.forms.append(ReadForm(given["action"]))
        elif tag == "input":
            self.forms[-1].fields[given["name"]] = given["value"]
        elif tag == "a":
            self._href = given["href"]
        elif given.get("http-equiv") == "refresh":
            self.refresh = given["content"]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        text = " ".join(data.split())
        if not text or "style" in self.open:
            return
        self.words.setdefault(self.open[-1], []).append(text)
        if "title" not in self.open:
            self.text += f"{text} "
        if self.open[-1] == "button":
            self.forms[-1].label = text
        elif self.open[-1] == "a":
            self.links[text] = self._href

    @property
    def heading(self) -> str:
        """Return the one h1."""
        (heading,) = self.words["h1"]
        return heading

    @property
    def facts(self) -> dict[str, str]:
        """Return the facts by their labels."""
        return dict(zip(self.words.get("dt", ()), self.words.get("dd", ()), strict=True))

    @property
    def labels(self) -> list[str]:
        """Return what the buttons say."""
        return [form.label for form in self.forms]


class Reader:
    """One visitor's browser on a server. `sent` are headers it sends with every call."""

    def __init__(self, server: Running, event_id: str = "e1", **sent: str) -> None:
        self.server = server
        self.cookies: dict[str, str] = {}
        self.set_cookies: list[str] = []
        self.sent = {"Accept": HTML} | {name.replace("_", "-"): value for name, value in sent.items()}
        self.path = f"/w/{event_id}"

    async def get(self, path: str = "", **headers: str) -> ReadPage:
        """Open a page; without a path the event's."""
        return await self.ask("GET", path or self.path, headers)

    async def press(self, page: ReadPage, label: str, **headers: str) -> ReadPage:
        """Send a form of a page by its button, and go where the answer leads."""
        (form,) = [form for form in page.forms if form.label == label]
        return await self.follow(await self.post(form.action, form.fields, **headers))

    async def post(self, path: str, fields: Mapping[str, str], **headers: str) -> ReadPage:
        """Send a form as one of our own pages does, unless `headers` say otherwise."""
        return await self.ask("POST", path, {"Origin": self.server.url} | headers, fields)

    async def follow(self, page: ReadPage) -> ReadPage:
        """Go where a 303 leads."""
        return await self.get(page.headers["Location"]) if page.status == 303 else page

    async def ask(
        self, method: str, path: str, headers: Mapping[str, str], fields: Mapping[str, str] | None = None
    ) -> ReadPage:
        """Return one answer as it is; headers that are "" are not sent, `_` in their names stands for `-`."""
        cookies = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        head = {name: value for name, value in (self.sent | {"Cookie": cookies} | given).items() if value}
        options: dict[str, Any] = {"data": fields, "headers": head, "allow_redirects": False}
        async with self.server.client.request(method, self.server.url + path, **options) as response:
            self.set_cookies = response.headers.getall("Set-Cookie", [])
            for line in self.set_cookies:
                self.cookies |= {name: morsel.value for name, morsel in SimpleCookie(line).items()}
            return ReadPage(response.status, response.headers, await response.text(), path)
