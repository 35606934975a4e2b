"""The command line against real daemons and real folders: what it says, and with which code it ends."""

import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.errors import UsageError
from engine.settings import KNOBS
from server.cli import app, run
from server.commands_event import _settings
from server.terminal import EXIT_CODES, notes
from tests.server.conftest import StartDaemon
from tests.server.daemons import Daemon, cli

pytestmark = pytest.mark.slow

COMMANDS = ["serve", "follow", "promote", "rehearse", "verify", "inspect", "backup", "restore"]
EVENT_COMMANDS = [
    "list",
    "create",
    "show",
    "set",
    "lobby",
    "open",
    "pause",
    "resume",
    "close",
    "release",
    "message",
    "stats",
    "visitor",
    "visitors",
    "admit",
    "remove",
    "fairness",
    "delete",
]


@pytest.fixture
def admin(daemon: Daemon) -> Iterator["Admin"]:
    yield Admin(daemon)


class Admin:
    """`stanchion event …` against one daemon."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon

    def __call__(self, *arguments: object, code: int = 0, error: str = "") -> str:
        """Run a command that must end with a code; returns what it wrote to stdout."""
        env = {"STANCHION_URL": self.daemon.url, "STANCHION_ADMIN_KEY_FILE": str(self.daemon.data / "keys/admin.key")}
        result = cli("event", *arguments, env=env)
        assert result.returncode == code, result.stderr
        assert error in result.stderr and "Traceback" not in result.stderr
        assert bool(result.stderr) == bool(code)
        return result.stdout


def filled(start_daemon: StartDaemon, *, kill: bool = False) -> Path:
    """Return the folder of a daemon that took ten joins and ended."""
    daemon = start_daemon()
    daemon.admin("PUT", "/v1/admin/events/sale", {})
    daemon.admin("POST", "/v1/admin/events/sale/open", {})
    for number in range(10):
        assert daemon.call("POST", "/v1/events/sale/join", {"user_id": f"u{number}"})[0] == 201
    assert (daemon.kill() if kill else daemon.stop()) in (0, -9)
    return daemon.data


# ---- usage --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["serve", "--nonsense"],
        ["event"],
        ["event", "pause", "sale"],
        ["event", "release", "sale", "0"],
        ["event", "release", "sale", "many"],
        ["event", "set", "sale", "batch_sise=3"],
        ["event", "set", "sale", "batch_size"],
        ["event", "admit", "sale", "--number", "1"],
        ["event", "admit", "sale", "--reason", "r"],
        ["event", "remove", "sale", "--reason", "r", "--number", "1", "--arrival", "1"],
        ["event", "visitor", "sale"],
        ["event", "visitor", "sale", "--number", "0"],
        ["event", "visitor", "sale", "--user-id", "a\x1b"],
        ["event", "visitors", "sale", "--status", "closed"],
        ["event", "visitors", "sale", "--limit", "1001"],
        ["verify"],
        ["verify", "/nowhere"],
        ["restore", "/nowhere", "there"],
        [],
    ],
)
def test_wrong_usage_ends_with_64(arguments: list[str], tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("stn_admin_x\n")
    result = cli(*arguments, env={"STANCHION_ADMIN_KEY_FILE": str(key)})
    assert result.returncode == 64
    assert "Traceback" not in result.stderr and (result.stderr or result.stdout)


def test_every_command_has_help_with_an_example_and_its_exit_codes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    for arguments in [*([name] for name in COMMANDS), *(["event", name] for name in EVENT_COMMANDS), ["event"]]:
        assert run([*arguments, "--help"]) == 0
        told = capsys.readouterr().out
        assert f"Example: stanchion {' '.join(arguments)}" in told
        assert "Exit codes: 0 done, 64 wrong usage" in told


def test_only_what_is_built_is_listed() -> None:
    named = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    assert named == set(COMMANDS)
    assert set(EXIT_CODES) == {0, 64, 65, 69, 74, 75, 77, 78}
    assert "[" not in notes("stanchion verify ./data", 65)


def test_the_version_is_told() -> None:
    assert cli("--version").stdout.startswith("stanchion 0.")


# ---- settings of the daemon -----------------------------------------------------------------------------


def test_print_config_says_every_value_and_where_it_came_from(tmp_path: Path) -> None:
    file = tmp_path / "stanchion.toml"
    file.write_text("keep_snapshots = 7\n")
    arguments = ["serve", "--print-config", "--config", file, "--port", "9000"]
    result = cli(*arguments, "--json", env={"STANCHION_SEGMENT_MIB": "8"})
    assert result.returncode == 0
    told = json.loads(result.stdout)
    assert told["port"] == {"value": "9000", "source": "flag"}
    assert told["segment_mib"] == {"value": "8", "source": "environment"}
    assert told["keep_snapshots"] == {"value": "7", "source": "file"}
    assert told["host"] == {"value": "127.0.0.1", "source": "default"}
    table = cli(*arguments).stdout
    assert any(line.split() == ["port", "9000", "flag"] for line in table.splitlines())


def test_every_setting_at_fault_is_a_line_and_78_and_nothing_is_touched(tmp_path: Path) -> None:
    result = cli("serve", "--data", tmp_path / "data", "--port", "x", "--segment-mib", "0", "--log-level", "loud")
    assert result.returncode == 78
    assert [line.split(":")[1].strip() for line in result.stderr.splitlines()] == ["port", "segment_mib", "log_level"]
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    "flags", [["--replication", "other"], ["--host", "0.0.0.0"], ["--replication", "async", "--witness", "flock:x"]]
)
def test_conflicts_are_one_line_and_78(flags: list[str], tmp_path: Path) -> None:
    result = cli("serve", "--data", tmp_path / "data", *flags)
    assert (result.returncode, result.stderr.count("\n"), result.stdout) == (78, 1, "")


# ---- talking to a server --------------------------------------------------------------------------------


def test_an_event_is_made_opened_run_and_deleted_from_the_command_line(admin: Admin) -> None:
    made = json.loads(admin("create", "sale", "batch_size=5", "batch_interval_s=3600", "name=True", "--open", "--json"))
    assert (made["state"], made["settings"]["batch_size"], made["name"]) == ("open", 5, "True")
    for number in range(3):
        admin.daemon.call("POST", "/v1/events/sale/join", {"user_id": f"u{number}"})
    listed = json.loads(admin("list", "--json"))
    assert [(event["event_id"], event["waiting"]) for event in listed] == [("sale", 3)]
    assert "sale" in admin("list")
    assert admin("release", "sale", 2, "--reason", "Extra seats") == "released 2, stepped over 0\n"
    assert "limited by line" in admin("release", "sale", 5)
    assert admin("pause", "sale", "--reason", "A pause") == "event sale is paused (A pause): 0 waiting\n"
    assert "is open" in admin("resume", "sale", "--note", "it works again")
    assert "is open" in admin(
        "set",
        "sale",
        "max_active=10",
    )
    assert "is open" in admin("message", "sale", "Doors open at eight")
    stats = json.loads(admin("stats", "sale", "--json"))
    assert (stats["arrivals"], stats["counts"]["ready"]) == (3, 3)
    assert "arrivals" in admin("stats", "sale")
    assert "Doors open at eight" in admin("show", "sale")
    assert json.loads(admin("show", "sale", "--json"))["settings"]["max_active"] == 10
    assert "is closed (Sold out)" in admin("close", "sale", "--reason", "Sold out", "--outcome", "sold_out")
    admin("delete", "sale", "--yes", code=77, error="not_empty")


def test_a_lobby_is_bound_to_a_beacon_and_drawn_with_its_value(admin: Admin) -> None:
    admin("create", "sale", "lobby=true")
    told = admin("lobby", "sale", "--beacon", "the DAX of the day")
    shown = json.loads(admin("show", "sale", "--json"))["draw"]
    assert told.splitlines() == [
        "event sale is lobby: 0 waiting",
        f"draw {shown['draw_id']} is bound by the commitment {shown['commitment']}",
    ]
    assert (shown["beacon"], shown["beacon_value"], shown["seed"]) == ("the DAX of the day", None, None)
    admin.daemon.call("POST", "/v1/events/sale/join", {"user_id": "u1"})
    admin("open", "sale", code=77, error="400 bad_request")
    assert admin("open", "sale", "--beacon", "18 042,11") == "event sale is open: 1 waiting\n"
    opened = json.loads(admin("show", "sale", "--json"))["draw"]
    assert (opened["commitment"], opened["beacon_value"], opened["count"]) == (shown["commitment"], "18 042,11", 1)
    assert opened["seed"] in admin("show", "sale")


def test_deleting_asks_unless_told_not_to(admin: Admin) -> None:
    admin("create", "sale")
    admin("delete", "sale", code=64, error="--yes is required")
    assert admin("delete", "sale", "--yes", "--note", "a rehearsal & more") == "event sale is deleted\n"
    assert json.loads(admin("list", "--json")) == []


def test_what_the_server_refuses_ends_with_77_and_its_words(admin: Admin) -> None:
    admin("show", "nothing", code=77, error="404 not_found")
    admin("create", "sale", "batch_size=0", code=77, error="batch_size must be a whole number from 1")
    admin("create", "sale")
    admin("create", "sale", code=77, error="exists already")
    admin("create", "BAD ID/..", code=77, error="404")


def test_a_wrong_key_ends_with_77_and_is_not_repeated(daemon: Daemon, tmp_path: Path) -> None:
    key = tmp_path / "wrong.key"
    key.write_text("stn_admin_wrong\n")
    result = cli("event", "list", "--url", daemon.url, "--key-file", key)
    assert result.returncode == 77 and "401 bad_token" in result.stderr and "wrong\n" not in result.stderr


def test_nobody_there_ends_with_69(tmp_path: Path) -> None:
    key = tmp_path / "admin.key"
    key.write_text("stn_admin_x\n")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        result = cli("event", "list", "--url", url, "--key-file", key)
    assert (result.returncode, result.stderr.count("\n")) == (69, 1)


def test_a_missing_key_or_a_strange_url_ends_with_78(tmp_path: Path) -> None:
    key = tmp_path / "admin.key"
    assert cli("event", "list", "--key-file", key).returncode == 78
    key.write_text("stn_admin_x\n")
    for url in ("ftp://127.0.0.1", "127.0.0.1:8080", "http://127.0.0.1:x", "http://127.0.0.1/path"):
        assert cli("event", "list", "--key-file", key, "--url", url).returncode == 78


def test_settings_are_read_as_what_they_are() -> None:
    pairs = ["name=007", "batch_size=7", "max_active=null", "lobby=true", "return_to_origins=https://a.example"]
    pairs += ["queueing=fifo", "opens_at_ms=2027-01-31T10:00:00+01:00", 'page={"a": 1}']
    assert _settings(pairs) == {
        "name": "007",
        "batch_size": 7,
        "max_active": None,
        "lobby": True,
        "return_to_origins": ["https://a.example"],
        "queueing": "fifo",
        "opens_at_ms": 1801386000000,
        "page": {"a": 1},
    }
    assert set(_settings(pairs)) <= set(KNOBS)
    for bad in ("batch_size=five", "opens_at_ms=2027-01-31T10:00:00", "opens_at_ms=T"):
        with pytest.raises(UsageError):
            _settings([bad])


# ---- data folders ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kill", [False, True])
def test_verify_rebuilds_the_line_and_says_what_is_in_it(start_daemon: StartDaemon, kill: bool) -> None:
    data = filled(start_daemon, kill=kill)
    result = cli("verify", data, "--json")
    assert result.returncode == 0, result.stderr
    told = json.loads(result.stdout)
    assert (told["ok"], told["events"], told["visitors"], told["last_lsn"]) == (True, 1, 10, 13)
    assert "visitors" in cli("verify", data).stdout


def test_verify_finds_a_flipped_bit_and_ends_with_65(start_daemon: StartDaemon) -> None:
    data = filled(start_daemon, kill=True)
    segment = next((data / "log").glob("*.seg"))
    damaged = bytearray(segment.read_bytes())
    damaged[damaged.index(b"joined")] ^= 1
    segment.write_bytes(damaged)
    result = cli("verify", data, "--json")
    assert result.returncode == 65
    assert json.loads(result.stdout)["problems"]
    assert segment.name in cli("verify", data).stderr


def test_a_torn_tail_is_told_and_is_no_damage(start_daemon: StartDaemon) -> None:
    data = filled(start_daemon, kill=True)
    segment = next((data / "log").glob("*.seg"))
    last = json.loads(cli("inspect", data, "--json").stdout.splitlines()[-1])
    os.truncate(segment, last["offset"] + 20)
    result = cli("verify", data)
    assert result.returncode == 0 and "torn" in result.stderr


def test_inspect_lists_the_frames(start_daemon: StartDaemon) -> None:
    data = filled(start_daemon)
    frames = [json.loads(line) for line in cli("inspect", data, "--json").stdout.splitlines()]
    assert sum(frame["kinds"].get("joined", 0) for frame in frames) == 10
    assert "1 joined" in cli("inspect", data).stdout


def test_a_backup_of_a_running_daemon_restores_to_the_same_line(start_daemon: StartDaemon, tmp_path: Path) -> None:
    daemon = start_daemon()
    daemon.admin("PUT", "/v1/admin/events/sale", {})
    daemon.admin("POST", "/v1/admin/events/sale/open", {})
    daemon.call("POST", "/v1/events/sale/join", {"user_id": "u1"}, Idempotency_Key="u1")
    result = cli("backup", daemon.data, tmp_path / "backup")
    assert result.returncode == 0 and "backed up to LSN 4" in result.stdout
    assert cli("backup", daemon.data, tmp_path / "backup").returncode == 64
    daemon.kill()
    restored = tmp_path / "restored"
    result = cli("restore", tmp_path / "backup", restored)
    assert result.returncode == 0 and "restored to LSN 4" in result.stdout
    refused = cli("serve", "--port", "0", "--data", restored)
    assert refused.returncode == 78 and "empty folder" in refused.stderr
    (restored / "keys").mkdir(mode=0o700)
    again = start_daemon(data=restored)
    status, place = again.call("POST", "/v1/events/sale/join", {"user_id": "u1"}, Idempotency_Key="u1")
    assert (status, place["number"]) == (200, 1)


def test_a_restore_may_stop_at_an_lsn(start_daemon: StartDaemon, tmp_path: Path) -> None:
    data = filled(start_daemon, kill=True)
    assert cli("backup", data, tmp_path / "backup").returncode == 0
    told = json.loads(cli("restore", tmp_path / "backup", tmp_path / "r", "--to-lsn", "8", "--json").stdout)
    assert told["last_lsn"] == 8
    assert json.loads(cli("verify", tmp_path / "r", "--json").stdout)["visitors"] == 5
    assert cli("restore", tmp_path / "backup", tmp_path / "s", "--to-lsn", "999").returncode == 64


def test_a_folder_that_is_no_data_folder_is_wrong_usage(tmp_path: Path) -> None:
    for command in ("verify", "inspect"):
        result = cli(command, tmp_path)
        assert result.returncode == 64 and "no data folder" in result.stderr
    assert os.listdir(tmp_path) == []
