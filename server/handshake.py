"""The opening handshake of a WebSocket (RFC 6455, section 4.2), from a parsed request or straight from its bytes."""

import re
from base64 import b64decode, b64encode
from binascii import Error as Base64Error
from collections.abc import Mapping
from hashlib import sha1

from engine.errors import Refused

LONGEST_HEAD_BYTES = 8190

# A request without anything unusual: one space behind each colon, visible ASCII, nothing folded, no body.
_ORDINARY = re.compile(rb"GET (/[!-~]*) HTTP/1\.1\r\n((?:[A-Za-z0-9-]{1,64}: [!-~][ -~]*\r\n){4,64})\r\n")
_NOT_HERE = frozenset(("content-length", "transfer-encoding", "expect"))
_ACCEPT_KEY = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_KEY_BYTES = 16


def read_upgrade(data: bytes) -> tuple[str, dict[str, str]] | None:
    """Return path and headers (by lower-case name) of an ordinary request for a WebSocket, whole and nothing else.

    None for everything that is not beyond doubt one, for a real parser to judge.
    """
    if len(data) > LONGEST_HEAD_BYTES:
        return None
    found = _ORDINARY.fullmatch(data)
    if found is None:
        return None
    headers: dict[str, str] = {}
    for line in found[2].decode("ascii").splitlines():
        name, _, value = line.partition(": ")
        headers[name.lower()] = value.rstrip(" ")
    is_plain = len(headers) == found[2].count(b"\r\n") and _NOT_HERE.isdisjoint(headers)
    if not is_plain or "host" not in headers or headers.get("upgrade", "").lower() != "websocket":
        return None
    return found[1].decode("ascii"), headers


def answer_upgrade(headers: Mapping[str, str]) -> bytes:
    """Return the head that answers a request to upgrade; raises Refused where that is not in order."""
    tokens = [token.strip().lower() for token in headers.get("connection", "").split(",")]
    if "upgrade" not in tokens:
        raise Refused("bad_request", "a WebSocket begins with Connection: Upgrade", field="Connection")
    if headers.get("sec-websocket-version") != "13":
        raise Refused("bad_request", "version 13 is spoken here", field="Sec-WebSocket-Version")
    key = headers.get("sec-websocket-key", "")
    try:
        is_key = len(b64decode(key, validate=True)) == _KEY_BYTES
    except (Base64Error, ValueError):
        is_key = False
    if not is_key:
        raise Refused("bad_request", "the key is 16 bytes in Base64", field="Sec-WebSocket-Key")
    accept = b64encode(sha1(key.encode() + _ACCEPT_KEY, usedforsecurity=False).digest())
    return (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: %b\r\n\r\n" % accept
    )
