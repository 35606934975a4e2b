"""The admin client against a small server that answers what a test tells it to."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from engine.errors import BadConfiguration, NotPermitted, Unreachable
from server.admin_client import AdminClient, event_path, read_key


class Told(HTTPServer):
    """Answers `answer` to everything and keeps what it was asked."""

    answer: tuple[int, bytes] = (200, b"{}")

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[tuple[str, str, dict[str, str], bytes]] = []


class Handler(BaseHTTPRequestHandler):
    def _answer(self) -> None:
        server = self.server
        assert isinstance(server, Told)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        server.asked.append((self.command, self.path, dict(self.headers), body))
        status, answer = server.answer
        self.send_response(status)
        if status == 302:
            self.send_header("Location", "/elsewhere")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _answer

    def log_message(self, *_: object) -> None:
        """Stay quiet."""


@pytest.fixture
def server() -> Iterator[Told]:
    with Told() as told:
        thread = threading.Thread(target=told.serve_forever, args=(0.01,))
        thread.start()
        yield told
        told.shutdown()
        thread.join()


@pytest.fixture
def client(server: Told) -> AdminClient:
    return AdminClient(f"http://127.0.0.1:{server.server_port}/", "stn_admin_x")


def test_a_call_carries_the_key_and_a_post_is_safe_to_repeat(server: Told, client: AdminClient) -> None:
    server.answer = 200, b'{"a": 1}'
    assert client.post("/x", {"b": 2}) == {"a": 1}
    [(method, path, headers, body)] = server.asked
    assert (method, path, body) == ("POST", "/x", b'{"b":2}')
    assert headers["Authorization"] == "Bearer stn_admin_x" and len(headers["Idempotency-Key"]) >= 20


def test_an_empty_answer_is_no_answer(server: Told, client: AdminClient) -> None:
    server.answer = 204, b""
    client.delete("/x")
    assert server.asked[0][0] == "DELETE"


def test_a_problem_is_told_in_the_servers_words(server: Told, client: AdminClient) -> None:
    server.answer = 409, b'{"code": "conflict", "detail": "cannot pause", "reason": "closed"}'
    with pytest.raises(NotPermitted, match=r"^cannot pause \(409 conflict, closed\)$"):
        client.get("/x")


def test_what_is_missing_can_be_asked_for(server: Told, client: AdminClient) -> None:
    server.answer = 404, b'{"code": "not_found", "detail": "there is no such event"}'
    assert client.find("/x") is None


@pytest.mark.parametrize("answer", [(302, b""), (200, b"<html>"), (502, b"<html>"), (500, b"{}")])
def test_another_server_is_not_taken_for_stanchion_and_gets_no_second_request(
    server: Told, client: AdminClient, answer: tuple[int, bytes]
) -> None:
    server.answer = answer
    with pytest.raises(Unreachable, match="not Stanchion's"):
        client.get("/x")
    assert len(server.asked) == 1


def test_an_id_cannot_lead_to_another_address() -> None:
    assert event_path("../status?x", "open") == "/v1/admin/events/..%2Fstatus%3Fx/open"


@pytest.mark.parametrize("text", ["", "two\nlines\n", "ü"])
def test_a_file_without_a_key_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "key"
    path.write_text(text)
    with pytest.raises(BadConfiguration):
        read_key(path)
