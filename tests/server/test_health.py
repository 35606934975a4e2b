"""Health over a real socket, and over a backend that says no."""

from pathlib import Path

import msgspec
import pytest

from engine.backend import BackendStatus, Role
from server.health import Health, ReadyQuery
from server.routes import Call
from tests.server.running import running


class Backend:
    """A backend that refuses joins."""

    def status(self) -> BackendStatus:
        return BackendStatus("fake", 7, 1, 1, ("no standby",), "storage_full", {})


async def test_a_running_server_lives_and_is_ready(tmp_path: Path) -> None:
    async with running(tmp_path) as server:
        async with server.client.get(f"{server.url}/healthz") as response:
            assert (response.status, await response.json()) == (200, {"status": "ok"})
        for query in ("", "?for=joins", "?for=reads"):
            async with server.client.get(f"{server.url}/readyz{query}") as response:
                body = await response.json()
                assert (response.status, body["ready"], body["role"], body["refuses"]) == (200, True, "primary", None)
        async with server.client.get(f"{server.url}/readyz?for=writes") as response:
            assert response.status == 400


async def test_a_draining_server_lives_and_is_not_ready(tmp_path: Path) -> None:
    async with running(tmp_path) as server:
        server.health.draining = True
        for query in ("", "?for=reads"):
            async with server.client.get(f"{server.url}/readyz{query}") as response:
                body = await response.json()
                assert (response.status, body["ready"], body["refuses"]) == (503, False, "draining")
                assert response.headers["Retry-After"] == "5"
        async with server.client.get(f"{server.url}/healthz") as response:
            assert response.status == 200


class Follower:
    """A backend of a process that has a role, or none."""

    def __init__(self, role: Role, refuses_joins: str | None) -> None:
        self.role: Role = role
        self.refuses_joins = refuses_joins

    def status(self) -> BackendStatus:
        return BackendStatus("fake", 7, 1, 1, (), self.refuses_joins, {}, self.role, False)


@pytest.mark.parametrize(
    ("role", "refuses", "joins", "reads"),
    [
        ("follower", None, 200, 200),
        ("follower", "not_primary", 503, 200),
        ("none", "not_primary", 503, 503),
    ],
)
async def test_a_follower_takes_joins_while_its_primary_is_there_and_answers_reads_anyway(
    role: Role, refuses: str | None, joins: int, reads: int
) -> None:
    health = Health(Follower(role, refuses))  # type: ignore[arg-type]
    for what, expected in (("joins", joins), ("reads", reads)):
        answer = await health.readyz(Call(None, "", ReadyQuery(what), None))  # type: ignore[arg-type]
        body = msgspec.json.decode(answer.body)
        assert (answer.status, body["role"], body["refuses"]) == (expected, role, refuses)


async def test_a_server_that_refuses_joins_is_ready_for_reads() -> None:
    health = Health(Backend())  # type: ignore[arg-type]
    joins = await health.readyz(Call(None, "", ReadyQuery(), None))  # type: ignore[arg-type]
    reads = await health.readyz(Call(None, "", ReadyQuery("reads"), None))  # type: ignore[arg-type]
    assert (joins.status, reads.status) == (503, 200)
    for answer in (joins, reads):
        assert b'"epoch":7,"degraded":["no standby"],"refuses":"storage_full"' in answer.body
