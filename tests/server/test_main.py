"""The daemon as a whole: real processes, real signals, a real disk."""

import asyncio
import json
import os
import resource
import socket
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
import pytest

from server import main
from server.app import App
from server.routes import Listener, Route
from tests.server.conftest import StartDaemon
from tests.server.daemons import CLI, DEADLINE_S, Daemon, clean_environment, cli, until
from tests.server.rings import secrets_in


def join(daemon: Daemon, user_id: str, event_id: str = "sale") -> dict[str, object]:
    status, place = daemon.call("POST", f"/v1/events/{event_id}/join", {"user_id": user_id}, Idempotency_Key=user_id)
    assert status in (200, 201), place
    return place  # type: ignore[no-any-return]


def open_sale(daemon: Daemon, **settings: object) -> None:
    daemon.admin("PUT", "/v1/admin/events/sale", {"batch_size": 1, "batch_interval_s": 3600, **settings})
    daemon.admin("POST", "/v1/admin/events/sale/open", {})


def connect(daemon: Daemon) -> socket.socket:
    parts = urlsplit(daemon.url)
    return socket.create_connection((parts.hostname or "", parts.port or 0), timeout=DEADLINE_S)


# ---- starting -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_it_says_where_it_listens_and_what_it_found(daemon: Daemon) -> None:
    assert daemon.first_line.startswith("Stanchion listens on http://127.0.0.1:")
    assert "begin a new log" in daemon.first_line
    assert daemon.call("GET", "/readyz")[0] == 200
    assert daemon.call("GET", "/healthz")[0] == 200
    assert "queue_waiting_users" in daemon.call("GET", "/metrics")[1]
    assert daemon.call("GET", "/openapi.json")[1]["openapi"].startswith("3.1")


@pytest.mark.slow
def test_on_loopback_one_port_serves_everything_and_on_another_host_the_admin_api_moves(
    start_daemon: StartDaemon,
) -> None:
    daemon = start_daemon("--host", "0.0.0.0", "--public-url", "https://queue.example", "--admin-port", "0")
    assert daemon.call("GET", "/v1/admin/events", key=daemon.admin_key)[0] == 404
    assert daemon.call("GET", "/metrics")[0] == 404
    assert daemon.call("GET", "/healthz")[0] == 200
    daemon.url = daemon.first_line.partition("admin API on ")[2].split()[0]
    assert urlsplit(daemon.url).hostname == "127.0.0.1"
    assert daemon.call("GET", "/v1/admin/events", key=daemon.admin_key) == (200, {"events": []})
    assert daemon.call("GET", "/metrics")[0] == 200
    assert daemon.call("POST", "/v1/events/sale/join", {})[0] == 404


@pytest.mark.slow
def test_the_demo_opens_an_event_that_anybody_may_join(start_daemon: StartDaemon) -> None:
    daemon = start_daemon("--demo")
    assert join(daemon, "u1", "demo")["position"] == 1
    daemon.stop()
    daemon = start_daemon("--demo")
    assert join(daemon, "u1", "demo")["number"] == 1


@pytest.mark.slow
def test_a_folder_in_use_is_refused_with_75(daemon: Daemon) -> None:
    second = cli("serve", "--port", "0", "--data", daemon.data)
    assert (second.returncode, second.stdout) == (75, "")
    assert "another process holds" in second.stderr and "Traceback" not in second.stderr
    assert daemon.call("GET", "/readyz")[0] == 200


@pytest.mark.slow
def test_a_port_in_use_is_refused_with_78_before_the_folder_is_touched(daemon: Daemon, tmp_path: Path) -> None:
    port = str(urlsplit(daemon.url).port)
    second = cli("serve", "--port", port, "--data", tmp_path / "other")
    assert second.returncode == 78 and second.stderr.startswith("stanchion: port: cannot listen on")
    assert not (tmp_path / "other").exists()


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["redis://127.0.0.1", "nonsense"])
def test_a_backend_that_is_not_built_is_refused_before_anything_is_touched(tmp_path: Path, backend: str) -> None:
    result = cli("serve", "--port", "0", "--data", tmp_path / "data", "--backend", backend)
    assert result.returncode == 78 and result.stderr.count("\n") == 1
    assert not (tmp_path / "data").exists()


@pytest.mark.slow
def test_damaged_data_is_refused_with_65_and_left_as_it_is(start_daemon: StartDaemon) -> None:
    daemon = start_daemon()
    open_sale(daemon)
    for number in range(20):
        join(daemon, f"u{number}")
    daemon.kill()
    segment = next((daemon.data / "log").glob("*.seg"))
    damaged = bytearray(segment.read_bytes())
    damaged[damaged.index(b"joined")] ^= 1
    segment.write_bytes(damaged)
    result = cli("serve", "--port", "0", "--data", daemon.data)
    assert result.returncode == 65 and segment.name in result.stderr
    assert segment.read_bytes() == damaged
    assert cli("verify", daemon.data).returncode == 65


@pytest.mark.slow
def test_the_admin_key_is_shown_once_on_a_terminal_and_never_elsewhere(start_daemon: StartDaemon) -> None:
    daemon = start_daemon()
    secrets = secrets_in(daemon.data)
    daemon.call("GET", "/v1/admin/events", key=daemon.admin_key)
    command_line = Path(f"/proc/{daemon.process.pid}/cmdline").read_text()
    daemon.stop()
    for secret in secrets:
        assert secret not in daemon.first_line + daemon.log() + command_line


@pytest.mark.slow
def test_a_terminal_sees_the_new_admin_key(tmp_path: Path) -> None:
    ours, theirs = os.openpty()
    command = [*CLI, "serve", "--port", "0", "--data", str(tmp_path / "data"), "--log-format", "json"]
    with subprocess.Popen(command, stdout=theirs, stderr=subprocess.DEVNULL, env=clean_environment()) as process:
        os.close(theirs)
        seen = ""
        while "Admin key" not in seen or not seen.endswith("\n"):
            seen += os.read(ours, 4096).decode()
        process.terminate()
    os.close(ours)
    assert (tmp_path / "data" / "keys" / "admin.key").read_text().strip() in seen


# ---- durability and ending ------------------------------------------------------------------------------


@pytest.mark.slow
def test_whoever_was_answered_is_there_after_a_kill(start_daemon: StartDaemon) -> None:
    daemon = start_daemon()
    open_sale(daemon)
    places = [join(daemon, f"u{number}") for number in range(30)]
    daemon.kill()
    daemon = start_daemon()
    again = [join(daemon, f"u{number}") for number in range(30)]
    assert [place["number"] for place in again] == [place["number"] for place in places] == list(range(1, 31))
    token = str(places[7]["token"])
    assert daemon.call("GET", "/v1/events/sale/position", key=token)[1]["position"] == 8


@pytest.mark.slow
def test_a_signal_ends_it_in_order_with_a_last_snapshot(start_daemon: StartDaemon) -> None:
    daemon = start_daemon()
    open_sale(daemon)
    join(daemon, "u1")
    assert daemon.stop() == 0
    assert len(list((daemon.data / "snapshots").glob("*.snap"))) == 1
    assert [json.loads(line)["event"] for line in daemon.log().splitlines()][-1] == "stopped"
    daemon = start_daemon()
    assert "start from the newest snapshot" in daemon.first_line
    assert join(daemon, "u1")["number"] == 1


@pytest.mark.slow
def test_a_request_that_is_running_when_the_signal_comes_is_answered(daemon: Daemon) -> None:
    open_sale(daemon)
    body = json.dumps({"user_id": "late"}).encode()
    with connect(daemon) as client:
        head = f"Host: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        client.sendall(b"POST /v1/events/sale/join HTTP/1.1\r\n" + head.encode() + body[:5])
        until(lambda: daemon.call("GET", "/healthz")[0] == 200, "an answer")
        daemon.process.terminate()
        until(lambda: "draining" in daemon.log(), "draining")
        client.sendall(body[5:])
        answer = client.makefile("rb").readline()
    assert answer.startswith(b"HTTP/1.1 201 ")
    assert daemon.wait() == 0


@pytest.mark.slow
async def test_sockets_are_sent_away_with_4001(start_daemon: StartDaemon) -> None:
    daemon = await asyncio.to_thread(start_daemon)
    await asyncio.to_thread(open_sale, daemon)
    token = (await asyncio.to_thread(join, daemon, "u1"))["token"]
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(f"{daemon.url}/v1/events/sale/updates") as updates,
    ):
        await updates.send_json({"token": token})
        assert (await updates.receive_json())["position"] == 1
        daemon.process.terminate()
        while (await updates.receive()).type is aiohttp.WSMsgType.TEXT:
            pass
        assert updates.close_code == 4001
    assert await asyncio.to_thread(daemon.wait) == 0


@pytest.mark.slow
def test_a_log_that_fails_refuses_the_waiting_and_ends_with_74(start_daemon: StartDaemon) -> None:
    daemon = start_daemon()
    open_sale(daemon)
    for number in range(250):
        join(daemon, f"{number:0120}")
    limit_bytes = 32 * 1024
    resource.prlimit(daemon.process.pid, resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))
    status, problem = daemon.call("POST", "/v1/events/sale/join", {"user_id": "one too many"})
    assert (status, problem["code"]) == (503, "backend_unavailable")
    assert daemon.wait() == 74
    assert "log_failed" in daemon.log()
    daemon = start_daemon()
    assert daemon.admin("GET", "/v1/admin/events/sale/stats")["arrivals"] in (250, 251)


DYING = """
import sys
from server import main
from server.config import load

async def die(backend):
    raise ZeroDivisionError

main.release_due = die
sys.exit(main.serve(load({"port": "0", "data": sys.argv[1]}).config))
"""


@pytest.mark.slow
def test_a_core_task_that_dies_ends_the_process_with_70(tmp_path: Path) -> None:
    command = [sys.executable, "-c", DYING, str(tmp_path / "data")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    assert result.returncode == 70
    [told] = [json.loads(line) for line in result.stderr.splitlines() if "core_task_died" in line]
    assert told["task"] == "pacer" and "ZeroDivisionError" in told["exception"]


async def _nothing(call: object) -> None:
    raise AssertionError


def test_each_listener_serves_its_own_routes_and_those_of_both() -> None:
    rows = [Route("GET", f"/{kind.value}", _nothing, "", {}, listener=kind) for kind in Listener]  # type: ignore[arg-type]
    assert [row.path for row in main.listener_routes(rows, Listener.PUBLIC)] == ["/public", "/both"]
    assert [row.path for row in main.listener_routes(rows, Listener.ADMIN)] == ["/admin", "/both"]
    assert [row.path for row in main.listener_routes(rows, Listener.REPLICATION)] == ["/both", "/replication"]
    assert App(rows, observe=lambda *_: None).table.routes == tuple(rows)
