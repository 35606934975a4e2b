"""One pass lets one in, however many ask at once and whenever the daemon dies."""

import asyncio
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from tests.scenarios.client import Connection, Reply, connections
from tests.scenarios.redeem import ADMIN, SETTINGS, Attempt, Ordeal, Refusal, Round
from tests.server.daemons import Daemon

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

SEEDS = [int(seed) for seed in os.environ.get("SCENARIO_SEEDS", "1").split(",")]


@pytest.mark.parametrize("seed", SEEDS)
async def test_of_a_thousand_redeems_across_a_kill_one_gets_in_and_is_told_the_same_ever_after(
    seed: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ordeal = Ordeal(tmp_path / "data", seed)
    faults = await ordeal.run(5)
    with capsys.disabled():
        print(f"\n5 kills under redeems, seed {seed}: {ordeal.summary()}")
    assert not faults
    assert len(ordeal.rounds) == 5 and any(0 < round_.before < 1_000 for round_ in ordeal.rounds)


# ---- between the write and the answer ---------------------------------------------------------------------


@contextmanager
def killed_at(daemon: Daemon, call: str) -> Iterator[None]:
    """Have the daemon killed as it makes its next system call of this name, by strace."""
    what = [f"--trace={call}", f"--inject={call}:signal=KILL:when=1"]
    command = ["strace", "--follow-forks", f"--attach={daemon.process.pid}", "--output=/dev/null", *what]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as tracer:
        try:
            assert tracer.stderr is not None and b"attached" in tracer.stderr.readline()
            yield
        finally:
            tracer.kill()


async def ask(ordeal: Ordeal, pass_: str, attempt: Attempt) -> Reply:
    """Redeem once over a connection of its own."""
    assert ordeal.daemon is not None
    with connections([await Connection.open(ordeal.daemon.url)]) as (connection,):
        return await connection.ask(ordeal.request_of(pass_, attempt))


@pytest.mark.parametrize(("call", "winner"), [("fdatasync", "first"), ("pwrite64", "other")])
async def test_a_redeem_that_was_written_and_not_answered_counts_and_one_that_was_not_written_does_not(
    call: str, winner: str, tmp_path: Path
) -> None:
    ordeal, first, other = Ordeal(tmp_path / "data"), Attempt("first"), Attempt("other")
    try:
        daemon = await ordeal.start()
        for method, path, body in (("PUT", ADMIN, SETTINGS), ("POST", f"{ADMIN}/open", {})):
            await asyncio.to_thread(daemon.admin, method, path, body)
        pass_ = await ordeal.let_in(1)
        await asyncio.sleep(0.3)  # until an empty frame has said that all is on the disk, and nothing more is written
        with killed_at(daemon, call), pytest.raises(ConnectionError):
            await ask(ordeal, pass_, first)
        await asyncio.to_thread(daemon.wait)
        await ordeal.start()
        for attempt in (other, first, other, first):
            attempt.answers.append(await ask(ordeal, pass_, attempt))
        round_ = Round([first, other], 0, False, await ordeal.redeems_of(1))
    finally:
        ordeal.end()
    assert not round_.faults()
    let_in = {attempt.key for attempt in (first, other) for reply in attempt.answers if reply.status == 200}
    assert let_in == {winner}


# ---- the checker --------------------------------------------------------------------------------------------

LET_IN = Reply(200, b'{"session":"s"}', 0, 1)
USED = Reply(409, msgspec.json.encode(Refusal("pass_used")), 0, 1)
GONE = Reply(410, msgspec.json.encode(Refusal("pass_expired")), 0, 1)


def round_of(*answers: list[Reply], on_record: int = 1) -> Round:
    return Round([Attempt(f"k{index}", each) for index, each in enumerate(answers)], 0, False, on_record)


def test_the_judge_of_a_round_finds_whatever_may_be_wrong_with_it() -> None:
    assert not round_of([LET_IN, LET_IN], [USED], [USED, USED]).faults()
    wrong = (
        round_of([USED], [USED]),
        round_of([LET_IN], [LET_IN]),
        round_of([LET_IN, USED], [USED]),
        round_of([USED, LET_IN], [USED]),
        round_of([LET_IN, LET_IN._replace(body=b'{"session":"t"}')], [USED]),
        round_of([LET_IN], [GONE]),
        round_of([LET_IN], []),
        round_of([LET_IN], [USED], on_record=2),
        round_of([LET_IN], [USED], on_record=0),
    )
    for round_ in wrong:
        assert len(round_.faults()) == 1
