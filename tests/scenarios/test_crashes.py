"""A real daemon, killed again and again under load: everything it ever acknowledged is there, in order, once."""

import os
from pathlib import Path

import pytest

from tests.scenarios.crash import Ordeal

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
    assert outcome.losses > 12
