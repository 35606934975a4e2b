"""The opening handshake: what is beyond doubt one is answered, everything else is left to a real parser."""

import pytest

from engine.errors import Refused
from server.handshake import answer_upgrade, read_upgrade

PATH = "/v1/events/e1/updates"
LINES = {
    "Host": "queue.example",
    "Upgrade": "websocket",
    "Connection": "keep-alive, Upgrade",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    "Sec-WebSocket-Version": "13",
}


def head(first: str = f"GET {PATH} HTTP/1.1", end: str = "\r\n", **changes: str | None) -> bytes:
    """Return a request; `_` in a name stands for `-`, and None takes a header away."""
    lines = LINES | {name.replace("_", "-"): value for name, value in changes.items()}
    fields = [f"{name}: {value}\r\n" for name, value in lines.items() if value is not None]
    return "".join([f"{first}\r\n", *fields, end]).encode("latin-1")


def test_an_ordinary_request_is_read_with_its_headers_by_lower_case_name() -> None:
    found = read_upgrade(head(User_Agent="Mozilla/5.0 (X11; Linux x86_64)  "))
    assert found is not None
    path, headers = found
    assert path == PATH
    assert headers == {name.lower(): value for name, value in LINES.items()} | {
        "user-agent": "Mozilla/5.0 (X11; Linux x86_64)"
    }


def test_the_answer_is_the_one_the_rfc_gives_as_its_example() -> None:
    answer = answer_upgrade({name.lower(): value for name, value in LINES.items()})
    assert answer.startswith(b"HTTP/1.1 101 ") and answer.endswith(b"\r\n\r\n")
    assert b"\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n" in answer


NOT_BEYOND_DOUBT = {
    "half of it": head()[:-3],
    "more behind it": head() + b"\x81",
    "another request behind it": head() * 2,
    "no Host": head(Host=None),
    "no Upgrade": head(Upgrade=None),
    "an upgrade to something else": head(Upgrade="h2c"),
    "a body": head(Content_Length="5"),
    "a body in chunks": head(Transfer_Encoding="chunked"),
    "an expectation": head(Expect="100-continue"),
    "a folded header": head(X_Long="a\r\n b"),
    "a header twice": head(host="elsewhere.example"),
    "a space before the colon": head().replace(b"Host:", b"Host :"),
    "no space behind the colon": head().replace(b"Host: ", b"Host:"),
    "a header that is not ASCII": head(Cookie="na\xefve"),
    "a bare line feed": head(X_Thing="a\nEvil: b"),
    "a bare carriage return": head(X_Thing="a\rb"),
    "a NUL": head(X_Thing="a\0b"),
    "another method": head(f"POST {PATH} HTTP/1.1"),
    "HTTP/1.0": head(f"GET {PATH} HTTP/1.0"),
    "an address in full": head(f"GET http://queue.example{PATH} HTTP/1.1"),
    "a space in the address": head("GET /a b HTTP/1.1"),
    "too many headers": head(**{f"X_{index}": "1" for index in range(61)}),
    "too much": head(X_Long="a" * 9000),
    "nothing": b"",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n",
}


@pytest.mark.parametrize("data", NOT_BEYOND_DOUBT.values(), ids=NOT_BEYOND_DOUBT.keys())
def test_what_is_not_beyond_doubt_a_request_for_a_socket_is_left_alone(data: bytes) -> None:
    assert read_upgrade(data) is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("connection", "keep-alive"),
        ("connection", "upgraded"),
        ("sec-websocket-version", "8"),
        ("sec-websocket-version", None),
        ("sec-websocket-key", None),
        ("sec-websocket-key", "x"),
        ("sec-websocket-key", "dGhlIHNhbXBsZSBub25j"),
        ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==\u00e9"),
    ],
)
def test_a_request_that_is_not_in_order_is_refused_by_the_name_of_the_header(name: str, value: str | None) -> None:
    headers = {key.lower(): held for key, held in LINES.items() if key.lower() != name}
    if value is not None:
        headers[name] = value
    with pytest.raises(Refused) as caught:
        answer_upgrade(headers)
    assert (caught.value.code, str(caught.value.field).lower()) == ("bad_request", name)
