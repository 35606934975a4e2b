"""The admin API for keys, through a real server: who may do what, what is shown once, what a rotation leaves alone."""

import asyncio
import re
from base64 import urlsafe_b64encode
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from engine.errors import Refused
from engine.tokens import QueueTokens
from server.key_kinds import LISTED
from tests.server.rings import WallClock, secrets_in
from tests.server.running import Running, running

KEYS = "/v1/admin/keys"
SHOP_KEY = urlsafe_b64encode(bytes(range(100, 132))).rstrip(b"=").decode()


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Running]:
    async with running(tmp_path / "data") as started:
        yield started


async def listed(server: Running) -> list[dict[str, Any]]:
    status, answer, _ = await server.call("GET", KEYS)
    assert status == 200
    return answer["keys"]  # type: ignore[return-value]


async def made(server: Running, body: dict[str, object], path: str = KEYS) -> tuple[dict[str, Any], str]:
    """Make or rotate a key; returns what may be known of it, and its secret."""
    status, answer, headers = await server.call("POST", path, body)
    assert status == 201, answer
    assert headers["Cache-Control"] == "no-store"
    return answer["key"], answer["secret"]  # type: ignore[return-value]


async def asked(server: Running, method: str, path: str, key: str, body: object = None) -> tuple[int, dict[str, Any]]:
    status, answer, _ = await server.call(method, path, body, Authorization=f"Bearer {key}")
    return status, answer


# ---- listing and making -----------------------------------------------------------------------------------


async def test_a_list_names_every_kind_in_use_and_no_secret(server: Running, tmp_path: Path) -> None:
    keys = await listed(server)
    assert [key["kind"] for key in keys] == ["pass", "queue", "session", "site", "admin", "replication"]
    assert [key["file"] for key in keys] == [None, None, None, "site.key", "admin.key", "replication.key"]
    assert {key["state"] for key in keys} == {"active"}
    text = str(keys)
    assert not [secret for secret in secrets_in(tmp_path / "data") if secret in text]
    public = server.keys.ring.pass_keys(server.keys.ring.now_ms())[2]
    assert urlsafe_b64encode(public[keys[0]["id"]]).rstrip(b"=").decode() == keys[0]["public_key"]


@pytest.mark.parametrize(
    "body",
    [
        {"kind": "admin", "name": "Night shift", "role": "operator"},
        {"kind": "site", "name": "Shop", "events": ["e1", "e2"]},
        {"kind": "site", "name": "Läden"},
        {"kind": "replication", "name": "standby", "note": "for the second machine"},
    ],
)
async def test_a_bearer_key_is_shown_once_and_good_at_once(server: Running, body: dict[str, Any]) -> None:
    key, secret = await made(server, body)
    assert re.fullmatch(f"stn_{body['kind']}_[A-Za-z0-9_-]{{43}}", secret)
    assert (key["name"], key["role"], key["events"]) == (body["name"], body.get("role"), body.get("events"))
    assert key in await listed(server)
    assert secret not in str(await listed(server))
    if body["kind"] == "admin":
        assert (await asked(server, "GET", KEYS, secret))[0] == 200


async def test_a_shops_public_key_is_registered_and_no_secret_is_made(server: Running) -> None:
    jwk = {"kty": "OKP", "crv": "Ed25519", "x": SHOP_KEY}
    key, secret = await made(server, {"kind": "enqueue", "name": "shop", "events": ["e1"], "public_key": jwk})
    assert (key["public_key"], secret) == (SHOP_KEY, None)
    assert server.keys.ring.enqueue_keys() == {key["id"]: (bytes(range(100, 132)), frozenset({"e1"}))}


@pytest.mark.parametrize("kind", ["pass", "queue", "session"])
async def test_a_signing_key_is_never_shown(server: Running, kind: str) -> None:
    key, secret = await made(server, {"kind": kind, "name": "next"})
    assert (key["kind"], secret) == (kind, None)


async def test_the_same_request_again_makes_one_key(server: Running) -> None:
    body = {"kind": "site", "name": "shop"}
    first = await server.call("POST", KEYS, body, Idempotency_Key="once")
    again = await server.call("POST", KEYS, body, Idempotency_Key="once")
    assert first[:2] == again[:2]
    assert [key["name"] for key in await listed(server)].count("shop") == 1


async def test_changes_of_one_moment_do_not_undo_each_other(server: Running) -> None:
    names = [f"shop {number}" for number in range(12)]
    await asyncio.gather(*(made(server, {"kind": "site", "name": name}) for name in names))
    assert set(names) <= {key["name"] for key in await listed(server)}


# ---- what is refused ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, None),
        ({"kind": "site"}, None),
        ({"kind": "magic", "name": "x"}, None),
        ({"kind": "draw", "name": "x"}, None),
        ({"kind": "pass-id", "name": "x"}, None),
        ({"kind": "site", "name": ""}, None),
        ({"kind": "site", "name": "a\nb"}, None),
        ({"kind": "site", "name": "a\u202eb"}, None),
        ({"kind": "site", "name": "x" * 101}, None),
        ({"kind": "site", "name": "x", "events": []}, None),
        ({"kind": "site", "name": "x", "events": ["A B"]}, None),
        ({"kind": "site", "name": "x", "secret": "mine"}, None),
        ({"kind": "admin", "name": "x"}, "role"),
        ({"kind": "admin", "name": "x", "role": "king"}, None),
        ({"kind": "enqueue", "name": "x"}, "public_key"),
        ({"kind": "enqueue", "name": "x", "public_key": "short"}, "public_key"),
        ({"kind": "enqueue", "name": "x", "public_key": {"d": "x"}}, "public_key"),
        ({"kind": "site", "name": "x", "public_key": SHOP_KEY}, "public_key"),
    ],
)
async def test_a_bad_request_makes_no_key(server: Running, body: dict[str, object], field: str | None) -> None:
    before = await listed(server)
    status, problem, _ = await server.call("POST", KEYS, body)
    assert (status, problem["code"]) == (400, "bad_request")
    assert field is None or problem["field"] == field
    assert await listed(server) == before


@pytest.mark.parametrize(
    ("body", "status", "reason"),
    [
        ({}, 400, None),
        ({"id": "site-00000000", "kind": "site"}, 400, None),
        ({"kind": "site", "overlap_s": -1}, 400, None),
        ({"kind": "site", "overlap_s": 10**9}, 400, None),
        ({"id": "site-00000000"}, 404, None),
        ({"kind": "draw"}, 409, "not_rotated"),
        ({"kind": "pass-id"}, 409, "not_rotated"),
        ({"kind": "enqueue"}, 409, "not_rotated"),
    ],
)
async def test_a_rotation_that_cannot_be_is_refused(
    server: Running, body: dict[str, object], status: int, reason: str | None
) -> None:
    found, problem, _ = await server.call("POST", f"{KEYS}/rotate", body)
    assert (found, problem.get("reason")) == (status, reason)


async def test_what_must_go_on_is_not_revoked_and_what_is_not_there_is_404(server: Running) -> None:
    for key in await listed(server):
        if key["kind"] in ("pass", "queue", "session", "admin"):
            status, problem, _ = await server.call("DELETE", f"{KEYS}?id={key['id']}")
            assert (status, problem["reason"]) == (409, "last_key")
    for kind in ("draw", "pass-id"):
        (hidden,) = server.keys.ring.live(kind)
        status, problem, _ = await server.call("DELETE", f"{KEYS}?id={hidden.id}")
        assert (status, problem["reason"]) == (409, "not_rotated")
    assert (await server.call("DELETE", f"{KEYS}?id=site-00000000"))[0] == 404
    assert (await server.call("DELETE", KEYS))[0] == 400
    assert (await server.call("DELETE", f"{KEYS}?id=../admin.key"))[0] == 400


async def test_a_ring_that_cannot_be_written_is_not_changed(server: Running, tmp_path: Path) -> None:
    before = await listed(server)
    (tmp_path / "data" / "keys").rename(tmp_path / "data" / "elsewhere")
    status, problem, _ = await server.call("POST", KEYS, {"kind": "site", "name": "shop"})
    assert (status, problem["code"]) == (503, "storage_full")
    assert await listed(server) == before


# ---- roles and scopes ---------------------------------------------------------------------------------------


async def test_every_admin_call_asks_for_the_role_it_needs(server: Running) -> None:
    """A viewer reads, an operator acts on events, and an owner also deletes, and has keys and snapshots."""
    await server.open_event("e1")
    keys = {
        role: (await made(server, {"kind": "admin", "name": role, "role": role}))[1]
        for role in ("viewer", "operator", "owner")
    }
    needed: dict[tuple[str, str], str] = {}
    for route in server.routes:
        if route.path.startswith("/v1/admin/"):
            allowed = []
            for role, key in keys.items():
                path = route.path.replace("{event_id}", "nowhere")
                body = None if route.method == "GET" else {"nonsense": 1}
                status, answer = await asked(server, route.method, path, key, body)
                if status == 403:
                    assert f"role {role}" in answer["detail"]
                else:
                    assert status != 401, route
                    allowed.append(role)
            needed[route.method, route.path] = allowed[0]
            assert allowed == list(keys)[list(keys).index(allowed[0]) :], route.path
    assert {needed[method, path] for method, path in needed if method == "GET"} == {"viewer"}
    assert needed["POST", "/v1/admin/events/{event_id}/pause"] == "operator"
    assert needed["PUT", "/v1/admin/events/{event_id}"] == needed["PATCH", "/v1/admin/events/{event_id}"] == "operator"
    for owners in (
        ("DELETE", "/v1/admin/events/{event_id}"),
        ("POST", "/v1/admin/snapshot"),
        ("POST", KEYS),
        ("DELETE", KEYS),
        ("POST", f"{KEYS}/rotate"),
    ):
        assert needed[owners] == "owner"


async def test_a_site_key_sees_events_of_others_as_if_they_were_not_there(server: Running) -> None:
    await server.open_event("e1")
    await server.open_event("e2")
    _, secret = await made(server, {"kind": "site", "name": "shop", "events": ["e1"]})
    body = {"user_id": "u1", "outcome": "completed"}
    theirs = await asked(server, "POST", "/v1/events/e2/complete", secret, body)
    nowhere = await asked(server, "POST", "/v1/events/e3/complete", server.keys.site, body)
    assert theirs[0] == 404 and theirs == nowhere
    own = await asked(server, "POST", "/v1/events/e1/complete", secret, body)
    assert own[0] == 404 and own != theirs, "the event is there, the visitor is not"
    assert (await asked(server, "POST", "/v1/events/e2/join", secret, {"user_id": "u1"})) == theirs
    assert (await asked(server, "POST", "/v1/events/e1/join", secret, {"user_id": "u1"}))[0] == 201


# ---- rotation -------------------------------------------------------------------------------------------------


def signed_by(server: Running, key_id: str, token: object) -> bool:
    """Return whether a queue token is of a key."""
    secrets, _ = server.keys.ring.secrets("queue")
    tokens = QueueTokens({key_id: secrets[key_id]}, key_id)
    try:
        tokens.check(str(token), "e1", 2**50, server.keys.ring.now_ms() // 1000)
    except Refused:
        return False
    return True


async def polled(server: Running, token: object) -> tuple[int, dict[str, Any]]:
    return await asked(server, "GET", "/v1/events/e1/position", str(token))


@pytest.mark.slow
async def test_a_rotation_of_the_queue_key_loses_nobodys_place(tmp_path: Path) -> None:
    clock = WallClock()
    async with running(tmp_path / "data", wall_ms=clock) as server:
        await server.open_event("e1", batch_interval_s=3600)
        place = await server.place("u1")
        old = next(key for key in await listed(server) if key["kind"] == "queue")
        assert (await polled(server, place["token"]))[1]["token"] is None
        new, _ = await made(server, {"kind": "queue"}, f"{KEYS}/rotate")
        status, answer = await polled(server, place["token"])
        assert (status, answer["number"]) == (200, place["number"])
        assert signed_by(server, new["id"], answer["token"])
        assert signed_by(server, old["id"], place["token"])
        renewed = answer["token"]
        clock.pass_s(10)
        assert (await polled(server, answer["token"]))[1]["token"] is not None, "from the second of the rotation"
    async with running(tmp_path / "data", wall_ms=clock) as server:
        clock.pass_s(10)
        status, answer = await polled(server, place["token"])
        assert status == 200 and signed_by(server, new["id"], answer["token"])
        assert (await polled(server, answer["token"]))[1]["token"] is None
        assert (await server.call("DELETE", f"{KEYS}?id={old['id']}"))[0] == 204
        assert (await polled(server, place["token"]))[0] == 401
        assert (await polled(server, renewed))[0] == 200
        assert (await polled(server, answer["token"]))[0] == 200


@pytest.mark.slow
async def test_an_old_queue_key_ends_by_itself_after_every_token_of_it_has(tmp_path: Path) -> None:
    clock = WallClock()
    async with running(tmp_path / "data", wall_ms=clock) as server:
        await server.open_event("e1", batch_interval_s=3600)
        await made(server, {"kind": "queue"}, f"{KEYS}/rotate")
        assert [key["state"] for key in await listed(server) if key["kind"] == "queue"] == ["ending", "active"]
        clock.pass_s(25 * 3600)
        assert [key["state"] for key in await listed(server) if key["kind"] == "queue"] == ["active"]


async def test_a_pass_key_is_published_before_its_turn(tmp_path: Path) -> None:
    clock = WallClock()
    async with running(tmp_path / "data", wall_ms=clock) as server:
        new, _ = await made(server, {"kind": "pass", "overlap_s": 60}, f"{KEYS}/rotate")
        assert (new["state"], new["signs_from_ms"]) == ("published", clock() + 300_000)
        assert (await server.call("POST", f"{KEYS}/rotate", {"kind": "pass"}))[1]["reason"] == "rotation_under_way"
        clock.pass_s(300)
        assert [key["state"] for key in await listed(server) if key["kind"] == "pass"] == ["ending", "active"]
        clock.pass_s(60)
        assert [key["id"] for key in await listed(server) if key["kind"] == "pass"] == [new["id"]]


async def test_a_rotated_admin_key_takes_its_file_and_the_old_one_lasts_a_day(tmp_path: Path) -> None:
    clock = WallClock()
    async with running(tmp_path / "data", wall_ms=clock) as server:
        key, secret = await made(server, {"kind": "admin"}, f"{KEYS}/rotate")
        assert (tmp_path / "data" / "keys" / "admin.key").read_text() == secret + "\n"
        assert (key["file"], key["role"]) == ("admin.key", "owner")
        assert (await asked(server, "GET", KEYS, server.keys.admin))[0] == 200
        clock.pass_s(24 * 3600)
        assert (await asked(server, "GET", KEYS, server.keys.admin))[0] == 401
        assert (await asked(server, "GET", KEYS, secret))[0] == 200


async def test_a_revoked_key_is_good_for_nothing_at_once(server: Running) -> None:
    key, secret = await made(server, {"kind": "admin", "name": "night", "role": "owner"})
    assert (await asked(server, "GET", KEYS, secret))[0] == 200
    assert (await server.call("DELETE", f"{KEYS}?id={key['id']}&note=left"))[0] == 204
    assert (await asked(server, "GET", KEYS, secret))[0] == 401


# ---- the audit ------------------------------------------------------------------------------------------------


async def test_every_change_is_a_line_with_its_actor_and_without_a_secret(server: Running) -> None:
    with structlog.testing.capture_logs() as lines:
        key, secret = await made(server, {"kind": "site", "name": "shop", "events": ["e1"], "note": "as agreed"})
        _, second = await made(server, {"id": key["id"], "overlap_s": 5}, f"{KEYS}/rotate")
        assert (await server.call("DELETE", f"{KEYS}?id={key['id']}&note=left"))[0] == 204
    changes = [line for line in lines if line["event"].startswith("key_")]
    assert [(line["event"], line["actor"], line["kind"], line["note"]) for line in changes] == [
        ("key_created", "admin", "site", "as agreed"),
        ("key_rotated", "admin", "site", None),
        ("key_revoked", "admin", "site", "left"),
    ]
    assert (changes[0]["key_id"], changes[0]["name"], changes[0]["events"]) == (key["id"], "shop", ("e1",))
    assert changes[1]["replaced"][0].startswith(key["id"])
    assert secret not in str(lines) and second not in str(lines)


def test_every_listed_kind_is_in_the_contract() -> None:
    assert set(LISTED) == {"pass", "queue", "session", "site", "admin", "enqueue", "replication"}
