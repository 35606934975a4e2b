"""A real daemon, killed again and again under load: everything it ever acknowledged is there, in order, once."""

import os
import sys
from pathlib import Path

import pytest

from tests.scenarios import crash
from tests.scenarios.crash import Ordeal
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
    assert outcome.report.ok, outcome.report.explain()
    assert outcome.kills.total() == 12
    assert outcome.report.joins > 1_000
    assert outcome.losses > 12 and outcome.batches and outcome.by_hand


ANSWERS_TOO_EARLY = """
from engine.backends import memory
from server.cli import main

async def durable_already(self, lsn):
    pass

memory.MemoryBackend._durable = durable_already
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
