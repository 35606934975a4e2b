"""A rotation from outside: whatever an old key signed stays good until its end, and a revoked key ends it at once."""

import secrets
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from engine.signatures import public_of
from tests.engine.forging import encoded, parts_of, signed
from tests.server.rings import WallClock
from tests.server.running import Running, running
from tests.server.shop import let_in

KEYS = "/v1/admin/keys"
SHOP = secrets.token_bytes(32)


@pytest.fixture
def clock() -> WallClock:
    return WallClock()


@pytest.fixture
async def server(tmp_path: Path, clock: WallClock) -> AsyncIterator[Running]:
    async with running(tmp_path / "data", wall_ms=clock) as started:
        await started.open_event("e1", batch_interval_s=3600)
        yield started


async def rotated(server: Running, kind: str, **more: object) -> dict[str, Any]:
    status, answer, _ = await server.call("POST", f"{KEYS}/rotate", {"kind": kind, **more})
    assert status == 201, answer
    return answer["key"]  # type: ignore[return-value]


async def revoked(server: Running, key_id: str) -> None:
    assert (await server.call("DELETE", f"{KEYS}?id={key_id}"))[0] == 204


async def asked(server: Running, path: str, body: object, key: str) -> tuple[int, dict[str, Any]]:
    status, answer, _ = await server.call("POST", f"/v1/events/e1/{path}", body, Authorization=f"Bearer {key}")
    return status, answer


async def redeemed(server: Running, pass_: str) -> tuple[int, dict[str, Any]]:
    return await asked(server, "redeem", {"pass": pass_}, server.keys.site)


async def published(server: Running) -> list[str]:
    """Return the ids of the keys that sites may fetch, and check how long they may keep them."""
    async with server.client.get(f"{server.url}/.well-known/jwks.json") as response:
        assert response.headers["Cache-Control"] == "public, max-age=300"
        return [key["kid"] for key in (await response.json())["keys"]]


def signer(token: str) -> object:
    return parts_of(token)[0]["kid"]


async def test_no_pass_is_signed_by_a_key_that_sites_have_not_had_time_to_fetch(
    server: Running, clock: WallClock
) -> None:
    (old,) = await published(server)
    early = await let_in(server, "u1")
    new = (await rotated(server, "pass"))["id"]
    assert await published(server) == [old, new]
    clock.pass_s(299)
    server.keys.ring.turn()
    late = await let_in(server, "u2")
    assert signer(early) == signer(late) == old
    clock.pass_s(1)
    server.keys.ring.turn()
    fresh = await let_in(server, "u3")
    assert signer(fresh) == new and await published(server) == [old, new]
    assert [(await redeemed(server, each))[0] for each in (early, late, fresh)] == [200, 200, 200]


async def test_an_old_pass_key_is_published_until_its_passes_have_run_out(server: Running, clock: WallClock) -> None:
    (old,) = await published(server)
    new = (await rotated(server, "pass"))["id"]
    clock.pass_s(300 + 86_400)
    server.keys.ring.turn()
    assert await published(server) == [old, new], "no pass lives longer than claim_max_s can say"
    clock.pass_s(3_600)
    server.keys.ring.turn()
    assert await published(server) == [new]


async def test_revoking_a_pass_key_voids_its_passes_and_the_visitor_is_handed_a_new_one(server: Running) -> None:
    (old,) = await published(server)
    stolen = await let_in(server, "u1")
    new = (await rotated(server, "pass"))["id"]
    await revoked(server, old)
    assert await published(server) == [new]
    assert (await redeemed(server, stolen))[0] == 401
    place = await server.place("u1")
    assert signer(str(place["pass"])) == new
    assert parts_of(str(place["pass"]))[1]["jti"] == parts_of(stolen)[1]["jti"], "the same admission"
    assert (await redeemed(server, str(place["pass"])))[0] == 200


async def test_a_session_outlives_the_rotation_of_its_key_and_not_its_revocation(server: Running) -> None:
    (old,) = server.keys.ring.live("session")
    first = (await redeemed(server, await let_in(server, "u1")))[1]["session"]
    second = (await redeemed(server, await let_in(server, "u2")))[1]["session"]
    await rotated(server, "session")
    body = {"session": first, "outcome": "completed"}
    assert (await asked(server, "complete", body, server.keys.site))[0] == 200
    await revoked(server, old.id)
    body = {"session": second, "outcome": "completed"}
    assert (await asked(server, "complete", body, server.keys.site))[0] == 401
    third = (await redeemed(server, await let_in(server, "u3")))[1]["session"]
    assert (await asked(server, "complete", {"session": third, "outcome": "completed"}, server.keys.site))[0] == 200


async def test_a_code_to_move_a_place_outlives_the_rotation_of_the_queue_key(server: Running) -> None:
    place = await server.place("u1")
    status, offer = await asked(server, "transfer", None, str(place["token"]))
    assert status == 200
    await rotated(server, "queue")
    status, moved, _ = await server.call("POST", "/v1/events/e1/transfer/accept", {"code": offer["code"]})
    assert (status, moved["number"]) == (200, place["number"])


async def test_a_shops_key_is_good_from_its_registration_to_its_revocation_and_for_its_events(
    server: Running, clock: WallClock
) -> None:
    await server.open_event("e2")
    body = {"kind": "enqueue", "name": "shop", "events": ["e1"], "public_key": encoded(public_of(SHOP))}
    status, answer, _ = await server.call("POST", KEYS, body)
    assert (status, answer["secret"]) == (201, None)
    key_id = answer["key"]["id"]  # type: ignore[index]

    async def joined(sub: str, event_id: str = "e1") -> int:
        claims = {"aud": event_id, "sub": sub, "jti": sub, "exp": clock() // 1000 + 60}
        token = signed(SHOP, {"alg": "EdDSA", "typ": "stanchion-enqueue+jwt", "kid": key_id}, claims)
        url = f"{server.url}/v1/events/{event_id}/join"
        async with server.client.post(url, json={"enqueue_token": token}) as response:
            return response.status

    assert (await joined("u1"), await joined("u2", "e2")) == (201, 401)
    await revoked(server, key_id)
    assert await joined("u3") == 401


async def test_a_site_key_redeems_at_its_own_events_only(server: Running) -> None:
    await server.open_event("e2")
    status, answer, _ = await server.call("POST", KEYS, {"kind": "site", "name": "shop", "events": ["e2"]})
    assert status == 201
    pass_ = await let_in(server, "u1")
    theirs = await asked(server, "redeem", {"pass": pass_}, str(answer["secret"]))
    assert theirs[0] == 404 and theirs[1]["detail"] == "there is no such event"
    assert (await redeemed(server, pass_))[0] == 200
