"""The admin API over a real socket and a real journal."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import fields
from hashlib import sha256
from pathlib import Path

import msgspec
import pytest

from engine.settings import KNOBS, Settings
from server.admin_wire import SettingsChange, SettingsView
from tests.server.running import Running, running

E1 = "/v1/admin/events/e1"


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Running]:
    async with running(tmp_path) as server:
        yield server


async def lines(server: Running, query: str = "") -> list[dict[str, object]]:
    async with server.client.get(f"{server.url}{E1}/records{query}", headers=server.admin) as response:
        assert response.status == 200
        assert response.content_type == "application/x-ndjson"
        return [json.loads(line) for line in (await response.text()).splitlines()]


# ---- settings ---------------------------------------------------------------------------------------


async def test_put_creates_an_event_and_answers_all_its_settings(server: Running) -> None:
    status, event, head = await server.call("PUT", E1, {"name": "Tour", "batch_size": 7})
    assert (status, event["state"], event["revision"], head["ETag"]) == (201, "draft", 1, '"1"')
    settings = event["settings"]
    assert isinstance(settings, dict) and set(settings) == set(KNOBS)
    assert (settings["batch_size"], settings["batch_interval_s"]) == (7, 10)


async def test_put_again_replaces_every_setting_and_patch_merges(server: Running) -> None:
    await server.call("PUT", E1, {"name": "Tour", "batch_size": 7})
    status, event, _ = await server.call("PATCH", E1, {"max_active": 40})
    assert status == 200
    assert (event["settings"]["name"], event["settings"]["max_active"]) == ("Tour", 40)  # type: ignore[index]
    status, event, _ = await server.call("PUT", E1, {"batch_size": 9})
    assert status == 200
    assert event["settings"] == Settings().as_map() | {"batch_size": 9}
    assert event["revision"] == 3


async def test_patch_of_an_event_that_is_not_there_is_404(server: Running) -> None:
    status, problem, _ = await server.call("PATCH", E1, {"batch_size": 9})
    assert (status, problem["code"]) == (404, "not_found")


async def test_everything_wrong_with_settings_is_said_at_once(server: Running) -> None:
    wrong = {"batch_size": 0, "queueing": "lifo", "colour": "red", "page": {"deep": 10**30}}
    status, problem, _ = await server.call("PUT", E1, wrong)
    assert (status, problem["code"]) == (422, "invalid_settings")
    assert {error["field"] for error in problem["errors"]} == set(wrong)  # type: ignore[attr-defined]


async def test_settings_in_conflict_with_each_other_are_refused(server: Running) -> None:
    status, problem, _ = await server.call("PUT", E1, {"session_ttl_s": 900, "session_max_s": 600})
    assert (status, problem["errors"]) == (
        422,
        [{"field": "session_ttl_s", "problem": "must not exceed session_max_s"}],
    )


async def test_settings_may_be_64_kib_and_no_larger(server: Running) -> None:
    assert (await server.call("PUT", E1, {"page": {"text": "x" * 60_000}}))[0] == 201
    assert (await server.call("PUT", E1, {"page": {"text": "x" * 66_000}}))[0] == 413


async def test_deep_settings_are_refused_and_not_stored(server: Running) -> None:
    deep: object = 1
    for _ in range(300):
        deep = {"a": deep}
    status, problem, _ = await server.call("PUT", E1, {"page": deep})
    assert (status, problem["errors"][0]["field"]) == (422, "page")  # type: ignore[index]
    assert (await server.call("GET", E1))[0] == 404


async def test_lowering_the_rate_needs_a_reason_which_is_recorded_with_its_actor(server: Running) -> None:
    await server.open_event(batch_size=10)
    status, problem, _ = await server.call("PATCH", E1, {"batch_size": 5})
    assert (status, problem["field"]) == (400, "reason")
    status, event, _ = await server.call("PATCH", E1, {"batch_size": 5, "reason": "slow checkout", "note": "INC-1"})
    assert (status, event["settings"]["batch_size"]) == (200, 5)  # type: ignore[index]
    record = (await lines(server))[-1]
    assert (record["actor"], record["reason"], record["note"]) == ("admin", "slow checkout", "INC-1")


@pytest.mark.parametrize("reserved", [{"reason": 5}, {"reason": "x" * 281}, {"note": []}, {"reason": "a\nb"}])
async def test_reserved_members_are_checked(server: Running, reserved: dict[str, object]) -> None:
    status, problem, _ = await server.call("PUT", E1, reserved)
    assert (status, problem["field"]) == (400, next(iter(reserved)))


def test_the_types_on_the_wire_are_made_of_the_engines_table() -> None:
    names = [field.name for field in fields(Settings)]
    assert [field.name for field in msgspec.structs.fields(SettingsView)] == names
    assert [field.name for field in msgspec.structs.fields(SettingsChange)] == [*names, "reason", "note"]
    assert msgspec.to_builtins(SettingsView()) == Settings().as_map()


# ---- If-Match ---------------------------------------------------------------------------------------


async def test_a_change_with_an_outdated_etag_is_412(server: Running) -> None:
    _, _, head = await server.call("PUT", E1, {})
    etag = head["ETag"]
    assert (await server.call("PATCH", E1, {"name": "a"}, If_Match=etag))[0] == 200
    for method in ("PATCH", "PUT", "DELETE"):
        status, problem, _ = await server.call(method, E1, {}, If_Match=etag)
        assert (status, problem["code"]) == (412, "precondition_failed")
    assert (await server.call("DELETE", E1, If_Match='"2"'))[0] == 204


async def test_if_match_star_asks_that_the_event_is_there(server: Running) -> None:
    assert (await server.call("PUT", E1, {}, If_Match="*"))[0] == 412
    assert (await server.call("PUT", E1, {}))[0] == 201
    assert (await server.call("PUT", E1, {"name": "a"}, If_Match="*"))[0] == 200


@pytest.mark.parametrize("etag", ["1", 'W/"1"', '"x"', '"1", "2"', '"' + "9" * 40 + '"'])
async def test_an_if_match_that_no_answer_had_is_400(server: Running, etag: str) -> None:
    status, problem, _ = await server.call("PUT", E1, {}, If_Match=etag)
    assert (status, problem["field"]) == (400, "If-Match")


# ---- states and releases ------------------------------------------------------------------------------


async def test_an_event_goes_through_its_states(server: Running) -> None:
    await server.open_event()
    for action, body, state, reason in (
        ("pause", {"reason": "payment is down"}, "paused", "payment is down"),
        ("resume", {"note": "back"}, "open", None),
        ("close", {"reason": "sold out", "outcome": "sold_out"}, "closed", "sold out"),
        ("open", {}, "open", None),
    ):
        status, event, _ = await server.call("POST", f"{E1}/{action}", body)
        assert (status, event["state"], event["reason"]) == (200, state, reason)


async def test_a_lobby_is_bound_when_it_opens_and_its_seed_is_shown_when_the_event_does(server: Running) -> None:
    await server.call("PUT", E1, {"lobby": True})
    status, event, _ = await server.call("POST", f"{E1}/lobby", {"beacon": "round 7", "note": "n"})
    assert (status, event["state"]) == (200, "lobby")
    bound: dict[str, object] = event["draw"]  # type: ignore[assignment]
    assert (bound["beacon"], bound["beacon_value"], bound["seed"], bound["count"]) == ("round 7", None, None, None)
    assert (await server.call("POST", f"{E1}/lobby", {}))[1]["draw"] == bound
    for number in range(3):
        await server.place(f"u{number}")
    status, problem, _ = await server.call("POST", f"{E1}/open", {})
    assert (status, problem["field"]) == (400, "beacon")
    status, event, _ = await server.call("POST", f"{E1}/open", {"beacon": "0xfeed"})
    drawn: dict[str, object] = event["draw"]  # type: ignore[assignment]
    assert (status, event["state"], drawn["beacon_value"], drawn["count"]) == (200, "open", "0xfeed", 3)
    assert drawn["commitment"] == bound["commitment"] == sha256(bytes.fromhex(str(drawn["seed"]))).hexdigest()
    (opened,) = [record for record in await lines(server) if record["kind"] == "opened"]
    assert (opened["seed"], opened["actor"]) == (drawn["seed"], "admin")


async def test_a_value_for_a_beacon_that_nobody_named_is_not_taken_silently(server: Running) -> None:
    await server.call("PUT", E1, {"lobby": True})
    await server.call("POST", f"{E1}/lobby", {})
    status, problem, _ = await server.call("POST", f"{E1}/open", {"beacon": "0xfeed"})
    assert (status, problem["reason"]) == (409, "no_beacon")
    assert (await server.call("GET", E1))[1]["state"] == "lobby"


@pytest.mark.parametrize("beacon", ["", "x" * 201, "a\nb", 5])
async def test_the_name_of_a_beacon_is_one_line(server: Running, beacon: object) -> None:
    await server.call("PUT", E1, {"lobby": True})
    status, problem, _ = await server.call("POST", f"{E1}/lobby", {"beacon": beacon})
    assert (status, problem["code"]) == (400, "bad_request")


async def test_a_lobby_needs_its_setting_and_a_resume_takes_no_beacon(server: Running) -> None:
    await server.call("PUT", E1, {})
    assert (await server.call("POST", f"{E1}/lobby", {}))[1]["reason"] == "no_lobby"
    await server.call("POST", f"{E1}/open", {})
    assert (await server.call("GET", E1))[1]["draw"] is None
    assert (await server.call("POST", f"{E1}/resume", {"beacon": "x"}))[0] == 400


@pytest.mark.parametrize("action", ["pause", "close"])
async def test_what_visitors_see_needs_a_reason(server: Running, action: str) -> None:
    await server.open_event()
    status, problem, _ = await server.call("POST", f"{E1}/{action}", {})
    assert (status, problem["field"]) == (400, "reason")


async def test_an_action_the_state_does_not_allow_is_409_with_a_reason(server: Running) -> None:
    await server.call("PUT", E1, {})
    status, problem, _ = await server.call("POST", f"{E1}/resume", {})
    assert (status, problem["code"], problem["reason"]) == (409, "conflict", "not_open")


async def test_release_says_what_it_did_and_what_held_it(server: Running) -> None:
    await server.open_event(max_active=2)
    for number in range(5):
        await server.place(f"u{number}")
    _, answer, _ = await server.call("POST", f"{E1}/release", {"count": 4})
    assert (answer["released"], answer["stepped_over"], answer["limited_by"]) == (2, 0, "capacity")
    _, stats, _ = await server.call("GET", f"{E1}/stats")
    assert (stats["counts"]["waiting"], stats["counts"]["ready"], stats["released_manual"]) == (3, 2, 2)  # type: ignore[index]
    assert (stats["inside"], stats["admissions_left"]) == (2, None)
    await server.call("PATCH", E1, {"admissions_left": 5, "max_active": 3})
    await server.call("POST", f"{E1}/release", {"count": 4})
    _, stats, _ = await server.call("GET", f"{E1}/stats")
    assert (stats["inside"], stats["admissions_left"]) == (3, 4)


async def test_a_message_is_set_and_taken_away(server: Running) -> None:
    await server.open_event()
    assert (await server.call("POST", f"{E1}/message", {"text": "hold on"}))[1]["message"] == "hold on"
    assert (await server.call("POST", f"{E1}/message", {"text": ""}))[1]["message"] is None


async def test_a_deleted_event_is_gone(server: Running) -> None:
    await server.call("PUT", E1, {})
    assert (await server.call("DELETE", f"{E1}?note=over"))[0] == 204
    assert (await server.call("GET", E1))[0] == 404
    assert (await server.call("GET", "/v1/admin/events"))[1] == {"events": []}


# ---- the gate -----------------------------------------------------------------------------------------


async def test_every_admin_call_wants_the_admin_key(server: Running) -> None:
    routes = [route for route in server.routes if route.path.startswith("/v1/admin")]
    assert len(routes) >= 19
    bodies = {"release": {"count": 1}, "message": {"text": ""}, "pause": {"reason": "r"}, "close": {"reason": "r"}}
    for route in routes:
        address = server.url + route.path.replace("{event_id}", "e1")
        body = bodies.get(route.path.rpartition("/")[2], {}) if route.body else None
        async with server.client.request(route.method, address, json=body) as response:
            assert response.status == 401, route
            assert (await response.json())["code"] == "bad_token"
            assert response.headers["WWW-Authenticate"] == "Bearer"


async def test_a_site_key_is_no_admin_key(server: Running) -> None:
    assert (await server.call("GET", E1, Authorization=f"Bearer {server.keys.site}"))[0] == 401


# ---- once only ----------------------------------------------------------------------------------------


async def test_a_repeated_post_happens_once(server: Running) -> None:
    await server.open_event()
    for number in range(5):
        await server.place(f"u{number}")
    first = await server.call("POST", f"{E1}/release", {"count": 2}, Idempotency_Key="k1")
    again = await server.call("POST", f"{E1}/release", {"count": 2}, Idempotency_Key="k1")
    assert first[:2] == again[:2]
    assert (await server.call("GET", f"{E1}/stats"))[1]["released_manual"] == 2


async def test_duplicates_at_the_same_moment_happen_once(server: Running) -> None:
    await server.open_event()
    for number in range(5):
        await server.place(f"u{number}")
    calls = [server.call("POST", f"{E1}/release", {"count": 1}, Idempotency_Key="k1") for _ in range(8)]
    answers = [answer for _, answer, _ in await asyncio.gather(*calls)]
    assert answers == [answers[0]] * 8
    assert (await server.call("GET", f"{E1}/stats"))[1]["released_manual"] == 1


async def test_the_same_key_with_another_body_or_address_is_409(server: Running) -> None:
    await server.open_event()
    await server.call("POST", f"{E1}/release", {"count": 1}, Idempotency_Key="k1")
    for path, body in ((f"{E1}/release", {"count": 2}), (f"{E1}/open", {})):
        status, problem, _ = await server.call("POST", path, body, Idempotency_Key="k1")
        assert (status, problem["reason"]) == (409, "idempotency_key_reused")


async def test_a_refused_post_may_be_tried_again_with_its_key(server: Running) -> None:
    await server.call("PUT", E1, {})
    assert (await server.call("POST", f"{E1}/release", {"count": 1}, Idempotency_Key="k1"))[0] == 409
    await server.call("POST", f"{E1}/open", {})
    assert (await server.call("POST", f"{E1}/release", {"count": 1}, Idempotency_Key="k1"))[0] == 200


# ---- the log and the server ---------------------------------------------------------------------------


async def test_records_are_those_of_the_event_and_of_the_process(server: Running) -> None:
    await server.open_event("other")
    await server.open_event()
    await server.place("u1")
    records = await lines(server)
    assert [record["kind"] for record in records] == ["started", "configured", "opened", "joined"]
    assert {record["event_id"] for record in records[1:]} == {"e1"}
    assert records[-1]["user_id"] == "u1"


async def test_records_end_where_they_are_told_to(server: Running) -> None:
    await server.open_event()
    newest = (await lines(server))[-1]["lsn"]
    assert [record["lsn"] for record in await lines(server, "?from=2&to=2")] == [2]
    assert await lines(server, f"?from={int(str(newest)) + 1}") == []
    assert (await lines(server, "?to=999999"))[-1]["lsn"] == newest


@pytest.mark.parametrize(
    "query", ["from=0", "from=x", "to=-1", "from=1&from=2", "since=1", "from=99999999999999999999"]
)
async def test_a_bad_range_of_records_is_400(server: Running, query: str) -> None:
    await server.open_event()
    status, problem, _ = await server.call("GET", f"{E1}/records?{query}")
    assert (status, problem["code"]) == (400, "bad_request")


async def test_records_of_an_unknown_event_are_404_and_their_head_has_no_body(server: Running) -> None:
    assert (await server.call("GET", f"{E1}/records"))[0] == 404
    await server.open_event()
    async with server.client.head(f"{server.url}{E1}/records", headers=server.admin) as response:
        assert (response.status, await response.read()) == (200, b"")


async def test_a_snapshot_is_written_and_the_status_shows_it(server: Running) -> None:
    await server.open_event()
    status, written, _ = await server.call("POST", "/v1/admin/snapshot", {})
    assert status == 200
    _, shown, _ = await server.call("GET", "/v1/admin/status")
    assert (shown["name"], shown["role"], shown["refuses_joins"]) == ("memory", "primary", None)
    assert shown["details"]["snapshots"] == written["details"]["snapshots"] == 1  # type: ignore[index]
