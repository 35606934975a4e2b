"""Two processes that hold one line: a primary and its standby, at two addresses that stay, killed and started again.

Who leads is what this file was told last: by the witness's verdict as clients saw it, or by the command that
promoted. In mode `single` there is one process, and whoever kills it starts it again.
"""

import json
import re
import time
import urllib.error
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tests.server.daemons import Daemon, cli
from tests.server.proxies import free_port

FLAGS = ("--segment-mib", "1", "--log-level", "info")
NEAR_RECORDS = 100
IN_STEP_WITHIN_S = 90.0
MODES = ("sync", "async", "single")


class Node(Daemon):
    """One of the two while it lives; the keys are those of the folder that made them."""

    def __init__(self, data: Path, port: int, keys: Path, command: Sequence[str], flags: Sequence[str]) -> None:
        super().__init__(data, *flags, "--port", str(port), command=command)
        self.keys = keys
        self.url = f"http://127.0.0.1:{port}"

    @property
    def admin_key(self) -> str:
        return (self.keys / "admin.key").read_text().strip()

    @property
    def site_key(self) -> str:
        return (self.keys / "site.key").read_text().strip()

    def readiness(self) -> dict[str, Any]:
        """Return what it says of its role; nothing while it does not answer."""
        try:
            _, told = self.call("GET", "/readyz")
        except (urllib.error.URLError, OSError):
            return {}
        return told if isinstance(told, dict) else {}

    def replication(self) -> dict[str, Any]:
        """Return what it tells the operator of followers and lag."""
        told: dict[str, Any] = self.admin("GET", "/v1/admin/status")["details"]["replication"]
        return told


class Promotion(NamedTuple):
    """What a follower said when it was promoted: its lag just before, and what may be lost, in a sentence.

    `since_s` is when it was up to date, None where it has not met its primary since it was started.
    """

    lag: Mapping[str, float]
    lost: str | None
    since_s: float | None

    def may_have_lost(self, lsn: int) -> bool:
        """Whether a record of the old primary is among those that were said to be lost."""
        named = re.search(r"after LSN (\d+)", self.lost or "")
        return named is not None and lsn > int(named.group(1))


class Pair:
    """A primary and its standby. Everything here blocks: call it in a thread.

    `leader` is the index of the node that leads, `urls` are where the two are, dead or alive.
    """

    def __init__(self, folder: Path, mode: str, witness: str | None = None, lease_s: float = 1.5) -> None:
        self.mode = mode
        self.folders = [folder / name for name in ("one", "two")][: 1 if mode == "single" else 2]
        ports = [free_port() for _ in self.folders]
        self._ports = ports
        self.urls = (f"http://127.0.0.1:{ports[0]}", f"http://127.0.0.1:{ports[-1]}")
        self._keys = self.folders[0] / "keys"
        self._flags: tuple[str, ...] = FLAGS if mode == "single" else (*FLAGS, "--replication", mode)
        if witness is not None:
            self._flags += ("--witness", witness, "--lease-s", str(lease_s))
        self._nodes: dict[int, Node] = {}
        self.leader = 0
        self._is_fresh = False

    @property
    def primary(self) -> Node:
        """Return the node that leads."""
        return self._nodes[self.leader]

    @property
    def others(self) -> list[Node]:
        """Return the follower, where there is one now."""
        return [node for index, node in self._nodes.items() if index != self.leader]

    def start(self) -> None:
        """Start both, and wait until the standby is in step."""
        self._start(0)
        if self.mode != "single":
            self._start(1)
            self.wait_in_step()

    def _start(self, index: int) -> None:
        following = ("follow", self.urls[0], "--key-file", str(self._keys / "replication.key"))
        command = following if index else ("serve",)
        self._nodes[index] = Node(self.folders[index], self._ports[index], self._keys, command, self._flags)

    def kill(self, alone_s: float = 0.0) -> None:
        """Kill the primary; in a pair the other one leads from now on, once it finds out or is told.

        With `alone_s` the follower was killed so long before, and comes back to find nobody.
        """
        if alone_s:
            self._nodes.pop(1 - self.leader).kill()
            time.sleep(alone_s)
        self._nodes.pop(self.leader).kill()
        if self.mode != "single":
            self.leader = 1 - self.leader
        self._is_fresh = alone_s > 0
        if self._is_fresh:
            self._start(self.leader)

    def succeed(self) -> Promotion | None:
        """Do what somebody has to do so that there is a primary again: with a witness nothing."""
        if self.mode == "single":
            self._start(0)
        if self.mode != "async":
            return None
        seen_s, told_of_lag = time.monotonic(), self.primary.replication()
        lag = {name: told_of_lag[name] for name in ("lag_records", "lag_seconds")}
        told = cli("promote", self.primary.url, "--key-file", self._keys / "admin.key", "--json")
        assert told.returncode == 0, told.stderr
        since_s = None if self._is_fresh else seen_s - lag["lag_seconds"]
        return Promotion(lag, json.loads(told.stdout)["lost"], since_s)

    def come_back(self) -> None:
        """Start the one that was killed, and wait until it follows in step."""
        if self.mode != "single":
            self._start(1 - self.leader)
            self.wait_in_step()

    def wait_in_step(self) -> None:
        """Wait until the primary acknowledges nothing without its standby; in async, until the standby is near."""
        deadline_s = time.monotonic() + IN_STEP_WITHIN_S
        while not self._is_in_step():
            logs = "\n".join(node.log()[-2000:] for node in self._nodes.values())
            assert time.monotonic() < deadline_s, f"the standby is not in step within {IN_STEP_WITHIN_S:g} s: {logs}"
            time.sleep(0.02)

    def _is_in_step(self) -> bool:
        try:
            told = self.primary.replication()
        except OSError:  # it is too busy to answer
            return False
        if self.mode == "sync":
            return bool(told["in_step"])
        return told["followers"] > 0 and told["lag_records"] < NEAR_RECORDS

    def stop(self) -> None:
        """Stop the follower, then the primary, in good order, and verify what they leave."""
        for node in (*self.others, self.primary):
            code = node.stop()
            assert code == 0, f"a node ended with {code}: {node.log()[-2000:]}"
            verified = cli("verify", node.data)
            assert verified.returncode == 0, verified.stderr
        self._nodes.clear()

    def kill_all(self) -> None:
        """End whatever still runs."""
        for node in self._nodes.values():
            node.kill()
