"""Reads what a server publishes to everybody, for commands that verify it: no key, streamed, bounded.

What is to be verified stands at an address or in a file, and both are named on the command line.

No proxy is taken from the environment, and a few redirects are followed: nothing secret is sent.
"""

from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO
from urllib.parse import SplitResult, urlsplit

import aiohttp
import msgspec

from engine.errors import Damaged, NotPermitted, Unreachable, UsageError

TIMEOUT = aiohttp.ClientTimeout(total=3600, sock_connect=10, sock_read=30)
HEADERS = {"User-Agent": "stanchion-cli", "Accept": "application/json, application/x-ndjson"}
CHUNK_BYTES = 64 << 10
MOST_REDIRECTS = 3


class _Problem(msgspec.Struct):
    code: str
    detail: str


def address_of(text: str, example: str) -> SplitResult:
    """Return the address that a text is, without what stands behind its path; raises UsageError with an example."""
    try:
        parts = urlsplit(text)
        is_address = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_address = False
    if not is_address or "@" in parts.netloc:
        raise UsageError(f"{text!r} is not an address like {example}")
    return parts._replace(query="", fragment="")


def open_file(path: Path) -> BinaryIO:
    """Return a file open for reading; raises UsageError."""
    try:
        return path.open("rb")
    except (OSError, ValueError) as error:
        words = error.strerror if isinstance(error, OSError) else str(error)
        raise UsageError(f"cannot read {path}: {words}") from None


async def stream(url: str, take: Callable[[bytes], None]) -> None:
    """Give the body of an answer to `take`, piece by piece; raises Unreachable or NotPermitted."""
    try:
        async with (
            aiohttp.ClientSession(timeout=TIMEOUT, headers=HEADERS) as session,
            session.get(url, max_redirects=MOST_REDIRECTS) as response,
        ):
            if response.status != 200:
                raise _refusal(url, response.status, await response.content.read(CHUNK_BYTES))
            async for chunk in response.content.iter_chunked(CHUNK_BYTES):
                take(chunk)
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        raise Unreachable(f"{url} does not answer: {_plain(str(error)) or type(error).__name__}") from None


async def whole(url: str, limit_bytes: int) -> bytes:
    """Return the body of an answer; raises as `stream` does, and Damaged when it is longer than it may be."""
    body = bytearray()

    def take(chunk: bytes) -> None:
        body.extend(chunk)
        if len(body) > limit_bytes:
            raise Damaged(f"the answer of {url} is longer than {limit_bytes} bytes")

    await stream(url, take)
    return bytes(body)


def _refusal(url: str, status: int, answer: bytes) -> NotPermitted | Unreachable:
    try:
        problem = msgspec.json.decode(answer, type=_Problem)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return Unreachable(f"{url} does not answer as Stanchion does: status {status}, {answer[:80]!r}")
    return NotPermitted(f"{_plain(problem.detail)} ({status} {_plain(problem.code)})")


def _plain(text: str) -> str:
    """Return a stranger's text without what a terminal would obey."""
    return "".join(char if char.isprintable() else " " for char in text)
