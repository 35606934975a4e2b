"""The contract as a document and as a page, for the table of a whole server."""

import re
from collections.abc import AsyncIterator, Iterator, Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import msgspec
import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from engine.settings import KNOBS, Settings
from server.answers import Answer, json_answer
from server.docs_page import content_security_policy, render_page
from server.openapi import document_of
from server.routes import ANY, Auth, Call, Route
from tests.server.running import Running, running

Json = Mapping[str, Any]


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Running]:
    async with running(tmp_path) as server:
        yield server


async def document_from(server: Running) -> dict[str, Any]:
    async with server.client.get(f"{server.url}/openapi.json") as response:
        assert response.status == 200
        document: dict[str, Any] = await response.json()
        return document


def operations_of(document: Json) -> Iterator[tuple[str, str, Json]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield path, method.upper(), operation


async def test_the_document_is_valid_openapi_3_1(server: Running) -> None:
    document = await document_from(server)
    assert document["openapi"] == "3.1.0"
    errors = [error.message for error in OpenAPIV31SpecValidator(document).iter_errors()]
    assert errors == []


async def test_the_document_holds_every_route_and_nothing_else(server: Running) -> None:
    found = {(method, path) for path, method, _ in operations_of(await document_from(server))}
    assert found == {("GET" if route.method == ANY else route.method, route.path) for route in server.routes}
    assert {("POST", "/v1/events/{event_id}/join"), ("GET", "/openapi.json"), ("GET", "/docs")} <= found


async def test_every_operation_has_a_name_of_its_own(server: Running) -> None:
    names = [operation["operationId"] for _, _, operation in operations_of(await document_from(server))]
    assert len(names) == len(set(names))


async def test_every_operation_says_how_it_fails(server: Running) -> None:
    for path, _, operation in operations_of(await document_from(server)):
        responses = operation["responses"]
        assert "400" in responses
        assert ("404" in responses) >= ("{event_id}" in path)
        assert ("415" in responses) == ("413" in responses) == ("requestBody" in operation)
        assert ("401" in responses) >= bool(operation["security"])
        for status, response in responses.items():
            if int(status) >= 400 and "/readyz" not in path:
                assert list(response["content"]) == ["application/problem+json"]
            if status == "503" and "/readyz" not in path:
                assert "Retry-After" in response["headers"]


async def test_settings_show_the_engines_bounds_and_defaults(server: Running) -> None:
    schemas = (await document_from(server))["components"]["schemas"]
    settings = schemas["Settings"]["properties"]
    assert list(settings) == list(KNOBS)
    assert (settings["batch_size"]["minimum"], settings["batch_size"]["maximum"]) == (1, 1_000_000)
    assert settings["queueing"]["enum"] == ["fifo", "passthrough", "reject"]
    assert settings["max_active"]["anyOf"][-1] == {"type": "null"}
    assert all(settings[name]["default"] == value for name, value in Settings().as_map().items() if value)
    change = schemas["SettingsChange"]
    assert change["additionalProperties"] is False
    assert set(change["properties"]) == {*KNOBS, "reason", "note"}


async def test_references_lead_somewhere(server: Running) -> None:
    document = await document_from(server)
    references = set(re.findall(r'"\$ref":"#/components/schemas/([^"]+)"', msgspec.json.encode(document).decode()))
    assert references <= set(document["components"]["schemas"])


# ---- small tables -------------------------------------------------------------------------------------


class Query(msgspec.Struct, rename={"from_lsn": "from"}):
    """A query."""

    from_lsn: int
    limit: int | None = None


class Nasty(msgspec.Struct):
    """A body with <script>alert(1)</script> in its `text`."""

    text: str = "</code><img src=x onerror=alert(1)>"


async def first(call: Call) -> Answer:
    """Do <b>this</b> & that."""
    return json_answer({})


async def second(call: Call) -> Answer:
    return json_answer({})


def document(*routes: Route) -> dict[str, Any]:
    return document_of(routes, "Some Thing 1.2")


def test_a_query_becomes_parameters_without_null() -> None:
    found = document(Route("GET", "/a", first, "A", {200: dict[str, int]}, query=Query))
    parameters = found["paths"]["/a"]["get"]["parameters"]
    assert parameters == [
        {"name": "from", "in": "query", "required": True, "schema": {"type": "integer"}},
        {"name": "limit", "in": "query", "required": False, "schema": {"type": "integer"}},
    ]
    assert (found["info"]["title"], found["info"]["version"]) == ("Some Thing", "1.2")


def test_two_handlers_of_one_name_are_told_apart_by_their_tags() -> None:
    found = document(
        Route("GET", "/a", first, "A", {204: None}, tag="visitor"),
        Route("GET", "/b", first, "B", {204: None}, tag="admin"),
    )
    names = [operation["operationId"] for _, _, operation in operations_of(found)]
    assert names == ["visitor_first", "admin_first"]


def test_an_answer_without_a_body_has_no_content() -> None:
    found = document(Route("POST", "/a", first, "A", {204: None}, Auth.SITE_KEY))
    operation = found["paths"]["/a"]["post"]
    assert operation["responses"]["204"] == {"description": "No Content"}
    assert operation["security"] == [{"site_key": []}]


# ---- the page -------------------------------------------------------------------------------------------


class Outline(HTMLParser):
    """Which tags, ids, links and addresses a page has, and that every tag is closed."""

    VOID = frozenset(("meta", "br", "wbr", "img"))

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.open: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.ids += [value or "" for name, value in attrs if name == "id"]
        self.links += [value or "" for name, value in attrs if name in ("href", "src")]
        assert not [name for name, _ in attrs if name.startswith("on") or name == "style"]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


async def test_the_page_stands_alone_under_a_strict_policy(server: Running) -> None:
    async with server.client.get(f"{server.url}/docs") as response:
        html, policy = await response.text(), response.headers["Content-Security-Policy"]
        assert (response.status, response.content_type) == (200, "text/html")
    assert policy.startswith("default-src 'none'; style-src 'sha256-") and "unsafe" not in policy
    outline = Outline(html)
    assert outline.open == []
    assert not outline.tags & {"script", "img", "link", "iframe", "form", "object"}
    assert len(outline.ids) == len(set(outline.ids))
    outside = [link for link in outline.links if not link.startswith("#")]
    assert outside == ["/openapi.json"]
    assert {link[1:] for link in outline.links if link.startswith("#")} <= set(outline.ids)
    assert 'name="viewport"' in html and "prefers-color-scheme: dark" in html


async def test_the_page_shows_every_call_with_its_fields_and_an_example(server: Running) -> None:
    async with server.client.get(f"{server.url}/docs") as response:
        html = await response.text()
    for _, method, operation in operations_of(await document_from(server)):
        article = html.partition(f'<article id="{operation["operationId"]}">')[2].partition("</article>")[0]
        assert method in article and "Answers" in article and "curl" in article
    release = html.partition('<article id="release">')[2].partition("</article>")[0]
    assert "<code>count</code>" in release and "1–1,000,000" in release and "admin key" in release


def test_nothing_in_the_document_becomes_markup() -> None:
    html = render_page(document(Route("POST", "/a", first, "<i>A</i>", {200: Nasty}, body=Nasty))).decode()
    outline = Outline(html)
    assert outline.open == [] and not outline.tags & {"script", "img"}
    assert "&lt;script&gt;alert(1)" in html and "Do &lt;b&gt;this&lt;/b&gt; &amp; that." in html


def test_a_page_without_a_style_allows_none() -> None:
    assert "style-src 'none'" in content_security_policy(b"<p>plain</p>")
