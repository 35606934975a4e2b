"""A small client of the admin API, for the commands that talk to a server.

It speaks plain `http.client`: no redirects are followed, so that the key goes to the named server and nowhere
else, and no proxy is taken from the environment.
"""

import http.client
import secrets
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import msgspec

from engine.errors import BadConfiguration, NotPermitted, Unreachable

TIMEOUT_S = 30.0
LONGEST_ANSWER = 64 << 20


def read_key(path: Path) -> str:
    """Return the key in a file; raises BadConfiguration."""
    try:
        key = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise BadConfiguration(f"cannot read the admin key from {path}: {_words(error)}") from None
    if not key or len(key.split()) != 1:
        raise BadConfiguration(f"{path} does not hold one line with an admin key")
    return key


class AdminClient:
    """Asks one server as one admin."""

    def __init__(self, url: str, key: str) -> None:
        parts = urlsplit(url)
        try:
            port = parts.port
        except ValueError:
            port = -1
        if parts.scheme not in ("http", "https") or not parts.hostname or port == -1 or parts.path not in ("", "/"):
            raise BadConfiguration(f"--url must be like http://127.0.0.1:8080, not {url!r}")
        self._url = url.rstrip("/")
        self._is_https, self._host, self._port = parts.scheme == "https", parts.hostname, port
        self._headers = {"Authorization": f"Bearer {key}", "User-Agent": "stanchion-cli"}

    def get(self, path: str) -> Any:
        """Return what a GET answers."""
        return self._ask("GET", path, None, {})

    def put(self, path: str, body: Mapping[str, object]) -> Any:
        """Return what a PUT answers."""
        return self._ask("PUT", path, body, {})

    def patch(self, path: str, body: Mapping[str, object]) -> Any:
        """Return what a PATCH answers."""
        return self._ask("PATCH", path, body, {})

    def post(self, path: str, body: Mapping[str, object]) -> Any:
        """Return what a POST answers; it carries an Idempotency-Key."""
        return self._ask("POST", path, body, {"Idempotency-Key": secrets.token_urlsafe(16)})

    def delete(self, path: str) -> None:
        """Delete."""
        self._ask("DELETE", path, None, {})

    def find(self, path: str) -> Any | None:
        """Return what a GET answers, None for a 404."""
        status, answer = self._exchange("GET", path, None, {})
        return None if status == 404 else _checked(status, answer)

    def _ask(self, method: str, path: str, body: Mapping[str, object] | None, headers: Mapping[str, str]) -> Any:
        return _checked(*self._exchange(method, path, body, headers))

    def _exchange(
        self, method: str, path: str, body: Mapping[str, object] | None, headers: Mapping[str, str]
    ) -> tuple[int, bytes]:
        sent = {**self._headers, **headers}
        if body is not None:
            sent["Content-Type"] = "application/json"
        connection = self._connection()
        try:
            connection.request(method, path, None if body is None else msgspec.json.encode(body), sent)
            response = connection.getresponse()
            return response.status, response.read(LONGEST_ANSWER)
        except (OSError, http.client.HTTPException) as error:
            raise Unreachable(f"{self._url} does not answer: {_words(error)}") from None
        finally:
            connection.close()

    def _connection(self) -> http.client.HTTPConnection:
        if self._is_https:
            context = ssl.create_default_context()
            return http.client.HTTPSConnection(self._host, self._port, timeout=TIMEOUT_S, context=context)
        return http.client.HTTPConnection(self._host, self._port, timeout=TIMEOUT_S)


def event_path(event_id: str, *rest: str) -> str:
    """Return the address of an event or of something about it."""
    return "/".join(("/v1/admin/events", quote(event_id, safe=""), *rest))


def _checked(status: int, answer: bytes) -> Any:
    """Return the decoded answer; raises NotPermitted with what the server said."""
    try:
        decoded = msgspec.json.decode(answer) if answer else None
    except msgspec.DecodeError:
        raise Unreachable(f"the answer (status {status}) is not Stanchion's: {answer[:80]!r}") from None
    if 200 <= status < 300:
        return decoded
    if not isinstance(decoded, dict) or "code" not in decoded:
        raise Unreachable(f"the answer (status {status}) is not Stanchion's: {answer[:80]!r}")
    reason = f", {decoded['reason']}" if decoded.get("reason") else ""
    raise NotPermitted(f"{decoded.get('detail')} ({status} {decoded['code']}{reason})")


def _words(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
