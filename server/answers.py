"""Answers: what a handler returns, written to the socket in one piece.

aiohttp asks of a response that it can be prepared and finished and that it says whether the connection stays
open; that is all an Answer is. Head and body leave in one write, which costs about a fifth of the general
`web.Response`. Handlers that stream return aiohttp's own responses.
"""

import asyncio
import time
from collections.abc import Sequence
from email.utils import formatdate
from http import HTTPStatus

import msgspec
from aiohttp import web

from engine.errors import Refused

JSON = b"application/json"
PROBLEM = b"application/problem+json"
HTML = b"text/html; charset=utf-8"
TEXT = b"text/plain; charset=utf-8"

READ_TIMEOUT_S = 30.0

_REASONS = {status.value: f"{status.value} {status.phrase}".encode() for status in HTTPStatus}
_EVERYWHERE = b"X-Content-Type-Options: nosniff\r\nReferrer-Policy: no-referrer\r\n"
_NO_STORE = b"Cache-Control: no-store\r\n"
_encode = msgspec.json.Encoder().encode


class Answer(msgspec.Struct, eq=False):
    """A complete response, or with `is_stream` the beginning of one that others go on with.

    `headers` are finished lines ending in CRLF.
    """

    status: int
    body: bytes = b""
    content_type: bytes = JSON
    headers: bytes = _NO_STORE
    keep_alive: bool | None = True
    is_stream: bool = False
    _written: bool = False

    async def prepare(self, request: web.BaseRequest) -> None:
        """Write head and body; aiohttp's half of the contract. Raises ConnectionResetError when the peer is gone."""
        if self._written:
            return
        self._written = True
        transport = request.transport
        if transport is None or transport.is_closing():
            raise ConnectionResetError("the client is gone")
        self.keep_alive = self.keep_alive and request.keep_alive
        transport.write(self._head(request.keep_alive) + (b"" if request.method == "HEAD" else self.body))
        if request.protocol.writing_paused:
            await _drained(request, transport)

    async def write_eof(self, data: bytes = b"") -> None:
        """Nothing is left to write."""

    def _head(self, keep_alive: bool) -> bytes:
        lines = b"HTTP/1.1 %b\r\nDate: %b\r\n%b%b" % (_REASONS[self.status], _date(), _EVERYWHERE, self.headers)
        if self.is_stream:
            lines += b"Content-Type: %b\r\nX-Accel-Buffering: no\r\n" % self.content_type
        elif self.status != 204:
            lines += b"Content-Type: %b\r\nContent-Length: %d\r\n" % (self.content_type, len(self.body))
        return lines + (b"\r\n" if keep_alive and self.keep_alive else b"Connection: close\r\n\r\n")

    def with_headers(self, *pairs: tuple[str, str]) -> "Answer":
        """Add header lines; names and values come from this server, never from a request."""
        self.headers += b"".join(f"{name}: {value}\r\n".encode("latin-1") for name, value in pairs)
        return self


async def _drained(request: web.BaseRequest, transport: asyncio.Transport) -> None:
    """Wait until the client has read what was written, so that asking without reading fills no memory."""
    try:
        async with asyncio.timeout(READ_TIMEOUT_S):
            await request.writer.drain()
    except TimeoutError:
        transport.abort()
        raise ConnectionResetError("the client asks and does not read") from None


_date_cache: tuple[int, bytes] = (0, b"")


def _date() -> bytes:
    """Return the Date header's value, rendered once a second."""
    global _date_cache
    now = int(time.time())
    if _date_cache[0] != now:
        _date_cache = (now, formatdate(now, usegmt=True).encode())
    return _date_cache[1]


def handed_over() -> Answer:
    """Return the answer to a request whose connection somebody else goes on with: nothing is left to write."""
    answer = Answer(101)
    answer._written = True
    answer.keep_alive = False
    return answer


def json_answer(value: object, status: int = 200) -> Answer:
    """Return a value as JSON."""
    return Answer(status, _encode(value))


def no_content() -> Answer:
    """Return a 204."""
    return Answer(204)


class Problem(msgspec.Struct, omit_defaults=True):
    """A problem document (RFC 9457) with a stable `code`; `reason` is stable on 409 and 410.

    `primary_url` is where visitors reach the primary, with `not_primary` where that is known.
    """

    type: str
    title: str
    status: int
    code: str
    detail: str
    reason: str | None = None
    field: str | None = None
    errors: Sequence["FieldProblem"] = ()
    primary_url: str | None = None


class FieldProblem(msgspec.Struct):
    """One setting at fault."""

    field: str
    problem: str


def problem_answer(refused: Refused) -> Answer:
    """Return the problem document of a refusal."""
    body = Problem(
        f"urn:stanchion:problem:{refused.code}",
        HTTPStatus(refused.status).phrase,
        refused.status,
        refused.code,
        refused.detail,
        refused.reason,
        refused.field,
        tuple(FieldProblem(field, problem) for field, problem in refused.errors),
        refused.primary_url,
    )
    answer = Answer(refused.status, _encode(body), PROBLEM)
    if refused.retry_after_s is not None:
        answer.with_headers(("Retry-After", str(refused.retry_after_s)))
    if refused.status == 401:
        answer.with_headers(("WWW-Authenticate", "Bearer"))
    return answer
