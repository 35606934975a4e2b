"""What is told and kept: nothing secret anywhere but in the answer it belongs to, and nothing that strangers sent."""

import asyncio
import gc
import secrets
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from urllib.request import Request, urlopen

import pytest
from structlog.testing import capture_logs

from server.audience import Socket
from server.connections import Connection, Door
from server.socket_protocol import WebSocket
from tests.server.abuse import RawSocket, frame, post, request, send
from tests.server.attacking import CALM, EVENT, KEYS, asked, registered, word_of_shop
from tests.server.conftest import StartDaemon
from tests.server.daemons import Daemon, until
from tests.server.rings import WallClock
from tests.server.running import Running, running
from tests.server.shop import NAVIGATES, Browser, let_in


@pytest.fixture
def clock() -> WallClock:
    return WallClock()


@pytest.fixture
async def server(tmp_path: Path, clock: WallClock) -> AsyncIterator[Running]:
    async with running(tmp_path / "data", wall_ms=clock) as started:
        await started.open_event("e1", **CALM)
        yield started


# ---- what is told ------------------------------------------------------------------------------------------------


async def test_the_address_with_the_pass_goes_into_no_referer_and_no_cache(server: Running) -> None:
    browser, pass_ = Browser(server), await let_in(server)
    first = await browser.enter(pass_, **NAVIGATES)
    second = await browser.ask(f"/v1/enter{first.location}", **NAVIGATES)
    used = await Browser(server).navigate(pass_)
    bad = await Browser(server).enter("x", **NAVIGATES)
    denied = await Browser(server).auth(**NAVIGATES)
    assert [seen.status for seen in (first, second, used, bad, denied)] == [303, 303, 409, 401, 302]
    for seen in (first, second, used, bad, denied):
        assert (seen.headers["Referrer-Policy"], seen.headers["Cache-Control"]) == ("no-referrer", "no-store")
        assert seen is first or pass_ not in f"{seen.headers}{seen.text}"


async def test_a_draw_names_nobody(server: Running) -> None:
    assert (await server.call("PUT", "/v1/admin/events/e2", {"lobby": True, "batch_interval_s": 3600}))[0] == 201
    await server.call("POST", "/v1/admin/events/e2/lobby", {})
    for index in range(5):
        await server.place(f"visitor-{index}", "e2")
    await server.call("POST", "/v1/admin/events/e2/open", {})
    for path in ("draw", "draw/entries", ""):
        async with server.client.get(f"{server.url}/v1/events/e2/{path}".rstrip("/")) as response:
            text = await response.text()
            assert response.status == 200 and "visitor" not in text
    async with server.client.get(f"{server.url}/v1/events/e2/draw/entries") as response:
        lines = (await response.text()).splitlines()
        assert len(lines) == 5 and all(line.count(":") == 2 and '{"arrival":' in line for line in lines)


async def test_no_export_holds_what_proves_a_place(server: Running, clock: WallClock) -> None:
    """Digests of 64 bits are within reach of somebody who may guess at a million of them at once."""
    key_id, token = await registered(server), str((await server.place("u1"))["token"])
    await asked(server, "join", {"enqueue_token": word_of_shop(key_id, clock(), sub="u2")})
    code = (await asked(server, "transfer", None, token))[1]["code"]
    await asked(server, "transfer/accept", {"code": code}, Idempotency_Key="second")
    async with server.client.get(f"{server.url}/v1/admin/events/e1/records", headers=server.admin) as response:
        text = await response.text()
    assert '"kind":"transferred"' in text.lower() and '"user_id":"u2"' in text
    assert "proof" not in text


def text_of(daemon: Daemon, path: str) -> str:
    """Return what the admin API answers, as it is."""
    asking = Request(daemon.url + path, headers={"Authorization": f"Bearer {daemon.admin_key}"})
    with urlopen(asking, timeout=20) as response:
        return str(response.read().decode())


@pytest.mark.slow
def test_no_token_pass_code_or_key_is_told_anywhere_but_in_its_own_answer(start_daemon: StartDaemon) -> None:
    """Everything happens once, much of it wrongly as well; then all that is written and told is searched."""
    daemon = start_daemon("--log-level", "debug")
    shown = _lived(daemon)
    told = {
        path: text_of(daemon, path)
        for path in (
            "/v1/admin/status",
            "/v1/admin/keys",
            "/v1/admin/events",
            "/v1/admin/events/e1/stats",
            "/v1/admin/events/e1/visitors",
            "/v1/admin/events/e1/visitors?user_id=u1",
            "/v1/admin/events/e1/records",
            "/v1/admin/events/e1/fairness",
            EVENT,
            "/metrics",
        )
    }
    assert daemon.stop() == 0
    log = "".join(path.read_text() for path in daemon.data.parent.glob("*.log"))
    written = b"".join(
        path.read_bytes() for path in daemon.data.rglob("*") if path.is_file() and "keys" not in path.parts
    )
    for name, secret in shown.items():
        assert len(secret) > 30 and secret not in log, name
        assert secret.encode() not in written, name
        for path, text in told.items():
            assert secret not in text, (name, path)
    assert '"jti"' in told["/v1/admin/events/e1/records"], "the id of an admission is no secret"


def _lived(daemon: Daemon) -> dict[str, str]:
    """Let one visitor go all the way; returns every secret that was in an answer, by name."""
    daemon.admin("PUT", "/v1/admin/events/e1", CALM)
    daemon.admin("POST", "/v1/admin/events/e1/open", {})
    _, place = daemon.call("POST", f"{EVENT}/join", {"user_id": "u1"}, Idempotency_Key="key-of-u1")
    _, offer = daemon.call("POST", f"{EVENT}/transfer", key=place["token"])
    _, moved = daemon.call("POST", f"{EVENT}/transfer/accept", {"code": offer["code"]})
    daemon.admin("POST", "/v1/admin/events/e1/admit", {"user_id": "u1", "reason": "they are expected"})
    _, ready = daemon.call("GET", f"{EVENT}/position", key=moved["token"])
    _, receipt = daemon.call("GET", f"{EVENT}/receipt", key=moved["token"])
    created = daemon.admin("POST", KEYS, {"kind": "admin", "name": "night shift", "role": "viewer"})
    for path in (
        f"/v1/enter?event=e1&pass={ready['pass']}x",
        f"/w/e1?code={offer['code']}",
        f"/nowhere?{ready['pass']}",
    ):
        daemon.call("GET", path)
    daemon.call("POST", f"{EVENT}/redeem", {"pass": ready["pass"]}, key=created["secret"])
    for _ in range(12):
        daemon.call("GET", "/v1/admin/status", key=f"{created['secret']}x")
    _, session = daemon.call("POST", f"{EVENT}/redeem", {"pass": ready["pass"]}, key=daemon.site_key)
    daemon.call("POST", f"{EVENT}/extend", {"session": session["session"]}, key=daemon.site_key)
    daemon.call("GET", "/v1/auth/e1/x", Cookie=f"__Host-stanchion-session-e1={session['session']}x")
    daemon.call("POST", f"{EVENT}/complete", {"session": session["session"]}, key=daemon.site_key)
    until(lambda: "bad_keys_locked_out" in daemon.log(), "the lockout")
    return {
        "first token": place["token"],
        "second token": moved["token"],
        "code": offer["code"],
        "pass": ready["pass"],
        "session": session["session"],
        "receipt": receipt["receipt"],
        "viewer's key": created["secret"],
        "admin key": daemon.admin_key,
        "site key": daemon.site_key,
    }


async def test_an_error_nobody_thought_of_logs_the_address_without_its_query(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    pass_ = await let_in(server)

    def broken(event_id: str) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(server.backend, "event", broken)
    with capture_logs() as lines:
        for path in (f"/v1/enter?event=e1&pass={pass_}", f"/w/e1?code={pass_}"):
            assert (await Browser(server).ask(path)).status == 500
    assert [line["path"] for line in lines] == ["/v1/enter", "/w/e1"]
    assert pass_ not in str(lines)


async def test_one_owner_is_not_told_the_key_another_one_made_under_the_same_idempotency_key(server: Running) -> None:
    _, second, _ = await server.call("POST", KEYS, {"kind": "admin", "name": "second", "role": "owner"})
    _, viewer, _ = await server.call("POST", KEYS, {"kind": "admin", "name": "viewer", "role": "viewer"})
    body = {"kind": "site", "name": "shop"}
    _, made, _ = await server.call("POST", KEYS, body, Idempotency_Key="once")
    status, other, _ = await server.call(
        "POST", KEYS, body, Idempotency_Key="once", Authorization=f"Bearer {second['secret']}"
    )
    assert (status, other["code"]) == (409, "conflict"), "it is another request, and the name is taken"
    status, other, _ = await server.call(
        "POST", KEYS, body, Idempotency_Key="once", Authorization=f"Bearer {viewer['secret']}"
    )
    assert (status, other["code"]) == (403, "forbidden") and str(made["secret"]) not in str(other)


# ---- what is kept ------------------------------------------------------------------------------------------------


async def test_strangers_leave_nothing_in_the_line_or_the_log_of_records(server: Running) -> None:
    before = server.backend.venue.digest(), server.backend.status().version
    for index in range(50):
        junk = secrets.token_urlsafe(40)
        await asked(server, "redeem", {"pass": junk}, f"stn_site_{junk}")
        await asked(server, "transfer/accept", {"code": junk})
        await asked(server, "heartbeat", {}, junk)
        await Browser(server).enter(junk)
        await Browser(server, cookies={"__Host-stanchion-session-e1": junk}).auth(f"/v1/auth/e1/{index}")
    assert (server.backend.venue.digest(), server.backend.status().version) == before


@pytest.fixture
def uncollected() -> Iterator[None]:
    """Let nobody collect rings of objects, as in a daemon."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def connections() -> int:
    return sum(isinstance(thing, Connection | Door | WebSocket | Socket) for thing in gc.get_objects())


BAD_REQUESTS = {
    "no method": request("MOVE-ALONG", "/healthz"),
    "framing in doubt": request("GET", "/healthz", "Transfer-Encoding: gzip"),
    "too long": request("GET", "/" + "a" * 9000),
    "no HTTP": b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n",
    "a broken chunk": request("POST", f"{EVENT}/join", "Content-Type: application/json", "Transfer-Encoding: chunked")
    + b"zz\r\n",
    "a body too large": post(f"{EVENT}/join", b"a" * 20_000),
}


@pytest.mark.usefixtures("uncollected")
@pytest.mark.parametrize("raw", BAD_REQUESTS.values(), ids=BAD_REQUESTS.keys())
async def test_a_bad_request_leaves_no_connection_behind(server: Running, raw: bytes) -> None:
    before = connections()
    for _ in range(10):
        assert 400 <= (await send(server.port, raw)).status < 500
    await gone(before)


@pytest.mark.usefixtures("uncollected")
@pytest.mark.parametrize("first", ["", "x", '{"token": "x"}', '{"token": "%s"}'])
async def test_a_socket_that_hangs_up_leaves_no_connection_behind(server: Running, first: str) -> None:
    token, before = str((await server.place("u1"))["token"]), connections()
    for _ in range(10):
        socket = await RawSocket.open(server.port, f"{EVENT}/updates")
        if first:
            socket.send(frame(first.replace("%s", token).encode()))
            assert (await socket.frame())[0] == 1
        socket.close()
    await gone(before)


async def gone(before: int) -> None:
    """Wait until hardly more connections are there than before."""
    for _ in range(200):
        if connections() <= before + 1:
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"{connections() - before} of 10 connections are still held by somebody")
