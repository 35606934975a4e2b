"""The visitor's and the site's calls over real sockets, as API.md has them."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from engine.tokens import QUEUE_TOKEN_LIFE_S
from tests.server.running import Running, running, wall_ms


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Running]:
    async with running(tmp_path / "data") as started:
        await started.open_event("e1")
        yield started


async def call(
    server: Running, method: str, path: str, body: object = None, **headers: str
) -> tuple[int, dict[str, object]]:
    """Return (status, JSON) of a visitor's call; `_` in header names stands for `-`."""
    head = {name.replace("_", "-"): value for name, value in headers.items()}
    async with server.client.request(method, f"{server.url}/v1/events/{path}", json=body, headers=head) as response:
        return response.status, await response.json(content_type=None) or {}


def bearer(place: dict[str, object]) -> str:
    return f"Bearer {place['token']}"


async def test_a_join_answers_the_whole_place(server: Running) -> None:
    status, place = await call(server, "POST", "e1/join", {"user_id": "u1"})
    assert status == 201
    assert set(place) == {
        *("event_id", "user_id", "status", "cause", "arrival", "number", "position", "ahead", "waiting"),
        *("estimated_wait_seconds", "estimate", "progress", "token", "pass", "pass_expires_ms", "enter_url"),
        *("poll_after_seconds", "message", "now_ms", "epoch", "version", "stale"),
    }
    assert (place["number"], place["position"], place["ahead"], place["status"]) == (1, 1, 0, "waiting")
    assert abs(int(str(place["now_ms"])) - wall_ms()) < 5_000


async def test_the_seeds_estimate_is_told_with_its_band(server: Running) -> None:
    for index in range(100):
        await server.place(f"u{index}")
    place = await server.place("last")
    assert place["estimated_wait_seconds"] == int(100 / 50 * 1.2 * 60)
    assert place["estimate"] == {"low_seconds": 120, "high_seconds": 144, "confidence": 0.0, "reason": None}
    assert place["poll_after_seconds"] == 144 // 20


async def test_without_a_user_id_the_server_makes_one_and_retrying_is_safe(server: Running) -> None:
    _, first = await call(server, "POST", "e1/join", {}, Idempotency_Key="k1")
    status, again = await call(server, "POST", "e1/join", {}, Idempotency_Key="k1")
    assert (status, again["user_id"], again["number"]) == (200, first["user_id"], 1)
    assert again["token"]
    _, other = await call(server, "POST", "e1/join")
    assert other["user_id"] != first["user_id"] and len(str(other["user_id"])) >= 22


async def test_knowing_an_id_never_yields_the_place(server: Running) -> None:
    await call(server, "POST", "e1/join", {"user_id": "u1"}, Idempotency_Key="mine")
    for headers in ({}, {"Idempotency_Key": "guess"}):
        status, seen = await call(server, "POST", "e1/join", {"user_id": "u1"}, **headers)
        assert (status, set(seen)) == (200, {"event_id", "status", "number", "position"})


async def test_the_queue_token_the_key_and_a_site_key_each_prove_the_place(server: Running) -> None:
    _, place = await call(server, "POST", "e1/join", {"user_id": "u1"}, Idempotency_Key="mine")
    proofs = (
        {"Idempotency_Key": "mine"},
        {"Authorization": bearer(place)},
        {"Authorization": f"Bearer {server.keys.site}"},
    )
    for proof in proofs:
        status, again = await call(server, "POST", "e1/join", {"user_id": "u1"}, **proof)
        assert (status, again["number"], bool(again["token"])) == (200, 1, True)
    _, other = await call(server, "POST", "e1/join", {"user_id": "u2"})
    _, seen = await call(server, "POST", "e1/join", {"user_id": "u1"}, Authorization=bearer(other))
    assert "token" not in seen


async def test_a_position_is_asked_for_with_the_token_and_is_exact(server: Running) -> None:
    places = [await server.place(f"u{index}") for index in range(5)]
    await call(server, "POST", "e1/leave", None, Authorization=bearer(places[1]))
    status, place = await call(server, "GET", "e1/position", None, Authorization=bearer(places[4]))
    assert (status, place["position"], place["number"]) == (200, 4, 5)
    assert place["token"] is None


async def test_a_position_never_rises_above_what_was_shown(server: Running) -> None:
    for index in range(5):
        place = await server.place(f"u{index}")
    for shown, expected in ((3, 3), (5, 5), (99, 5)):
        _, again = await call(server, "GET", f"e1/position?shown={shown}", None, Authorization=bearer(place))
        assert (again["position"], again["ahead"]) == (expected, expected - 1)


async def test_a_token_past_half_its_life_is_renewed_and_an_expired_one_refused(server: Running) -> None:
    await server.place("u1")
    now_s = wall_ms() // 1000
    for age_s, expected in ((QUEUE_TOKEN_LIFE_S // 2 + 5, 200), (QUEUE_TOKEN_LIFE_S + 5, 401)):
        token = server.tokens.mint("e1", "u1", 1, 1, 0, server.backend.venue.epoch, now_s - age_s)
        status, place = await call(server, "GET", "e1/position", None, Authorization=f"Bearer {token}")
        assert status == expected
        assert status == 401 or server.tokens.check(str(place["token"]), "e1", server.backend.venue.epoch, now_s)


async def test_a_heartbeat_is_presence_and_answers_the_place(server: Running) -> None:
    place = await server.place("u1")
    status, beat = await call(server, "POST", "e1/heartbeat", {"visible": False}, Authorization=bearer(place))
    assert (status, beat["position"]) == (200, 1)


async def test_the_pages_cookie_reads_and_does_not_write(server: Running) -> None:
    place = await server.place("u1")
    cookie = {"Cookie": f"__Host-stanchion-e1={place['token']}"}
    assert (await call(server, "GET", "e1/position", None, **cookie))[0] == 200
    assert (await call(server, "POST", "e1/leave", None, **cookie))[0] == 401


async def test_leaving_is_for_good_and_repeating_it_is_harmless(server: Running) -> None:
    place = await server.place("u1")
    for _ in range(2):
        assert (await call(server, "POST", "e1/leave", None, Authorization=bearer(place)))[0] == 204
    _, again = await call(server, "GET", "e1/position", None, Authorization=bearer(place))
    assert (again["status"], again["position"]) == ("left", None)


async def test_a_token_of_another_event_or_nobodys_is_refused(server: Running) -> None:
    await server.open_event("e2")
    place = await server.place("u1", "e2")
    status, problem = await call(server, "GET", "e1/position", None, Authorization=bearer(place))
    assert (status, problem["code"]) == (401, "bad_token")
    assert (await call(server, "GET", "e1/position"))[0] == 401


async def test_the_site_completes_a_released_visitor_and_only_with_its_key(server: Running) -> None:
    await server.place("u1")
    await server.call("POST", "/v1/admin/events/e1/release", {"count": 1})
    site = {"Authorization": f"Bearer {server.keys.site}"}
    assert (await call(server, "POST", "e1/complete", {"user_id": "u1"}))[0] == 401
    assert (await call(server, "POST", "e1/complete", {"user_id": "u1"}, Authorization=f"Bearer {server.keys.admin}"))[
        0
    ] == 401
    for _ in range(2):
        status, done = await call(server, "POST", "e1/complete", {"user_id": "u1"}, **site)
        assert (status, done["status"], done["number"]) == (200, "completed", 1)
    await server.place("u2")
    status, problem = await call(server, "POST", "e1/complete", {"user_id": "u2"}, **site)
    assert (status, problem["code"], problem["reason"]) == (409, "not_active", "not_released")


async def test_an_event_shows_the_public_what_it_may_know(server: Running) -> None:
    await server.place("u1")
    await server.call("POST", "/v1/admin/events/e1/pause", {"reason": "rain"})
    status, event = await call(server, "GET", "e1")
    assert (status, event["state"], event["reason"], event["waiting"], event["serving_number"]) == (
        200,
        "paused",
        "rain",
        1,
        0,
    )
    assert not {"settings", "batch_size", "revision"} & set(event)


async def test_events_that_are_not_there_and_states_that_do_not_join_say_so(server: Running) -> None:
    await server.call("PUT", "/v1/admin/events/draft", {})
    for path, expected in (("nowhere/join", (404, "not_found")), ("draft/join", (409, "not_open"))):
        status, problem = await call(server, "POST", path, {"user_id": "u1"})
        assert (status, problem["code"]) == expected
    await server.call("POST", "/v1/admin/events/e1/close", {"reason": "over"})
    status, problem = await call(server, "POST", "e1/join", {"user_id": "u1"})
    assert (status, problem["code"], problem["reason"]) == (410, "closed", "closed")


async def test_an_enqueue_token_is_not_taken_while_no_key_for_it_is_registered(server: Running) -> None:
    status, problem = await call(server, "POST", "e1/join", {"user_id": "u1", "enqueue_token": "x.y.z"})
    assert (status, problem["code"]) == (401, "bad_enqueue_token")


@pytest.mark.parametrize("user_id", ["ü" * 64, "名前", "a b", "../../etc", "x" * 128, "שלום", "<script>", '"quoted"\\'])
async def test_ids_are_opaque_and_come_back_as_they_were(server: Running, user_id: str) -> None:
    status, place = await call(server, "POST", "e1/join", {"user_id": user_id})
    assert (status, place["user_id"]) == (201, user_id)
    assert (await call(server, "GET", "e1/position", None, Authorization=bearer(place)))[1]["user_id"] == user_id


async def test_allowed_origins_may_read_answers_and_others_may_not(server: Running) -> None:
    for origin, allowed in (("https://shop.example", True), ("https://evil.example", False)):
        async with server.client.get(f"{server.url}/v1/events/e1", headers={"Origin": origin}) as response:
            assert (response.headers.get("Access-Control-Allow-Origin") == origin) is allowed
            assert response.headers["Vary"] == "Origin"
        async with server.client.options(f"{server.url}/v1/events/e1/join", headers={"Origin": origin}) as preflight:
            assert preflight.status == 204
            assert ("Access-Control-Allow-Methods" in preflight.headers) is allowed


async def test_every_answer_forbids_sniffing_and_storing(server: Running) -> None:
    async with server.client.get(f"{server.url}/v1/events/e1") as response:
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        assert response.headers["Cache-Control"] == "no-store"
        assert "Server" not in response.headers


@pytest.mark.parametrize(("method", "path"), [("GET", "position"), ("POST", "heartbeat"), ("POST", "leave")])
async def test_a_token_of_an_epoch_to_come_is_good_and_this_server_behind(
    server: Running, method: str, path: str
) -> None:
    """Only who holds the keys made it: a later primary did, and it must not be thrown away."""
    await server.place("u1")
    token = server.tokens.mint("e1", "u1", 1, 1, 0, 2**40, wall_ms() // 1000)
    body = None if method == "GET" else {}
    status, problem = await call(server, method, f"e1/{path}", body, Authorization=f"Bearer {token}")
    assert (status, problem["code"]) == (503, "not_primary")
