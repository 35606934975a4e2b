"""The client history checker: what clients were answered, held against the records and the final state.

Each client appends an Entry for every operation before it counts it. Afterwards `check` is given all histories,
the whole record log as the admin API exports it, and the final state as asked for over HTTP. The log is
replayed through a model that is as plain as can be (`PlainLine`); nothing of the engine is used here.

Times are monotonic and of one process. `sent_s` is the first attempt of an operation and `answered_s` the moment
its answer was complete, so "A was answered before B was sent" holds across retries and restarts.
"""

from bisect import bisect_left, insort
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

import msgspec

NUMBER_MASK = 2**32 - 1
LIVE = frozenset(("waiting", "ready"))
ENDED = frozenset(("left", "completed"))
KINDS_OF_FAULT = (
    "lost",
    "duplicated",
    "reordered",
    "resurrected",
    "skipped",
    "over_cap",
    "over_rate",
    "epoch",
    "went_back",
    "wrong_rank",
    "diverged",
)


class Limits(msgspec.Struct):
    """The settings that the checker holds releases to."""

    max_active: int | None = None
    batch_size: int = 100
    batch_interval_s: int = 10


class LogLine(msgspec.Struct):
    """One record as exported; fields a kind does not have are left at their defaults."""

    lsn: int
    kind: str
    at_ms: int = 0
    epoch: int = 0
    arrival: int = 0
    key: int = 0
    user_id: str = ""
    numbers: list[int] = []
    manual: bool = False
    request: str | None = None
    settings: Limits | None = None


class Entry(NamedTuple):
    """One operation of one client. `answered_s` is None when no answer came: its effect is unknown.

    `op` is join, position, leave, complete or release; a release's `number` is how many it let in, under its `key`
    where it has one.
    """

    client: int
    op: str
    sent_s: float
    answered_s: float | None
    user_id: str = ""
    key: str = ""
    number: int = 0
    arrival: int = 0
    status: str = ""
    position: int | None = None
    epoch: int | None = None
    version: int | None = None


class FinalPlace(NamedTuple):
    """One place as the daemon shows it at the end."""

    user_id: str
    number: int
    status: str


class Observed(NamedTuple):
    """How many had been released automatically, as one look at the counts told."""

    sent_s: float
    answered_s: float
    released: int


@dataclass(slots=True)
class Evidence:
    """Everything a run leaves behind. `epochs` are those the daemon told, in the order of its lives."""

    entries: Sequence[Entry]
    log: Sequence[LogLine]
    final: Mapping[int, FinalPlace]
    epochs: Sequence[int] = ()
    observed: Sequence[Observed] = ()


@dataclass(slots=True)
class Report:
    """The verdict: how many changes were acknowledged, and every fault by its kind."""

    acknowledged: int
    joins: int
    faults: dict[str, list[str]] = field(default_factory=lambda: {kind: [] for kind in KINDS_OF_FAULT})

    def count(self, kind: str) -> int:
        """Return how many faults of a kind were found."""
        return len(self.faults[kind])

    @property
    def ok(self) -> bool:
        """Return whether nothing was found."""
        return not any(self.faults.values())

    def found(self) -> set[str]:
        """Return the kinds of which something was found."""
        return {kind for kind, faults in self.faults.items() if faults}

    def summary(self) -> str:
        """Return one line for people."""
        counts = ", ".join(f"{kind.replace('_', ' ')} {len(faults)}" for kind, faults in self.faults.items())
        return f"acked {self.acknowledged} ({self.joins} joins), {counts}"

    def explain(self) -> str:
        """Return the summary and the first faults of each kind."""
        shown = [f"  {kind}: {fault}" for kind, faults in self.faults.items() for fault in faults[:5]]
        return "\n".join([self.summary(), *shown])


Fault = tuple[str, str]


class PlainLine:
    """One event as a plain list: replays records and says what does not follow from those before."""

    def __init__(self) -> None:
        self.waiting: list[int] = []
        self.users: dict[int, str] = {}
        self.keys: dict[int, int] = {}
        self.status: dict[int, str] = {}
        self.joined_lsn: dict[int, int] = {}
        self.ended_lsn: dict[int, int] = {}
        self.arrival_of: dict[int, int] = {}
        self.live: dict[str, int] = {}
        self.limits = Limits()
        self.inside = 0
        self.newest = 0
        self.epoch = 0
        self.lsn = 0

    def number(self, arrival: int) -> int:
        """Return the queue number of an arrival."""
        return self.keys[arrival] & NUMBER_MASK

    def apply(self, line: LogLine) -> Iterator[Fault]:
        """Take in one record; yields what is wrong with it."""
        if line.lsn <= self.lsn:
            yield "duplicated", f"LSN {line.lsn} follows LSN {self.lsn}"
        self.lsn = line.lsn
        match line.kind:
            case "joined":
                yield from self._joined(line)
            case "released":
                yield from self._released(line)
            case "left" | "completed":
                yield from self._ended(line)
            case "configured" if line.settings is not None:
                self.limits = line.settings
            case "started":
                if line.epoch <= self.epoch:
                    yield "epoch", f"LSN {line.lsn}: epoch {line.epoch} follows epoch {self.epoch}"
                self.epoch = line.epoch

    def _joined(self, line: LogLine) -> Iterator[Fault]:
        number, user_id = line.key & NUMBER_MASK, line.user_id
        if line.arrival in self.users or number in self.arrival_of:
            yield "duplicated", f"LSN {line.lsn}: number {number} or arrival {line.arrival} is given out again"
            return
        if line.arrival != self.newest + 1:
            kind = "lost" if line.arrival > self.newest else "reordered"
            yield kind, f"LSN {line.lsn}: arrival {line.arrival} comes where {self.newest + 1} is due"
        self.newest = max(self.newest, line.arrival)
        if user_id in self.live:
            yield "duplicated", f"LSN {line.lsn}: {user_id} holds arrival {self.live[user_id]} and gets {line.arrival}"
        self.users[line.arrival] = user_id
        self.keys[line.arrival] = line.key
        self.joined_lsn[line.arrival] = line.lsn
        self.arrival_of[number] = line.arrival
        self.live[user_id] = line.arrival
        self.status[line.arrival] = "waiting"
        insort(self.waiting, line.key)

    def _released(self, line: LogLine) -> Iterator[Fault]:
        head = [key & NUMBER_MASK for key in self.waiting[: len(line.numbers)]]
        if head != line.numbers:
            yield "skipped", f"LSN {line.lsn}: released {line.numbers[:5]}… where {head[:5]}… were the head"
        for number in line.numbers:
            arrival = self.arrival_of.get(number, 0)
            if self.status.get(arrival) != "waiting":
                yield "skipped", f"LSN {line.lsn}: released {number}, who is {self.status.get(arrival)}"
                continue
            self._step_out(arrival)
            self.status[arrival] = "ready"
            self.inside += 1
        cap = self.limits.max_active
        if cap is not None and self.inside > cap:
            yield "over_cap", f"LSN {line.lsn}: {self.inside} are inside, {cap} may be"

    def _ended(self, line: LogLine) -> Iterator[Fault]:
        was = self.status.get(line.arrival)
        may_be = LIVE if line.kind == "left" else {"ready"}
        if was not in may_be:
            yield "diverged", f"LSN {line.lsn}: {line.kind} of arrival {line.arrival}, which is {was}"
            return
        if was == "waiting":
            self._step_out(line.arrival)
        else:
            self.inside -= 1
        self.status[line.arrival] = line.kind
        self.ended_lsn[line.arrival] = line.lsn
        self.live.pop(self.users[line.arrival], None)

    def _step_out(self, arrival: int) -> None:
        del self.waiting[bisect_left(self.waiting, self.keys[arrival])]


def check(evidence: Evidence) -> Report:
    """Return the verdict on a run; O(n log n) in entries and records (but for the plain list's memory moves)."""
    entries = evidence.entries
    answered = [entry for entry in entries if entry.answered_s is not None]
    acknowledged = sum(entry.op != "position" for entry in answered)
    report = Report(acknowledged, sum(entry.op == "join" for entry in answered))
    model = PlainLine()
    faults: list[Fault] = []
    for line in evidence.log:
        faults += model.apply(line)
    for judge in (_lost, _duplicated, _resurrected, _diverged, _released, _epochs):
        faults += judge(model, answered, evidence)
    faults += _reordered(entries)
    faults += _went_back(answered)
    faults += _over_rate(evidence)
    faults += wrong_ranks(evidence.log, answered)
    for kind, sentence in faults:
        report.faults[kind].append(sentence)
    return report


def _lost(model: PlainLine, answered: Iterable[Entry], evidence: Evidence) -> Iterator[Fault]:
    """Find acknowledged joins, leaves and stays ended that are in the records or the final state no more."""
    for entry in answered:
        name = f"{entry.op} of {entry.user_id} (arrival {entry.arrival}, number {entry.number})"
        if entry.op in ("join", "position") and entry.arrival:
            recorded = model.users.get(entry.arrival)
            if recorded != entry.user_id or model.number(entry.arrival) != entry.number:
                yield "lost", f"{name} is not in the records: {recorded}"
            shown = evidence.final.get(entry.arrival)
            if shown is None or (shown.user_id, shown.number) != (entry.user_id, entry.number):
                yield "lost", f"{name} is not in the final state: {shown}"
        elif entry.op in ("leave", "complete"):
            status = model.status.get(entry.arrival)
            if status not in (ENDED if entry.op == "leave" else {"completed"}):
                yield "lost", f"{name} was acknowledged, the records say {status}"


def _duplicated(model: PlainLine, answered: Iterable[Entry], _: Evidence) -> Iterator[Fault]:
    """Find numbers given to two, and retries that got another place while the first one lived."""
    holder: dict[int, tuple[str, int]] = {}
    by_key: defaultdict[str, list[Entry]] = defaultdict(list)
    for entry in answered:
        if entry.op != "join":
            continue
        identity = entry.user_id, entry.arrival
        if holder.setdefault(entry.number, identity) != identity:
            yield "duplicated", f"number {entry.number} was given to {holder[entry.number]} and {identity}"
        if entry.key:
            by_key[entry.key].append(entry)
    for key, joins in by_key.items():
        joins.sort(key=lambda entry: entry.arrival)
        for first, second in pairwise(joins):
            ended = model.ended_lsn.get(first.arrival)
            if first.arrival != second.arrival and (ended is None or ended > model.joined_lsn.get(second.arrival, 0)):
                yield "duplicated", f"key {key}: arrivals {first.arrival} and {second.arrival} at the same time"
            if first.user_id != second.user_id:
                yield "duplicated", f"key {key}: two identities, {first.user_id} and {second.user_id}"


def _reordered(entries: Iterable[Entry]) -> Iterator[Fault]:
    """Find B with a lower number than an A that was answered before B was sent; O(n log n).

    A place counts as sent with the earliest attempt of its holder, and as answered with its first answer.
    """
    sent: dict[int, float] = {}
    answered: dict[int, float] = {}
    unknown: dict[str, float] = {}
    identity: dict[int, set[str]] = defaultdict(set)
    for entry in entries:
        if entry.op != "join":
            continue
        if entry.answered_s is None:
            for name in filter(None, (entry.user_id, entry.key)):
                unknown[name] = min(unknown.get(name, entry.sent_s), entry.sent_s)
            continue
        identity[entry.number] |= {entry.user_id, entry.key}
        sent[entry.number] = min(sent.get(entry.number, entry.sent_s), entry.sent_s)
        answered[entry.number] = min(answered.get(entry.number, entry.answered_s), entry.answered_s)
    for number, names in identity.items():
        sent[number] = min([sent[number], *(unknown[name] for name in names if name in unknown)])
    by_answer = sorted((moment, number) for number, moment in answered.items())
    highest = index = 0
    for sent_s, number in sorted((moment, number) for number, moment in sent.items()):
        while index < len(by_answer) and by_answer[index][0] < sent_s:
            highest = max(highest, by_answer[index][1])
            index += 1
        if number < highest:
            yield "reordered", f"number {number} was asked for after {highest} had been answered"


def _resurrected(_: PlainLine, answered: Sequence[Entry], evidence: Evidence) -> Iterator[Fault]:
    """Find places that live on, or are shown alive, after their end was acknowledged."""
    ended: dict[int, Entry] = {}
    for entry in answered:
        if entry.op in ("leave", "complete"):
            earlier = ended.setdefault(entry.arrival, entry)
            if entry.answered_s is not None and entry.answered_s < (earlier.answered_s or 0):
                ended[entry.arrival] = entry
    for arrival, entry in ended.items():
        shown = evidence.final.get(arrival)
        if shown is not None and shown.status in LIVE:
            yield "resurrected", f"arrival {arrival} is {shown.status} after its {entry.op} was acknowledged"
    for entry in answered:
        end = ended.get(entry.arrival)
        if end is None or entry.op not in ("join", "position") or entry.status not in LIVE:
            continue
        if entry.sent_s > (end.answered_s or 0):
            yield "resurrected", f"arrival {entry.arrival} was shown {entry.status} after its {end.op}"


def _diverged(model: PlainLine, _: Iterable[Entry], evidence: Evidence) -> Iterator[Fault]:
    """Find places whose final state is not what the records lead to."""
    for arrival, place in evidence.final.items():
        status = model.status.get(arrival)
        if status is None:
            yield "diverged", f"arrival {arrival} is shown {place.status} and is not in the records"
        elif (place.user_id, place.number, place.status) != (model.users[arrival], model.number(arrival), status):
            yield "diverged", f"arrival {arrival} is shown {place}, the records lead to {status}"


def _released(_: PlainLine, answered: Iterable[Entry], evidence: Evidence) -> Iterator[Fault]:
    """Find releases by hand that were acknowledged and are not on record as they were told, or twice."""
    by_lsn: dict[int, int] = {}
    by_request: Counter[str] = Counter()
    for line in evidence.log:
        if line.kind == "released" and line.manual:
            by_lsn[line.lsn] = len(line.numbers)
            by_request[line.request or ""] += len(line.numbers)
    for entry in answered:
        if entry.op == "release":
            on_record = by_request[entry.key] if entry.key else by_lsn.get(entry.version or 0, 0)
            if on_record != entry.number and (entry.key or entry.number):
                kind = "lost" if on_record < entry.number else "duplicated"
                yield kind, f"a release of {entry.number} at version {entry.version} is on record with {on_record}"


def _epochs(_: PlainLine, answered: Iterable[Entry], evidence: Evidence) -> Iterator[Fault]:
    """Find epochs that were told twice, that fall, or that have no record."""
    started = {line.epoch for line in evidence.log if line.kind == "started"}
    previous = 0
    for epoch in evidence.epochs:
        if epoch <= previous:
            yield "epoch", f"a life told epoch {epoch} after epoch {previous}"
        if epoch not in started:
            yield "epoch", f"epoch {epoch} was told and is not on record"
        previous = epoch
    told = {entry.epoch for entry in answered if entry.epoch is not None}
    for epoch in sorted(told - started):
        yield "epoch", f"epoch {epoch} was answered and is not on record"


def _went_back(answered: Iterable[Entry]) -> Iterator[Fault]:
    """Find answers with an older (epoch, version) than the same client had seen before it asked."""
    newest: dict[int, tuple[float, tuple[int, int]]] = {}
    for entry in sorted(answered, key=lambda entry: entry.answered_s or 0):
        if entry.epoch is None or entry.version is None:
            continue
        now = entry.epoch, entry.version
        seen_s, seen = newest.get(entry.client, (0.0, (0, 0)))
        if now < seen and seen_s <= entry.sent_s:
            yield "went_back", f"client {entry.client} saw {seen}, then {now}"
        newest[entry.client] = entry.answered_s or 0, max(now, seen)


def _over_rate(evidence: Evidence) -> Iterator[Fault]:
    """Find windows of one interval with more than one batch of automatic releases.

    By event time, and by what an observer saw: two looks that begin and end within one interval may not lie more
    than a batch apart. Judged while the settings of the rate stand still, as scenarios leave them.
    """
    limits = next((line.settings for line in evidence.log if line.settings is not None), Limits())
    interval_s, batch = limits.batch_interval_s, limits.batch_size
    window: list[tuple[int, int]] = []
    for line in evidence.log:
        if line.kind == "released" and not line.manual:
            window = [(at_ms, count) for at_ms, count in window if line.at_ms - at_ms < interval_s * 1000]
            window.append((line.at_ms, len(line.numbers)))
            if sum(count for _, count in window) > batch:
                yield "over_rate", f"LSN {line.lsn}: {window} within {interval_s} s, {batch} are allowed"
    first = 0
    for look in evidence.observed:
        while look.answered_s - evidence.observed[first].sent_s >= interval_s:
            first += 1
        if look.released - evidence.observed[first].released > batch:
            yield "over_rate", f"{evidence.observed[first]} and {look} lie within {interval_s} s"


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


def wrong_ranks(log: Sequence[LogLine], answered: Iterable[Entry]) -> Iterator[Fault]:
    """Find positions that are not the rank that the records give at the answer's version."""
    questions = [e for e in answered if e.op in ("join", "position") and e.version is not None and e.status]
    questions.sort(key=lambda entry: entry.version or 0)
    tree = Fenwick(max((line.arrival for line in log), default=0))
    waiting: set[int] = set()
    index = 0
    for entry in questions:
        while index < len(log) and log[index].lsn <= (entry.version or 0):
            _move(tree, waiting, log[index])
            index += 1
        due = tree.up_to(entry.number) if entry.number in waiting else None
        if entry.position != due:
            yield "wrong_rank", f"number {entry.number} was told {entry.position} at version {entry.version}, not {due}"


def _move(tree: Fenwick, waiting: set[int], line: LogLine) -> None:
    if line.kind == "joined":
        waiting.add(line.key & NUMBER_MASK)
        tree.add(line.key & NUMBER_MASK, 1)
        return
    for number in line.numbers if line.kind == "released" else [line.arrival] if line.kind in ENDED else []:
        if number in waiting:
            waiting.remove(number)
            tree.add(number, -1)
