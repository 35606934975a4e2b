"""The admin API about visitors, over a real socket and a real journal."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from engine.actor import Entrant
from engine.errors import Refused
from engine.records import Record
from tests.server.running import Running, running

E1 = "/v1/admin/events/e1"
QUICK: dict[str, Any] = {"batch_interval_s": 3600}


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Running]:
    async with running(tmp_path) as server:
        yield server


async def admin(server: Running, method: str, rest: str, body: object = None, **headers: str) -> tuple[int, Any]:
    status, answer, _ = await server.call(method, E1 + rest, body, **headers)
    return status, answer


async def crowd(server: Running, count: int) -> None:
    for number in range(1, count + 1):
        await server.place(f"u{number}")


async def words(server: Running, query: str) -> list[str]:
    status, answer = await admin(server, "GET", f"/visitors?{query}")
    assert status == 200, answer
    return [entry["text"] for entry in answer["timeline"]]


# ---- admit and remove ---------------------------------------------------------------------------------


async def test_one_visitor_is_let_in_ahead_of_the_others(server: Running) -> None:
    await server.open_event(**QUICK)
    await crowd(server, 3)
    status, answer = await admin(server, "POST", "/admit", {"number": 3, "reason": "press", "note": "INC-1"})
    place = answer["place"]
    assert (status, place["user_id"], place["status"], place["position"]) == (200, "u3", "ready", None)
    assert 110_000 < place["window_ms"] <= 120_000 < place["limit_ms"] and place["release"] == 1
    assert (await admin(server, "POST", "/admit", {"user_id": "u3", "reason": "press"}))[0] == 200
    _, stats = await admin(server, "GET", "/stats")
    assert (stats["inside"], stats["released_automatic"], stats["released_manual"]) == (1, 0, 0)
    assert (await words(server, "number=3"))[-1] == (
        "let in ahead of the others by admin, 0 s after joining; to be claimed within 2 min; why: press"
    )


async def test_nobody_is_let_in_beyond_the_cap(server: Running) -> None:
    await server.open_event(max_active=1, **QUICK)
    await crowd(server, 2)
    assert (await admin(server, "POST", "/admit", {"arrival": 2, "reason": "r"}))[0] == 200
    status, problem = await admin(server, "POST", "/admit", {"arrival": 1, "reason": "r"})
    assert (status, problem["code"], problem["reason"]) == (409, "at_capacity", "capacity")


async def test_a_removed_place_is_gone_and_a_ban_holds(server: Running) -> None:
    await server.open_event(**QUICK)
    await crowd(server, 2)
    body = {"user_id": "u1", "reason": "a robot", "ban": True}
    status, answer = await admin(server, "POST", "/remove", body)
    assert (status, answer["place"]["status"], answer["place"]["cause"]) == (200, "removed", "removed")
    async with server.client.post(f"{server.url}/v1/events/e1/join", json={"user_id": "u1"}) as response:
        assert (response.status, (await response.json())["code"]) == (403, "banned")
    assert await words(server, "arrival=1") == [
        "joined as number 1",
        "banned from this event by admin: a robot",
        "removed by admin: a robot",
    ]
    status, problem = await admin(server, "POST", "/remove", {"arrival": 1, "reason": "again"})
    assert (status, problem["reason"]) == (409, "ended")


async def test_who_is_banned_after_the_end_stays_out(server: Running) -> None:
    await server.open_event(**QUICK)
    await crowd(server, 1)
    await admin(server, "POST", "/remove", {"arrival": 1, "reason": "r"})
    assert (await admin(server, "POST", "/remove", {"arrival": 1, "reason": "r", "ban": True}))[0] == 409
    async with server.client.post(f"{server.url}/v1/events/e1/join", json={"user_id": "u1"}) as response:
        assert response.status == 403


@pytest.mark.parametrize("action", ["admit", "remove"])
async def test_a_visitor_is_named_exactly_once_and_for_a_reason(server: Running, action: str) -> None:
    await server.open_event(**QUICK)
    await crowd(server, 1)
    for body in ({"reason": "r"}, {"reason": "r", "number": 1, "arrival": 1}):
        status, problem = await admin(server, "POST", f"/{action}", body)
        assert (status, problem["field"]) == (400, "user_id")
    for bad in ({"number": 1}, {"number": 0, "reason": "r"}, {"number": 1, "reason": ""}, {"user": 1, "reason": "r"}):
        assert (await admin(server, "POST", f"/{action}", bad))[0] == 400
    for nobody in ({"number": 2}, {"user_id": "u2"}, {"arrival": 2**53 - 1}):
        assert (await admin(server, "POST", f"/{action}", nobody | {"reason": "r"}))[0] == 404


async def test_a_repeated_removal_happens_once(server: Running) -> None:
    await server.open_event(**QUICK)
    await crowd(server, 1)
    body = {"arrival": 1, "reason": "r"}
    first = await admin(server, "POST", "/remove", body, Idempotency_Key="k1")
    assert first[0] == 200
    assert await admin(server, "POST", "/remove", body, Idempotency_Key="k1") == first


# ---- finding -------------------------------------------------------------------------------------------


async def test_places_are_listed_a_page_at_a_time(server: Running) -> None:
    await server.open_event(**QUICK)
    await crowd(server, 5)
    await admin(server, "POST", "/release", {"count": 2})
    _, first = await admin(server, "GET", "/visitors?limit=3")
    assert ([place["arrival"] for place in first["visitors"]], first["next"]) == ([1, 2, 3], 3)
    _, last = await admin(server, "GET", "/visitors?limit=3&after=3")
    assert ([place["arrival"] for place in last["visitors"]], last["next"]) == ([4, 5], None)
    _, waiting = await admin(server, "GET", "/visitors?status=waiting&limit=2")
    assert [(place["user_id"], place["position"]) for place in waiting["visitors"]] == [("u3", 1), ("u4", 2)]
    assert (await admin(server, "GET", "/visitors?status=removed"))[1] == {"visitors": [], "next": None}


async def test_looking_is_no_presence_and_shows_nothing_secret(server: Running) -> None:
    await server.open_event(**QUICK)
    await crowd(server, 1)
    _, found = await admin(server, "GET", "/visitors?user_id=u1")
    assert set(found["place"]) == {
        *("event_id", "user_id", "status", "cause", "arrival", "number", "position", "window_ms", "limit_ms"),
        *("release", "generation", "joined_ms", "version"),
    }
    assert (await admin(server, "GET", "/visitors?user_id=u1"))[1]["place"]["version"] == found["place"]["version"]


@pytest.mark.parametrize(
    "query",
    [
        "user_id=u1&number=1",
        "number=1&status=waiting",
        "arrival=1&after=1",
        "status=closed",
        "status=none",
        "limit=0",
        "limit=1001",
        "after=-1",
        "number=0",
        "number=x",
        "user_id=",
        "who=u1",
    ],
)
async def test_a_question_that_makes_no_sense_is_400(server: Running, query: str) -> None:
    await server.open_event(**QUICK)
    await crowd(server, 1)
    status, problem = await admin(server, "GET", f"/visitors?{query}")
    assert (status, problem["code"]) == (400, "bad_request")


async def test_nobody_and_nothing_is_404(server: Running) -> None:
    assert (await admin(server, "GET", "/visitors"))[0] == 404
    assert (await admin(server, "GET", "/fairness"))[0] == 404
    await server.open_event(**QUICK)
    assert (await admin(server, "GET", "/visitors?number=1"))[0] == 404


# ---- the timeline ----------------------------------------------------------------------------------------


async def test_a_timeline_tells_the_way_through_the_lobby(server: Running) -> None:
    await server.call("PUT", E1, QUICK | {"lobby": True})
    await server.call("POST", f"{E1}/lobby", {})
    await crowd(server, 9)
    await server.call("POST", f"{E1}/open", {})
    await admin(server, "POST", "/pause", {"reason": "payment is down"})
    await admin(server, "POST", "/release", {"count": 1, "reason": "a try"})
    _, found = await admin(server, "GET", "/visitors?number=1")
    arrival = found["place"]["arrival"]
    assert [entry["kind"] for entry in found["timeline"]] == ["joined", "opened", "paused", "released"]
    assert [entry["text"] for entry in found["timeline"]] == [
        f"joined the lobby as arrival {arrival}, a number is drawn at opening",
        "number 1 drawn at opening from 9",
        "the event paused: payment is down",
        "let in by hand by admin, 1 at once, 0 s after joining; to be claimed within 2 min; why: a try",
    ]
    paused = found["timeline"][2]
    assert (paused["actor"], paused["reason"]) == ("admin", "payment is down")
    assert [entry["lsn"] for entry in found["timeline"]] == sorted(entry["lsn"] for entry in found["timeline"])
    assert all(abs(entry["wall_ms"] - entry["at_ms"]) < 60_000 for entry in found["timeline"])


async def test_many_ask_at_once_and_each_gets_the_story_of_one(server: Running) -> None:
    await server.open_event(**QUICK)
    await server.open_event("other")
    await crowd(server, 20)
    await server.place("u1", "other")
    asked = [words(server, f"user_id=u{number}") for number in range(1, 21)]
    assert await asyncio.gather(*asked) == [[f"joined as number {number}"] for number in range(1, 21)]


@pytest.mark.parametrize("oldest", [2, 3, 4, 5])
async def test_a_log_that_was_pruned_says_from_where_on_it_tells(
    server: Running, oldest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    await server.open_event(**QUICK)
    await crowd(server, 1)
    await admin(server, "POST", "/pause", {"reason": "r"})
    read = server.backend._journal.read_records

    async def pruned(from_lsn: int) -> AsyncIterator[Sequence[tuple[int, Record]]]:
        if from_lsn < oldest:
            raise Refused("gone", "the log no longer reaches back", reason="pruned")
        async for batch in read(from_lsn):
            yield batch

    monkeypatch.setattr(server.backend._journal, "read_records", pruned)
    told = await words(server, "arrival=1")
    kept = ["joined as number 1", "the event paused: r"]
    gone = f"earlier records are not kept any more: the log begins at LSN {oldest}"
    assert told[-2:] == (kept if oldest <= 4 else [gone, kept[1]])
    assert (gone in told) == (oldest > 4)


async def test_what_is_pruned_while_it_is_read_is_missing_and_no_error(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    await server.open_event(**QUICK)
    await crowd(server, 3)
    await admin(server, "POST", "/pause", {"reason": "r"})
    read, oldest = server.backend._journal.read_records, [1]

    async def pruning(from_lsn: int) -> AsyncIterator[Sequence[tuple[int, Record]]]:
        if from_lsn < oldest[0]:
            raise Refused("gone", "the log no longer reaches back", reason="pruned")
        async for batch in read(from_lsn):
            yield batch[:2]
            oldest[0] = 5
            if from_lsn < oldest[0]:
                raise Refused("gone", "the log no longer reaches back", reason="pruned")
            yield batch[2:]

    monkeypatch.setattr(server.backend._journal, "read_records", pruning)
    assert await words(server, "number=1") == [
        "earlier records are not kept any more: the log begins at LSN 5",
        "the event paused: r",
    ]


@pytest.mark.slow
async def test_a_timeline_survives_real_pruning(server: Running) -> None:
    await server.open_event(**QUICK)
    await crowd(server, 1)
    for part in range(5):
        many = [Entrant(f"{part}-{number}-" + 100 * "x") for number in range(8_000)]
        await asyncio.gather(*(server.backend.join("e1", entrant) for entrant in many))
        assert (await server.call("POST", "/v1/admin/snapshot", {}))[0] == 200
    await admin(server, "POST", "/remove", {"arrival": 1, "reason": "a robot"})
    first, last = await words(server, "number=1")
    assert first.startswith("earlier records are not kept any more: the log begins at LSN ")
    assert int(first.split()[-1]) > 10_000 and last == "removed by admin: a robot"
    assert await words(server, "arrival=40001") == ["joined as number 40001"]


# ---- fairness ----------------------------------------------------------------------------------------------


async def test_fairness_counts_what_the_line_did(server: Running) -> None:
    await server.open_event(max_active=2, **QUICK)
    await crowd(server, 4)
    await admin(server, "POST", "/release", {"count": 1})
    await admin(server, "POST", "/admit", {"arrival": 4, "reason": "r"})
    await admin(server, "POST", "/remove", {"arrival": 2, "reason": "r"})
    status, counted = await admin(server, "GET", "/fairness")
    assert status == 200
    assert {name: counted[name] for name in ("released", "admitted", "inversions", "overshoot", "peak_inside")} == {
        "released": 1,
        "admitted": 1,
        "inversions": 0,
        "overshoot": 0,
        "peak_inside": 2,
    }
    assert counted["skipped"] == {"absent": 0, "unclaimed": 0, "removed": 1, "left": 0}
    assert counted["overtaken"] == {"returned": 0, "readmitted": 0, "unexplained": 0}


# ---- roles -------------------------------------------------------------------------------------------------


async def test_a_viewer_reads_and_an_operator_acts(server: Running) -> None:
    await server.open_event(**QUICK)
    await crowd(server, 1)
    keys: dict[str, str] = {}
    for role in ("viewer", "operator"):
        _, made, _ = await server.call("POST", "/v1/admin/keys", {"kind": "admin", "name": role, "role": role})
        keys[role] = f"Bearer {made['secret']}"
    for rest in ("/visitors", "/visitors?number=1", "/fairness"):
        assert (await admin(server, "GET", rest, Authorization=keys["viewer"]))[0] == 200
    for action in ("admit", "remove"):
        body = {"number": 1, "reason": "r"}
        status, problem = await admin(server, "POST", f"/{action}", body, Authorization=keys["viewer"])
        assert (status, problem["code"]) == (403, "forbidden")
        assert (await admin(server, "POST", f"/{action}", body, Authorization=keys["operator"]))[0] == 200
    assert (await words(server, "number=1"))[-1] == "removed by operator: r"
