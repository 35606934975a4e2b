"""`stanchion verify --draw`: what it confirms, what it finds, and with which code it ends.

The draws are made by `engine.draw.Drawing`; where it matters, the independent script has to say the same.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from engine.draw import ALGORITHM, commitment_of
from engine.errors import Damaged
from server import draw_source
from server.commands_verify import WITHOUT_BEACON
from tests.server.public_draw import OTHER, SECRET, Draw, Site, Verify, published, unopened, verified, write

INDEPENDENT = Path(__file__).parent.parent / "scenarios" / "independent_draw.py"


@pytest.fixture
def verify(capsys: pytest.CaptureFixture[str]) -> Verify:
    """Give a function that runs `stanchion verify`."""
    return partial(verified, capsys)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "draw.ndjson"


def independently(file: Path) -> tuple[int, str]:
    """Return the exit code and the words of the second implementation, which sees nothing of this one."""
    result = subprocess.run(
        [sys.executable, "-I", str(INDEPENDENT), str(file)], capture_output=True, text=True, timeout=30, check=False
    )
    assert not result.stderr
    return result.returncode, result.stdout.strip()


# ---- what holds is confirmed ----------------------------------------------------------------------------


@pytest.mark.slow
def test_a_draw_of_a_hundred_thousand_is_confirmed_by_both(verify: Verify, file: Path) -> None:
    write(file, published(list(range(1, 250_001, 5)) + list(range(300_000, 350_000))))
    told = verify("--draw", file)
    assert (told.code, told.err) == (0, "")
    assert "There are 100000 entries, as published." in told.out
    assert independently(file) == (0, "OK")


def test_each_check_is_a_sentence_and_the_verdict_says_what_is_not_proven(verify: Verify, file: Path) -> None:
    told = verify("--draw", write(file, published()), "--commitment", commitment_of(SECRET).upper())
    assert (told.code, told.err) == (0, "")
    assert told.out.splitlines() == [
        f"The algorithm is {ALGORITHM}.",
        "The commitment is the one you kept.",
        "The SHA-256 of the seed is the commitment.",
        "There are 1000 entries, as published.",
        "The numbers are 1…1000, each once, in order.",
        "No arrival is listed twice.",
        "The SHA-256 of the list of arrivals is the published one.",
        "The order is the one that the seed gives.",
        "The draw of event sale holds: 1000 places were drawn as was committed to.",
        WITHOUT_BEACON,
    ]


def test_a_draw_with_a_beacon_is_confirmed_by_both(verify: Verify, file: Path) -> None:
    write(file, published(beacon="7 11 23 31 40 42 Zürich"))
    told = verify("--draw", file, "--beacon", "7 11 23 31 40 42 Zürich")
    assert told.code == 0 and "The beacon has the value you gave." in told.out and WITHOUT_BEACON not in told.out
    assert independently(file) == (0, "OK")


def test_as_json_every_check_is_told(verify: Verify, file: Path) -> None:
    told = json.loads(verify("--draw", write(file, published()), "--json").out)
    assert (told["ok"], told["event_id"], told["draw_id"], told["count"]) == (True, "sale", "1048577-4711", 1000)
    names = [check["name"] for check in told["checks"]]
    assert names == ["algorithm", "seed", "count", "numbers", "arrivals", "list", "order"]
    assert all(check["ok"] for check in told["checks"])


@pytest.mark.parametrize("arrivals", [[], [7], list(range(1, 6))])
def test_a_small_draw_is_confirmed_by_both(verify: Verify, file: Path, arrivals: list[int]) -> None:
    assert verify("--draw", write(file, published(arrivals))).code == 0
    assert independently(file) == (0, "OK")


def test_empty_lines_and_a_missing_end_of_line_do_not_matter(verify: Verify, file: Path) -> None:
    head, *entries = (json.dumps(line) for line in published())
    file.write_text("\n".join((head, "", *entries)))
    assert verify("--draw", file).code == 0
    assert independently(file) == (0, "OK")


# ---- what does not hold is found, by both ---------------------------------------------------------------


def assert_both_find(
    verify: Verify, file: Path, lines: list[Draw], check: str, sentence: str, other_words: str
) -> None:
    """Both refuse, each in its words; the failed check is the last that is told."""
    told = verify("--draw", write(file, lines))
    assert told.code == 65 and sentence in told.err and told.err.count("\n") == 1, told.err
    assert "holds" not in told.out
    as_json = verify("--draw", file, "--json")
    last = json.loads(as_json.out)["checks"][-1]
    assert (as_json.code, as_json.err, last["name"], last["ok"]) == (65, "", check, False)
    assert json.loads(as_json.out)["ok"] is False
    code, words = independently(file)
    assert code == 1 and other_words in words


def test_a_changed_seed_is_found(verify: Verify, file: Path) -> None:
    head, *entries = published()
    lines = [{**head, "seed": OTHER.hex()}, *entries]
    assert_both_find(verify, file, lines, "seed", "SHA-256 of the seed is not the commitment", "committed")


def test_a_changed_seed_with_a_commitment_to_match_is_found_by_the_order(verify: Verify, file: Path) -> None:
    head, *entries = published()
    lines = [{**head, "seed": OTHER.hex(), "commitment": commitment_of(OTHER)}, *entries]
    assert_both_find(verify, file, lines, "order", "The order is not the one that the seed gives", "order")


def test_an_entry_removed_is_found(verify: Verify, file: Path) -> None:
    lines = published()
    del lines[400]
    assert_both_find(verify, file, lines, "count", "There are 999 entries, and 1000 was published", "count")


def test_an_entry_removed_and_the_others_moved_up_is_found(verify: Verify, file: Path) -> None:
    head, *entries = published()
    del entries[400]
    lines = [{**head, "count": 999}, *({**entry, "number": n} for n, entry in enumerate(entries, 1))]
    assert_both_find(verify, file, lines, "list", "SHA-256 of the list of arrivals is not the published one", "list")


def test_an_entry_added_is_found(verify: Verify, file: Path) -> None:
    lines = [*published(), {"arrival": 5000, "number": 1001}]
    assert_both_find(verify, file, lines, "count", "There are 1001 entries, and 1000 was published", "count")


def test_an_entry_added_with_a_count_to_match_is_found(verify: Verify, file: Path) -> None:
    head, *entries = published()
    lines = [{**head, "count": 1001}, *entries, {"arrival": 5000, "number": 1001}]
    assert_both_find(verify, file, lines, "list", "SHA-256 of the list of arrivals is not the published one", "list")


def test_an_entry_exchanged_for_another_is_found(verify: Verify, file: Path) -> None:
    lines = published()
    lines[17] = {**lines[17], "arrival": 5000}
    assert_both_find(verify, file, lines, "list", "SHA-256 of the list of arrivals is not the published one", "list")


def test_two_that_changed_places_are_found(verify: Verify, file: Path) -> None:
    lines = published()
    lines[10]["arrival"], lines[900]["arrival"] = lines[900]["arrival"], lines[10]["arrival"]
    assert_both_find(verify, file, lines, "order", "must come before number", "order")


def test_two_neighbours_that_changed_places_are_found(verify: Verify, file: Path) -> None:
    lines = published()
    lines[-1]["arrival"], lines[-2]["arrival"] = lines[-2]["arrival"], lines[-1]["arrival"]
    assert_both_find(verify, file, lines, "order", "number 1000, arrival", "order")


def test_a_changed_count_is_found(verify: Verify, file: Path) -> None:
    head, *entries = published()
    lines = [{**head, "count": 1001}, *entries]
    assert_both_find(verify, file, lines, "count", "There are 1000 entries, and 1001 was published", "count")


def test_a_number_given_twice_is_found(verify: Verify, file: Path) -> None:
    lines = published()
    lines[5]["number"] = 4
    assert_both_find(verify, file, lines, "numbers", "number 4 is given twice: it stands at line 5", "numbers")


def test_a_number_left_out_is_found(verify: Verify, file: Path) -> None:
    lines = published()
    lines[1000]["number"] = 1001
    assert_both_find(verify, file, lines, "numbers", "number 1000 is not given", "numbers")


def test_an_arrival_listed_twice_is_found(verify: Verify, file: Path) -> None:
    lines = published()
    lines[5]["arrival"] = lines[900]["arrival"]
    sentence = f"Arrival {lines[900]['arrival']} is listed twice"
    assert_both_find(verify, file, lines, "arrivals", sentence, "twice")


def test_a_changed_beacon_is_found(verify: Verify, file: Path) -> None:
    head, *entries = published(beacon="1 2 3")
    lines = [{**head, "beacon": {"name": "Lotto", "value": "1 2 4"}}, *entries]
    assert_both_find(verify, file, lines, "order", "The order is not the one that the seed gives", "order")


def test_a_beacon_left_out_afterwards_is_found(verify: Verify, file: Path) -> None:
    head, *entries = published(beacon="1 2 3")
    assert_both_find(verify, file, [{**head, "beacon": None}, *entries], "order", "The order is not", "order")


def test_another_algorithm_is_found(verify: Verify, file: Path) -> None:
    head, *entries = published()
    assert_both_find(
        verify, file, [{**head, "algorithm": "dice"}, *entries], "algorithm", "'dice' is unknown", "algorithm"
    )


# ---- what only the one who verifies can know -------------------------------------------------------------


def test_another_commitment_than_the_one_kept_is_found(verify: Verify, file: Path) -> None:
    told = verify("--draw", write(file, published()), "--commitment", commitment_of(OTHER))
    assert told.code == 65 and "not the one you kept" in told.err


def test_another_beacon_than_the_one_known_is_found(verify: Verify, file: Path) -> None:
    told = verify("--draw", write(file, published(beacon="1 2 3")), "--beacon", "1 2 4")
    assert told.code == 65 and "'1 2 3', not the one you gave" in told.err


def test_a_beacon_that_was_never_mixed_in_is_found(verify: Verify, file: Path) -> None:
    told = verify("--draw", write(file, published()), "--beacon", "1 2 3")
    assert told.code == 65 and "There is no beacon" in told.err


def test_a_beacon_that_was_named_and_has_no_value_is_found(verify: Verify, file: Path) -> None:
    head, *entries = published()
    told = verify("--draw", write(file, [{**head, "beacon": {"name": "Lotto", "value": None}}, *entries]))
    assert told.code == 65 and "its value is not published" in told.err


def test_before_the_opening_there_is_nothing_to_verify_yet(verify: Verify, file: Path) -> None:
    told = verify("--draw", write(file, unopened()), "--commitment", commitment_of(SECRET))
    assert told.code == 77 and "has not been drawn yet" in told.err and commitment_of(SECRET) in told.err


@pytest.mark.parametrize("name", ["count", "entries_sha256"])
def test_a_draw_that_is_under_way_is_not_called_wrong(verify: Verify, file: Path, name: str) -> None:
    head, *entries = published()
    told = verify("--draw", write(file, [{**head, name: None}, *entries[:500]]))
    assert told.code == 77 and "verify again in a moment" in told.err


def test_before_the_opening_a_changed_commitment_is_found_all_the_same(verify: Verify, file: Path) -> None:
    told = verify("--draw", write(file, unopened()), "--commitment", commitment_of(OTHER))
    assert told.code == 65 and "not the one you kept" in told.err


# ---- what cannot be read --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"[]", "line 2 of the entries is no arrival"),
        (b'{"arrival": 1}', "line 2 of the entries is no arrival"),
        (b'{"arrival": 1.5, "number": 1}', "line 2 of the entries is no arrival"),
        (b'{"arrival": 0, "number": 1}', "line 2 of the entries is no arrival"),
        (b'{"arrival": -1, "number": 1}', "line 2 of the entries is no arrival"),
        (b'{"arrival": 18446744073709551616, "number": 1}', "line 2 of the entries is no arrival"),
        (b'{"arrival": "1", "number": 1}', "line 2 of the entries is no arrival"),
        (b"\xff\xfe\x00", "line 2 of the entries is no arrival"),
        (b'{"arrival": 1, "number": 1}' + b" " * 200, "line 2 of the entries is longer than 200 bytes"),
        (b"x" * 1_000_000, "line 2 of the entries is longer than 200 bytes"),
    ],
)
def test_a_line_that_is_no_entry_is_named(verify: Verify, file: Path, line: bytes, words: str) -> None:
    head, first, *rest = (json.dumps(entry).encode() for entry in published())
    file.write_bytes(b"\n".join((head, first, line, *rest)))
    told = verify("--draw", file)
    assert told.code == 65 and words in told.err and len(told.err) < 400


def test_there_is_an_end_to_what_is_read(verify: Verify, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draw_source, "MOST_ENTRIES", 1000)
    lines = published()
    assert verify("--draw", write(file, lines)).code == 0
    told = verify("--draw", write(file, [*lines, {"arrival": 1, "number": 1}]))
    assert told.code == 65 and "more than 1000 lines" in told.err


def test_a_line_without_an_end_is_not_kept() -> None:
    entries = draw_source.Entries()
    with pytest.raises(Damaged, match="line 1 of the entries is longer"):
        for _ in range(2):
            entries.feed(b"x" * 150)


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"{}",
        b"no JSON",
        b"\xff",
        b'{"event_id": "\xff"}',
        json.dumps({**published([])[0], "seed": "00"}).encode(),
        json.dumps({**published([])[0], "commitment": commitment_of(SECRET) + "\n"}).encode(),
        json.dumps({**published([])[0], "event_id": "x" * 20_000}).encode(),
        json.dumps({**published([])[0], "event_id": "sale\x1b[2J"}).encode(),
        json.dumps({**published([])[0], "beacon": {"name": "Lotto", "value": "\ud800 1 2"}}).encode(),
    ],
)
def test_what_is_no_draw_is_said_to_be_none(verify: Verify, file: Path, head: bytes) -> None:
    file.write_bytes(head)
    told = verify("--draw", file)
    assert told.code == 65 and "what should be the draw" in told.err


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--draw", "/nowhere/draw.ndjson"],
        ["--draw", "."],
        ["--draw", "nul\0"],
        [".", "--draw", "x"],
        ["--draw", "x", "--commitment", "0123"],
        ["--draw", "x", "--commitment", "g" * 64],
        ["--draw", "ftp://127.0.0.1/v1/events/sale"],
        ["--draw", "https://"],
        ["--draw", "https://127.0.0.1/"],
        ["--draw", "https://127.0.0.1/v1/events/"],
        ["--draw", "https://127.0.0.1:x/v1/events/sale"],
        ["--draw", "https://[1/v1/events/sale"],
        ["--draw", "https://u:p@127.0.0.1/v1/events/sale"],
    ],
)
def test_wrong_usage_ends_with_64(verify: Verify, arguments: list[str]) -> None:
    told = verify(*arguments)
    assert told.code == 64 and told.err and not told.out


@pytest.mark.parametrize(
    "arguments",
    [[".", "--commitment", "0" * 64], [".", "--beacon", "1"], [".", "--jwks", "x"], ["--draw", "x", "--user", "x"]],
)
def test_an_option_of_something_else_is_refused_and_not_overlooked(verify: Verify, arguments: list[str]) -> None:
    told = verify(*arguments)
    assert told.code == 64 and "go with --" in told.err


# ---- servers ----------------------------------------------------------------------------------------------


@pytest.fixture
def site() -> Iterator[Site]:
    with Site.running() as site:
        yield site


@pytest.mark.parametrize("tail", ["", "/", "/draw", "/draw/", "/draw/entries", "?x=1#y"])
def test_a_draw_is_verified_at_the_address_of_its_event(verify: Verify, site: Site, tail: str) -> None:
    site.publish(published())
    told = verify("--draw", site.url + tail, "--commitment", commitment_of(SECRET))
    assert (told.code, told.err) == (0, "") and "1000 places were drawn" in told.out


def test_a_server_that_publishes_a_wrong_order_is_found_out(verify: Verify, site: Site) -> None:
    lines = published()
    lines[10]["arrival"], lines[900]["arrival"] = lines[900]["arrival"], lines[10]["arrival"]
    site.publish(lines)
    assert verify("--draw", site.url).code == 65


def test_what_the_server_refuses_ends_with_77_and_its_words_made_harmless(verify: Verify, site: Site) -> None:
    problem = {"code": "not_found", "detail": "no such event\x1b[2J", "status": 404}
    site.answers["/v1/events/sale/draw"] = (404, json.dumps(problem).encode(), 0)
    told = verify("--draw", site.url)
    assert told.code == 77 and "no such event" in told.err and "404 not_found" in told.err and "\x1b" not in told.err


def test_a_server_that_has_not_opened_the_event_is_not_asked_for_entries(verify: Verify, site: Site) -> None:
    site.publish(unopened())
    del site.answers["/v1/events/sale/draw/entries"]
    assert verify("--draw", site.url).code == 77


def test_a_server_that_is_not_stanchion_ends_with_69(verify: Verify, site: Site) -> None:
    told = verify("--draw", site.url)
    assert told.code == 69 and "not answer as Stanchion does" in told.err


@pytest.mark.parametrize("path", ["/draw", "/draw/entries"])
def test_an_answer_that_breaks_off_ends_with_69(verify: Verify, site: Site, path: str) -> None:
    site.publish(published())
    status, body, _ = site.answers["/v1/events/sale" + path]
    site.answers["/v1/events/sale" + path] = (status, body, 10)
    assert verify("--draw", site.url).code == 69


def test_a_draw_without_an_end_is_not_read_to_the_end(verify: Verify, site: Site) -> None:
    site.answers["/v1/events/sale/draw"] = (200, b" " * 1_000_000, 0)
    told = verify("--draw", site.url)
    assert told.code == 65 and f"the answer of {site.url}/draw is longer than 16384 bytes" in told.err


def test_nobody_there_ends_with_69(verify: Verify) -> None:
    with Site() as unused:
        url = unused.url
    told = verify("--draw", url)
    assert told.code == 69 and told.err.count("\n") == 1
