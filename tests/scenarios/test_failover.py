"""A real pair whose primary is killed: the other one takes over, and all that was answered is there, in order."""

import random
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.scenarios.campaigns import Campaign, LossyCampaign
from tests.scenarios.failover import pair_in
from tests.scenarios.history import check
from tests.scenarios.mutations_of_failovers import (
    FAULTS,
    answer_a_retry_with_another_place,
    lose_a_record,
    swap_two,
    write_a_record_twice,
)
from tests.scenarios.pairs import Pair
from tests.server import daemons

RATE_PER_S = 200
QUIET_S = (0.4, 0.8)
IN_REAL_EVIDENCE = (lose_a_record, write_a_record_twice, answer_a_retry_with_another_place, swap_two)


@pytest.fixture
def in_sync(tmp_path: Path) -> Iterator[Pair]:
    with pair_in(tmp_path, "sync") as pair:
        yield pair


@pytest.fixture
def in_async(tmp_path: Path) -> Iterator[Pair]:
    with pair_in(tmp_path, "async") as pair:
        yield pair


@pytest.mark.slow
async def test_two_kills_lose_nothing_and_every_fault_that_is_put_into_their_evidence_is_found(
    in_sync: Pair, capsys: pytest.CaptureFixture[str]
) -> None:
    campaign = Campaign(in_sync, 2, 1, RATE_PER_S)
    campaign.quiet_s = QUIET_S
    outcome = await campaign.run()
    with capsys.disabled():
        print(f"\n{outcome.table()}")
    assert outcome.report.ok, outcome.report.explain()
    assert len(outcome.failovers) == 2
    assert max(failover.gap_s for failover in outcome.failovers) < 10
    assert outcome.report.joins > 500
    kinds = {line.kind for line in outcome.evidence.log}
    assert kinds >= {"started", "joined", "released", "admitted", "redeemed"}
    assert any(join.attempts > 2 for join in outcome.flood.joins)
    for mutation in IN_REAL_EVIDENCE:
        report = check(mutation(outcome.evidence, random.Random(1)))
        assert report.found() >= FAULTS[mutation], f"{mutation.__name__}: {report.explain()}"


@pytest.mark.slow
async def test_whoever_a_kill_in_async_lost_takes_up_their_own_number(in_async: Pair) -> None:
    campaign = LossyCampaign(in_async, 2, 1, RATE_PER_S)
    campaign.quiet_s = QUIET_S
    outcome = await campaign.run()
    assert outcome.report.ok, outcome.report.explain()
    assert max(campaign.readmitted) > 0


SPEAKS_TOO_EARLY = """
import asyncio

from server.cli import main
from server.replication.agreement import Agreement, Standing
from server.replication.publisher import Publisher

advance, send_turn = Agreement._advance, Publisher._send_turn

def advance_early(self):
    advance(self)
    if self.standing is Standing.IN_STEP:
        self.committed_lsn = max(self.committed_lsn, self.flushed_lsn)

async def send_slowly(self, session, pieces):
    await asyncio.sleep(0.1)
    await send_turn(self, session, pieces)

Agreement._advance, Publisher._send_turn = advance_early, send_slowly
main()
"""


@pytest.mark.slow
async def test_a_primary_that_answers_before_its_standby_has_it_is_found_out(
    in_sync: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(daemons, "CLI", [sys.executable, "-c", SPEAKS_TOO_EARLY])
    campaign = Campaign(in_sync, 1, 1, RATE_PER_S)
    campaign.quiet_s = QUIET_S
    outcome = await campaign.run()
    assert {"lost", "duplicated"} <= outcome.report.found(), outcome.report.explain()
