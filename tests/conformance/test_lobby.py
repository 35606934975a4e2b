"""The lobby and its draw, held against every backend that draws: bound before, recomputed by anybody afterwards."""

import asyncio
import hashlib
import random
from pathlib import Path

import pytest
from msgspec.structs import astuple

from engine.backend import Backend
from engine.draw import commitment_of, entries_digest, mixed, order
from engine.records import Opened
from tests.conformance.asking import holder, join, join_many, now, refused, whom
from tests.conformance.backends import OPS, WHY, Host


@pytest.fixture
async def backend(host: Host) -> Backend:
    """Return a backend whose event e1 is a lobby."""
    await host.event(lobby=True)
    return host.backend


async def numbers(backend: Backend, count: int) -> list[int]:
    """Return all entries of the draw, having checked that they are the numbers 1…count in order."""
    entries = await backend.draw_entries("e1", 0, 10_000)
    assert [number for _, number in entries] == list(range(1, count + 1))
    return [arrival for arrival, _ in entries]


async def recomputed(backend: Backend, arrivals: set[int]) -> list[int]:
    """Return the order that the published data gives."""
    draw = (await backend.event("e1")).draw
    assert draw and draw.seed and draw.count == len(arrivals)
    assert commitment_of(bytes.fromhex(draw.seed)) == draw.commitment
    assert draw.entries_sha256 == entries_digest(arrivals)
    return order(mixed(bytes.fromhex(draw.seed), draw.beacon_value), arrivals)


async def test_the_draw_is_what_anybody_recomputes_from_what_was_published(backend: Backend) -> None:
    places = await join_many(backend, 300)
    await backend.leave("e1", holder(places[6]))
    commitment = (await backend.event("e1")).draw.commitment  # type: ignore[union-attr]
    await backend.control("e1", "open", OPS)
    assert (await backend.event("e1")).draw.commitment == commitment  # type: ignore[union-attr]
    drawn = await numbers(backend, 299)
    assert drawn == await recomputed(backend, set(range(1, 301)) - {7})
    assert [(await now(backend, places[arrival - 1])).number for arrival in drawn[:20]] == list(range(1, 21))
    assert backend.ranks("e1", drawn[:20]).positions == list(range(1, 21))


async def test_in_the_lobby_there_are_no_numbers_and_the_seed_is_nowhere(host: Host, backend: Backend) -> None:
    places = await join_many(backend, 5)
    if backend.capabilities.snapshots:
        await backend.snapshot()
    assert all((place.status, place.number, place.position) == ("lobby", None, None) for place in places)
    assert (await backend.event("e1")).draw.seed is None  # type: ignore[union-attr]
    files = [path.read_bytes() for path in host.folder.rglob("*") if path.is_file()]
    await backend.control("e1", "open", OPS)
    seed = (await backend.event("e1")).draw.seed  # type: ignore[union-attr]
    assert seed and files and not any(seed.encode() in data or bytes.fromhex(seed) in data for data in files)
    assert any(seed.encode() in path.read_bytes() for path in host.folder.rglob("*") if path.is_file())


async def test_a_kill_in_the_lobby_changes_neither_the_draw_nor_who_is_in_it(host: Host, backend: Backend) -> None:
    await join_many(backend, 50)
    before = (await backend.event("e1")).draw
    backend = await host.kill()
    await join(backend, "late")
    backend = await host.restart()
    assert (await backend.event("e1")).draw == before
    await backend.control("e1", "open", OPS)
    assert await numbers(backend, 51) == await recomputed(backend, set(range(1, 52)))


async def test_a_kill_between_the_opening_and_the_end_of_the_draw_changes_no_number(
    host: Host, backend: Backend
) -> None:
    await join_many(backend, 80)
    await backend.control("e1", "open", OPS)
    late = await join(backend, "late")
    expected = await recomputed(backend, set(range(1, 81)))
    for again in (host.kill, host.restart):
        backend = await again()
        assert await numbers(backend, 80) == expected
        assert (await now(backend, late)).position == 81


async def test_a_log_that_ends_with_the_opening_is_drawn_the_same(host: Host, backend: Backend) -> None:
    """The rows of a draw are not in the log: whoever has the opening has the draw."""
    if not backend.capabilities.records:
        return
    await join_many(backend, 30)
    await backend.control("e1", "open", OPS)
    records = [record async for batch in backend.records(1) for _, record in batch]
    assert isinstance(records[-1], Opened)
    drawn = await numbers(backend, 30)
    assert await numbers(await host.kill(), 30) == drawn


async def test_whoever_joins_after_the_opening_stands_behind_the_drawn(backend: Backend) -> None:
    await join_many(backend, 20)
    await backend.control("e1", "open", OPS)
    late = await join(backend, "late")
    assert (late.number, late.position) == (21, 21)


async def test_a_beacon_is_named_before_and_its_value_required_at_the_opening(host: Host) -> None:
    backend = host.backend
    await backend.configure("e1", {"lobby": True}, OPS, replace=True)
    await backend.control("e1", "lobby", OPS, beacon="lottery of 1 May")
    await join_many(backend, 40)
    error = await refused(backend.control("e1", "open", OPS), "bad_request")
    assert error.field == "beacon"
    backend = await host.kill()
    await backend.control("e1", "open", OPS, beacon="4 8 15 16 23 42")
    draw = (await backend.event("e1")).draw
    assert draw and draw.seed and (draw.beacon, draw.beacon_value) == ("lottery of 1 May", "4 8 15 16 23 42")
    seed = hashlib.sha256(bytes.fromhex(draw.seed) + b"4 8 15 16 23 42").digest()
    assert await numbers(backend, 40) == order(seed, range(1, 41))


async def test_two_lobbies_never_share_a_secret(host: Host) -> None:
    seeds = []
    for _ in range(2):
        await host.event(lobby=True)
        await host.backend.control("e1", "open", OPS)
        seeds.append((await host.backend.event("e1")).draw.seed)  # type: ignore[union-attr]
        await host.backend.control("e1", "close", WHY)
        await host.backend.delete("e1", OPS)
    assert seeds[0] != seeds[1]


async def test_pausing_a_lobby_holds_its_opening_back(host: Host) -> None:
    await host.event(lobby=True, opens_at_ms=host.clock.wall_ms + 1)
    view = await host.backend.control("e1", "pause", WHY)
    assert (view.state, view.settings["opens_at_ms"]) == ("lobby", None)


async def test_the_drawn_are_released_in_the_order_of_their_numbers_over_a_kill(host: Host, backend: Backend) -> None:
    await join_many(backend, 60)
    await backend.control("e1", "open", OPS)
    drawn = await numbers(backend, 60)
    await backend.release("e1", 10, OPS)
    backend = await host.kill()
    await backend.release("e1", 10, OPS)
    ready = {place.arrival for place in await backend.visitors("e1", "ready", 0, 100)}
    assert ready == set(drawn[:20])
    assert (await backend.fairness("e1")).inversions == 0


@pytest.mark.parametrize("seed", range(3))
async def test_people_who_move_while_the_lobby_opens_are_kept_by_a_kill(
    host: Host, backend: Backend, seed: int
) -> None:
    chosen = random.Random(seed)
    places = await join_many(backend, 120)
    for place in chosen.sample(places, 20):
        await backend.leave("e1", holder(place))
    await backend.control("e1", "open", OPS)
    for place in chosen.sample(places, 20):
        await backend.leave("e1", holder(place))
    for index in range(10):
        await join(backend, f"late{index}")
    before = [await now(backend, place) for place in places]
    folder: Path = host.folder
    backend = await host.kill()
    assert host.folder != folder
    after = [await now(backend, place) for place in places]
    assert [astuple(place)[:8] for place in after] == [astuple(place)[:8] for place in before]


async def test_who_is_removed_from_the_lobby_is_not_drawn(backend: Backend) -> None:
    places = await join_many(backend, 10)
    await backend.remove("e1", whom(places[3]), WHY)
    await backend.control("e1", "open", OPS)
    assert sorted(await numbers(backend, 9)) == [1, 2, 3, 5, 6, 7, 8, 9, 10]


async def test_a_kill_in_the_middle_of_writing_the_draw_changes_no_number(host: Host, backend: Backend) -> None:
    places = await join_many(backend, 2_500)
    opening = asyncio.ensure_future(backend.control("e1", "open", OPS))
    leaving = asyncio.ensure_future(backend.leave("e1", holder(places[9])))
    joining = asyncio.ensure_future(join(backend, "late"))
    _, late = await asyncio.gather(leaving, joining)
    backend = await host.kill()  # the rows of the first backend's draw are half written, as a rule
    await opening
    expected = await recomputed(backend, set(range(1, 2_501)))
    assert await numbers(backend, 2_500) == expected
    assert await numbers(host.killed[0], 2_500) == expected
    left = await now(backend, places[9])
    assert (left.status, (await now(backend, late)).position) == ("left", 2_500)
