"""All safe defaults in one place: whoever weakens one has to change this file too."""

import stat
from pathlib import Path

import aiohttp
import pytest

from engine.tokens import SHORTEST_SECRET
from server import app, connections, gate, key_ring, push, routes, socket_protocol, updates
from server.config import load
from server.ports import UNSENT_LIMIT_BYTES
from server.replication import link
from server.routes import Auth, Listener
from tests.server.daemons import Daemon
from tests.server.running import running


def test_a_daemon_without_any_setting_is_as_closed_as_it_can_be() -> None:
    config = load({}).config
    assert (config.host, config.admin_host, config.replication_listen) == ("127.0.0.1", "127.0.0.1", None)
    assert config.trusted_proxies == () and config.allowed_origins == ()
    assert config.max_connections_per_address is None, (
        "carriers share addresses: no join or connection limit by default"
    )
    assert not config.log_user_ids
    assert config.weaker() == []


def test_limits_are_those_that_were_promised() -> None:
    assert routes.BODY_LIMIT == 8 * 1024
    assert (app.BODY_TIMEOUT_S, connections.KEEP_ALIVE_S) == (10.0, 15.0)
    assert (connections.LINE_LIMIT, connections.HEADERS_LIMIT) == (8190, 64)
    assert (updates.FIRST_MESSAGE_S, socket_protocol.MESSAGE_LIMIT) == (5.0, 4096)
    assert push.SLOW_AFTER_S <= 30 and push.DEAD_AFTER_S <= 65
    assert UNSENT_LIMIT_BYTES <= 16 * 1024
    assert SHORTEST_SECRET >= 32 and key_ring.ENTROPY_BYTES >= 32
    assert (link.PROOF_TIMEOUT_S, link.STRANGERS_LIMIT, link.HANDSHAKE_MAX_BYTES) == (5.0, 64, 4096)
    assert (link.MESSAGE_MAX_BYTES, link.NONCE_BYTES, link.MAC_BYTES) == (8 << 20, 32, 16)
    assert (gate.BAD_KEYS_LIMIT, gate.BAD_KEYS_WINDOW_S) == (10, 60)


@pytest.mark.slow
def test_what_a_daemon_stores_only_its_owner_can_read(daemon: Daemon) -> None:
    found = {path.relative_to(daemon.data): path for path in [daemon.data, *daemon.data.rglob("*")]}
    assert len(found) > 6
    for name, path in found.items():
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode == (0o700 if path.is_dir() else 0o600), f"{name} has mode {mode:o}"


async def test_every_admin_call_asks_for_the_admin_key_and_lives_on_its_listener(tmp_path: Path) -> None:
    async with running(tmp_path / "data") as server:
        for route in server.routes:
            if route.path.startswith("/v1/admin"):
                assert (route.auth, route.listener) == (Auth.ADMIN_KEY, Listener.ADMIN), route.path
                url = server.url + route.path.replace("{event_id}", "e1")
                for key in (None, server.keys.site, server.keys.admin[:-1], server.keys.admin.upper()):
                    headers = {"Authorization": f"Bearer {key}"} if key else {}
                    async with server.client.request(route.method, url, json={}, headers=headers) as response:
                        assert response.status in (401, 429), (route.path, key)
            elif route.path == "/metrics":
                assert route.listener is Listener.ADMIN


async def test_sockets_take_no_compression_however_it_is_offered(tmp_path: Path) -> None:
    async with running(tmp_path / "data") as server:
        await server.open_event("e1")
        async with aiohttp.ClientSession() as client:
            ws = await client.ws_connect(f"{server.url}/v1/events/e1/updates", compress=15)
            assert not ws.compress
            await ws.close()


async def test_bodies_are_never_inflated(tmp_path: Path) -> None:
    async with running(tmp_path / "data") as server:
        await server.open_event("e1")
        headers = {"Content-Encoding": "gzip", "Content-Type": "application/json"}
        async with server.client.post(f"{server.url}/v1/events/e1/join", data=b"\x1f\x8b", headers=headers) as response:
            assert response.status == 415
