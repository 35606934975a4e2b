"""The judge of a simulated life: holds what its clients were told against the promises."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from math import inf

from engine.register import STATUSES
from engine.venue import Venue
from snapshots.wal import RESTARTS_PER_TERM
from tests.simulation.history import Answered, History, Promotion
from tests.simulation.visitors import EVENT

WRITES = frozenset({"join", "leave", "redeem", "readmit"})
READS = frozenset({"place", "touch"})
ENDED = frozenset({"left", "expired", "completed", "removed"})


def term_of(epoch: int) -> int:
    """Return the term of an epoch."""
    return epoch // RESTARTS_PER_TERM


def judge(history: History, venue: Venue, is_async: bool) -> Iterator[str]:
    """Yield every violation of a promise; `venue` is the state of the last primary when all was healed."""
    good = [its for its in history.answers if its.outcome == "ok"]
    by_visitor: dict[str, list[Answered]] = defaultdict(list)
    for its in good:
        by_visitor[its.visitor].append(its)
    lossy = [its for its in history.promotions if its.is_lossy]
    yield from one_number_each(by_visitor)
    yield from in_order(history.answers)
    gone = {its.visitor for its in history.answers if its.verb == "leave"}
    # Whoever leaves after a join that nobody answered may find it done later: it was on its way, as any request may be.
    late = {its.visitor for its in history.answers if its.verb == "join" and its.outcome != "ok"} & gone
    staying = {visitor: its for visitor, its in by_visitor.items() if visitor not in late}
    yield from nobody_lost(staying, venue, lossy, is_async, gone)
    yield from one_writer_per_term(good)
    yield from no_old_term_speaks(good)
    yield from nothing_older_than_known(good)
    yield from nothing_undone(good, history.promotions, is_async)
    if not lossy:
        yield from never_worse(by_visitor)
        yield from let_in_in_order(venue)
        yield from what_was_done_stays(staying, venue)


def one_number_each(by_visitor: dict[str, list[Answered]]) -> Iterator[str]:
    """Whoever is answered is answered the same number for ever, and nobody else is."""
    owner: dict[int, str] = {}
    for visitor, answers in by_visitor.items():
        numbers = {its.number for its in answers if its.number}
        if len(numbers) > 1:
            yield f"{visitor} was told the numbers {sorted(numbers)}"
        for number in numbers:
            if owner.setdefault(number, visitor) != visitor:
                yield f"number {number} was given to {owner[number]} and to {visitor}"


def in_order(answers: Iterable[Answered]) -> Iterator[str]:
    """If A was answered before B asked, A stands before B."""
    sent: dict[str, float] = {}
    joined: dict[str, Answered] = {}
    for its in answers:
        if its.verb == "join":
            sent[its.visitor] = min(its.sent_s, sent.get(its.visitor, inf))
            if its.outcome == "ok":
                joined.setdefault(its.visitor, its)
    latest_s, latest = -inf, ""
    for its in sorted(joined.values(), key=lambda its: its.number):
        if its.answered_s < latest_s:
            yield f"{its.visitor} (number {its.number}) was answered before {latest}, who stands ahead, had asked"
        if sent[its.visitor] > latest_s:
            latest_s, latest = sent[its.visitor], its.visitor


def nobody_lost(
    by_visitor: dict[str, list[Answered]], venue: Venue, lossy: list[Promotion], is_async: bool, gone: set[str]
) -> Iterator[str]:
    """Every acknowledged join is there at the end, with its number; what a promotion may lose comes back with it.

    `gone` are those who were lost and did not come back, but wanted to leave.
    """
    register = venue.rooms[EVENT].ledger.register
    for visitor, answers in by_visitor.items():
        number = next((its.number for its in answers if its.number), 0)
        arrival = register.by_user.get(visitor, 0)
        may_be_lost = any(_may_lose(promotion, answers, is_async) for promotion in lossy)
        if number and arrival != number and not (may_be_lost and visitor in gone):
            yield f"{visitor} was answered number {number} and has {arrival or 'no place'} in the end"
        for its in answers:
            if its.verb == "readmit" and not may_be_lost:
                yield f"{visitor} had to be readmitted at {its.spoken_s:.3f}, and nothing may have been lost"


def _may_lose(promotion: Promotion, answers: list[Answered], is_async: bool) -> bool:
    """Whether a promotion by hand may have lost the join of this visitor."""
    join = next((its for its in answers if its.verb == "join"), answers[0])
    is_cut = term_of(join.epoch) < promotion.term and join.lsn > promotion.from_lsn
    return is_cut and (is_async or join.is_alone)


def one_writer_per_term(good: list[Answered]) -> Iterator[str]:
    """Only one host ever writes in a term."""
    writers: dict[int, set[str]] = defaultdict(set)
    for its in good:
        if its.role == "primary" and its.verb in WRITES:
            writers[term_of(its.epoch)].add(its.by.partition("#")[0])
    for term, hosts in writers.items():
        if len(hosts) > 1:
            yield f"in term {term} {' and '.join(sorted(hosts))} answered writes"


def no_old_term_speaks(good: list[Answered]) -> Iterator[str]:
    """Once a term has answered a write, no primary of an older one says anything."""
    newest = Answered("", "", "", "", 0, 0, 0, "")
    for its in sorted(good, key=lambda its: its.spoken_s):
        if its.role != "primary" or its.is_stale or not its.epoch:
            continue
        if term_of(its.epoch) < term_of(newest.epoch):
            yield (
                f"{its.by} said {its.verb} in term {term_of(its.epoch)} at {its.spoken_s:.3f}, after {newest.by} had "
                f"said {newest.verb} in term {term_of(newest.epoch)} at {newest.spoken_s:.3f}"
            )
        if its.verb in WRITES and term_of(its.epoch) > term_of(newest.epoch):
            newest = its


def nothing_older_than_known(good: list[Answered]) -> Iterator[str]:
    """A read is as new as every answer that was given before it was asked, its own visitor's included."""
    told = [its for its in good if its.lsn and not its.is_stale]
    given = sorted(told, key=lambda its: its.spoken_s)
    floor, at = (0, 0), 0
    for its in sorted((its for its in told if its.verb in READS), key=lambda its: its.sent_s):
        while at < len(given) and given[at].spoken_s < its.sent_s:
            floor = max(floor, (term_of(given[at].epoch), given[at].lsn))
            at += 1
        if (term_of(its.epoch), its.lsn) < floor:
            yield (
                f"{its.by} ({its.role}) answered {its.visitor}'s {its.verb} of {its.sent_s:.3f} as of term "
                f"{term_of(its.epoch)}, LSN {its.lsn}; known was term {floor[0]}, LSN {floor[1]}"
            )


def nothing_undone(good: list[Answered], promotions: list[Promotion], is_async: bool) -> Iterator[str]:
    """What anybody was told is there after a promotion, but for what rested on one disk when a person promoted."""
    for promotion in promotions:
        for its in good:
            is_told = its.lsn > promotion.from_lsn and term_of(its.epoch) < promotion.term and not its.is_stale
            if is_told and its.spoken_s < promotion.at_s and not (promotion.is_lossy and (is_async or its.is_alone)):
                yield (
                    f"{its.by} answered {its.visitor}'s {its.verb} at {its.spoken_s:.3f} as of LSN {its.lsn} of term "
                    f"{term_of(its.epoch)}, and term {promotion.term} began behind LSN {promotion.from_lsn}"
                )


def never_worse(by_visitor: dict[str, list[Answered]]) -> Iterator[str]:
    """The position a visitor is shown never rises."""
    for visitor, answers in by_visitor.items():
        best = inf
        for its in answers:
            if its.position is None or its.is_stale or its.verb not in READS:
                continue
            if its.position > best:
                yield f"{visitor} was shown position {best} and then, at {its.answered_s:.3f}, {its.position}"
            best = min(best, its.position)


def let_in_in_order(venue: Venue) -> Iterator[str]:
    """Whoever was let in stood before everybody who still waits."""
    by_status: dict[str, list[int]] = defaultdict(list)
    for visitor, arrival in venue.rooms[EVENT].ledger.register.by_user.items():
        by_status[_status(venue, visitor)].append(arrival)
    waiting, inside = by_status["waiting"], by_status["ready"] + by_status["active"]
    if waiting and inside and max(inside) > min(waiting):
        yield f"number {max(inside)} was let in and number {min(waiting)} still waits"


def what_was_done_stays(by_visitor: dict[str, list[Answered]], venue: Venue) -> Iterator[str]:
    """Who was told that the place is given up does not stand in line; whose pass was redeemed is inside, or was."""
    for visitor, answers in by_visitor.items():
        status, verbs = _status(venue, visitor), {its.verb for its in answers}
        if "leave" in verbs and status not in ENDED:
            yield f"{visitor} left, was told so, and is {status} in the end"
        if "redeem" in verbs and status not in ENDED | {"active"}:
            yield f"the pass of {visitor} was redeemed, the site was told so, and in the end it is {status}"


def _status(venue: Venue, visitor: str) -> str:
    register = venue.rooms[EVENT].ledger.register
    return STATUSES[register.status[register.by_user.get(visitor, 0)]]
