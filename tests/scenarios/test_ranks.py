"""A hundred thousand visitors on one event: every rank that is told is the rank on record."""

import os
from pathlib import Path

import pytest
import uvloop

from tests.scenarios.ranks import ASKED, MOMENTS_AFTER, MOMENTS_WHILE_JOINING, run
from tests.server.daemons import Daemon

VISITORS = int(os.environ.get("SCENARIO_VISITORS", "100000"))


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("seed", [1])
def test_every_rank_told_to_a_crowd_of_100_000_is_the_rank_on_record_and_numbers_are_in_order_of_arrival(
    seed: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    daemon = Daemon(tmp_path / "data")
    try:
        outcome = uvloop.run(run(daemon, VISITORS, seed))
    finally:
        daemon.kill()
    with capsys.disabled():
        print(f"\n{VISITORS} visitors, seed {seed}: {outcome.line()}")
    assert outcome.report.ok, outcome.report.explain()
    assert outcome.report.joins == VISITORS
    assert sum(asked >= ASKED for asked in outcome.moments) >= 20 or VISITORS < 20 * ASKED
    assert len(outcome.moments) == MOMENTS_WHILE_JOINING + MOMENTS_AFTER
    assert outcome.leaves > VISITORS // 1_000 and outcome.released > VISITORS // 1_000
