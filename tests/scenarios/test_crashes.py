"""A real daemon, killed again and again under load: everything it ever acknowledged is there, in order, once."""

import os
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.scenarios import crash
from tests.scenarios.crash import ALWAYS_SEEN, KINDS_TO_SEE, Ordeal, Outcome
from tests.scenarios.history import Report
from tests.server import daemons

SEEDS = [int(seed) for seed in os.environ.get("SCENARIO_SEEDS", "1").split(",")]


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("seed", SEEDS)
async def test_twelve_kills_under_load_lose_nothing_double_nothing_and_reorder_nothing(
    seed: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outcome = await Ordeal(tmp_path, 12, seed).run()
    with capsys.disabled():
        print(f"\n12 kills, seed {seed}: {outcome.report.summary()}")
        print(outcome.told_by_kind())
    assert outcome.report.ok, outcome.report.explain()
    assert outcome.kills.total() == 12
    assert outcome.report.joins > 500
    assert not outcome.unseen(ALWAYS_SEEN), outcome.told_by_kind()
    assert outcome.losses > 12 and outcome.batches and outcome.by_hand


def test_a_run_that_saw_no_redeem_says_so() -> None:
    kinds = Counter(kind for kind in KINDS_TO_SEE if kind != "redeemed")
    assert "NOT SEEN, so not tested: redeemed" in Outcome(Report(0, 0), Counter(), kinds=kinds).told_by_kind()


ANSWERS_TOO_EARLY = """
from engine.backends import memory
from server.cli import main

async def durable_already(self, lsn):
    pass

memory.MemoryBackend._durable = durable_already
main()
"""
REDEEMS_TOO_EARLY = """
import time

from engine.backends import memory
from server.cli import main
from snapshots import segments

redeem, append = memory.MemoryBackend.redeem, segments.SegmentWriter.append

async def redeem_at_once(self, *about):
    answer = redeem(self, *about)
    self._durable = durable_already
    try:
        answer.send(None)
    except StopIteration as done:
        return done.value
    finally:
        del self._durable
    raise AssertionError("a redeem waits for something else than the log")

def append_slowly(self, *frame):
    time.sleep(0.05)
    return append(self, *frame)

async def durable_already(lsn):
    pass

memory.MemoryBackend.redeem, segments.SegmentWriter.append = redeem_at_once, append_slowly
main()
"""


@pytest.mark.slow
@pytest.mark.timeout(200)
async def test_a_daemon_that_answers_before_its_log_is_written_is_found_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (crash, daemons):
        monkeypatch.setattr(module, "CLI", [sys.executable, "-c", ANSWERS_TOO_EARLY])
    outcome = await Ordeal(tmp_path, 6, 3).run()
    assert {"lost", "duplicated"} <= outcome.report.found(), outcome.report.summary()


@pytest.mark.slow
@pytest.mark.timeout(200)
async def test_a_daemon_that_answers_a_redeem_before_its_log_is_written_is_found_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (crash, daemons):
        monkeypatch.setattr(module, "CLI", [sys.executable, "-c", REDEEMS_TOO_EARLY])
    report = (await Ordeal(tmp_path, 6, 3, "long").run()).report
    found = report.faults["lost"] + report.faults["changed_answer"]
    assert any("redeem" in fault for fault in found), report.explain()
