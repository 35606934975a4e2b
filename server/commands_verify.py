"""`stanchion verify`: is it true? A data folder, a published draw or a join receipt is held against its own proof.

A draw and a receipt are verified from public data alone: no key is asked for and nobody is believed.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from engine.errors import Damaged, NotPermitted, UsageError
from engine.receipts import ReceiptClaims
from server import commands_data
from server.draw_check import Check, Kept, check_commitment, check_entries, check_seed, until_one_fails
from server.draw_source import PublishedDraw, Source, read_draw, read_entries, source_of
from server.receipt_check import check_claims, check_drawn, check_event, claims_of, keys_beside, read_keys, read_receipt
from server.terminal import bar, notes, print_json

WITHOUT_BEACON = (
    "Without a beacon this proves that nothing was changed after the commitment, not that nobody knew the seed."
)


Folder: TypeAlias = Annotated[
    Path | None, typer.Argument(metavar="DIR", exists=True, file_okay=False, help="A data folder.")
]
Draw: TypeAlias = Annotated[
    str | None, typer.Option(metavar="URL|FILE", help="A draw: the event's address, or a file of what it published.")
]
Receipt: TypeAlias = Annotated[
    Path | None, typer.Option(metavar="FILE", help="A join receipt; with --draw also what it drew.")
]
Commitment: TypeAlias = Annotated[
    str | None, typer.Option(metavar="HEX", help="With --draw: the commitment as you kept it before the opening.")
]
BeaconValue: TypeAlias = Annotated[
    str | None, typer.Option(metavar="TEXT", help="With --draw: the beacon's value as you know it yourself.")
]
Jwks: TypeAlias = Annotated[
    str | None,
    typer.Option(
        metavar="URL|FILE", help="With --receipt: the server's public keys. Default: those beside --draw URL."
    ),
]
User: TypeAlias = Annotated[str | None, typer.Option(metavar="ID", help="With --receipt: the user_id it should be of.")]
Json: TypeAlias = Annotated[bool, typer.Option("--json", help="Write JSON.")]


def verify(
    folder: Folder = None,
    draw: Draw = None,
    receipt: Receipt = None,
    commitment: Commitment = None,
    beacon: BeaconValue = None,
    jwks: Jwks = None,
    user: User = None,
    as_json: Json = False,
) -> int:
    """Check a data folder, a draw or a receipt.

    DIR: read all snapshots and the whole log, rebuild every line, and check it; changes nothing.

    On the folder of a running server the frame just being written may show as a torn tail.

    --draw: compute a lobby's draw again from what was published, and compare.

    --receipt: check that the server signed it, and say what it says.
    """
    if (folder is None) == (draw is None and receipt is None):
        raise UsageError("name one thing to verify: DIR, --draw URL|FILE or --receipt FILE")
    if draw is None and not (commitment is None and beacon is None):
        raise UsageError("--commitment and --beacon go with --draw")
    if receipt is None and not (jwks is None and user is None):
        raise UsageError("--jwks and --user go with --receipt")
    if folder is not None:
        return commands_data.verify(folder, as_json)
    source = source_of(draw) if draw is not None else None
    kept = Kept(_hex(commitment), beacon)
    if receipt is not None:
        return _verify_receipt(receipt, jwks, user, source, kept, as_json)
    assert source is not None
    return _verify_draw(source, kept, as_json)


def _verify_draw(source: Source, kept: Kept, as_json: bool) -> int:
    draw = read_draw(source)
    checks = _reported(_checks_of(source, draw, kept), as_json)
    told = {"event_id": draw.event_id, "draw_id": draw.draw_id, "count": draw.count}
    verdict = f"The draw of event {draw.event_id} holds: {draw.count} places were drawn as was committed to."
    if draw.beacon is None:
        verdict += f"\n{WITHOUT_BEACON}"
    return _conclude(told, checks, verdict, as_json)


def _verify_receipt(
    file: Path, jwks: str | None, user_id: str | None, source: Source | None, kept: Kept, as_json: bool
) -> int:
    if jwks is None and source is not None and source.url is not None:
        jwks = keys_beside(source.url)
    if jwks is None:
        raise UsageError("--jwks URL|FILE is needed: a receipt is only as good as the keys it is held against")
    claims = claims_of(read_receipt(file), read_keys(jwks))
    checks = _reported(_checks_of_receipt(claims, user_id, source, kept), as_json)
    said = None if isinstance(claims, Check) else claims
    drawn = next((check.value for check in checks if check.name == "drawn"), None)
    return _conclude({"receipt": said, "drawn_number": drawn}, checks, "The receipt holds.", as_json)


def _checks_of_receipt(
    claims: ReceiptClaims | Check, user_id: str | None, source: Source | None, kept: Kept
) -> Iterator[Check]:
    """Give every check of a receipt, and then those of the draw it is held against."""
    if isinstance(claims, Check):
        yield claims
        return
    yield from check_claims(claims, user_id)
    if source is not None:
        draw = read_draw(source)
        yield check_event(claims, draw)
        yield from _checks_of(source, draw, kept, claims)


def _checks_of(source: Source, draw: PublishedDraw, kept: Kept, claims: ReceiptClaims | None = None) -> Iterator[Check]:
    """Give every check of a draw, reading the entries when it is their turn; raises NotPermitted until all is there."""
    yield from check_commitment(draw, kept)
    if draw.seed is None:
        raise NotPermitted(
            f"event {draw.event_id} has not been drawn yet; keep its commitment, {draw.commitment}, "
            "and verify once it is open"
        )
    yield from check_seed(draw, kept)
    if draw.count is None or draw.entries_sha256 is None:
        raise NotPermitted(f"event {draw.event_id} has not published all that was drawn yet; verify again in a moment")
    try:
        entries = read_entries(source, draw.count)
    except Damaged as error:
        yield Check("entries", False, f"The entries cannot be read: {error}.")
        return
    with bar("drawing again") as progress:
        yield from check_entries(draw, entries, progress)
    if claims is not None:
        yield check_drawn(claims, entries)


def _reported(checks: Iterator[Check], as_json: bool) -> list[Check]:
    """Return the checks up to the first that fails; what holds is said at once."""
    done = []
    for check in until_one_fails(checks):
        done.append(check)
        if check.ok and not as_json:
            print(check.sentence)
    return done


def _conclude(told: Mapping[str, object], checks: list[Check], verdict: str, as_json: bool) -> int:
    """Say what came out; returns the exit code, or raises Damaged with the sentence that is not true."""
    failed = checks[-1] if not checks[-1].ok else None
    if as_json:
        print_json({**told, "checks": [_told(check) for check in checks], "ok": failed is None})
    elif failed is not None:
        raise Damaged(failed.sentence)
    else:
        print(verdict)
    return Damaged.exit_code if failed is not None else 0


def _told(check: Check) -> dict[str, object]:
    return {"name": check.name, "ok": check.ok, "sentence": check.sentence}


def _hex(text: str | None) -> str | None:
    if text is not None and not re.fullmatch("[0-9a-fA-F]{64}", text):
        raise UsageError("--commitment is 64 hexadecimal digits")
    return text.lower() if text is not None else None


def add_to(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command(epilog=notes("stanchion verify --draw https://queue.example/v1/events/sale", 65, 69, 74, 77))(verify)
