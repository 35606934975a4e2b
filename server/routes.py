"""Routes: one table says what the server answers, and everything else is read off it.

The dispatcher (`server.app`), the OpenAPI document (`server.openapi`) and the split between the public and the
admin listener all use the same rows, so that none of them can disagree.
"""

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, TypeAlias

import msgspec
from aiohttp import web

from engine.errors import Refused
from engine.settings import is_event_id
from server.answers import Answer
from server.connections import Upgraded

ANY = "ANY"
BODY_LIMIT = 8 * 1024
JSON_TYPE = "application/json"
FORM_TYPE = "application/x-www-form-urlencoded"
MATCHES_REMEMBERED = 4096


class Listener(Enum):
    """Which port serves a route when the admin API has one of its own."""

    PUBLIC = "public"
    ADMIN = "admin"
    BOTH = "both"
    REPLICATION = "replication"


class Auth(Enum):
    """What a caller must show; the handler checks it, the document tells it."""

    NONE = "none"
    QUEUE_TOKEN = "queue_token"
    SITE_KEY = "site_key"
    ADMIN_KEY = "admin_key"


class Call(msgspec.Struct, eq=False):
    """One request on its way to a handler: path parameter, decoded query and body."""

    request: web.BaseRequest
    event_id: str
    query: Any
    body: Any


Handler: TypeAlias = Callable[[Call], Awaitable[Answer | web.StreamResponse]]
Upgrade: TypeAlias = Callable[[str, Mapping[str, str]], Upgraded]
Refusal: TypeAlias = Callable[[web.BaseRequest, str, Refused], Answer]


@dataclass(frozen=True, slots=True)
class Route:
    """One row. `guard` is asked before anything of the request is read, and refuses.

    `answers` maps a status to the type of its body (None: no body); problems are understood.

    `body` is the type the body is decoded into (None: no body is read), `body_schema` the one that documents it
    where that says more, because the engine checks what the decoder lets pass. `body_type` is how it is sent.

    `refusal` renders what is refused, from the moment the row is found (None: as a problem document).

    `upgrade` returns what goes on with a connection whose request (event_id, headers) asks for a WebSocket here.

    `lasts`: its handler goes on until the server ends it, so that nobody waits for it when the server drains.

    `method` may be ANY; with `below` the row answers every address below its path as well.
    """

    method: str
    path: str
    handler: Handler
    summary: str
    answers: Mapping[int, Any]
    auth: Auth = Auth.NONE
    guard: Callable[[web.BaseRequest], object] | None = None
    body: Any = None
    body_schema: type[msgspec.Struct] | None = None
    body_type: str = JSON_TYPE
    query: type[msgspec.Struct] | None = None
    listener: Listener = Listener.PUBLIC
    problems: tuple[int, ...] = ()
    content_type: str = JSON_TYPE
    headers: Mapping[str, str] = field(default_factory=dict)
    tag: str = "visitor"
    body_limit: int = BODY_LIMIT
    operation: str = ""
    refusal: Refusal | None = None
    below: bool = False
    upgrade: Upgrade | None = None
    lasts: bool = False


_Node: TypeAlias = dict[str, Any]
_ROUTES = "\0routes"  # no path has a NUL in it
_EVENT_ID = "\0event_id"
_BELOW = "\0below"


class RouteTable:
    """A tree of path segments; a match costs one dict lookup a segment."""

    def __init__(self, routes: Iterable[Route]) -> None:
        self.routes = tuple(routes)
        self._root: _Node = {}
        self._matched: dict[tuple[str, str], tuple[Route, str]] = {}
        for route in self.routes:
            node = self._root
            for segment in route.path.split("/")[1:]:
                node = node.setdefault(_EVENT_ID if segment.startswith("{") else segment, {})
            if route.below:
                node[_BELOW] = True
            methods = node.setdefault(_ROUTES, {})
            assert route.method not in methods, f"{route.method} {route.path} stands twice"
            methods[route.method] = route

    def match(self, method: str, path: str) -> tuple[Route, str]:
        """Return the route and its event_id ("" when the path has none).

        Paths are compared as they were sent, undecoded, so there is nothing to smuggle. Raises Refused with 404,
        or with 405, whose `field` lists what is allowed. The busiest paths are remembered; not those of rows for any
        method, whose addresses are a shop's and would crowd out the others.
        """
        matched = self._matched.get((method, path))
        if matched is None:
            matched = self._walk(method, path)
            if len(self._matched) < MATCHES_REMEMBERED and matched[0].method != ANY:
                self._matched[method, path] = matched
        return matched

    def _walk(self, method: str, path: str) -> tuple[Route, str]:
        node, event_id = self._root, ""
        for segment in path.split("/")[1:]:
            below = node.get(segment)
            if below is None:
                below = node.get(_EVENT_ID)
                if below is None or not is_event_id(segment):
                    if _BELOW in node:
                        break
                    raise Refused("not_found", "there is nothing at this address")
                event_id = segment
            node = below
        methods = node.get(_ROUTES)
        if methods is None:
            raise Refused("not_found", "there is nothing at this address")
        route = methods.get(method) or (methods.get("GET") if method == "HEAD" else None) or methods.get(ANY)
        if route is None:
            allowed = ", ".join(sorted(methods))
            raise Refused("method_not_allowed", f"this address takes {allowed}", field=allowed)
        return route, event_id
