"""A pair whose processes live on machines of their own, what befalls it, and what must be so when it is over.

Everything here blocks, and is called by a thread that sits at the operator's place (`Network.operator.inside`), whom
no cut concerns. Visitors come from a machine of their own, in a thread of their own.
"""

import asyncio
import random
import shutil
import signal
import subprocess
import tempfile
import threading
import time
import urllib.error
import urllib.request
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from tests.scenarios.client import read_lines
from tests.scenarios.flood import Flood, Join
from tests.scenarios.history import Evidence, FinalPlace, LogLine, Report, check
from tests.scenarios.judging_failover import entries_of, places_of
from tests.scenarios.namespaces import Machine, Network
from tests.scenarios.pairs import Node
from tests.scenarios.people import ADMIN, EVENT, Refusal
from tests.server.daemons import cli
from tests.server.postgres import USER, Postgres, running_postgres

SERVERS = ("one", "two")
MACHINES = (*SERVERS, "witness", "visitors")
PORT, ADMIN_PORT, REPLICATION_PORT = 8080, 8081, 8082
PATIENT = dict.fromkeys(("presence_timeout_s", "presence_timeout_hidden_s", "claim_window_s", "session_ttl_s"), 3600)
SETTINGS = {"batch_size": 1, "batch_interval_s": 3600, "claim_max_s": 7200, "session_max_s": 7200, **PATIENT}
RESTARTS_PER_TERM = 1 << 20
SETTLED_WITHIN_S = 45.0
STARTED_WITH = 20
RETRY_S = (0.05, 0.15)


class Times(NamedTuple):
    """The two times of the documents that everything here is held against."""

    lease_s: float = 1.0
    standby_timeout_s: float = 1.0

    def flags(self) -> tuple[str, ...]:
        """Return them as a server is told."""
        return ("--lease-s", str(self.lease_s), "--standby-timeout-s", str(self.standby_timeout_s))


class Server(Node):
    """One process on its machine; the operator reaches it at its admin address."""

    def __init__(self, machine: Machine, data: Path, keys: Path, command: Sequence[str], flags: Sequence[str]) -> None:
        self.machine = machine
        address = machine.address
        listening = ("--host", address, "--public-url", "https://queue.example")
        listening += ("--admin-host", address, "--admin-port", str(ADMIN_PORT))
        listening += ("--replication-listen", f"{address}:{REPLICATION_PORT}")
        with machine.inside():
            super().__init__(data, PORT, keys, command, (*listening, *flags))
        self.url = f"http://{address}:{ADMIN_PORT}"
        self.is_frozen = False

    def replication(self) -> dict[str, Any]:
        """Return what it tells the operator of followers and lag; nothing while it has no role."""
        told: dict[str, Any] = self.admin("GET", "/v1/admin/status")["details"].get("replication", {})
        return told

    @property
    def role(self) -> str:
        """What it says that it is; "" while it says nothing."""
        return str(self.readiness().get("role", ""))

    @property
    def term(self) -> int:
        """The newest term it knows."""
        return int(self.replication().get("term", 0))

    def freeze(self) -> None:
        """Stop it where it stands."""
        self.process.send_signal(signal.SIGSTOP)
        self.is_frozen = True

    def thaw(self) -> None:
        """Let it go on."""
        self.process.send_signal(signal.SIGCONT)
        self.is_frozen = False


class IsolatedPair:
    """Two servers, each on its machine. `witness` is None where nobody takes over by himself."""

    def __init__(
        self, folder: Path, network: Network, witness: Postgres | None, times: Times, flags: Sequence[str] = ()
    ) -> None:
        self.network = network
        self.witness = witness
        self.times = times
        self.folder = folder
        self.keys = folder / "keys"
        self.joins: list[Join] = []
        self._flags = {name: (*times.flags(), "--log-level", "info", "--segment-mib", "1", *flags) for name in SERVERS}
        if witness is not None:
            address = network["witness"].address
            witness_url = f"postgresql://{USER}@{address}:{witness.port}/postgres"
            self._flags = {name: (*told, "--witness", witness_url) for name, told in self._flags.items()}
        self._commands: dict[str, Sequence[str]] = {"one": ("serve",), "two": self._following("one")}
        self.servers: dict[str, Server] = {}
        self.is_log_whole = True
        self._is_witness_down = False

    def _following(self, name: str) -> Sequence[str]:
        url = f"http://{self.network[name].address}:{REPLICATION_PORT}"
        return ("follow", url, "--key-file", str(self.keys / "replication.key"))

    # ---- life -------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the primary, and then its standby."""
        self.start_primary()
        self.launch("two")
        self.settle()

    def start_primary(self) -> None:
        """Start the first primary, with an open event."""
        data = self.data("one")
        server = Server(self.network["one"], data, data / "keys", ("serve",), self._flags["one"])
        shutil.copytree(data / "keys", self.keys)
        self.servers["one"] = server
        server.admin("PUT", ADMIN, SETTINGS)
        if server.admin("GET", ADMIN)["state"] == "draft":
            server.admin("POST", f"{ADMIN}/open", {})

    def data(self, name: str) -> Path:
        """Return the data folder of a server."""
        return self.folder / name

    def flag(self, name: str, *flags: str) -> None:
        """Tell a server more, from its next start on."""
        self._flags[name] = (*self._flags[name], *flags)

    def follow_at(self, name: str, url: str) -> None:
        """Have a server follow at another address than that of the other server."""
        self._commands[name] = ("follow", url, *self._commands[name][2:])

    def launch(self, name: str) -> Server:
        """Start a server that is not running; returns once it listens."""
        server = Server(self.network[name], self.data(name), self.keys, self._commands[name], self._flags[name])
        self.servers[name] = server
        return server

    def kill(self, name: str) -> None:
        """Kill a server."""
        self.servers.pop(name).kill()

    def wipe(self, name: str) -> None:
        """Remove the folder of a server that is not running; what is started on nothing can only be a follower."""
        shutil.rmtree(self.data(name))
        self._commands = {name: self._following(other_than(name)), other_than(name): ("serve",)}

    def promote(self, name: str, *flags: str) -> subprocess.CompletedProcess[str]:
        """Promote a server by hand, as an operator does."""
        return cli("promote", self.servers[name].url, "--key-file", self.keys / "admin.key", *flags)

    def end(self) -> None:
        """Kill what runs."""
        while self.servers:
            _, server = self.servers.popitem()
            server.kill()

    def stop(self) -> None:
        """Stop the follower, then the primary, in good order."""
        primary = self.primary
        for name in (other_than(primary), primary):
            server = self.servers.pop(name)
            code = server.stop()
            assert code == 0, f"server {name} ended with {code}: {server.log()[-2000:]}"

    def verify(self) -> None:
        """Verify what both left behind."""
        for name in SERVERS:
            verified = cli("verify", self.data(name))
            assert verified.returncode == 0, verified.stderr

    # ---- roles ------------------------------------------------------------------------------------------

    @property
    def primary(self) -> str:
        """Return who leads; there must be exactly one."""
        leading = [name for name, server in self.servers.items() if server.role == "primary"]
        assert len(leading) == 1, f"{leading} lead"
        return leading[0]

    def door(self, name: str) -> str:
        """Return where visitors reach a server."""
        return f"http://{self.network[name].address}:{PORT}"

    def standing(self, name: str) -> str:
        """Return how a primary stands with its standby; "" where it is none."""
        return str(self.servers[name].replication().get("standing", ""))

    def is_whole(self) -> bool:
        """Whether there are one primary and one follower, in step, of one term."""
        if set(self.servers) != set(SERVERS) or not all(server.readiness() for server in self.servers.values()):
            return False
        told = {name: server.replication() for name, server in self.servers.items()}
        leads = [name for name, server in self.servers.items() if server.role == "primary"]
        is_in_step = all(one.get("in_step") and one.get("connected", one.get("followers")) for one in told.values())
        return len(leads) == 1 and is_in_step and len({one["term"] for one in told.values()}) == 1

    def settle(self) -> float:
        """Make everything whole, and wait until one leads and the other follows in step; returns how long it took."""
        began_s = time.monotonic()
        self.network.heal()
        if self._is_witness_down:
            self.start_witness()
        for server in self.servers.values():
            server.thaw()
        for name in SERVERS:
            if name not in self.servers:
                self.launch(name)
        self.wait(self.is_whole, "one primary, and one follower in step", SETTLED_WITHIN_S)
        return time.monotonic() - began_s

    def kill_witness(self) -> None:
        """Kill the witness."""
        assert self.witness is not None
        self.witness.kill()
        self._is_witness_down = True

    def start_witness(self) -> None:
        """Start the witness again."""
        assert self.witness is not None
        with self.network["witness"].inside():
            self.witness.start()
        self._is_witness_down = False

    def join_at(self, name: str) -> tuple[int, str]:
        """Join at one server, as nobody of the crowd; returns status and code of the answer."""
        body = msgspec.json.encode({"user_id": f"operator-{time.monotonic_ns()}"})
        headers = {"Content-Type": "application/json", "Idempotency-Key": f"operator-{time.monotonic_ns()}"}
        asked = urllib.request.Request(f"{self.door(name)}{EVENT}/join", body, headers)
        try:
            with urllib.request.urlopen(asked, timeout=10) as response:
                return response.status, ""
        except urllib.error.HTTPError as error:
            with error:
                return error.code, msgspec.json.decode(error.read(), type=Refusal).code

    # ---- waiting ----------------------------------------------------------------------------------------

    def wait(self, condition: Callable[[], Any], what: str, within_s: float) -> float:
        """Wait until something is so; returns how long it took."""
        began_s = time.monotonic()
        while not condition():
            if time.monotonic() - began_s > within_s:
                raise AssertionError(f"not within {within_s:g} s: {what}\n{self.logs()}")
            time.sleep(0.02)
        return time.monotonic() - began_s

    def hold(self, condition: Callable[[], Any], what: str, for_s: float) -> None:
        """See that something stays so."""
        began_s = time.monotonic()
        while time.monotonic() - began_s < for_s:
            assert condition(), f"after {time.monotonic() - began_s:.2f} s no more: {what}\n{self.logs()}"
            time.sleep(0.05)

    def logs(self) -> str:
        """Return the ends of what the servers logged."""
        return "\n".join(f"== {name}\n{server.log()[-3000:]}" for name, server in self.servers.items())


def other_than(name: str) -> str:
    """Return the other of the two."""
    return SERVERS[1 - SERVERS.index(name)]


@contextmanager
def witness_on(machine: Machine) -> Iterator[Postgres]:
    """Run a PostgreSQL on a machine until the block ends, open to the others."""
    with tempfile.TemporaryDirectory(prefix="stanchion-witness-") as folder:
        rules = Path(folder) / "hba.conf"
        rules.write_text("host all all samenet trust\n")
        Path(folder).chmod(0o755)
        settings = {"listen_addresses": machine.address, "hba_file": str(rules)}
        with ExitStack() as ending:
            with machine.inside():
                server = ending.enter_context(running_postgres(settings))
            yield server


class Crowd:
    """Visitors who join all the time, from a machine of their own; each asks both servers until there is an answer."""

    def __init__(self, machine: Machine, doors: tuple[str, str], rate_per_s: float, seed: str, joins: list[Join]):
        self._machine = machine
        self._first = len(joins)
        self._flood = Flood(doors, rate_per_s, random.Random(seed), retry_s=RETRY_S, joins=joins)
        self._loop = asyncio.new_event_loop()
        self._task: asyncio.Task[None] | None = None
        self._thread = threading.Thread(target=self._run)

    def start(self) -> None:
        """Let them come."""
        self._thread.start()

    def stop(self, within_s: float) -> None:
        """Let nobody else come, and wait until everybody has an answer; afterwards they go without one."""
        self._flood.is_over = True
        self._thread.join(within_s)
        if self._thread.is_alive():
            assert self._task is not None
            self._loop.call_soon_threadsafe(self._task.cancel)
            self._thread.join()

    def _run(self) -> None:
        with self._machine.inside(), asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._come())

    async def _come(self) -> None:
        self._task = asyncio.create_task(self._flood.run())
        await asyncio.wait([self._task])
        if not self._task.cancelled():
            self._task.result()

    @property
    def joins(self) -> Sequence[Join]:
        """Return those who came so far."""
        return self._flood.joins[self._first :]

    @property
    def unanswered(self) -> int:
        """Return how many wait for an answer."""
        return self._flood.unanswered

    def answered(self, since_s: float = 0.0) -> int:
        """Return how many came after a moment and were answered."""
        joins = self._flood.joins
        first = max(self._first, bisect_left(joins, since_s, key=lambda join: join.sent_s))
        return sum(join.answered_s is not None for join in joins[first:])


class Trial:
    """One scenario: a pair that is whole at its beginning and at its end, and visitors who come all the time.

    With `is_whole=False` there is only a primary at the beginning.
    """

    def __init__(self, pair: IsolatedPair, rate_per_s: float, seed: str, *, is_whole: bool = True) -> None:
        self.pair = pair
        self.network = pair.network
        self.lease_s, self.standby_timeout_s = pair.times
        if is_whole:
            pair.settle()
        self.primary = pair.primary
        self.standby = other_than(self.primary)
        self.chance = random.Random(seed)
        self.term = pair.servers[self.primary].term
        doors = (pair.door(self.primary), pair.door(self.standby))
        self._crowd = Crowd(self.network["visitors"], doors, rate_per_s, seed, pair.joins)

    def __enter__(self) -> "Trial":
        self._crowd.start()
        self.pair.wait(lambda: self._crowd.answered() > STARTED_WITH, "joins being answered", 10)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self.pair.settle()
        finally:
            self._crowd.stop(within_s=20 if kind is None else 0)
        if kind is None:
            self._judge()

    # ---- while it goes on -------------------------------------------------------------------------------

    def server(self, name: str) -> Server:
        """Return a server."""
        return self.pair.servers[name]

    def wait(self, condition: Callable[[], Any], what: str, within_s: float = 10.0) -> float:
        """Wait until something is so; returns how long it took."""
        return self.pair.wait(condition, what, within_s)

    def wait_answered(self, within_s: float = 10.0, count: int = STARTED_WITH) -> float:
        """Wait until visitors who come from now on are answered; returns how long it took."""
        now_s = time.monotonic()
        return self.wait(lambda: self._crowd.answered(now_s) >= count, "joins being answered", within_s)

    def hold(self, condition: Callable[[], Any], what: str, for_s: float) -> None:
        """See that something stays so."""
        self.pair.hold(condition, what, for_s)

    def leads(self, name: str) -> bool:
        """Whether a server leads."""
        return self.server(name).role == "primary"

    def follows(self, name: str) -> bool:
        """Whether a server follows."""
        return self.server(name).role == "follower"

    def stands(self, standing: str) -> bool:
        """Whether that is how the primary stands with its standby."""
        return self.pair.standing(self.primary) == standing

    # ---- what was answered ------------------------------------------------------------------------------

    def last_answer_of_old_term_s(self) -> float:
        """Return when the last place was shown that the primary of the beginning gave."""
        return max(join.answered_s or 0 for join in self._crowd.joins if _term_of(join) == self.term)

    def longest_silence_s(self, since_s: float) -> float:
        """Return the longest time since a moment in which nobody was answered, until now."""
        joins = self._crowd.joins
        moments = sorted(join.answered_s for join in joins if join.answered_s is not None and join.answered_s > since_s)
        return max(after - before for before, after in pairwise([since_s, *moments, time.monotonic()]))

    def _judge(self) -> None:
        """Hold what everybody was answered against what is there in the end."""
        report = judge(self.pair, self._crowd.joins)
        assert not self._crowd.unanswered, f"{self._crowd.unanswered} were never answered"
        assert report.ok, report.explain()


def judge(pair: IsolatedPair, joins: Sequence[Join]) -> Report:
    """Return the verdict over these joins: the history checker's, and that both servers show the same places."""
    primary = pair.servers[pair.primary]
    follower = pair.servers[other_than(pair.primary)]
    final = places_of(primary)
    if pair.is_log_whole:
        log = read_lines(primary.url, primary.admin_key, LogLine)
        report = check(Evidence(list(entries_of(joins)), log, final))
    else:
        report = Report(0, sum(join.answered_s is not None for join in joins))
    report.faults["lost"] += missing(joins, final)
    report.faults["lost"] += [join.complaint for join in joins if join.complaint]
    report.faults["epoch"] += fallen_terms(joins)
    if places_of(follower) != final:
        report.faults["diverged"].append("the follower shows other places than the primary")
    return report


def missing(joins: Iterable[Join], final: Mapping[int, FinalPlace]) -> Iterator[str]:
    """Find whoever was given a place that is not there, or is there with another number."""
    for join in joins:
        if join.place is not None:
            shown = final.get(join.place.arrival)
            if shown is None or (shown.user_id, shown.number) != (join.user_id, join.place.number):
                yield f"{join.key} was given {join.place.number}, and in the end there is {shown}"


def fallen_terms(joins: Iterable[Join]) -> Iterator[str]:
    """Find whoever came after an answer of some term and was given a place by an older one; O(n log n)."""
    answered = sorted((join for join in joins if join.answered_s is not None), key=lambda join: join.answered_s or 0)
    newest = index = 0
    for join in sorted(answered, key=lambda join: join.sent_s):
        while index < len(answered) and (answered[index].answered_s or 0) < join.sent_s:
            newest = max(newest, _term_of(answered[index]))
            index += 1
        if _term_of(join) < newest:
            yield f"{join.key} was answered in term {_term_of(join)}, after others were in term {newest}"


def _term_of(join: Join) -> int:
    return 0 if join.place is None else (join.place.epoch or 0) // RESTARTS_PER_TERM
