"""The commands about visitors against a real daemon: what they say, and with which code they end."""

import json
from collections.abc import Iterator

import pytest

from server.commands_visitor import MEANING, _moment
from tests.server.conftest import StartDaemon
from tests.server.daemons import Daemon, cli

pytestmark = pytest.mark.slow


class Sale:
    """A daemon with three visitors in line, and `stanchion event …` against it."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        daemon.admin("PUT", "/v1/admin/events/sale", {"batch_interval_s": 3600, "max_active": 1})
        daemon.admin("POST", "/v1/admin/events/sale/open", {})
        for number in (1, 2, 3):
            assert daemon.call("POST", "/v1/events/sale/join", {"user_id": f"u{number}"})[0] == 201

    def __call__(self, *arguments: object, code: int = 0, error: str = "") -> str:
        """Run a command that must end with a code; returns what it wrote to stdout."""
        key = self.daemon.data / "keys/admin.key"
        result = cli("event", *arguments, "--url", self.daemon.url, "--key-file", key)
        assert result.returncode == code, result.stderr
        assert error in result.stderr and "Traceback" not in result.stderr
        return result.stdout


@pytest.fixture
def sale(start_daemon: StartDaemon) -> Iterator[Sale]:
    yield Sale(start_daemon())


def test_a_visitor_is_let_in_and_another_removed_and_both_are_told_why(sale: Sale) -> None:
    assert sale("admit", "sale", "--user-id", "u3", "--reason", "press") == "arrival 3, number 3, is ready\n"
    sale("admit", "sale", "--number", 1, "--reason", "press", code=77, error="409 at_capacity, capacity")
    removed = json.loads(sale("remove", "sale", "--arrival", 2, "--reason", "a robot", "--ban", "--json"))
    assert (removed["place"]["user_id"], removed["place"]["status"]) == ("u2", "removed")
    assert sale.daemon.call("POST", "/v1/events/sale/join", {"user_id": "u2"})[0] == 403
    sale("remove", "sale", "--arrival", 9, "--reason", "r", code=77, error="404 not_found")
    lines = sale("visitor", "sale", "--number", 2).splitlines()
    assert any(line.split() == ["status", "removed"] for line in lines)
    told = [line for line in lines if line.startswith("20")]
    assert [line.split(maxsplit=3)[3].rstrip() for line in told] == [
        "joined as number 2",
        "banned from this event by admin: a robot",
        "removed by admin: a robot",
    ]
    found = json.loads(sale("visitor", "sale", "--user-id", "u3", "--json"))
    assert found["timeline"][-1]["reason"] == "press"


def test_places_are_listed_with_the_way_to_more(sale: Sale) -> None:
    lines = sale("visitors", "sale", "--limit", 2).splitlines()
    assert [line.split() for line in lines[1:3]] == [
        ["1", "1", "waiting", "–", "1", "u1"],
        ["2", "2", "waiting", "–", "2", "u2"],
    ]
    assert lines[3] == "There are more: --after 2"
    rest = json.loads(sale("visitors", "sale", "--after", 2, "--status", "waiting", "--json"))
    assert ([place["user_id"] for place in rest["visitors"]], rest["next"]) == (["u3"], None)


def test_fairness_says_what_each_number_means(sale: Sale) -> None:
    sale("admit", "sale", "--number", 2, "--reason", "r")
    counted = json.loads(sale("fairness", "sale", "--json"))
    assert (counted["admitted"], counted["inversions"], counted["overshoot"]) == (1, 0, 0)
    told = sale("fairness", "sale")
    assert all(meaning in told for meaning in MEANING.values())
    assert len(told.splitlines()) == 1 + len(MEANING)


def test_a_moment_without_a_wall_clock_is_that_of_the_record() -> None:
    assert _moment({"at_ms": 1_790_000_000_000, "wall_ms": None}) == "2026-09-21 14:13:20"
    assert _moment({"at_ms": 0, "wall_ms": 1_790_000_001_000}) == "2026-09-21 14:13:21"
