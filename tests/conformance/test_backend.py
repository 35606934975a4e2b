"""The contract, held against every backend: what each declares it must do, on real storage."""

import asyncio

from engine.actor import By, Entrant, Holder, Whom
from engine.backend import Backend
from engine.records import Joined
from engine.views import EventChanged, Notice, PlacesChanged
from tests.conformance.asking import holder, join, join_many, refused, whom
from tests.conformance.backends import OPS, WHY, Host


async def test_joins_at_once_get_numbers_in_order_and_exact_positions(backend: Backend) -> None:
    places = await asyncio.gather(*(join(backend, f"u{index}") for index in range(200)))
    assert [place.number for place in places] == list(range(1, 201))
    assert [place.position for place in places] == list(range(1, 201))
    assert all(place.fresh for place in places)


async def test_joining_again_is_the_same_place_and_only_the_proof_proves_it(backend: Backend) -> None:
    first = await join(backend, "u1", 77)
    assert (await join(backend, "u1", 77)).proven
    other = await join(backend, "u1", 78)
    assert (other.arrival, other.proven, other.fresh) == (first.arrival, False, False)


async def test_one_identity_joining_many_times_at_once_has_one_place(backend: Backend) -> None:
    places = await asyncio.gather(*(join(backend, "u1", 7) for _ in range(50)))
    assert {place.number for place in places} == {1}
    assert sum(place.fresh for place in places) == 1


async def test_a_position_is_exact_after_leaves_and_releases(backend: Backend) -> None:
    places = [await join(backend, f"u{index}") for index in range(20)]
    await backend.leave("e1", holder(places[3]))
    await backend.leave("e1", holder(places[3]))
    assert (await backend.release("e1", 5, OPS)).released == 5
    assert (await backend.place("e1", holder(places[4]))).status == "ready"
    assert (await backend.touch("e1", holder(places[10]))).position == 5
    ranking = backend.ranks("e1", [place.arrival for place in places])
    assert ranking.positions == [0] * 6 + list(range(1, 15))


async def test_a_place_of_somebody_else_is_not_there(backend: Backend) -> None:
    place = await join(backend, "u1")
    theirs = Holder(place.arrival, "u2")
    for call in (
        backend.place("e1", theirs),
        backend.touch("e1", Holder(place.arrival + 1, "u1")),
        backend.leave("e1", theirs),
        backend.extend_claim("e1", theirs),
        backend.transfer("e1", theirs, 5),
        backend.find("e1", Whom(user_id="u2")),
        backend.event("nowhere"),
        backend.join("nowhere", Entrant("u1")),
    ):
        await refused(call, "not_found")


async def test_completing_frees_a_slot_under_the_cap(backend: Backend) -> None:
    await backend.configure("e1", {"max_active": 2}, OPS, replace=False)
    for index in range(5):
        await join(backend, f"u{index}")
    result = await backend.release("e1", 5, OPS)
    assert (result.released, result.limited_by) == (2, "capacity")
    assert (await backend.complete("e1", Whom(user_id="u0"), "completed", "site")).status == "completed"
    assert (await backend.complete("e1", Whom(user_id="u0"), "completed", "site")).status == "completed"
    assert (await backend.release("e1", 5, OPS)).released == 1
    await refused(backend.complete("e1", Whom(user_id="u4"), "completed", "site"), "not_active")


async def test_the_pacer_releases_a_batch_an_interval_after_opening(host: Host, backend: Backend) -> None:
    await join_many(backend, 12)
    await host.run(0.9, 0.1)
    assert (await backend.stats("e1")).released_automatic == 0
    await host.run(0.2, 0.1)
    stats = await backend.stats("e1")
    assert (stats.released_automatic, stats.counts["ready"], stats.counts["waiting"]) == (5, 5, 7)
    assert backend.ranks("e1", range(1, 13)).positions == [0] * 5 + list(range(1, 8))


async def test_the_rate_is_kept_over_a_kill(host: Host, backend: Backend) -> None:
    await join_many(backend, 12)
    await host.run(1)
    backend = await host.kill()
    await host.run(0.9, 0.1)
    assert (await backend.stats("e1")).released_automatic == 5
    await host.run(0.1, 0.1)
    assert (await backend.stats("e1")).released_automatic == 10


async def test_a_batch_beyond_a_slice_is_released_whole(backend: Backend) -> None:
    await asyncio.gather(*(join(backend, f"u{index}") for index in range(2_500)))
    assert (await backend.release("e1", 2_200, OPS)).released == 2_200
    assert (await backend.stats("e1")).counts["waiting"] == 300


async def test_a_release_repeated_under_its_key_never_releases_more(host: Host, backend: Backend) -> None:
    by = By("ops", request="k1")
    await join_many(backend, 50)
    assert (await backend.release("e1", 20, by)).released == 20
    assert (await backend.release("e1", 20, by)).released == 20
    backend = await host.kill()
    assert (await backend.release("e1", 20, by)).released == 20
    assert (await backend.stats("e1")).counts["waiting"] == 30


async def test_notices_tell_what_changed(backend: Backend) -> None:
    seen: list[Notice] = []

    async def listen() -> None:
        async for notices in backend.notices():
            seen.extend(notices)
            if len(seen) >= 2:
                return

    listener = asyncio.create_task(listen())
    await asyncio.sleep(0)
    place = await join(backend, "u1")
    await backend.release("e1", 1, OPS)
    await backend.tell("e1", "hello", OPS)
    await asyncio.wait_for(listener, 5)
    assert isinstance(seen[0], PlacesChanged) and (seen[0].arrivals, seen[0].status) == ((place.arrival,), "ready")
    assert isinstance(seen[1], EventChanged)


async def test_an_event_goes_through_its_states(backend: Backend) -> None:
    assert (await backend.control("e1", "pause", WHY)).state == "paused"
    assert (await join(backend, "u1")).position == 1
    assert (await backend.control("e1", "resume", OPS)).state == "open"
    view = await backend.control("e1", "close", WHY, "sold out")
    assert (view.state, view.reason, view.outcome) == ("closed", "because of the rain", "sold out")
    await refused(join(backend, "u2"), "closed")
    await refused(backend.control("e1", "pause", WHY), "conflict")
    await backend.delete("e1", OPS)
    await refused(backend.event("e1"), "not_found")


async def test_settings_are_changed_only_from_the_revision_that_was_read(backend: Backend) -> None:
    view = await backend.event("e1")
    changed, created = await backend.configure("e1", {"name": "A"}, OPS, replace=False, revision=view.revision)
    assert (changed.name, created, changed.revision) == ("A", False, view.revision + 1)
    await refused(
        backend.configure("e1", {"name": "B"}, OPS, replace=False, revision=view.revision), "precondition_failed"
    )
    await refused(backend.delete("e1", OPS, revision=view.revision), "precondition_failed")


async def test_settings_beyond_the_capabilities_are_refused_by_name(backend: Backend) -> None:
    needs = {
        "draw": {"lobby": True},
        "signed_joins": {"join_policy": "signed"},
        "offline_redemption": {"redemption": "offline"},
    }
    for capability, changes in needs.items():
        if not getattr(backend.capabilities, capability):
            error = await refused(backend.configure("e1", changes, OPS, replace=False), "invalid_settings")
            assert [name for name, _ in error.errors] == list(changes)


async def test_versions_grow_with_every_change_and_reads_do_not_move_them(backend: Backend) -> None:
    first = await join(backend, "u1")
    second = await join(backend, "u2")
    assert second.version > first.version
    assert (await backend.place("e1", holder(first))).version == second.version
    assert backend.status().durable_version >= second.version


async def test_what_was_answered_is_there_after_a_kill_and_after_a_restart(host: Host, backend: Backend) -> None:
    places = await asyncio.gather(*(join(backend, f"u{index}", 9) for index in range(300)))
    await backend.release("e1", 10, OPS)
    await backend.leave("e1", holder(places[20]))
    if backend.capabilities.snapshots:
        await backend.snapshot()
    await backend.complete("e1", whom(places[0]), "completed", "site")
    for again in (host.kill, host.restart):
        epoch = host.backend.status().epoch
        backend = await again()
        assert backend.status().epoch > epoch
        assert (await backend.place("e1", holder(places[0]))).status == "completed"
        assert (await backend.place("e1", holder(places[20]))).status == "left"
        assert (await backend.place("e1", holder(places[40]))).position == 30
        assert (await join(backend, "u40", 9)).proven
    assert (await join(backend, "new")).number == 301


async def test_the_records_tell_the_whole_story(backend: Backend) -> None:
    if not backend.capabilities.records:
        return
    for index in range(30):
        await join(backend, f"u{index}")
    records = [pair async for batch in backend.records(1) for pair in batch]
    assert [lsn for lsn, _ in records] == list(range(1, backend.status().durable_version + 1))
    assert sum(isinstance(record, Joined) for _, record in records) == 30
