"""What the tests of attacks share: calls to an event, a shop that signs, and an event that is made anew."""

import secrets
from typing import Any

from engine.signatures import public_of
from tests.engine.forging import encoded, signed
from tests.server.running import Running
from tests.server.shop import SETTINGS, remove

EVENT = "/v1/events/e1"
KEYS = "/v1/admin/keys"
SHOPS_KEY = secrets.token_bytes(32)
CALM = {"batch_interval_s": 3600, **SETTINGS}


async def asked(server: Running, path: str, body: object, bearer: str = "", **headers: str) -> tuple[int, Any]:
    """Return the answer to a POST at event e1, or at the event that the path begins with."""
    address = path if path.startswith("/") else f"{EVENT}/{path}"
    head = {name.replace("_", "-"): value for name, value in headers.items()}
    head |= {"Authorization": f"Bearer {bearer}"} if bearer else {}
    async with server.client.post(server.url + address, json=body, headers=head) as response:
        return response.status, await response.json(content_type=None)


async def made_anew(server: Running) -> None:
    """Delete event e1, whoever is inside of it, and make it again."""
    for place in (await server.call("GET", "/v1/admin/events/e1/visitors"))[1]["visitors"]:  # type: ignore[attr-defined]
        if place["status"] in ("ready", "active"):
            await remove(server, place["user_id"])
    assert (await server.call("POST", "/v1/admin/events/e1/close", {"reason": "over"}))[0] == 200
    assert (await server.call("DELETE", "/v1/admin/events/e1"))[0] == 204
    await server.open_event("e1", **CALM)


async def registered(server: Running, *events: str) -> str:
    """Register a shop's key to let people join; returns its id."""
    public = encoded(public_of(SHOPS_KEY))
    body = {"kind": "enqueue", "name": "shop", "public_key": public} | ({"events": events} if events else {})
    status, answer, _ = await server.call("POST", KEYS, body)
    assert status == 201
    return str(answer["key"]["id"])  # type: ignore[index]


def word_of_shop(key_id: str, now_ms: int, **claims: object) -> str:
    """Return an enqueue token."""
    said = {"aud": "e1", "sub": "u1", "jti": secrets.token_hex(8), "exp": now_ms // 1000 + 300} | claims
    return signed(SHOPS_KEY, {"alg": "EdDSA", "typ": "stanchion-enqueue+jwt", "kid": key_id}, said)
