"""Every witness keeps the same promises; what only one of them does is told below."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import TypeAlias

import asyncpg
import pytest

from engine.errors import BadConfiguration
from server.replication.witness import (
    NOBODY,
    Lease,
    LeaseTable,
    MemoryWitness,
    Witness,
    WitnessUnreachable,
    open_witness,
)
from tests.server.postgres import Postgres, running_postgres

KINDS = ("memory", "flock", "postgres")
LEASE_S = 2.0
HOLD = """
import asyncio, sys
from server.replication.witness import Lease, open_witness

async def hold():
    witness = open_witness(sys.argv[1], b"line", "a")
    print(await witness.swap(None, Lease(0, 1, "a", "http://a", "b")), flush=True)
    await asyncio.sleep(60)

asyncio.run(hold())
"""

Open: TypeAlias = Callable[[str], Witness]


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    """Give a PostgreSQL that the tests of this module share."""
    with running_postgres() as started:
        yield started


@pytest.fixture(params=KINDS)
async def opened(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Open]:
    """Give a function that opens the witness of one line for a node, of each kind in turn."""
    table, witnesses, cluster_id = LeaseTable(), [], os.urandom(16)

    def opener(node_id: str) -> Witness:
        if request.param == "memory":
            witness: Witness = MemoryWitness(table, cluster_id, node_id)
        elif request.param == "flock":
            witness = open_witness(f"flock:{tmp_path}/lease", cluster_id, node_id)
        else:
            witness = open_witness(request.getfixturevalue("server").url, cluster_id, node_id)
        witnesses.append(witness)
        return witness

    yield opener
    for witness in witnesses:
        await witness.close()


def given_back(to: str) -> Lease:
    """Return a lease that nobody holds, so that no lock is in the way of a race."""
    return Lease(0, 1, NOBODY, "", to)


async def test_there_is_no_lease_before_the_first(opened: Open) -> None:
    assert await opened("a").read() is None


async def test_what_one_stores_the_other_reads(opened: Open) -> None:
    a, b = opened("a"), opened("b")
    first = await a.swap(None, Lease(77, 3, "a", "https://ä", None))
    assert first == Lease(1, 3, "a", "https://ä", None) == await b.read()
    second = await a.swap(first, first._replace(standby="b"))
    assert second == Lease(2, 3, "a", "https://ä", "b") == await b.read()


async def test_a_version_that_is_gone_cannot_be_swapped(opened: Open) -> None:
    a, b = opened("a"), opened("b")
    first = await a.swap(None, given_back("a"))
    second = await a.swap(first, given_back("a"))
    assert await b.swap(first, given_back("b")) is None
    assert await b.swap(None, given_back("b")) is None
    assert await b.swap(Lease(3, 1, NOBODY, "", "a"), given_back("b")) is None
    assert await b.read() == second


async def test_a_lease_that_was_never_stored_cannot_be_swapped(opened: Open) -> None:
    a = opened("a")
    assert await a.swap(Lease(1, 1, "a", "", None), given_back("a")) is None
    assert await a.read() is None


@pytest.mark.slow
async def test_of_two_that_race_exactly_one_wins_each_time(opened: Open) -> None:
    a, b = opened("a"), opened("b")
    row: Lease | None = None
    for _ in range(200):
        answers = await asyncio.gather(a.swap(row, given_back("a")), b.swap(row, given_back("b")))
        won = [answer for answer in answers if answer is not None]
        assert len(won) == 1
        row = won[0]
        assert row.standby == ("b" if answers[0] is None else "a")
        assert await a.read() == row == await b.read()
    assert row is not None and row.version == 200


async def test_many_first_leases_at_once_leave_one(opened: Open) -> None:
    nodes = [opened(str(number)) for number in range(8)]
    answers = await asyncio.gather(*(node.swap(None, given_back(str(n))) for n, node in enumerate(nodes)))
    assert [answer for answer in answers if answer] == [await nodes[0].read()]


async def test_a_lease_is_abandoned_by_time_or_by_its_lock(opened: Open) -> None:
    a, b = opened("a"), opened("b")
    row = await a.swap(None, Lease(0, 1, "a", "", "b"))
    assert row is not None
    assert not await b.is_abandoned(row, 1.99, LEASE_S)
    assert await b.is_abandoned(row, 2.0, LEASE_S) == b.needs_renewal
    await a.close()
    assert await b.is_abandoned(row, 2.0, LEASE_S)


async def test_a_witness_says_what_it_is(opened: Open) -> None:
    assert opened("a").describe().endswith(".")


def test_a_witness_of_no_known_kind_is_refused() -> None:
    with pytest.raises(BadConfiguration, match="must begin with postgresql: or flock:, not 'redis'"):
        open_witness("redis://x", b"line", "a")


# ---- in memory ---------------------------------------------------------------------------------------------


@pytest.mark.slow
async def test_a_message_that_takes_too_long_arrives_all_the_same() -> None:
    table, gate = LeaseTable(), asyncio.Event()

    async def travel(stage: str) -> None:
        if stage == "request":
            await gate.wait()

    witness = MemoryWitness(table, b"line", "a", travel)
    with pytest.raises(WitnessUnreachable):
        async with asyncio.timeout(5):
            await witness.swap(None, given_back("a"))
    assert not table.rows
    gate.set()
    await table.settle()
    assert table.rows == {b"line": Lease(1, 1, NOBODY, "", "a")}


async def test_a_lost_answer_hides_what_was_done() -> None:
    table = LeaseTable()

    async def travel(stage: str) -> None:
        if stage == "answer":
            raise WitnessUnreachable("lost")

    with pytest.raises(WitnessUnreachable, match="lost"):
        await MemoryWitness(table, b"line", "a", travel).swap(None, given_back("a"))
    assert table.rows[b"line"].version == 1


# ---- flock -------------------------------------------------------------------------------------------------


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Give another process that holds the lease in tmp_path, as "a" with standby "b"."""
    command = [sys.executable, "-c", HOLD, f"flock:{tmp_path}/lease"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "Lease(version=1, term=1, holder='a', url='http://a', standby='b')\n"
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.mark.slow
async def test_the_kernel_lets_go_of_a_lock_when_its_holder_is_killed(
    holder: subprocess.Popen[str], tmp_path: Path
) -> None:
    witness = open_witness(f"flock:{tmp_path}/lease", b"line", "b")
    row = await witness.read()
    assert row is not None and not await witness.is_abandoned(row, 1e9, LEASE_S)
    wanted = Lease(0, 2, "b", "http://b", None)
    assert await witness.swap(row, wanted) is None
    holder.kill()
    holder.wait()
    assert await witness.is_abandoned(row, 0.0, LEASE_S)
    assert await witness.swap(row, wanted) == Lease(2, 2, "b", "http://b", None)
    await witness.close()


@pytest.mark.slow
async def test_nobody_takes_over_from_a_frozen_holder(holder: subprocess.Popen[str], tmp_path: Path) -> None:
    witness = open_witness(f"flock:{tmp_path}/lease", b"line", "b")
    row = await witness.read()
    holder.send_signal(signal.SIGSTOP)
    assert row is not None and not await witness.is_abandoned(row, 1e9, LEASE_S)
    assert await witness.swap(row, Lease(0, 2, "b", "http://b", None)) is None
    assert await witness.read() == row


async def test_a_holder_that_gives_the_lease_back_lets_go_of_its_lock(tmp_path: Path) -> None:
    a, b = (open_witness(f"flock:{tmp_path}/lease", b"line", node) for node in "ab")
    row = await a.swap(None, Lease(0, 1, "a", "", "b"))
    assert row is not None
    taken = await b.swap(await a.swap(row, row._replace(holder=NOBODY)), Lease(0, 2, "b", "", None))
    assert taken is not None and taken.holder == "b"
    assert await a.swap(taken, Lease(0, 3, "a", "", None)) is None
    await b.close()


async def test_a_lock_file_of_another_line_is_refused(tmp_path: Path) -> None:
    await open_witness(f"flock:{tmp_path}/lease", b"line", "a").swap(None, given_back("a"))
    with pytest.raises(BadConfiguration, match="another line"):
        await open_witness(f"flock:{tmp_path}/lease", b"other", "a").read()


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("flock:lease", "whole path"),
        ("flock://host/lease", "whole path"),
        ("flock:/nowhere-at-all/lease", "must be a folder"),
        ("postgresql://x/db?allow_weak=perhaps", "0 or 1"),
        ("postgresql:", "must name the server"),
        ("postgresql://[x/db", "no URL"),
    ],
)
def test_a_url_that_cannot_work_is_refused_before_it_is_used(url: str, problem: str) -> None:
    with pytest.raises(BadConfiguration, match=f"^witness: .*{problem}"):
        open_witness(url, b"line", "a")


async def test_a_file_that_is_no_lease_is_no_answer(tmp_path: Path) -> None:
    (tmp_path / "lease").write_text("{}")
    with pytest.raises(WitnessUnreachable, match="lease"):
        await open_witness(f"flock:{tmp_path}/lease", b"line", "a").read()


# ---- PostgreSQL --------------------------------------------------------------------------------------------


async def execute(server: Postgres, *statements: str) -> None:
    """Run statements as the server's owner."""
    connection = await asyncpg.connect(server.url)
    for statement in statements:
        await connection.execute(statement)
    await connection.close()


def test_a_library_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "asyncpg", None)
    monkeypatch.delitem(sys.modules, "server.replication.witness_postgres", raising=False)
    with pytest.raises(BadConfiguration, match=r"asyncpg; install stanchion\[postgres\]"):
        open_witness("postgresql://x/db", b"line", "a")


async def test_secrets_are_not_told() -> None:
    assert "hidden" not in open_witness("postgresql://me:hidden@host/db", b"line", "a").describe()


@pytest.mark.slow
async def test_the_table_is_made_by_whoever_is_first_and_by_many_at_once(server: Postgres) -> None:
    for _ in range(5):
        await execute(server, "DROP TABLE IF EXISTS stanchion_lease")
        witnesses = [open_witness(server.url, b"line", str(number)) for number in range(8)]
        assert await asyncio.gather(*(witness.read() for witness in witnesses)) == [None] * 8
        for witness in witnesses:
            await witness.close()


async def test_commits_wait_for_the_disk_whatever_the_server_is_set_to(server: Postgres) -> None:
    witness = open_witness(f"{server.url}?synchronous_commit=off", b"line", "a")
    await witness.read()
    assert await witness._connection.fetchval("SHOW synchronous_commit") == "on"  # type: ignore[attr-defined]
    await witness.close()


async def test_a_role_that_may_only_use_the_table_is_enough(server: Postgres) -> None:
    owner = open_witness(server.url, b"line", "a")
    await owner.read()
    await owner.close()
    await execute(
        server,
        "REVOKE CREATE ON SCHEMA public FROM PUBLIC",
        "DROP ROLE IF EXISTS watcher",
        "CREATE ROLE watcher LOGIN",
        "GRANT SELECT, INSERT, UPDATE ON stanchion_lease TO watcher",
    )
    witness = open_witness(server.url.replace("postgres@", "watcher@"), os.urandom(16), "a")
    first = await witness.swap(None, given_back("a"))
    assert first is not None and await witness.swap(first, given_back("b")) is not None
    await witness.close()


@pytest.mark.parametrize(("user", "database"), [("nobody-here", "postgres"), ("postgres", "nothing-here")])
async def test_who_or_what_does_not_exist_is_a_wrong_setting(server: Postgres, user: str, database: str) -> None:
    with pytest.raises(BadConfiguration, match=r"^witness: 127\.0\.0\.1"):
        await open_witness(f"postgresql://{user}@127.0.0.1:{server.port}/{database}", b"line", "a").read()


async def test_nobody_at_the_port_is_unreachable_at_once(server: Postgres) -> None:
    witness = open_witness("postgresql://postgres@127.0.0.1:1/postgres", b"line", "a")
    with pytest.raises(WitnessUnreachable, match=r"127\.0\.0\.1:1/postgres"):
        await witness.read()


@pytest.mark.slow
async def test_a_frozen_server_costs_a_second_and_may_store_what_it_was_sent(server: Postgres) -> None:
    cluster_id = os.urandom(16)
    witness = open_witness(server.url, cluster_id, "a")
    first = await witness.swap(None, given_back("a"))
    server.freeze()
    try:
        for operation in (witness.swap(first, given_back("b")), witness.read()):
            began_s = time.monotonic()
            with pytest.raises(WitnessUnreachable, match="within 1 s"):
                await operation
            assert time.monotonic() - began_s < 1.5
    finally:
        server.thaw()
    assert first is not None
    row = await witness.read()
    assert row in (first, first._replace(version=2, standby="b"))
    assert await witness.swap(row, given_back("c")) is not None or await witness.read() != first
    await witness.close()


@pytest.mark.slow
async def test_a_killed_server_remembers_what_it_had_confirmed(server: Postgres) -> None:
    witness = open_witness(server.url, os.urandom(16), "a")
    row = None
    for _ in range(20):
        row = await witness.swap(row, given_back("a"))
    server.kill()
    for _ in range(2):
        with pytest.raises(WitnessUnreachable):
            await witness.read()
    server.start()
    assert row is not None and row.version == 20
    assert await witness.read() == row
    await witness.close()


@pytest.mark.slow
async def test_a_cancelled_operation_leaves_no_answer_to_be_taken_for_another(server: Postgres) -> None:
    witness = open_witness(server.url, os.urandom(16), "a")
    row = await witness.swap(None, given_back("a"))
    for turn in range(50):
        task = asyncio.create_task(witness.swap(row, given_back("b")))
        for _ in range(turn % 5):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait({task})
        after = await witness.read()
        assert after is not None and row is not None and after.version in (row.version, row.version + 1)
        row = after
    await witness.close()


@pytest.mark.slow
async def test_a_server_that_may_forget_or_lag_is_refused() -> None:
    with running_postgres({"fsync": "off"}) as spoilt:
        with pytest.raises(BadConfiguration, match=r"fsync=off .*allow_weak=1"):
            await open_witness(spoilt.url, b"line", "a").read()
        weak = open_witness(f"{spoilt.url}?allow_weak=1", b"line", "a")
        assert await weak.read() is None
        assert "fsync" in weak.describe()
        spoilt.kill()
        (spoilt.folder / "standby.signal").touch()
        spoilt.start()
        with pytest.raises(BadConfiguration, match="secondary"):
            await open_witness(f"{spoilt.url}?allow_weak=1", b"line", "a").read()
        for _ in range(2):  # the connection was lost; and what was fine once is waited for
            with pytest.raises(WitnessUnreachable, match=r"|secondary"):
                await weak.read()
        await weak.close()
