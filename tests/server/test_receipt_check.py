"""`stanchion verify --receipt`: whose word it is, whose place, and what it drew."""

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from engine.receipts import Join, Receipts
from engine.signatures import key_set_of, public_of, verifying_keys
from tests.server.public_draw import ARRIVALS, Site, Verify, published, unopened, verified, write

SEED, OTHER_SEED = bytes(range(32)), bytes(range(32, 64))
JOINED_MS = 1_800_000_000_123
IN_THE_LOBBY = Join("sale", "u1", 17, None, JOINED_MS, 4711)
KEYS = key_set_of(verifying_keys({"p1": public_of(SEED)}))
OTHER_KEYS = key_set_of(verifying_keys({"p1": public_of(OTHER_SEED)}))
NUMBERS = {entry["arrival"]: entry["number"] for entry in published()[1:]}


@pytest.fixture
def verify(capsys: pytest.CaptureFixture[str]) -> Verify:
    """Give a function that runs `stanchion verify`."""
    return partial(verified, capsys)


@pytest.fixture
def site() -> Iterator[Site]:
    with Site.running() as site:
        site.answers["/.well-known/jwks.json"] = (200, json.dumps(KEYS).encode(), 0)
        yield site


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    file = tmp_path / "jwks.json"
    file.write_text(json.dumps(KEYS))
    return file


@pytest.fixture
def draw(tmp_path: Path) -> Path:
    return write(tmp_path / "draw.ndjson", published())


def receipt_of(folder: Path, join: Join = IN_THE_LOBBY) -> Path:
    """Return a file with the receipt of a join."""
    file = folder / "receipt"
    file.write_text(Receipts(("p1", SEED), "stanchion").mint(join, 2**20 + 1, 1_800_000_000) + "\n")
    return file


# ---- the receipt alone ------------------------------------------------------------------------------------


def test_a_receipt_is_confirmed_and_says_what_it_says(verify: Verify, tmp_path: Path, keys: Path) -> None:
    told = verify("--receipt", receipt_of(tmp_path), "--jwks", keys, "--user", "u1")
    assert (told.code, told.err) == (0, "")
    assert told.out.splitlines() == [
        "The receipt is signed with one of the server's keys.",
        "It says: arrival 17 joined event 'sale' in the lobby at 2027-01-15T08:00:00.123+00:00, "
        "as record 4711 of epoch 1048577.",
        "It was given to the user named.",
        "The receipt holds.",
    ]


def test_as_json_the_claims_are_told(verify: Verify, tmp_path: Path, keys: Path) -> None:
    told = json.loads(verify("--receipt", receipt_of(tmp_path), "--jwks", keys, "--json").out)
    assert told["ok"] and told["drawn_number"] is None
    assert (told["receipt"]["ev"], told["receipt"]["arrival"], told["receipt"]["joined_ms"]) == ("sale", 17, JOINED_MS)
    assert [check["name"] for check in told["checks"]] == ["signature", "claims"]


def test_the_answer_of_the_server_may_be_given_as_it_came(verify: Verify, tmp_path: Path, keys: Path) -> None:
    file = receipt_of(tmp_path)
    file.write_text(json.dumps({"receipt": file.read_text().strip(), "more": 1}))
    assert verify("--receipt", file, "--jwks", keys).code == 0


@pytest.mark.parametrize("tail", ["", "/", "/.well-known/jwks.json"])
def test_the_keys_may_be_fetched(verify: Verify, tmp_path: Path, site: Site, tail: str) -> None:
    origin = site.url.partition("/v1/")[0]
    assert verify("--receipt", receipt_of(tmp_path), "--jwks", origin + tail).code == 0


def test_a_receipt_by_another_key_does_not_hold(verify: Verify, tmp_path: Path, keys: Path) -> None:
    keys.write_text(json.dumps(OTHER_KEYS))
    told = verify("--receipt", receipt_of(tmp_path), "--jwks", keys)
    assert told.code == 65 and "The receipt does not hold" in told.err and "holds" not in told.out
    as_json = json.loads(verify("--receipt", tmp_path / "receipt", "--jwks", keys, "--json").out)
    assert (as_json["ok"], as_json["receipt"], as_json["checks"][-1]["name"]) == (False, None, "signature")


@pytest.mark.parametrize("user_id", ["u2", "", "u1 ", "\udcff"])
def test_the_receipt_of_somebody_else_is_found(verify: Verify, tmp_path: Path, keys: Path, user_id: str) -> None:
    told = verify("--receipt", receipt_of(tmp_path), "--jwks", keys, "--user", user_id)
    assert told.code == 65 and "not given to the user named" in told.err


def test_a_time_that_is_none_is_told_as_a_number(verify: Verify, tmp_path: Path, keys: Path) -> None:
    file = receipt_of(tmp_path, IN_THE_LOBBY._replace(joined_ms=2**53 - 1))
    assert f"at {2**53 - 1} ms" in verify("--receipt", file, "--jwks", keys).out


@pytest.mark.parametrize("raw", [b"", b"x", b"a.b.c", b"\xff", b"{}", b'{"receipt": 1}', b"x" * 100_000])
def test_what_is_no_receipt_ends_with_65(verify: Verify, tmp_path: Path, keys: Path, raw: bytes) -> None:
    file = tmp_path / "receipt"
    file.write_bytes(raw)
    told = verify("--receipt", file, "--jwks", keys)
    assert told.code == 65 and "receipt" in told.err and len(told.err) < 400


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", "holds no key set"),
        (b"[]", "holds no key set"),
        (b"\xff", "holds no key set"),
        (b'{"\xff": 1}', "holds no key set"),
        (b"{}", "the key set cannot be used"),
        (b'{"keys": 1}', "the key set cannot be used"),
        (b" " * 100_000, "longer than 65536 bytes"),
    ],
)
def test_what_is_no_key_set_ends_with_65(verify: Verify, tmp_path: Path, keys: Path, raw: bytes, words: str) -> None:
    keys.write_bytes(raw)
    told = verify("--receipt", receipt_of(tmp_path), "--jwks", keys)
    assert told.code == 65 and words in told.err


def test_keys_elsewhere_are_fetched_from_where_they_are(verify: Verify, tmp_path: Path, site: Site) -> None:
    site.answers["/kept/keys.json"] = site.answers.pop("/.well-known/jwks.json")
    origin = site.url.partition("/v1/")[0]
    assert verify("--receipt", receipt_of(tmp_path), "--jwks", f"{origin}/kept/keys.json").code == 0


def test_keys_that_cannot_be_fetched_end_with_69(verify: Verify, tmp_path: Path, site: Site) -> None:
    site.answers.clear()
    origin = site.url.partition("/v1/")[0]
    assert verify("--receipt", receipt_of(tmp_path), "--jwks", origin).code == 69


@pytest.mark.parametrize(
    "arguments",
    [
        ["--receipt", "x"],
        ["--receipt", "x", "--draw", "x"],
        ["--receipt", "/nowhere/receipt", "--jwks", "x"],
        ["--receipt", ".", "--jwks", "x"],
        ["--receipt", "x", "--jwks", "ftp://127.0.0.1"],
        ["--receipt", "x", "--jwks", "y", "--commitment", "0" * 64],
        ["--jwks", "x"],
        [".", "--receipt", "x"],
    ],
)
def test_wrong_usage_ends_with_64(verify: Verify, arguments: list[str]) -> None:
    told = verify(*arguments)
    assert told.code == 64 and told.err and not told.out


# ---- against the draw -------------------------------------------------------------------------------------


@pytest.mark.parametrize("arrival", [ARRIVALS[0], 17, ARRIVALS[-1]])
def test_against_a_draw_it_says_which_number_was_drawn(
    verify: Verify, tmp_path: Path, keys: Path, draw: Path, arrival: int
) -> None:
    file = receipt_of(tmp_path, IN_THE_LOBBY._replace(arrival=arrival))
    told = verify("--receipt", file, "--jwks", keys, "--draw", draw)
    assert told.code == 0 and f"Arrival {arrival} drew number {NUMBERS[arrival]} of 1000." in told.out
    assert "The order is the one that the seed gives." in told.out
    as_json = json.loads(verify("--receipt", file, "--jwks", keys, "--draw", draw, "--json").out)
    assert as_json["ok"] and as_json["drawn_number"] == NUMBERS[arrival]


def test_draw_and_keys_may_come_from_one_server(verify: Verify, tmp_path: Path, site: Site) -> None:
    site.publish(published())
    told = verify("--receipt", receipt_of(tmp_path), "--draw", site.url)
    assert told.code == 0 and f"Arrival 17 drew number {NUMBERS[17]} of 1000." in told.out


def test_a_receipt_that_names_the_number_it_drew_holds(verify: Verify, tmp_path: Path, keys: Path, draw: Path) -> None:
    file = receipt_of(tmp_path, IN_THE_LOBBY._replace(number=NUMBERS[17]))
    assert verify("--receipt", file, "--jwks", keys, "--draw", draw).code == 0


def test_a_receipt_that_names_another_number_is_found(verify: Verify, tmp_path: Path, keys: Path, draw: Path) -> None:
    file = receipt_of(tmp_path, IN_THE_LOBBY._replace(number=NUMBERS[17] + 1))
    told = verify("--receipt", file, "--jwks", keys, "--draw", draw)
    assert told.code == 65 and f"drew number {NUMBERS[17]} of 1000, and its receipt says {NUMBERS[17] + 1}" in told.err


def test_somebody_left_out_of_the_draw_has_the_proof(verify: Verify, tmp_path: Path, keys: Path, draw: Path) -> None:
    """The list, its digest and its count fit together; only the receipt shows who is missing."""
    write(draw, published([arrival for arrival in ARRIVALS if arrival != 17]))
    assert verify("--draw", draw).code == 0
    told = verify("--receipt", receipt_of(tmp_path), "--jwks", keys, "--draw", draw)
    assert told.code == 65 and "Arrival 17 was in the lobby and is not among the drawn" in told.err


def test_who_joined_after_the_opening_stands_behind_the_draw(
    verify: Verify, tmp_path: Path, keys: Path, draw: Path
) -> None:
    file = receipt_of(tmp_path, IN_THE_LOBBY._replace(arrival=1101, number=1101))
    told = verify("--receipt", file, "--jwks", keys, "--draw", draw)
    assert told.code == 0 and "its number 1101 stands behind the 1000 that were" in told.out


def test_who_was_not_drawn_and_has_a_number_among_the_drawn_is_found(
    verify: Verify, tmp_path: Path, keys: Path, draw: Path
) -> None:
    file = receipt_of(tmp_path, IN_THE_LOBBY._replace(arrival=1101, number=1000))
    told = verify("--receipt", file, "--jwks", keys, "--draw", draw)
    assert told.code == 65 and "its number 1000 should stand behind the 1000 that were" in told.err


def test_the_draw_of_another_event_is_found(verify: Verify, tmp_path: Path, keys: Path, draw: Path) -> None:
    file = receipt_of(tmp_path, IN_THE_LOBBY._replace(event_id="other"))
    told = verify("--receipt", file, "--jwks", keys, "--draw", draw)
    assert told.code == 65 and "not of event sale" in told.err


def test_a_draw_that_does_not_hold_is_found_with_a_receipt_too(
    verify: Verify, tmp_path: Path, keys: Path, draw: Path
) -> None:
    lines = published()
    lines[10]["arrival"], lines[900]["arrival"] = lines[900]["arrival"], lines[10]["arrival"]
    told = verify("--receipt", receipt_of(tmp_path), "--jwks", keys, "--draw", write(draw, lines))
    assert told.code == 65 and "The order is not the one" in told.err and "drew" not in told.out


def test_before_the_opening_the_receipt_is_checked_and_the_draw_is_not_there_yet(
    verify: Verify, tmp_path: Path, keys: Path, draw: Path
) -> None:
    told = verify("--receipt", receipt_of(tmp_path), "--jwks", keys, "--draw", write(draw, unopened()))
    assert told.code == 77 and "It says: arrival 17" in told.out and "has not been drawn yet" in told.err
