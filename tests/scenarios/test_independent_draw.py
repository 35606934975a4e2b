"""A lobby on a real daemon, drawn at opening: the command and the independent script confirm what it publishes."""

import json
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from tests.server.conftest import StartDaemon
from tests.server.daemons import Daemon, cli, until

pytestmark = pytest.mark.slow

INDEPENDENT = Path(__file__).with_name("independent_draw.py")
COMERS, LEAVERS = 200, 20


def raw(daemon: Daemon, path: str) -> bytes:
    """Return the bytes of a public answer."""
    with urllib.request.urlopen(f"{daemon.url}/v1/events/sale{path}", timeout=30) as response:
        answer: bytes = response.read()
        return answer


def kept_in(daemon: Daemon, file: Path) -> Path:
    """Return a file of what the draw's two routes answer, put together as docs/draw.md says."""
    file.write_bytes(raw(daemon, "/draw") + b"\n" + raw(daemon, "/draw/entries"))
    return file


def join(daemon: Daemon, user_id: str) -> str:
    """Return the queue token of a new place."""
    status, place = daemon.call("POST", "/v1/events/sale/join", {"user_id": user_id}, Idempotency_Key=user_id)
    assert (status, place["status"], place["number"]) == (201, "lobby", None)
    return str(place["token"])


@pytest.mark.parametrize("beacon", [None, "7 11 23 31 40 42 Zürich"])
def test_what_a_daemon_draws_is_confirmed_by_both_and_by_a_receipt(
    start_daemon: StartDaemon, tmp_path: Path, beacon: str | None
) -> None:
    daemon = start_daemon()
    daemon.admin("PUT", "/v1/admin/events/sale", {"lobby": True})
    daemon.admin("POST", "/v1/admin/events/sale/lobby", {"beacon": "Lotto of Saturday"} if beacon else {})
    commitment = json.loads(raw(daemon, "/draw"))["commitment"]
    tokens = [join(daemon, f"u{number}") for number in range(COMERS)]
    for token in tokens[::10][:LEAVERS]:
        assert daemon.call("POST", "/v1/events/sale/leave", key=token)[0] == 204
    source = f"{daemon.url}/v1/events/sale"
    early = cli("verify", "--draw", source, "--commitment", commitment)
    assert early.returncode == 77 and commitment in early.stderr
    receipt = tmp_path / "receipt"
    receipt.write_text(json.dumps(daemon.call("GET", "/v1/events/sale/receipt", key=tokens[7])[1]))

    daemon.admin("POST", "/v1/admin/events/sale/open", {"beacon": beacon} if beacon else {})
    until(lambda: daemon.call("GET", "/v1/events/sale/position", key=tokens[7])[1]["number"], "the draw")

    known = ["--commitment", commitment, *(["--beacon", beacon] if beacon else [])]
    told = cli("verify", "--draw", source, *known, "--json")
    assert told.returncode == 0, told.stderr + told.stdout
    assert json.loads(told.stdout)["count"] == COMERS - LEAVERS
    file = kept_in(daemon, tmp_path / "draw.ndjson")
    result = subprocess.run([sys.executable, "-I", INDEPENDENT, file], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (0, "OK\n", "")
    told = cli("verify", "--receipt", receipt, "--user", "u7", "--draw", source, "--json")
    assert told.returncode == 0, told.stderr + told.stdout
    place = daemon.call("GET", "/v1/events/sale/position", key=tokens[7])[1]
    assert json.loads(told.stdout)["drawn_number"] == place["number"]


def stored(folder: Path) -> bytes:
    """Return all that a data folder or a backup holds, its keys left out."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.parent.name != "keys")
    return b"".join(path.read_bytes() for path in files)


def test_before_the_opening_the_seed_is_in_no_file_and_no_backup(start_daemon: StartDaemon, tmp_path: Path) -> None:
    daemon = start_daemon("--segment-mib", "1")
    daemon.admin("PUT", "/v1/admin/events/sale", {"lobby": True})
    daemon.admin("POST", "/v1/admin/events/sale/lobby", {})
    join(daemon, "u1")
    daemon.admin("POST", "/v1/admin/snapshot", {})
    assert cli("backup", daemon.data, tmp_path / "backup").returncode == 0
    before = [stored(daemon.data), stored(tmp_path / "backup")]

    daemon.admin("POST", "/v1/admin/events/sale/open", {})
    draw = json.loads(raw(daemon, "/draw"))
    for folder in before:
        assert draw["commitment"].encode() in folder, "what is there is not found this way"
        assert draw["seed"].encode() not in folder and bytes.fromhex(draw["seed"]) not in folder
    assert draw["seed"].encode() in stored(daemon.data)
