"""A draw as it is published, for those who verify it: as lines, in a file, and on a site."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from engine.draw import ALGORITHM, Drawing, commitment_of, entries_digest, mixed, secret_of
from server.cli import run

SECRET = secret_of(b"k" * 32, "sale", "1048577-4711")
OTHER = secret_of(b"k" * 32, "sale", "1048577-4712")
ARRIVALS = [*range(1, 500), *range(600, 1101)]

Draw = dict[str, Any]
Verify = Callable[..., "Verdict"]


def published(arrivals: list[int] = ARRIVALS, beacon: str | None = None, secret: bytes = SECRET) -> list[Draw]:
    """Return the draw and its entries as they are published."""
    drawing = Drawing(mixed(secret, beacon), arrivals)
    pairs = []
    while not drawing.done:
        pairs += drawing.step(1000)
    head = {
        "event_id": "sale",
        "state": "open",
        "draw_id": "1048577-4711",
        "algorithm": ALGORITHM,
        "commitment": commitment_of(secret),
        "beacon": {"name": "Lotto of 2027-01-30", "value": beacon} if beacon is not None else None,
        "seed": secret.hex(),
        "count": len(arrivals),
        "entries_sha256": entries_digest(arrivals),
    }
    return [head, *({"arrival": arrival, "number": number} for arrival, number in pairs)]


def unopened() -> list[Draw]:
    head = published([])[0]
    beacon = {"name": "Lotto", "value": None}
    return [{**head, "state": "lobby", "beacon": beacon, "seed": None, "count": None, "entries_sha256": None}]


def write(file: Path, lines: list[Draw]) -> Path:
    file.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return file


class Verdict:
    """How a command ended."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


def verified(capsys: pytest.CaptureFixture[str], *arguments: object) -> Verdict:
    """Return how `stanchion verify` ended; whatever it was given, that is no bug and shows no traceback."""
    code = run(["verify", *map(str, arguments)])
    out, err = capsys.readouterr()
    assert "Traceback" not in err and "bug" not in err
    return Verdict(code, out, err)


class Site(ThreadingHTTPServer):
    """Answers each path with what a test put there; a third part makes it promise more bytes than it sends."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: dict[str, tuple[int, bytes, int]] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1/events/sale"

    @classmethod
    @contextmanager
    def running(cls) -> Iterator["Site"]:
        """Give a site that answers until the end."""
        with cls() as site:
            thread = threading.Thread(target=site.serve_forever, args=(0.01,))
            thread.start()
            yield site
            site.shutdown()
            thread.join()

    def publish(self, lines: list[Draw]) -> None:
        head, *entries = (json.dumps(line).encode() for line in lines)
        self.answers |= {
            "/v1/events/sale/draw": (200, head, 0),
            "/v1/events/sale/draw/entries": (200, b"".join(entry + b"\n" for entry in entries), 0),
        }


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        site = self.server
        assert isinstance(site, Site)
        status, body, missing = site.answers.get(self.path, (404, b"nothing here", 0))
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) + missing))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Stay quiet."""
