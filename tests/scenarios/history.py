"""The history checker: what clients, the site and an operator were answered, against the records and the final state.

Each client appends an Entry for every operation before it counts it. Afterwards `check` is given all histories,
the whole record log as the admin API exports it, and the final state as asked for over HTTP (`evidence`). The log is
replayed through a model that is as plain as can be (`plain_line`); nothing of the engine is used here.
Then each judge looks for its own kinds of fault: of places, of passes, and of the pace.
"""

from collections.abc import Callable, Iterator, Sequence

from tests.scenarios import judging_pace, judging_passes, judging_places
from tests.scenarios.evidence import (
    ENDED,
    INSIDE,
    KINDS_OF_FAULT,
    LIVE,
    READING,
    Entry,
    Evidence,
    Fault,
    FinalPlace,
    Limits,
    LogLine,
    Observed,
    Report,
)
from tests.scenarios.plain_line import PlainLine

__all__ = [
    "ENDED",
    "INSIDE",
    "KINDS_OF_FAULT",
    "LIVE",
    "Entry",
    "Evidence",
    "FinalPlace",
    "Limits",
    "LogLine",
    "Observed",
    "Report",
    "check",
]

JUDGES: tuple[Callable[[PlainLine, Sequence[Entry], Evidence], Iterator[Fault]], ...] = (
    judging_places.lost,
    judging_places.duplicated,
    judging_places.reordered,
    judging_places.resurrected,
    judging_places.diverged,
    judging_places.wrong_statuses,
    judging_places.passed_over,
    judging_places.wrong_ranks,
    judging_passes.redeems,
    judging_passes.dead_passes,
    judging_passes.outlived,
    judging_passes.extensions,
    judging_passes.transfers,
    judging_passes.old_tokens,
    judging_passes.turned_away,
    judging_pace.released_by_hand,
    judging_pace.epochs,
    judging_pace.went_back,
    judging_pace.over_rate,
)


def check(evidence: Evidence) -> Report:
    """Return the verdict on a run; O(n log n) in entries and records (but for the plain list's memory moves)."""
    answered = [entry for entry in evidence.entries if entry.answered_s is not None and not entry.refusal]
    acknowledged = sum(entry.op not in READING for entry in answered)
    report = Report(acknowledged, sum(entry.op == "join" for entry in answered))
    model = PlainLine()
    faults: list[Fault] = [fault for line in evidence.log for fault in model.apply(line)]
    for judge in JUDGES:
        faults += judge(model, answered, evidence)
    for kind, sentence in faults:
        report.faults[kind].append(sentence)
    return report
