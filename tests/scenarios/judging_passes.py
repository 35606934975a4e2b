"""What was answered to those let in, held against the records: redeems, sessions, devices, and who was turned away."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType

from tests.scenarios.evidence import SHOWING, Entry, Evidence, Fault
from tests.scenarios.judging_places import first_ends
from tests.scenarios.plain_line import PlainLine, Row

OF_THE_TOKEN = frozenset(("leave", "extend_claim", "heartbeat"))
OUT_AGAIN = frozenset(("lapsed", "expired", "left", "removed", "completed"))


def redeems(model: PlainLine, answered: Sequence[Entry], _: Evidence) -> Iterator[Fault]:
    """Find passes that let two in, answers that are not on record, and answers that changed."""
    keys: defaultdict[str, set[str]] = defaultdict(set)
    told: dict[tuple[str, str], str] = {}
    for entry in answered:
        if entry.op != "redeem":
            continue
        keys[entry.jti].add(entry.key)
        row = model.rows.get(entry.arrival)
        on_record = [] if row is None else [redeem for redeem in row.redeems if redeem.jti == entry.jti]
        if not any(redeem.request == (entry.key or None) for redeem in on_record):
            yield "lost", f"a redeem of arrival {entry.arrival} under {entry.key} is on record as {on_record}"
        if entry.key and told.setdefault((entry.jti, entry.key), entry.answer) != entry.answer:
            first = told[entry.jti, entry.key]
            yield "changed_answer", f"{entry.key} of arrival {entry.arrival} was told {first}, then {entry.answer}"
    for jti, used in keys.items():
        if len(used) > 1:
            yield "redeemed_twice", f"pass {jti} let in {sorted(used)}"


def dead_passes(model: PlainLine, answered: Sequence[Entry], _: Evidence) -> Iterator[Fault]:
    """Find passes that were redeemed after their turn: each is of the one turn in which it was handed out."""
    turn_of: dict[str, tuple[int, int]] = {}
    for entry in answered:
        row = model.rows.get(entry.arrival)
        if entry.op in SHOWING and entry.jti and row is not None and entry.version is not None:
            turn = entry.arrival, row.turn_at(entry.version)
            if turn_of.setdefault(entry.jti, turn) != turn:
                yield "dead_pass", f"pass {entry.jti} was handed out for {turn_of[entry.jti]} and for {turn}"
    for row in model.rows.values():
        for redeem in row.redeems:
            turn = row.arrival, redeem.turn
            if turn_of.get(redeem.jti, turn) != turn:
                yield "dead_pass", f"LSN {redeem.lsn}: the pass of {turn_of[redeem.jti]} was redeemed in {turn}"


def outlived(model: PlainLine, answered: Sequence[Entry], _: Evidence) -> Iterator[Fault]:
    """Find sessions that were made longer, and passes that were redeemed, after the place had ended for its people."""
    ended = first_ends(answered)
    kinds = {"extend": "outlived", "extend_claim": "outlived", "redeem": "dead_pass"}
    for entry in answered:
        end = ended.get(entry.arrival)
        if entry.op in kinds and end is not None and entry.sent_s > (end.answered_s or 0):
            yield kinds[entry.op], f"{entry.op} of arrival {entry.arrival} after its {end.op} was acknowledged"


def extensions(model: PlainLine, answered: Iterable[Entry], _: Evidence) -> Iterator[Fault]:
    """Find extensions that were acknowledged and are not on record, although a window could be made longer."""
    for entry in answered:
        if entry.op not in ("extend", "extend_claim"):
            continue
        row = model.rows.get(entry.arrival)
        if row is None or not row.kinds & {"released", "admitted"}:
            yield "lost", f"an extension of arrival {entry.arrival}, which was never let in"
        elif not row.is_fixed and "extended" not in row.kinds:
            yield "lost", f"an extension of arrival {entry.arrival} was acknowledged and is not on record"


def transfers(model: PlainLine, answered: Sequence[Entry], _: Evidence) -> Iterator[Fault]:
    """Find transfers that are not on record, or that made two devices the holder."""
    keys: defaultdict[tuple[int, int], set[str]] = defaultdict(set)
    for entry in answered:
        if entry.op != "accept":
            continue
        row = model.rows.get(entry.arrival)
        keys[entry.arrival, entry.generation].add(entry.key)
        if row is None or entry.generation not in (generation for _, generation in row.generations):
            yield "lost", f"generation {entry.generation} of arrival {entry.arrival} is not on record"
    for (arrival, generation), used in keys.items():
        if len(used) > 1:
            yield "generation", f"generation {generation} of arrival {arrival} went to {sorted(used)}"


def old_tokens(model: PlainLine, answered: Sequence[Entry], _: Evidence) -> Iterator[Fault]:
    """Find tokens that were handed a pass, or could change anything, after their place had gone to another device."""
    moved: defaultdict[int, list[tuple[float, int]]] = defaultdict(list)
    for entry in answered:
        if entry.op == "accept":
            moved[entry.arrival].append((entry.answered_s or 0, entry.generation))
    for entry in answered:
        row = model.rows.get(entry.arrival)
        is_shown = entry.op in SHOWING and row is not None and entry.version is not None
        generation = row.generation_at(entry.version) if is_shown and row and entry.version else 0
        if entry.jti and entry.generation < generation:
            yield "old_token", f"a token of generation {entry.generation} of arrival {entry.arrival} got a pass"
        newest = max((its for at_s, its in moved[entry.arrival] if at_s < entry.sent_s), default=0)
        if entry.op in OF_THE_TOKEN and entry.generation < newest:
            yield "old_token", f"{entry.op} of arrival {entry.arrival} with a token of {entry.generation}"


def turned_away(model: PlainLine, _: Sequence[Entry], evidence: Evidence) -> Iterator[Fault]:
    """Find refusals that no record explains."""
    for entry in evidence.entries:
        if not entry.refusal:
            continue
        if entry.op == "join":
            is_right = entry.refusal == "banned" and entry.user_id in model.banned
        else:
            row, explains = model.rows.get(entry.arrival), _EXPLANATIONS.get(entry.refusal)
            is_right = row is not None and explains is not None and explains(row, entry)
        if not is_right:
            yield "turned_away", f"{entry.op} of {entry.user_id} (arrival {entry.arrival}) was told {entry.refusal}"


def _is_used(row: Row, entry: Entry) -> bool:
    """Return whether a pass was used by somebody else, or by this one in a session that is over."""
    by = [redeem.request for redeem in row.redeems if redeem.jti == entry.jti]
    return bool(by) and (by != [entry.key] or row.ended_lsn is not None)


def _is_out(row: Row, entry: Entry) -> bool:
    return bool(row.kinds & OUT_AGAIN)


def _is_moved(row: Row, entry: Entry) -> bool:
    return row.generation > entry.generation


def _is_moved_or_out(row: Row, entry: Entry) -> bool:
    """Return whether a code was used (an accept's generation is the one it would have made), or the place has ended."""
    return row.generation >= entry.generation > 0 or _is_out(row, entry)


_EXPLANATIONS: Mapping[str, Callable[[Row, Entry], bool]] = MappingProxyType(
    {
        "pass_used": _is_used,
        "pass_expired": _is_out,
        "not_active": _is_out,
        "conflict": _is_out,
        "gone": _is_moved_or_out,
        "read_only": _is_moved,
    }
)
