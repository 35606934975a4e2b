"""Every rule of docs/states.md is missed when it is dropped; and the walks hold on the room as it is.

The whole campaign, with all walks and the machine behind the likely ones, is `python -m tests.engine.room_rules`.
"""

import pytest

from tests.engine.room_mutants import Mutant, all_mutants
from tests.engine.room_pair import SMALL_GAP
from tests.engine.room_rules import campaign, judge_mutant, mutated_text, report, take, walks

AS_IT_IS = Mutant("the room as it is", "join touch")
SKIPPED_IN_A_HURRY = 5


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_room_holds_on_the_walks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.venue.RENUMBER_GAP", SMALL_GAP)
    names = walks()
    rules = [name for name in names if name.startswith("rule ")]
    assert len(rules) > 80 and len(names) > 6_000
    for name in [*rules, *names[len(rules) :: SKIPPED_IN_A_HURRY]]:
        take(name)


def test_every_rule_stands_where_it_is_said_to() -> None:
    for mutant in all_mutants():
        if mutant.module:
            compile(mutated_text(mutant), mutant.module, "exec")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_rule_is_missed_when_it_is_dropped() -> None:
    """First that nothing is missed where nothing was changed: neither in a table nor by importing anew."""
    for nothing in (AS_IT_IS, AS_IT_IS._replace(change=lambda transitions: None)):
        assert judge_mutant(nothing, 0).killer == ""
    verdicts = campaign(all_mutants(), 0)
    print(report(verdicts))
    assert [verdict.mutant.name for verdict in verdicts if not verdict.killer] == []
    assert not any(verdict.killer in ("import", "no end in sight", "killed itself") for verdict in verdicts)
