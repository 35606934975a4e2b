"""What clients were told of places in line, held against the records: lost, twice, out of order, back from the end."""

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

from tests.scenarios.evidence import ENDING, LIVE, SHOWING, Entry, Evidence, Fault
from tests.scenarios.plain_line import PlainLine, Row

SHOWN_AS_CLOSED = frozenset(("lobby", "waiting", "parked"))


def lost(model: PlainLine, answered: Iterable[Entry], evidence: Evidence) -> Iterator[Fault]:
    """Find acknowledged places, ends, admissions and transfers that are in records or the final state no more."""
    for entry in answered:
        name = f"{entry.op} of {entry.user_id} (arrival {entry.arrival}, number {entry.number})"
        row = model.rows.get(entry.arrival)
        if entry.op in SHOWING and entry.arrival:
            if row is None or row.user_id != entry.user_id or entry.number not in (0, row.number):
                yield "lost", f"{name} is not in the records: {row}"
            shown = evidence.final.get(entry.arrival)
            if not model.purged_lsn and (shown is None or shown.user_id != entry.user_id):
                yield "lost", f"{name} is not in the final state: {shown}"
            elif shown is not None and entry.number not in (0, shown.number):
                yield "lost", f"{name} has another number in the final state: {shown}"
        elif entry.op in ENDING and (row is None or row.status not in ENDING[entry.op]):
            yield "lost", f"{name} was acknowledged, the records say {row and row.status}"
        elif entry.op == "admit" and (row is None or not row.kinds & {"admitted", "released"}):
            yield "lost", f"{name} was acknowledged, the records say {row and row.kinds}"


def duplicated(model: PlainLine, answered: Iterable[Entry], _: Evidence) -> Iterator[Fault]:
    """Find numbers given to two, and retries that got another place while the first one lived."""
    holder: dict[int, tuple[str, int]] = {}
    by_key: defaultdict[str, list[Entry]] = defaultdict(list)
    for entry in answered:
        if entry.op != "join":
            continue
        identity = entry.user_id, entry.arrival
        if entry.number and holder.setdefault(entry.number, identity) != identity:
            yield "duplicated", f"number {entry.number} was given to {holder[entry.number]} and {identity}"
        if entry.key:
            by_key[entry.key].append(entry)
    for key, joins in by_key.items():
        joins.sort(key=lambda entry: entry.arrival)
        for first, second in pairwise(joins):
            if first.arrival != second.arrival and not _ended_before(model, first.arrival, second.arrival):
                yield "duplicated", f"key {key}: arrivals {first.arrival} and {second.arrival} at the same time"
            if first.user_id != second.user_id:
                yield "duplicated", f"key {key}: two identities, {first.user_id} and {second.user_id}"


def _ended_before(model: PlainLine, first: int, second: int) -> bool:
    row, later = model.rows.get(first), model.rows.get(second)
    return row is not None and row.ended_lsn is not None and (later is None or row.ended_lsn <= later.joined_lsn)


def reordered(_: PlainLine, __: Sequence[Entry], evidence: Evidence) -> Iterator[Fault]:
    """Find B with a lower arrival than an A that was answered before B was sent; O(n log n).

    A place counts as sent with the earliest attempt of its holder, and as answered with its first answer.
    """
    sent: dict[int, float] = {}
    answered: dict[int, float] = {}
    unknown: dict[str, float] = {}
    identity: dict[int, set[str]] = defaultdict(set)
    for entry in evidence.entries:
        if entry.op != "join" or entry.refusal:
            continue
        if entry.answered_s is None:
            for name in filter(None, (entry.user_id, entry.key)):
                unknown[name] = min(unknown.get(name, entry.sent_s), entry.sent_s)
            continue
        identity[entry.arrival] |= {entry.user_id, entry.key}
        sent[entry.arrival] = min(sent.get(entry.arrival, entry.sent_s), entry.sent_s)
        answered[entry.arrival] = min(answered.get(entry.arrival, entry.answered_s), entry.answered_s)
    for arrival, names in identity.items():
        sent[arrival] = min([sent[arrival], *(unknown[name] for name in names if name in unknown)])
    by_answer = sorted((moment, arrival) for arrival, moment in answered.items())
    highest = index = 0
    for sent_s, arrival in sorted((moment, arrival) for arrival, moment in sent.items()):
        while index < len(by_answer) and by_answer[index][0] < sent_s:
            highest = max(highest, by_answer[index][1])
            index += 1
        if arrival < highest:
            yield "reordered", f"arrival {arrival} was asked for after {highest} had been answered"


def resurrected(_: PlainLine, answered: Sequence[Entry], evidence: Evidence) -> Iterator[Fault]:
    """Find places that live on, or are shown alive, after their end was acknowledged."""
    ended = first_ends(answered)
    for arrival, entry in ended.items():
        shown = evidence.final.get(arrival)
        if shown is not None and shown.status in LIVE:
            yield "resurrected", f"arrival {arrival} is {shown.status} after its {entry.op} was acknowledged"
    for entry in answered:
        end = ended.get(entry.arrival)
        if end is None or entry.op not in SHOWING or entry.status not in LIVE:
            continue
        if entry.sent_s > (end.answered_s or 0):
            yield "resurrected", f"arrival {entry.arrival} was shown {entry.status} after its {end.op}"


def first_ends(answered: Iterable[Entry]) -> dict[int, Entry]:
    """Return by arrival the end that was acknowledged first."""
    ended: dict[int, Entry] = {}
    for entry in answered:
        if entry.op in ENDING:
            earlier = ended.setdefault(entry.arrival, entry)
            if (entry.answered_s or 0) < (earlier.answered_s or 0):
                ended[entry.arrival] = entry
    return ended


def diverged(model: PlainLine, _: Iterable[Entry], evidence: Evidence) -> Iterator[Fault]:
    """Find places whose final state is not what the records lead to."""
    for arrival, place in evidence.final.items():
        row = model.rows.get(arrival)
        if row is None or row.joined_lsn < model.purged_lsn:
            yield "diverged", f"arrival {arrival} is shown {place.status} and is not in the records"
        elif place != (row.user_id, row.number, _shown(row.status, model.state)):
            yield "diverged", f"arrival {arrival} is shown {place}, the records lead to {row.status}"


def _shown(status: str, state: str) -> str:
    return "closed" if state == "closed" and status in SHOWN_AS_CLOSED else status


def wrong_statuses(model: PlainLine, answered: Iterable[Entry], _: Evidence) -> Iterator[Fault]:
    """Find statuses that are not what the records lead to at the answer's version."""
    changes = [lsn for lsn, _ in model.states]
    for entry in answered:
        row = model.rows.get(entry.arrival)
        if entry.op not in SHOWING or row is None or not entry.version or not entry.status:
            continue
        state = model.states[bisect_right(changes, entry.version) - 1][1]
        due = _shown(row.status_at(entry.version), state)
        if entry.status != due:
            yield (
                "wrong_status",
                f"arrival {entry.arrival} was told {entry.status} at version {entry.version}, not {due}",
            )


def passed_over(model: PlainLine, answered: Iterable[Entry], evidence: Evidence) -> Iterator[Fault]:
    """Find those who were stepped over although an answer of theirs, within the presence timeout, says they were there.

    An answer at a version was given after the record of that version, so from there the time is counted by records.
    """
    heard: defaultdict[int, list[int]] = defaultdict(list)
    for entry in answered:
        row = model.rows.get(entry.arrival)
        if row is None or entry.op not in SHOWING or entry.version is None:
            continue
        if entry.generation >= row.generation_at(entry.version):
            heard[entry.arrival].append(entry.version)
    for versions in heard.values():
        versions.sort()
    lsns = [line.lsn for line in evidence.log]
    for stepped in model.stepped_over:
        versions = heard[stepped.arrival]
        index = bisect_left(versions, stepped.lsn)
        if not index:
            continue
        version = versions[index - 1]
        at_ms = evidence.log[max(0, bisect_right(lsns, version) - 1)].at_ms
        if stepped.at_ms - at_ms <= stepped.timeout_ms:
            yield (
                "skipped",
                f"LSN {stepped.lsn}: arrival {stepped.arrival} was parked, and asked after version {version}",
            )


class Fenwick:
    """Counts over 1…size with prefix sums, both O(log size)."""

    def __init__(self, size: int) -> None:
        self._tree = [0] * (size + 1)

    def add(self, index: int, count: int) -> None:
        """Add to one count."""
        while index < len(self._tree):
            self._tree[index] += count
            index += index & -index

    def up_to(self, index: int) -> int:
        """Return the sum of the counts 1…index."""
        total = 0
        while index:
            total += self._tree[index]
            index &= index - 1
        return total


def wrong_ranks(model: PlainLine, answered: Iterable[Entry], __: Evidence) -> Iterator[Fault]:
    """Find positions that are not the rank, by the order of keys, that the records give at the answer's version."""
    told = [e for e in answered if e.op in SHOWING and e.version is not None and e.status and e.arrival in model.rows]
    told.sort(key=lambda entry: entry.version or 0)
    in_order = sorted(model.rows, key=lambda arrival: (model.rows[arrival].key, arrival))
    index_of = {arrival: index for index, arrival in enumerate(in_order, 1)}
    tree = Fenwick(len(in_order))
    done = 0
    for entry in told:
        while done < len(model.moves) and model.moves[done][0] <= (entry.version or 0):
            _, arrival, step = model.moves[done]
            tree.add(index_of[arrival], step)
            done += 1
        row = model.rows[entry.arrival]
        is_waiting = row.status_at(entry.version or 0) == "waiting"
        due = tree.up_to(index_of[entry.arrival]) if is_waiting else None
        if entry.position != due:
            kind = "misplaced" if _has_come_back(row, entry.version or 0) else "wrong_rank"
            yield kind, f"arrival {entry.arrival} was told {entry.position} at version {entry.version}, not {due}"


def _has_come_back(row: Row, version: int) -> bool:
    """Return whether somebody stood at their place again after they had been out of the line."""
    return row.status_at(version) == "waiting" and "parked" in (status for lsn, status in row.statuses if lsn < version)
