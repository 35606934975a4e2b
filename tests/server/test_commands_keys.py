"""`stanchion keys` against real daemons and real folders, and where the keys it makes do not show."""

import json
import re
import stat
import time
from base64 import urlsafe_b64decode
from pathlib import Path

import pytest

from server.admin_keys import NewKeyRequest
from server.commands_keys import _request
from server.keys import load_or_create
from tests.engine.forging import parts_of
from tests.server.conftest import StartDaemon
from tests.server.daemons import Daemon, cli, until
from tests.server.rings import secrets_in, stored_keys

pytestmark = pytest.mark.slow

SHOP_PEM = """-----BEGIN PUBLIC KEY-----
MCowBQYDK2VwAyEAA6EHv/POEL4dcN0Y50vAmWfk1jCbpQ1fHdyGZBJVMbg=
-----END PUBLIC KEY-----
"""


class Operator:
    """`stanchion keys …` with the admin key of one daemon."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon

    def __call__(self, *arguments: object, code: int = 0, error: str = "") -> str:
        """Run a command that must end with a code; returns what it wrote to stdout."""
        env = {"STANCHION_URL": self.daemon.url, "STANCHION_ADMIN_KEY_FILE": str(self.daemon.data / "keys/admin.key")}
        result = cli("keys", *arguments, env=env)
        assert result.returncode == code, result.stderr
        assert error in result.stderr and "Traceback" not in result.stderr
        assert bool(result.stderr) == bool(code)
        return result.stdout

    def listed(self) -> list[dict[str, object]]:
        return json.loads(self("list", "--json"))  # type: ignore[no-any-return]


@pytest.fixture
def operator(daemon: Daemon) -> Operator:
    return Operator(daemon)


@pytest.fixture
def folder(start_daemon: StartDaemon) -> Path:
    """Give the folder of a daemon that has ended."""
    daemon = start_daemon()
    assert daemon.stop() == 0
    return daemon.data


def offline(*arguments: object, code: int = 0) -> str:
    result = cli("keys", *arguments)
    assert result.returncode == code, result.stderr
    return result.stdout


def test_a_key_is_made_used_rotated_and_revoked(operator: Operator) -> None:
    told = operator("create", "admin", "--name", "night shift", "--role", "viewer").splitlines()
    assert re.fullmatch(r"admin key night shift \(admin-[0-9a-f]{8}\) is shown this once\.", told[0])
    first = told[1]
    assert operator.daemon.call("GET", "/v1/admin/keys", key=first)[0] == 200
    assert operator.daemon.call("POST", "/v1/admin/keys", {}, key=first)[0] == 403
    (key_id,) = [key["id"] for key in operator.listed() if key["name"] == "night shift"]
    second = operator("rotate", key_id, "--overlap-s", "600").splitlines()[1]
    assert {operator.daemon.call("GET", "/v1/admin/keys", key=key)[0] for key in (first, second)} == {200}
    assert operator("revoke", key_id, "--yes", "--note", "left") == f"key {key_id} is revoked\n"
    assert operator.daemon.call("GET", "/v1/admin/keys", key=first)[0] == 401
    assert operator.daemon.call("GET", "/v1/admin/keys", key=second)[0] == 200


def test_the_list_is_a_table_of_everything_but_the_keys(operator: Operator) -> None:
    told = operator("list")
    assert [line.split()[1] for line in told.splitlines()[1:]] == [
        "pass",
        "queue",
        "session",
        "site",
        "admin",
        "replication",
    ]
    assert not [secret for secret in secrets_in(operator.daemon.data) if secret in told]


def test_a_new_key_goes_into_a_file_of_its_owners_and_not_to_stdout(operator: Operator, tmp_path: Path) -> None:
    out = tmp_path / "shop.key"
    told = operator("create", "site", "--name", "shop", "--events", "e1,e2", "--out", out)
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    secret = out.read_text().strip()
    assert secret.startswith("stn_site_") and secret not in told
    answer = json.loads(operator("create", "site", "--name", "other", "--out", tmp_path / "o.key", "--json"))
    assert answer["secret"] is None and answer["key"]["name"] == "other"
    answer = json.loads(operator("create", "site", "--name", "third", "--json"))
    assert answer["secret"].startswith("stn_site_")


def test_no_key_is_made_where_its_file_cannot_be(operator: Operator, tmp_path: Path) -> None:
    before = operator.listed()
    taken = tmp_path / "taken.key"
    taken.write_text("mine")
    operator("create", "site", "--name", "shop", "--out", taken, code=64, error="--out")
    operator("create", "site", "--name", "shop", "--out", tmp_path / "no" / "folder", code=64, error="--out")
    assert operator.listed() == before and taken.read_text() == "mine"
    operator("create", "admin", "--name", "shop", "--out", tmp_path / "x.key", code=77, error="role")
    assert not (tmp_path / "x.key").exists()


def test_a_shops_public_key_is_registered_from_its_file(operator: Operator, tmp_path: Path) -> None:
    pem = tmp_path / "shop.pem"
    pem.write_text(SHOP_PEM)
    out = tmp_path / "none.key"
    told = operator("create", "enqueue", "--name", "shop", "--events", "e1", "--public-key", pem, "--out", out)
    assert told.endswith("is active.\n") and not out.exists()
    (key,) = [key for key in operator.listed() if key["kind"] == "enqueue"]
    assert key["public_key"] == "A6EHv_POEL4dcN0Y50vAmWfk1jCbpQ1fHdyGZBJVMbg"
    operator("create", "enqueue", "--name", "b", "--public-key", tmp_path / "nowhere", code=64, error="nowhere")


@pytest.mark.parametrize(
    ("arguments", "code", "error"),
    [
        (["create", "site"], 64, "--name"),
        (["create", "magic", "--name", "x"], 77, "kind"),
        (["create", "admin", "--name", "x"], 77, "role"),
        (["rotate", "draw"], 77, "for ever"),
        (["rotate", "site-00000000"], 77, "no such key"),
        (["revoke", "site-00000000"], 64, "--yes"),
        (["revoke", "site-00000000", "--yes"], 77, "no such key"),
        (["list", "--data", "nowhere"], 64, "nowhere"),
        (["list", "--url", "http://127.0.0.1:1"], 69, "does not answer"),
        (["list", "--key-file", "nowhere"], 78, "nowhere"),
    ],
)
def test_what_cannot_be_is_one_clear_line(operator: Operator, arguments: list[str], code: int, error: str) -> None:
    operator(*arguments, code=code, error=error)


def test_a_lost_admin_key_is_replaced_without_a_server(folder: Path, start_daemon: StartDaemon) -> None:
    lost = (folder / "keys" / "admin.key").read_text().strip()
    (folder / "keys" / "admin.key").unlink()
    told = offline("rotate", "admin", "--overlap-s", "0", "--data", folder).splitlines()
    assert told[0].endswith("is shown this once. It is also in admin.key of the server's keys.")
    daemon = start_daemon(data=folder)
    assert daemon.admin_key == told[1]
    assert daemon.call("GET", "/v1/admin/keys", key=told[1])[0] == 200
    assert daemon.call("GET", "/v1/admin/keys", key=lost)[0] == 401


def test_everything_works_on_a_folder_and_is_told_to_the_log(folder: Path) -> None:
    created = cli("keys", "create", "site", "--name", "shop", "--note", "by hand", "--data", folder)
    assert created.returncode == 0
    line = json.loads(created.stderr)
    assert (line["event"], line["actor"], line["note"]) == ("key_created", "command line", "by hand")
    assert created.stdout.splitlines()[1] not in created.stderr
    assert json.loads(offline("rotate", "queue", "--data", folder, "--json"))["secret"] is None
    shop = line["key_id"]
    assert offline("revoke", shop, "--yes", "--data", folder) == f"key {shop} is revoked\n"
    kinds = [key["kind"] for key in json.loads(offline("list", "--data", folder, "--json"))]
    assert kinds == ["pass", "queue", "queue", "session", "site", "admin", "replication"]
    offline("revoke", shop, "--yes", "--data", folder, code=77)
    offline("create", "magic", "--name", "x", "--data", folder, code=64)
    offline("create", "site", "--name", "a\nb", "--data", folder, code=64)
    assert [key["kind"] for key in stored_keys(folder)].count("queue") == 2


def test_a_running_server_notices_by_itself_when_a_keys_turn_has_come(
    start_daemon: StartDaemon, tmp_path: Path
) -> None:
    """The folder is that of a rotation 300 s ago, less the few seconds that the server needs to start."""
    since_ms = time.time_ns() // 1_000_000 - 292_000
    ring = load_or_create(tmp_path / "data", lambda: since_ms)[0].ring
    old, change = ring.signing("pass").id, ring.rotation("pass")
    ring.commit(change)
    daemon = start_daemon()
    daemon.admin("PUT", "/v1/admin/events/sale", {})
    daemon.admin("POST", "/v1/admin/events/sale/open", {})
    token = daemon.call("POST", "/v1/events/sale/join", {"user_id": "u1"}, Idempotency_Key="k")[1]["token"]

    def signer() -> object:
        receipt = daemon.call("GET", "/v1/events/sale/receipt", key=token)[1]["receipt"]
        return parts_of(receipt)[0]["kid"]

    assert signer() == old
    until(lambda: signer() == change.key.id, "the turn of the new key")


def test_a_folder_in_use_is_left_alone(operator: Operator) -> None:
    before = stored_keys(operator.daemon.data)
    operator("rotate", "admin", "--data", operator.daemon.data, code=75, error="holds the data folder")
    assert stored_keys(operator.daemon.data) == before


def test_a_folder_without_keys_is_refused(tmp_path: Path) -> None:
    offline("list", "--data", tmp_path, code=78)


def test_what_a_command_asks_is_held_to_the_contract_of_the_api() -> None:
    request = _request({"kind": "site", "name": "shop", "events": ["e1"]}, NewKeyRequest)
    assert (request.kind, request.events) == ("site", ["e1"])


def test_no_secret_ever_shows_anywhere_else(operator: Operator, tmp_path: Path) -> None:
    """Start, use and rotate: then look for every key there is or was, the draw's included."""
    daemon = operator.daemon
    secrets = set(secrets_in(daemon.data))
    daemon.admin("PUT", "/v1/admin/events/sale", {})
    daemon.admin("POST", "/v1/admin/events/sale/open", {})
    assert daemon.call("POST", "/v1/events/sale/join", {"user_id": "u1"}, Idempotency_Key="k")[0] == 201
    assert daemon.call("GET", "/v1/admin/events", key=daemon.admin_key[:-1])[0] == 401
    shown = [operator("create", "site", "--name", "shop").splitlines()[1]]
    for kind in ("queue", "session", "pass"):
        assert daemon.admin("POST", "/v1/admin/keys/rotate", {"kind": kind})["secret"] is None
    shown += [operator("rotate", kind).splitlines()[1] for kind in ("site", "admin")]
    secrets |= {*secrets_in(daemon.data), *shown}
    assert len(secrets) == 8 + 3 + 1 + 2, "what a start made, what was rotated in the ring, in files, and the shop's"
    told = [str(daemon.admin("GET", "/v1/admin/status")), operator("list"), operator("list", "--json")]
    told += [cli("serve", "--print-config", "--data", daemon.data, *more).stdout for more in ((), ("--json",))]
    told += [Path(f"/proc/{daemon.process.pid}/{name}").read_text() for name in ("cmdline", "environ")]
    assert cli("backup", daemon.data, tmp_path / "backup").returncode == 0
    assert daemon.stop() == 0
    told += [daemon.first_line, daemon.log()]
    assert daemon.log().count('"event":"key_rotated"') == 5
    backup = b"".join(path.read_bytes() for path in (tmp_path / "backup").rglob("*") if path.is_file())
    log = b"".join(path.read_bytes() for path in (daemon.data / "log").rglob("*"))
    for secret in secrets:
        assert not [text for text in told if secret in text]
        assert secret.encode() not in backup + log
    for raw in _raw_secrets(daemon.data):
        assert raw not in backup + log and raw.hex() not in "".join(told)


def _raw_secrets(data: Path) -> list[bytes]:
    """Return the bytes that secrets stand for, as a program would leak them."""
    return [urlsafe_b64decode(str(key["secret"]) + "=") for key in stored_keys(data) if "secret" in key]
