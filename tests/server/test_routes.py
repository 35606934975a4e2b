"""The route table: what a path and a method lead to."""

import pytest

from engine.errors import Refused
from server.answers import Answer, no_content
from server.routes import ANY, Call, Route, RouteTable


async def handler(call: Call) -> Answer:
    return no_content()


def row(method: str, path: str, *, below: bool = False) -> Route:
    return Route(method, path, handler, f"{method} {path}", {204: None}, below=below)


TABLE = RouteTable(
    [
        row("GET", "/events/{event_id}"),
        row("POST", "/events/{event_id}/join"),
        row(ANY, "/auth/{event_id}", below=True),
        row("GET", "/auth/{event_id}/own"),
    ]
)


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("GET", "/events/e1", ("GET /events/{event_id}", "e1")),
        ("HEAD", "/events/e1", ("GET /events/{event_id}", "e1")),
        ("POST", "/events/e1/join", ("POST /events/{event_id}/join", "e1")),
        ("GET", "/auth/e1", ("ANY /auth/{event_id}", "e1")),
        ("PROPFIND", "/auth/e1", ("ANY /auth/{event_id}", "e1")),
        ("GET", "/auth/e1/", ("ANY /auth/{event_id}", "e1")),
        ("DELETE", "/auth/e1/a//b/../{}", ("ANY /auth/{event_id}", "e1")),
        ("GET", "/auth/e1/e2/join", ("ANY /auth/{event_id}", "e1")),
        ("GET", "/auth/e1/own", ("GET /auth/{event_id}/own", "e1")),
        ("GET", "/auth/e1/own/more", None),
        ("GET", "/auth", None),
        ("GET", "/auth/", None),
        ("GET", "/auth/E1/a", None),
        ("GET", "/events/{}", None),
        ("POST", "/events/{}/join", None),
        ("GET", "/events/{event_id}", None),
        ("GET", "/events/e1/", None),
        ("GET", "/events/e1/join/more", None),
        ("GET", "", None),
    ],
)
def test_a_path_leads_to_one_row_or_nowhere(method: str, path: str, expected: tuple[str, str] | None) -> None:
    for _ in range(2):  # the second time it may be remembered
        if expected is None:
            with pytest.raises(Refused, match="nothing at this address"):
                TABLE.match(method, path)
        else:
            route, event_id = TABLE.match(method, path)
            assert (route.summary, event_id) == expected


def test_another_method_is_refused_with_those_that_are_taken() -> None:
    with pytest.raises(Refused) as refusal:
        TABLE.match("GET", "/events/e1/join")
    assert (refusal.value.code, refusal.value.field) == ("method_not_allowed", "POST")


def test_what_lies_below_a_row_never_crowds_out_what_is_remembered() -> None:
    table = RouteTable([row(ANY, "/auth/{event_id}", below=True), row("GET", "/events/{event_id}")])
    for number in range(10):
        table.match("GET", f"/auth/e1/{number}")
        table.match("GET", f"/events/e{number}")
    assert sorted(table._matched) == [("GET", f"/events/e{number}") for number in range(10)]


def test_a_row_stands_once() -> None:
    with pytest.raises(AssertionError, match="stands twice"):
        RouteTable([row("GET", "/a"), row("GET", "/a")])
