"""What was released, when and in which life, held against what was told: releases by hand, the rate, epochs."""

from collections import Counter
from collections.abc import Iterable, Iterator

from tests.scenarios.evidence import Entry, Evidence, Fault, Limits
from tests.scenarios.plain_line import PlainLine


def released_by_hand(_: PlainLine, answered: Iterable[Entry], evidence: Evidence) -> Iterator[Fault]:
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


def epochs(_: PlainLine, answered: Iterable[Entry], evidence: Evidence) -> Iterator[Fault]:
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


def went_back(_: PlainLine, answered: Iterable[Entry], __: Evidence) -> Iterator[Fault]:
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


def over_rate(_: PlainLine, __: Iterable[Entry], evidence: Evidence) -> Iterator[Fault]:
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
