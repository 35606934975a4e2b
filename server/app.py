"""The dispatcher: from a parsed request to a handler and back to an answer, with every limit on the way.

aiohttp parses HTTP and keeps the connections; this is a handler for its low-level `web.Server`. A request is
matched against the route table, its body read within size and time, decoded into the route's type and handed
over. Whatever is refused becomes a problem document; an error nobody thought of becomes a 500 without a trace
and a logged exception, and a test holds that bad input never gets there.
"""

import asyncio
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from time import perf_counter
from typing import Any
from urllib.parse import parse_qsl

import msgspec
import structlog
from aiohttp import HttpVersion10, HttpVersion11, hdrs, web
from aiohttp.http_exceptions import HttpProcessingError

from engine.errors import Refused
from server.answers import Answer, problem_answer
from server.connections import HttpServer, Upgraded
from server.handshake import read_upgrade
from server.routes import JSON_TYPE, Call, Handler, Route, RouteTable
from server.strict_json import decode_strictly

BODY_TIMEOUT_S = 10.0
DISCARDED_LIMIT = 1024 * 1024
FRAMING = frozenset(("version", "Transfer-Encoding"))

log = structlog.get_logger("stanchion.http")


class App:
    """Dispatches requests over one route table. `observe(operation, event_id, seconds)` is told of each.

    It knows how many requests are running: aiohttp's own shutdown drops what arrives after it, so a request whose body
    is still on its way is waited for first (`drain`).
    """

    def __init__(
        self,
        routes: Iterable[Route],
        *,
        observe: Callable[[str, str, float], None],
        allowed_origins: frozenset[str] = frozenset(),
        body_timeout_s: float = BODY_TIMEOUT_S,
    ) -> None:
        self.table = RouteTable(
            replace(route, handler=self._lasting(route.handler)) if route.lasts else route for route in routes
        )
        self._observe = observe
        self._allowed_origins = allowed_origins
        self._body_timeout_s = body_timeout_s
        self._running = 0
        self._is_draining = False
        self._quiet = asyncio.Event()

    def server(self, *, max_connections_per_address: int | None = None) -> HttpServer:
        """Return the aiohttp server that speaks for this app; must be called on the running loop."""
        return HttpServer(self.handle, self.upgrade, max_connections_per_address)

    def upgrade(self, data: bytes) -> Upgraded | None:
        """Return what a connection that begins like this becomes at once, None where it is aiohttp's to look at."""
        request = read_upgrade(data)
        if request is None:
            return None
        path, headers = request
        try:
            route, event_id = self.table.match("GET", path)
            return None if route.upgrade is None else route.upgrade(event_id, headers)
        except Refused:  # to be told like every other refusal
            return None

    async def drain(self, timeout_s: float) -> None:
        """Wait until no request is running, `timeout_s` at most; from now on connections end with their answer."""
        self._is_draining = True
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while self._running:
                    self._quiet.clear()
                    await self._quiet.wait()

    def _lasting(self, handler: Handler) -> Handler:
        """Return a handler that is not waited for: what it speaks ends with the journal and not with an answer."""

        async def last(call: Call) -> Answer | web.StreamResponse:
            self._ran()
            try:
                return await handler(call)
            finally:
                self._running += 1

        return last

    def _ran(self) -> None:
        self._running -= 1
        if not self._running:
            self._quiet.set()

    async def handle(self, request: web.BaseRequest) -> Answer | web.StreamResponse:
        """Answer one request; never raises for anything a client can send."""
        answer: Answer | web.StreamResponse
        started = perf_counter()
        route, event_id = None, ""
        self._running += 1
        try:
            if hdrs.TRANSFER_ENCODING in request.headers or request.version is not HttpVersion11:
                _check_framing(request)
            path, _, query = request.raw_path.partition("?")
            route, event_id = self.table.match(request.method, path)
            if route.guard is not None:
                route.guard(request)
            body = await self._body(request, route) if route.body else None
            call = Call(request, event_id, _query(route, query), body)
            answer = await route.handler(call)
            if route.operation:
                self._observe(route.operation, event_id, perf_counter() - started)
        except Refused as refused:
            answer = self._refuse(request, route, event_id, refused)
        except web.HTTPException as error:
            answer = problem_answer(Refused("bad_request", f"aiohttp refuses this: {error.text}"[:200]))
        except (ConnectionError, asyncio.CancelledError):
            raise
        except Exception:
            path = request.raw_path.partition("?")[0]  # a query may carry a pass
            log.exception("unexpected_error", path=path[:200], method=request.method[:20])
            answer = problem_answer(Refused("internal", "something went wrong here; it was logged"))
        finally:
            self._ran()
        if self._is_draining and isinstance(answer, Answer):
            answer.keep_alive = False
        if hdrs.ORIGIN in request.headers:
            self._allow_origin(request, answer)
        return answer

    def _refuse(self, request: web.BaseRequest, route: Route | None, event_id: str, refused: Refused) -> Answer:
        told = None if route is None else route.refusal
        answer = problem_answer(refused) if told is None else told(request, event_id, refused)
        if refused.status == 405:
            if request.method == "OPTIONS" and hdrs.ORIGIN in request.headers:
                return Answer(204)
            answer.with_headers(("Allow", refused.field or ""))
        if refused.field in FRAMING or not request.content.is_eof():
            answer.keep_alive = False
        return answer

    def _allow_origin(self, request: web.BaseRequest, answer: Answer | web.StreamResponse) -> None:
        """Let pages of the allowed origins read the answer; nobody else's."""
        origin = request.headers[hdrs.ORIGIN]
        if isinstance(answer, Answer):
            answer.with_headers(("Vary", "Origin"))
            if origin in self._allowed_origins:
                answer.with_headers(
                    ("Access-Control-Allow-Origin", origin),
                    ("Access-Control-Allow-Methods", "GET, POST"),
                    ("Access-Control-Allow-Headers", "Authorization, Content-Type, Idempotency-Key"),
                    ("Access-Control-Max-Age", "600"),
                )

    async def _body(self, request: web.BaseRequest, route: Route) -> object:
        """Return the decoded body; an absent one counts as an empty object, or a form without fields."""
        assert route.body is not None
        headers = request.headers
        if hdrs.CONTENT_ENCODING in headers:
            raise Refused("unsupported_media_type", "bodies are taken as they are, without Content-Encoding")
        raw, expected = await self._read(request, route.body_limit), route.body_type
        content_type = headers.get(hdrs.CONTENT_TYPE, "")
        if raw and content_type != expected and content_type.partition(";")[0].strip().lower() != expected:
            raise Refused("unsupported_media_type", f"the body must be {expected}")
        return decode_strictly(raw or b"{}", route.body) if expected == JSON_TYPE else _form(raw, route.body)

    async def _read(self, request: web.BaseRequest, limit: int) -> bytes:
        """Read the body within size and time; a body that came with its head costs no timer."""
        if (request.content_length or 0) > limit + DISCARDED_LIMIT:
            raise Refused("too_large", f"a body of at most {limit} bytes is taken")
        content = request.content
        if not content.is_eof():
            if hdrs.EXPECT in request.headers:
                _continue(request)
            return await self._read_slowly(request, limit)
        raw = content.read_nowait(-1) if content.total_bytes else b""
        if len(raw) > limit:
            raise Refused("too_large", f"a body of at most {limit} bytes is taken")
        return raw

    async def _read_slowly(self, request: web.BaseRequest, limit: int) -> bytes:
        """Read on; what is not far too large is read and thrown away, or the client would never see the refusal."""
        chunks, size = bytearray(), 0
        try:
            async with asyncio.timeout(self._body_timeout_s):
                while chunk := await request.content.readany():
                    size += len(chunk)
                    if size <= limit:
                        chunks += chunk
                    elif size > limit + DISCARDED_LIMIT:
                        break
        except TimeoutError:
            raise Refused("timeout", f"the body did not arrive within {self._body_timeout_s:g} s") from None
        except (web.RequestPayloadError, HttpProcessingError):
            raise Refused("bad_request", "the body is not what its head announced") from None
        if size > limit:
            raise Refused("too_large", f"a body of at most {limit} bytes is taken")
        return bytes(chunks)


def _check_framing(request: web.BaseRequest) -> None:
    """Refuse what a proxy in front of this server may frame differently (RFC 9112, 6.1 and 6.3)."""
    coding, version = request.headers.get(hdrs.TRANSFER_ENCODING), request.version
    if version not in (HttpVersion10, HttpVersion11):
        raise Refused("bad_request", "HTTP/1.1 and HTTP/1.0 are spoken here", field="version")
    if coding is not None and (version == HttpVersion10 or coding.lower() != "chunked"):
        detail = "the only transfer coding is chunked, and HTTP/1.0 has none"
        raise Refused("bad_request", detail, field="Transfer-Encoding")


def _continue(request: web.BaseRequest) -> None:
    if request.headers[hdrs.EXPECT].lower() != "100-continue":
        raise Refused("expectation_failed", "only 100-continue can be expected")
    if request.transport is not None:
        request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")


def _query(route: Route, text: str) -> object:
    return None if route.query is None else _pairs(text, route.query, "query")


def _form(raw: bytes, kind: Any) -> object:
    try:
        return _pairs(raw.decode("ascii"), kind, "form")
    except UnicodeDecodeError:
        raise Refused("bad_request", "the form cannot be read", field="form") from None


_STRICTLY: dict[str, Any] = {
    "keep_blank_values": True,
    "strict_parsing": True,
    "max_num_fields": 20,
    "errors": "strict",
}


def _pairs(text: str, kind: Any, what: str) -> object:
    """Return the names and values of a query or a form as its type."""
    try:
        pairs = parse_qsl(text, **_STRICTLY) if text else []
    except ValueError:
        raise Refused("bad_request", f"the {what} cannot be read", field=what) from None
    names = [name for name, _ in pairs]
    if len(set(names)) < len(names):
        raise Refused("bad_request", f"the {what} names a parameter twice", field=what)
    try:
        return msgspec.convert(dict(pairs), kind, strict=False)
    except msgspec.ValidationError as error:
        raise Refused("bad_request", str(error), field=what) from None
