"""What is checked about a join receipt: the signature by the server's public keys, who holds it, what it drew.

A receipt is only as good as the keys it is held against: they have to come from the server's own address, or from a
copy that was kept.
"""

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeAlias

import msgspec

from engine.errors import Damaged, Refused
from engine.identities import subject_of
from engine.receipts import ReceiptClaims, check_receipt
from server.draw_check import Check
from server.draw_source import Entries, PublishedDraw
from server.public_client import address_of, open_file, whole

LONGEST_FILE_BYTES = 64 << 10
KEY_SET_PATH = "/.well-known/jwks.json"

KeySet: TypeAlias = dict[str, object]


class _Answer(msgspec.Struct):
    receipt: str


def read_receipt(path: Path) -> str:
    """Return the receipt in a file: its text alone, or the answer of `GET …/receipt`; raises UsageError, Damaged."""
    raw = _read(path).strip()
    try:
        return msgspec.json.decode(raw, type=_Answer).receipt if raw.startswith(b"{") else raw.decode("ascii")
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Damaged(f"{path} holds no receipt: {error}") from None


def read_keys(text: str) -> KeySet:
    """Return the key set at URL|FILE; raises UsageError, Damaged, Unreachable or NotPermitted."""
    raw = _fetch(text) if "://" in text else _read(Path(text))
    try:
        return msgspec.json.decode(raw, type=KeySet)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Damaged(f"{text} holds no key set: {error}") from None


def keys_beside(url: str) -> str:
    """Return where the server that publishes an event has its key set."""
    return url.partition("/v1/events/")[0] + KEY_SET_PATH


def claims_of(receipt: str, keys: KeySet) -> ReceiptClaims | Check:
    """Return what a receipt says, or the check that it does not pass; raises Damaged for a key set that is none."""
    try:
        return check_receipt(receipt, keys)
    except Refused as refused:
        if refused.code == "bad_request":
            raise Damaged(f"the key set cannot be used: {refused.detail}") from None
        return Check("signature", False, f"The receipt does not hold: {refused.detail}.")


def check_claims(claims: ReceiptClaims, user_id: str | None) -> Iterator[Check]:
    """Say what the receipt says, and whether it is this visitor's."""
    yield Check("signature", True, "The receipt is signed with one of the server's keys.")
    number = "in the lobby" if claims.number is None else f"with number {claims.number}"
    said = f"arrival {claims.arrival} joined event {claims.ev!r} {number} at {_moment(claims.joined_ms)}"
    yield Check("claims", True, f"It says: {said}, as record {claims.lsn} of epoch {claims.epoch}.")
    if user_id is not None:
        ok = _is_text(user_id) and subject_of(claims.ev, user_id) == claims.sub
        yield Check("holder", ok, f"It was {'' if ok else 'not '}given to the user named.")


def check_event(claims: ReceiptClaims, draw: PublishedDraw) -> Check:
    """Check that receipt and draw are of the same event."""
    ok = claims.ev == draw.event_id
    good, bad = "Receipt and draw are of the same event.", f"The receipt is not of event {draw.event_id}."
    return Check("event", ok, good if ok else bad)


def check_drawn(claims: ReceiptClaims, entries: Entries) -> Check:
    """Check that the receipt's arrival drew what the receipt says, if it says so already; O(n)."""
    arrivals, own = entries.arrivals, f"Arrival {claims.arrival}"
    count, drawn = len(arrivals), None
    if claims.arrival in arrivals:
        drawn = arrivals.index(claims.arrival) + 1
        ok = claims.number in (None, drawn)
        sentence = f"{own} drew number {drawn} of {count}" + ("." if ok else f", and its receipt says {claims.number}.")
    elif claims.number is None:
        ok, sentence = False, f"{own} was in the lobby and is not among the drawn: it left before, or was left out."
    else:
        ok = claims.number > count
        sentence = f"{own} was not drawn: its number {claims.number} {_behind(ok)} the {count} that were."
    return Check("drawn", ok, sentence, drawn)


def _is_text(user_id: str) -> bool:
    """Whether it can be written in UTF-8, as every user_id can; what a shell hands over may be other bytes."""
    try:
        user_id.encode()
    except UnicodeEncodeError:
        return False
    return True


def _behind(is_behind: bool) -> str:
    return "stands behind" if is_behind else "should stand behind"


def _moment(moment_ms: int) -> str:
    try:
        return datetime.fromtimestamp(moment_ms / 1000, UTC).isoformat(timespec="milliseconds")
    except (OverflowError, ValueError, OSError):
        return f"{moment_ms} ms"


def _read(path: Path) -> bytes:
    with open_file(path) as file:
        raw = file.read(LONGEST_FILE_BYTES + 1)
    if len(raw) > LONGEST_FILE_BYTES:
        raise Damaged(f"{path} is longer than {LONGEST_FILE_BYTES} bytes")
    return raw


def _fetch(text: str) -> bytes:
    address = address_of(text, f"https://queue.example{KEY_SET_PATH}")
    path = KEY_SET_PATH if address.path in ("", "/") else address.path
    return asyncio.run(whole(address._replace(path=path).geturl(), LONGEST_FILE_BYTES))
