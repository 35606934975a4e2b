"""Which cookies stand for a session: the one the server set, for this event, under a name nobody can plant."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from engine.tokens import SessionToken, SessionTokens
from tests.server.running import Running, running
from tests.server.shop import SETTINGS, Browser, inside, let_in

NAME = "__Host-stanchion-session-e1"


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Running]:
    async with running(tmp_path / "data") as started:
        await started.open_event("e1", **SETTINGS)
        yield started


async def shown(server: Running, value: str, name: str = NAME) -> int:
    """Return how forward-auth answers a cookie."""
    return (await Browser(server, cookies={name: value}).auth()).status


def claims_of(server: Running, token: str) -> SessionToken:
    return SessionTokens(*server.keys.ring.secrets("session")).check(token, "e1", server.backend.venue.epoch)


async def test_the_cookie_that_was_set_is_believed_and_no_byte_of_it_may_change(server: Running) -> None:
    token = (await inside(server)).cookies[NAME]
    assert await shown(server, token) == 204
    for at in range(len(token)):
        other = "A" if token[at] != "A" else "B"
        assert await shown(server, token[:at] + other + token[at + 1 :]) == 401, at
    for length in range(0, len(token), 7):
        assert await shown(server, token[:length]) == 401
    assert await shown(server, token + "A") == 401


@pytest.mark.parametrize("value", ["", "x", "=" * 50, "A" * 2000, "null", "..", "%00", '"', "{}", "AWRuNmfj"])
async def test_anything_else_is_a_denial(server: Running, value: str) -> None:
    await inside(server)
    assert await shown(server, value) == 401


async def test_no_other_kind_of_token_stands_in_for_it(server: Running) -> None:
    place = await server.place("u1")
    pass_ = await let_in(server)
    await inside(server)
    for token in (str(place["token"]), pass_, server.keys.site, server.keys.admin):
        assert await shown(server, token) == 401


async def test_a_session_of_another_event_is_not_one_of_this(server: Running) -> None:
    await server.open_event("e2", **SETTINGS)
    await inside(server)
    token = (await inside(server, event_id="e2")).cookies["__Host-stanchion-session-e2"]
    assert await shown(server, token) == 401


async def test_a_session_of_a_later_epoch_is_kept_and_asked_about_again(server: Running) -> None:
    """It is good: this server is behind the one that gave it, and nobody may throw it away on its word."""
    claims = claims_of(server, (await inside(server)).cookies[NAME])
    facts = {name: getattr(claims, name) for name in claims.__struct_fields__}
    tokens = SessionTokens(*server.keys.ring.secrets("session"))
    assert await shown(server, tokens.mint(SessionToken(**facts | {"epoch": 2**31}))) == 503


@pytest.mark.parametrize(
    "change",
    [
        *({"user_id": "u2"}, {"jti": "x" * 22}, {"jti": ""}, {"event_id": "e2"}),
        *({"arrival": 2}, {"arrival": 0}, {"arrival": -1}, {"arrival": 10**12}),
    ],
)
async def test_a_token_of_ours_that_does_not_fit_the_room_is_a_denial(
    server: Running, change: dict[str, object]
) -> None:
    """Such a token can be left from history that was lost."""
    claims = claims_of(server, (await inside(server)).cookies[NAME])
    await inside(server, "u2")
    facts = {name: getattr(claims, name) for name in claims.__struct_fields__}
    tokens = SessionTokens(*server.keys.ring.secrets("session"))
    assert await shown(server, tokens.mint(SessionToken(**facts))) == 204
    assert await shown(server, tokens.mint(SessionToken(**facts | change))) == 401


async def test_another_servers_session_is_not_believed(server: Running) -> None:
    claims = claims_of(server, (await inside(server)).cookies[NAME])
    key_id = server.keys.ring.secrets("session")[1]
    assert await shown(server, SessionTokens({key_id: b"x" * 32}, key_id).mint(claims)) == 401


async def test_the_name_without_the_prefix_is_believed_on_plain_loopback_only(server: Running) -> None:
    token = (await inside(server)).cookies[NAME]
    plain = {"stanchion-session-e1": token}
    assert (await Browser(server, cookies=plain).auth()).status == 401
    assert (await Browser(server, front={}, cookies=plain).auth()).status == 204
    assert (await Browser(server, front={"X-Forwarded-Proto": "https"}, cookies=plain).auth()).status == 401
