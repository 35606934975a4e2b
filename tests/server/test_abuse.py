"""Bad HTTP of every kind over real sockets: a problem document or a clean close, and the line as it was.

Every test runs under `line`, which compares the digest, the counts and the LSN before and after. No test waits
without a bound, so a server that hangs is a failure.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest

import server.answers
import server.connections
from engine.tokens import QueueTokens
from tests.server.abuse import assert_refused, post, request, send, unchanged
from tests.server.running import Running

JOIN = "/v1/events/e1/join"
JSON = "Content-Type: application/json"
HOST = b"Host: localhost\r\n"


@pytest.fixture
async def line(tmp_path: Path) -> AsyncIterator[Running]:
    """Give a server with three in line, and see that nothing has changed in the end."""
    async with unchanged(tmp_path) as server:
        yield server


# ---- what the HTTP parser is given ----------------------------------------------------------------------

MALFORMED = {
    "a version of the future": b"GET /healthz HTTP/9.9\r\n" + HOST + b"\r\n",
    "HTTP/0.9": b"GET /healthz\r\n\r\n",
    "an HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 10 + b"\r\n\r\n",
    "nonsense": b"\r\n".join((b"\x00\xff\xfe", b"hello")) + b"\r\n\r\n",
    "no host": b"GET /healthz HTTP/1.1\r\n\r\n",
    "two hosts": b"GET /healthz HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    "a method nobody knows": b"FOO /healthz HTTP/1.1\r\n" + HOST + b"\r\n",
    "a method in lower case": b"get /healthz HTTP/1.1\r\n" + HOST + b"\r\n",
    "a NUL in the path": b"GET /heal\x00thz HTTP/1.1\r\n" + HOST + b"\r\n",
    "raw UTF-8 in the path": "GET /v1/events/é HTTP/1.1\r\n".encode() + HOST + b"\r\n",
    "a space in the path": b"GET /v1/events/e 1 HTTP/1.1\r\n" + HOST + b"\r\n",
    "bare LF": b"GET /healthz HTTP/1.1\nHost: localhost\n\n",
    "bare CR": b"GET /healthz HTTP/1.1\rHost: localhost\r\r",
    "CR in a value": b"GET /healthz HTTP/1.1\r\n" + HOST + b"X: a\rb\r\n\r\n",
    "NUL in a value": b"GET /healthz HTTP/1.1\r\n" + HOST + b"X: a\x00b\r\n\r\n",
    "obs-fold": b"GET /healthz HTTP/1.1\r\n" + HOST + b"X: a\r\n b\r\n\r\n",
    "a space before the colon": b"GET /healthz HTTP/1.1\r\n" + HOST + b"X : a\r\n\r\n",
    "a header without a name": b"GET /healthz HTTP/1.1\r\n" + HOST + b": a\r\n\r\n",
    "a line that begins with a space": b"GET /healthz HTTP/1.1\r\n Host: localhost\r\n\r\n",
    "a header without a colon": b"GET /healthz HTTP/1.1\r\n" + HOST + b"nonsense\r\n\r\n",
}


@pytest.mark.parametrize("raw", MALFORMED.values(), ids=MALFORMED.keys())
async def test_what_is_no_http_is_400_and_closes(line: Running, raw: bytes) -> None:
    reply = await send(line.port, raw)
    assert_refused(reply, 400)
    assert reply.closed


SMUGGLING = {
    "CL and TE": ("Content-Length: 4", "Transfer-Encoding: chunked"),
    "TE and CL": ("Transfer-Encoding: chunked", "Content-Length: 4"),
    "two lengths": ("Content-Length: 12", "Content-Length: 2"),
    "the same length twice": ("Content-Length: 12", "Content-Length: 12"),
    "a list of lengths": ("Content-Length: 12, 12",),
    "a length with a sign": ("Content-Length: +12",),
    "a negative length": ("Content-Length: -12",),
    "a length in hex": ("Content-Length: 0xc",),
    "a length with an underscore": ("Content-Length: 1_2",),
    "a length in other digits": ("Content-Length: \u0661\u0662",),
    "a length without end": ("Content-Length: " + "9" * 30,),
    "an empty length": ("Content-Length:",),
    "chunked, identity": ("Transfer-Encoding: chunked, identity",),
    "identity, chunked": ("Transfer-Encoding: identity, chunked",),
    "gzip, chunked": ("Transfer-Encoding: gzip, chunked",),
    "chunked twice": ("Transfer-Encoding: chunked", "Transfer-Encoding: chunked"),
    "xchunked": ("Transfer-Encoding: xchunked",),
    "a vertical tab": ("Transfer-Encoding: \x0bchunked",),
    "a quoted coding": ('Transfer-Encoding: "chunked"',),
    "a coding behind a space": ("Transfer-Encoding : chunked",),
}


@pytest.mark.parametrize("headers", SMUGGLING.values(), ids=SMUGGLING.keys())
async def test_framing_in_doubt_is_400_and_closes(line: Running, headers: tuple[str, ...]) -> None:
    hidden = request("POST", "/v1/events/e1/join", JSON, "Content-Length: 2", body=b"{}")
    for body in (b'c\r\n{"user_id":1\r\n0\r\n\r\n', b"2\r\n{}\r\n0\r\n\r\n"):
        reply = await send(line.port, request("POST", JOIN, JSON, *headers, body=body) + hidden)
        assert_refused(reply, 400)
        assert reply.closed


async def test_http_1_0_has_no_transfer_coding(line: Running) -> None:
    head = f"POST {JOIN} HTTP/1.0\r\nHost: x\r\n{JSON}\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n"
    reply = await send(line.port, head.encode() + b"2\r\n{}\r\n0\r\n\r\n")
    assert_refused(reply, 400)
    assert reply.closed


CHUNKS = {
    "no hex": b"zz\r\n{}\r\n0\r\n\r\n",
    "a negative size": b"-2\r\n{}\r\n0\r\n\r\n",
    "a size beyond 64 bits": b"f" * 18 + b"\r\n{}\r\n0\r\n\r\n",
    "an LF in an extension": b"2;a\nx\r\n{}\r\n0\r\n\r\n",
    "bare LFs": b"2\n{}\n0\n\n",
    "more than the size says": b"2\r\n{}x\r\n0\r\n\r\n",
    "no size": b"\r\n{}\r\n0\r\n\r\n",
    "hex with 0x": b"0x2\r\n{}\r\n0\r\n\r\n",
}


@pytest.mark.parametrize("body", CHUNKS.values(), ids=CHUNKS.keys())
async def test_broken_chunks_are_refused_and_close(line: Running, body: bytes) -> None:
    """A chunk that breaks after its head was taken is found by the deadline of the body (aiohttp tells nobody)."""
    head = request("POST", JOIN, JSON, "Transfer-Encoding: chunked")
    at_once, later = await send(line.port, head + body), await send(line.port, head, body)
    assert_refused(at_once, 400)
    assert_refused(later, 400, 408)
    assert at_once.closed and later.closed


TOO_LONG = {
    "the address": request("GET", "/" + "a" * 9000),
    "the query": request("GET", "/v1/events/e1/position?shown=" + "1" * 9000),
    "a header": request("GET", "/healthz", "X: " + "a" * 9000),
    "a header's name": request("GET", "/healthz", "a" * 9000 + ": x"),
    "a hundred headers": request("GET", "/healthz", *(f"X{number}: 1" for number in range(100))),
    "a cookie": request("GET", "/v1/events/e1/position", "Cookie: " + "a=b; " * 3000),
}


@pytest.mark.parametrize("raw", TOO_LONG.values(), ids=TOO_LONG.keys())
async def test_heads_that_are_too_long_are_431(line: Running, raw: bytes) -> None:
    assert_refused(await send(line.port, raw), 431)


async def test_a_head_that_never_ends_is_hung_up_on(line: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.connections, "KEEP_ALIVE_S", 0.2)
    assert (await send(line.port, b"GET /healthz HTTP/1.1\r\nX-Slow: 1")).status == 0
    assert (await send(line.port, b"")).status == 0


async def test_half_a_head_and_a_hang_up_is_no_error(line: Running) -> None:
    assert (await send(line.port, b"GET /healthz HTT", end=True)).status == 0


# ---- addresses and methods ----------------------------------------------------------------------------------

ADDRESSES = (
    "/",
    "/v1",
    "/v1/events/",
    "/v1/events//join",
    "//v1/events/e1",
    "/v1/events/e1/",
    "/v1/events/e1;x",
    "/v1/events/%65%31",
    "/v1/events/e1%2Fjoin",
    "/v1/events/..%2f..%2fetc%2fpasswd/join",
    "/v1/../v1/events/e1",
    "/v1/events/../events/e1",
    "/v1/events/E1",
    "/v1/events/-e1",
    "/v1/events/e1%00",
    "/v1/events/e1%0d%0aSet-Cookie:%20a=b",
    "/v1/events/%E2%80%AEe1",
    "/v1/events/" + "a" * 65,
    "/v1/events/%",
    "/v1/events/%zz",
    "/v1/events/{event_id}",
    "/V1/events/e1",
    "/%76%31/events/e1",
    "http://localhost/v1/events/e1",
)


@pytest.mark.parametrize("address", ADDRESSES)
async def test_an_address_that_is_not_exactly_one_of_ours_is_404(line: Running, address: str) -> None:
    assert_refused(await send(line.port, request("GET", address)), 404)


@pytest.mark.parametrize("method", ["DELETE", "PUT", "PATCH", "OPTIONS", "TRACE", "LOCK", "PROPFIND", "GET", "HEAD"])
async def test_a_method_that_is_not_taken_is_405_and_says_which_are(line: Running, method: str) -> None:
    raw = request(method, JOIN)
    if method == "HEAD":
        reader, writer = await asyncio.open_connection("127.0.0.1", line.port)
        writer.write(raw)
        assert (await asyncio.wait_for(reader.readline(), 3)).startswith(b"HTTP/1.1 405")
        writer.close()
        return
    reply = await send(line.port, raw)
    assert_refused(reply, 405)
    assert "Allow: POST\r\n" in reply.head


@pytest.mark.parametrize("form", ["CONNECT localhost:80", "OPTIONS *", "GET *", "GET ", "GET /v1/events/\x7f"])
async def test_other_forms_of_an_address_are_refused(line: Running, form: str) -> None:
    method, _, address = form.partition(" ")
    assert_refused(await send(line.port, request(method, address)), 400, 404)


async def test_a_head_of_a_megabyte_is_refused_or_hung_up_on(line: Running) -> None:
    reply = await send(line.port, request("GET", "/healthz", "X: " + "a" * 1_000_000))
    assert reply.status in (0, 431) and reply.closed


QUERIES: tuple[str, ...] = (
    "shown",
    "shown=",
    "shown=x",
    "shown=0",
    "shown=-1",
    "shown=1.5",
    "shown=1&shown=2",
    "other=1",
)
QUERIES += ("shown=%", "shown=%FF", "=1", "&&", "shown=%00", "shown=" + "9" * 400)
QUERIES += ("&".join(f"a{number}=1" for number in range(30)),)


@pytest.mark.parametrize("query", QUERIES)
async def test_a_bad_query_is_400(line: Running, query: str) -> None:
    assert_refused(await send(line.port, request("GET", f"/v1/events/e1/position?{query}")), 400)


# ---- bodies ---------------------------------------------------------------------------------------------------

NO_JSON = {
    "nothing like JSON": b"hello",
    "an open object": b'{"user_id": "x"',
    "a comma too many": b'{"user_id": "x",}',
    "single quotes": b"{'user_id': 'x'}",
    "NaN": b'{"user_id": NaN}',
    "infinity": b'{"user_id": Infinity}',
    "a number out of range": b'{"user_id": 1e999}',
    "a comment": b'{"user_id": "x" /* y */}',
    "two objects": b"{}{}",
    "a byte order mark": b"\xef\xbb\xbf{}",
    "UTF-16": '{"user_id": "x"}'.encode("utf-16"),
    "Latin-1": '{"user_id": "é"}'.encode("latin-1"),
    "a raw NUL": b'{"user_id": "a\x00b"}',
    "a raw newline": b'{"user_id": "a\nb"}',
    "a lone surrogate": b'{"user_id": "\\ud800"}',
    "two low surrogates": b'{"user_id": "\\udc00\\udc00"}',
    "an overlong encoding": b'{"user_id": "\xc0\xaf"}',
    "an encoded surrogate": b'{"user_id": "\xed\xa0\x80"}',
    "brackets all the way down": b"[" * 8000,
    "a closed depth bomb": b"[" * 4000 + b"]" * 4000,
    "objects all the way down": b'{"a":' * 1600 + b"1",
    "a name twice": b'{"user_id": "x", "user_id": "y"}',
    "a name twice, once escaped": b'{"user_id": "x", "user\\u005fid": "y"}',
    "a name twice, deep down": b'{"user_id": "x", "other": {"a": 1, "a": 2}}',
    "white space only": b" \n ",
}


@pytest.mark.parametrize("body", NO_JSON.values(), ids=NO_JSON.keys())
async def test_a_body_that_is_no_strict_json_is_400(line: Running, body: bytes) -> None:
    assert_refused(await send(line.port, post(JOIN, body)), 400)


WRONG = {
    "an array": b"[]",
    "null": b"null",
    "a text": b'"u1"',
    "a number": b"1",
    "a number for a user_id": b'{"user_id": 5}',
    "true for a user_id": b'{"user_id": true}',
    "a list for a user_id": b'{"user_id": ["x"]}',
    "an object for a user_id": b'{"user_id": {"$gt": ""}}',
    "an unknown member": b'{"user_id": "x", "position": 1}',
    "a prototype": b'{"__proto__": {"admin": true}}',
    "a level": b'{"user_id": "x", "priority": 9}',
}


@pytest.mark.parametrize("body", WRONG.values(), ids=WRONG.keys())
async def test_a_body_of_the_wrong_shape_is_400_and_names_the_field(line: Running, body: bytes) -> None:
    reply = await send(line.port, post(JOIN, body))
    assert_refused(reply, 400)
    assert reply.problem["field"]


IDS = {
    "empty": "",
    "129 bytes": "a" * 129,
    "129 bytes in two-byte letters": "é" * 64 + "a",
    "NUL": "a\x00b",
    "CRLF": "a\r\nSet-Cookie: a=b",
    "a tab": "a\tb",
    "DEL": "a\x7f",
    "a C1 control": "a\x85b",
    "right to left": "a\u202eb",
    "an isolate": "a\u2066b",
    "a line separator": "a\u2028b",
    "a byte order mark": "\ufeffa",
    "no character": "a\uffff",
}


@pytest.mark.parametrize("user_id", IDS.values(), ids=IDS.keys())
async def test_a_user_id_that_could_harm_somebody_is_400(line: Running, user_id: str) -> None:
    escaped = '{"user_id": "' + "".join(f"\\u{ord(letter):04x}" for letter in user_id) + '"}'
    reply = await send(line.port, post(JOIN, escaped.encode()))
    assert_refused(reply, 400)
    assert "user_id" in str(reply.problem["field"])


async def test_bodies_that_are_too_large_are_413_announced_or_not(line: Running) -> None:
    large = b'{"user_id": "' + b"a" * 900_000 + b'"}'
    assert_refused(await send(line.port, post(JOIN, large)), 413)
    announced = request("POST", JOIN, JSON, "Content-Length: 1000000000")
    reply = await send(line.port, announced)
    assert_refused(reply, 413)
    assert reply.closed
    chunked = request("POST", JOIN, JSON, "Transfer-Encoding: chunked")
    chunk = b"1000\r\n" + b" " * 0x1000 + b"\r\n"
    assert_refused(await send(line.port, chunked, *[chunk] * 40, b"0\r\n\r\n"), 413)
    assert (await send(line.port, chunked, *[chunk] * 300)).status in (0, 413)
    assert_refused(await send(line.port, chunked + chunk * 4 + b"0\r\n\r\n"), 413)


@pytest.mark.parametrize(
    "rest", [("Content-Length: 10", b"{"), ("Transfer-Encoding: chunked", b"5\r\n{"), ("Content-Length: 10", b"")]
)
async def test_half_a_body_is_408_and_closes(line: Running, rest: tuple[str, bytes]) -> None:
    reply = await send(line.port, request("POST", JOIN, JSON, rest[0], body=rest[1]))
    assert_refused(reply, 408)
    assert reply.closed


async def test_half_a_body_and_a_hang_up_is_no_error(line: Running) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", line.port)
    writer.write(request("POST", JOIN, JSON, "Content-Length: 10", body=b"{"))
    await writer.drain()
    writer.transport.abort()
    assert await asyncio.wait_for(reader.read(), 3) == b""


KINDS: tuple[str | None, ...] = (
    None,
    "",
    "text/plain",
    "text/json",
    "application/x-www-form-urlencoded",
    "multipart/form-data; boundary=x",
)
KINDS += ("application/jsonx", "application/json, text/plain", "application/problem+json", "application/json\x0b")


@pytest.mark.parametrize("kind", KINDS)
async def test_a_body_of_another_type_is_415(line: Running, kind: str | None) -> None:
    assert_refused(await send(line.port, post(JOIN, b'{"user_id": "x"}', kind=kind)), 400, 415)


@pytest.mark.parametrize("encoding", ["gzip", "br", "identity", "zstd", "x"])
async def test_a_compressed_body_is_415(line: Running, encoding: str) -> None:
    assert_refused(await send(line.port, post(JOIN, b"{}", f"Content-Encoding: {encoding}")), 415)


async def test_only_100_continue_can_be_expected(line: Running) -> None:
    raw = request("POST", JOIN, JSON, "Content-Length: 2", "Expect: 200-maybe")
    assert_refused(await send(line.port, raw), 417)


# ---- tokens and keys ------------------------------------------------------------------------------------------


def _tokens(server: Running, good: str) -> dict[str, str]:
    other = QueueTokens({"q": b"another secret of thirty-two byte"}, "q")
    now_s = int(time.time())
    middle = len(good) // 2
    return {
        "nothing": "",
        "one letter": "x",
        "dots": "..",
        "alg none": "eyJhbGciOiJub25lIn0.eyJldiI6ImUxIiwic3ViIjoidTAifQ.",
        "all zeros": "A" * len(good),
        "half of it": good[:middle],
        "no end": good[:-4],
        "no beginning": good[4:],
        "a flipped letter": good[:middle] + ("A" if good[middle] != "A" else "B") + good[middle + 1 :],
        "more of it": good + "AAAA",
        "twice": good + good,
        "the other alphabet": "+/" + good[2:],
        "with a NUL": good + "%00",
        "another key": other.mint("e1", "u0", 1, 1, 0, 1, now_s),
        "expired": server.tokens.mint("e1", "u0", 1, 1, 0, 1, now_s - 25 * 3600),
        "another event": server.tokens.mint("e2", "u0", 1, 1, 0, 1, now_s),
        "10 KB": "a" * 7_000 + "." + "b" * 100,
        "not ASCII": "\u00e9.\u00e9.\u00e9",
        "the admin key": server.keys.admin,
        "the site key": server.keys.site,
    }


@pytest.mark.parametrize("call", ["position", "heartbeat", "leave"])
async def test_a_token_that_is_not_right_is_401(line: Running, call: str) -> None:
    place = await line.place("u0")
    for name, token in _tokens(line, str(place["token"])).items():
        bearer = f"Authorization: Bearer {token}"
        path = f"/v1/events/e1/{call}"
        raw = request("GET", path, bearer) if call == "position" else post(path, b"", bearer, kind=None)
        reply = await send(line.port, raw)
        assert reply.status == 401, (name, reply)
        assert reply.problem["code"] == "bad_token"
        assert "WWW-Authenticate: Bearer" in reply.head


@pytest.mark.parametrize("stranger", [("u9", 1), ("u0", 2), ("u0", 0), ("u0", -1), ("u0", 4), ("u0", 2**40)])
async def test_a_good_token_for_a_place_that_is_not_there_or_not_theirs_is_404(
    line: Running, stranger: tuple[str, int]
) -> None:
    user_id, arrival = stranger
    token = line.tokens.mint("e1", user_id, arrival, arrival, 0, 1, int(time.time()))
    for raw in (
        request("GET", "/v1/events/e1/position", f"Authorization: Bearer {token}"),
        post("/v1/events/e1/leave", b"", f"Authorization: Bearer {token}", kind=None),
    ):
        assert_refused(await send(line.port, raw), 404)


@pytest.mark.parametrize("scheme", ["Basic dTA6eA==", "Bearer", "bearer ", "Token x", "Bearer a b", "\u00ff"])
async def test_another_authorization_is_401(line: Running, scheme: str) -> None:
    raw = request("GET", "/v1/events/e1/position", f"Authorization: {scheme}")
    assert_refused(await send(line.port, raw), 401)


async def test_two_authorizations_are_no_way_in(line: Running) -> None:
    good, bad = f"Authorization: Bearer {line.keys.admin}", "Authorization: Bearer x"
    for headers in ((bad, good), (bad, bad)):
        assert_refused(await send(line.port, request("GET", "/v1/admin/events", *headers)), 400, 401)


async def test_bad_admin_keys_lock_their_address_out_but_never_the_good_key(line: Running) -> None:
    bad = request("GET", "/v1/admin/events", "Authorization: Bearer stn_admin_x")
    statuses = [(await send(line.port, bad)).status for _ in range(15)]
    assert set(statuses) == {401, 429}
    assert (await line.call("GET", "/v1/admin/events"))[0] == 200


KEYS = ("", "a b", "a" * 201, "\u00e9", "\x7f", "a\tb")


@pytest.mark.parametrize("key", KEYS)
async def test_a_bad_idempotency_key_is_400(line: Running, key: str) -> None:
    header = f"Idempotency-Key: {key}"
    reply = await send(line.port, post(JOIN, b'{"user_id": "x"}', header))
    assert_refused(reply, 400)
    admin = f"Authorization: Bearer {line.keys.admin}"
    assert_refused(await send(line.port, post("/v1/admin/events/e1/release", b'{"count": 1}', header, admin)), 400)


ADMIN_BODIES = {
    "release": [b"{}", b'{"count": 0}', b'{"count": -1}', b'{"count": 1.5}', b'{"count": "1"}', b'{"count": 10000000}'],
    "pause": [b"{}", b'{"reason": ""}', b'{"reason": null}', b'{"reason": "a\\u0000b"}', b'{"reason": "x", "y": 1}'],
    "message": [b"{}", b'{"text": 5}', b'{"text": "' + b"a" * 1001 + b'"}', b'{"text": "a\\u001bb"}'],
    "close": [b"{}", b'{"reason": "' + b"a" * 281 + b'"}', b'{"reason": "x", "outcome": 5}'],
}


@pytest.mark.parametrize("action", ADMIN_BODIES)
async def test_a_bad_order_of_an_operator_is_400(line: Running, action: str) -> None:
    admin = f"Authorization: Bearer {line.keys.admin}"
    for body in ADMIN_BODIES[action]:
        assert_refused(await send(line.port, post(f"/v1/admin/events/e1/{action}", body, admin)), 400)


# ---- too much of what is good -----------------------------------------------------------------------------------


async def test_asking_without_reading_fills_no_memory(line: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.answers, "READ_TIMEOUT_S", 0.2)
    reader, writer = await asyncio.open_connection("127.0.0.1", line.port, limit=1024)
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    writer.write(request("GET", "/docs") * 2000)
    await asyncio.sleep(0.5)
    writer.transport.resume_reading()  # type: ignore[attr-defined]
    received = 0
    async with asyncio.timeout(5):
        with suppress(ConnectionError):
            while block := await reader.read(65536):
                received += len(block)
    assert received < 2000 * 20_000, "the server lets go of a client that does not read"
    writer.close()
