"""One life of a whole system, by seed: nodes, a witness, clients, faults, and the judgement at its end."""

import asyncio
from collections.abc import Iterator
from random import Random
from typing import Any, NamedTuple

import structlog

import engine.venue
from engine.actor import By
from engine.errors import StanchionError
from engine.records import Started
from engine.venue import Venue
from server.replication.agreement import Standing
from server.replication.witness import LeaseTable
from snapshots.journal import Journal
from snapshots.memory_storage import MemoryStorage
from tests.simulation.entropy import seeded
from tests.simulation.faults import Fate
from tests.simulation.history import History, Promotion
from tests.simulation.judge import judge, term_of
from tests.simulation.network import Network
from tests.simulation.nodes import OPTIONS, Node, Remembered
from tests.simulation.plans import CLIENTS_HOST, Plan, plan_of, sentence
from tests.simulation.processes import Host
from tests.simulation.virtual_loop import BEGINNING_S, OWNER, Deadlock, OutOfBounds, VirtualLoop
from tests.simulation.visitors import EVENT, IMPATIENT_S, PAUSES_S, SETTINGS, Crowd, Visitor

HEALED_AT_S = 7.5
COMING_AND_GOING_S = 8.5
IN_STEP_WITHIN_S = 15.0
OPERATOR_WAITS_S = 3.0
GROWS_AT_S = 2.0
QUIET_EVERY = 5
QUIET = {"batch_interval_s": 60}
GAP = 1_000  # numbers; what is skipped at a lossy promotion costs time
BOUNDS = {"max_steps": 400_000, "max_virtual_s": 120.0}


class Outcome(NamedTuple):
    """How a life went: what was violated, and the trace of it for people."""

    plan: Plan
    violations: list[str]
    trace: list[str]
    steps: int
    promotions: int
    answers: int


class Life:
    """The parts of one life.

    In a quiet one nearly all come at its beginning, and look without being let in; in some they look all the time.
    """

    def __init__(self, loop: VirtualLoop, plan: Plan) -> None:
        self.loop = loop
        self.plan = plan
        self.is_quiet = plan.seed % QUIET_EVERY == 0
        self.history = History()
        self.network = Network(loop)
        self.table = LeaseTable() if plan.setup == "witness" else None
        self.hosts = {name: Host(name, loop, self.network) for name in (*plan.nodes, CLIENTS_HOST)}
        self.nodes = {name: self._node(name) for name in plan.nodes}
        self.fate = Fate(self.network, self.nodes, self.table is not None, self.note)
        self.fate.holder = self._holder
        self.fate.on_death = self._on_death  # type: ignore[method-assign]
        clients = self.hosts[CLIENTS_HOST].start(lambda process: asyncio.Event().wait())  # type: ignore[arg-type, return-value]
        self.crowd = Crowd(self.network, clients, list(plan.nodes), self.history, Random(plan.seed))
        self.crowd.is_alone = self._is_alone
        self.crowd.pauses_s = IMPATIENT_S if plan.seed % QUIET_EVERY == 1 else PAUSES_S

    def _node(self, name: str) -> Node:
        first, setup = self.plan.nodes[0], self.plan.setup
        mode = "async" if setup == "async" else "single" if (setup, name) == ("growing", first) else "sync"
        follow = None if name == first else self.hosts[first].url
        is_edge = name in self.plan.edges
        return Node(self.hosts[name], self.network, mode, follow, self.table, is_edge, Remembered())

    def note(self, text: str) -> None:
        """Put a line into the trace."""
        self.history.trace.append(f"{self.loop.time() - BEGINNING_S:9.4f} {text}")

    def log(self, _: Any, method: str, event: dict[str, Any]) -> Any:
        """Take what a node logs into the trace; the end of structlog's processors."""
        owner = OWNER.get()
        name = "" if owner is None else owner.name
        self.note(f"{name:4} {method} {event.pop('event')} " + " ".join(f"{key}={its}" for key, its in event.items()))
        if self.history.trace[-1].find(" leading ") > 0:
            self._note_promotion(name.partition("#")[0], event)
        raise structlog.DropEvent

    def _note_promotion(self, node: str, event: dict[str, Any]) -> None:
        if event["term"] > max([1, *(its.term for its in self.history.promotions)]):
            from_lsn = _started_lsn(self.nodes[node].host.disk.storage, event["term"]) - 1
            is_lossy = event.get("lost") is not None
            self.history.promotions.append(Promotion(self.loop.time(), node, event["term"], from_lsn, is_lossy))

    def _on_death(self, name: str, ending: BaseException) -> None:
        self.history.violations.append(f"the process of {name} ended: {type(ending).__name__}: {ending}")

    def _holder(self) -> str:
        return "" if self.table is None else next((row.holder for row in self.table.rows.values()), "")

    def _is_alone(self) -> bool:
        leader = self.fate.leader()
        if leader is None:
            return True
        return bool(self.nodes[leader].member.leading.agreement.standing is Standing.ALONE)

    # ---- its course ------------------------------------------------------------------------------------

    async def lead(self) -> None:
        """Run the whole life and judge it."""
        names = list(self.nodes)
        self.fate.make_run(names[0])
        await self._open_event(names[0])
        late = GROWS_AT_S if self.plan.setup == "growing" else 0.0
        growing = [self.loop.create_task(self._grow(name, late)) for name in names[1:]]
        moments_s = [0.0] if self.is_quiet else [fault.at_s for fault in self.plan.faults]
        visitors = [Visitor(self.crowd, f"v{number}", moments_s) for number in range(self.plan.visitors)]
        coming = [self.crowd.clients.spawn(visitor.visit()) for visitor in visitors]
        befalling = [self.loop.create_task(self._befall(fault)) for fault in self.plan.faults]
        await asyncio.sleep(HEALED_AT_S)
        self._heal()
        await asyncio.gather(*befalling, *growing)
        self._heal()
        await asyncio.sleep(COMING_AND_GOING_S - HEALED_AT_S)
        self.crowd.is_over = True
        await asyncio.wait(coming)
        for task in (*coming, *befalling, *growing):
            task.result()
        leader = await self._in_step()
        looks = [self.crowd.clients.spawn(visitor.last_look()) for visitor in visitors]
        await asyncio.wait(looks)
        if leader is not None and await self._in_step() is not None:
            self._judge(leader)

    async def _open_event(self, name: str) -> None:
        async def do(seat: Any) -> None:
            await seat.configure(EVENT, SETTINGS | (QUIET if self.is_quiet else {}), By("admin"), replace=True)
            await seat.control(EVENT, "open", By("admin"))

        while self.nodes[name].member is None:  # noqa: ASYNC110 (no event tells it)
            await asyncio.sleep(0.05)
        reply = await self.crowd.ask("operator", "open", name, do)
        assert reply is not None and not reply.refused, reply

    async def _grow(self, name: str, after_s: float) -> None:
        await asyncio.sleep(after_s)
        first = self.nodes[self.plan.nodes[0]]
        if self.plan.setup == "growing" and first.mode == "single":
            first.mode = "sync"
            first.host.kill()
            self.fate.make_run(first.name)
        self.fate.make_run(name)

    async def _befall(self, fault: Any) -> None:
        await asyncio.sleep(fault.at_s)
        await self.fate.befall(fault)

    def _heal(self) -> None:
        self.note("HEAL")
        self.network.heal()
        for name, node in self.nodes.items():
            node.host.thaw()
            self.fate.make_run(name)

    async def _in_step(self) -> str | None:
        """Wait until one node leads and all others hold what it holds; return who leads."""
        began_s, helped = self.loop.time(), False
        while self.loop.time() - began_s < IN_STEP_WITHIN_S:
            problem = self._out_of_step()
            if not problem:
                return self.fate.leader()
            needs_help = self.table is None and self.loop.time() - began_s > OPERATOR_WAITS_S
            if needs_help and not helped and self.fate.leader() is None:
                self.note("OPERATOR: nobody leads")
                helped = True
                await self.fate.promote_best(None)
            await asyncio.sleep(0.1)
        self.history.violations.append(f"not in step {IN_STEP_WITHIN_S:.0f} s after all was healed: {problem}")
        return None

    def _out_of_step(self) -> str:
        leader = self.fate.leader()
        if leader is None:
            return "nobody leads"
        leading = self.nodes[leader].member.leading
        lsn = leading.journal.last_lsn
        if leading.replicated.durable_lsn < lsn:
            return f"{leader} is at LSN {lsn} and speaks of {leading.replicated.durable_lsn}"
        for name, node in self.nodes.items():
            if name == leader:
                continue
            if node.member is None or node.member.following is None:
                return f"{name} does not follow ({'not running' if node.member is None else node.member.role})"
            if node.member.following.replica.applied_lsn < lsn:
                return f"{name} has applied LSN {node.member.following.replica.applied_lsn} of {lsn}"
            if not node.member.following.is_reachable:
                return f"{name} is not connected"
        has_standby = len(self.nodes) - len(self.plan.edges) > 1
        if has_standby and leading.agreement.is_sync and leading.agreement.standing is not Standing.IN_STEP:
            return f"{leader} stands {leading.agreement.standing.value}"
        return ""

    # ---- its judgement -----------------------------------------------------------------------------------

    def _judge(self, leader: str) -> None:
        venue = self.nodes[leader].member.leading.backend.venue
        violations = self.history.violations
        violations += judge(self.history, venue, self.plan.setup == "async")
        violations += self._of_states(leader, venue)
        violations += self._of_disks(leader)

    def _of_states(self, leader: str, venue: Venue) -> Iterator[str]:
        """All nodes hold the same state, and it is sound."""
        venue.check()
        for name, node in self.nodes.items():
            if name == leader:
                continue
            replica = node.member.following.replica.venue
            replica.check()
            if (replica.outbox.lsn, replica.digest(), replica.epoch) != (
                venue.outbox.lsn,
                venue.digest(),
                venue.epoch,
            ):
                yield f"the state of {name} differs from that of {leader}"

    def _of_disks(self, leader: str) -> Iterator[str]:
        """What is on the disks is what is in memory, even if the power fails now."""
        venue = self.nodes[leader].member.leading.backend.venue
        for name, node in self.nodes.items():
            if node.is_edge:
                continue
            storage = MemoryStorage(node.host.disk.storage.crash_image(self.loop.random))
            rebuilt = rebuild(storage)
            if (rebuilt.outbox.lsn, rebuilt.digest()) != (venue.outbox.lsn, venue.digest()):
                yield f"after a power cut {name} comes back at LSN {rebuilt.outbox.lsn}, not {venue.outbox.lsn}"


def rebuild(storage: MemoryStorage) -> Venue:
    """Return the state that a data folder holds."""
    journal = Journal.open(storage, OPTIONS)
    venue = Venue()
    parts = list(journal.snapshot_parts())
    if parts:
        venue.load(parts)
    for _, record in journal.replay():
        venue.apply(record)
    return venue


def _started_lsn(storage: MemoryStorage, term: int) -> int:
    """Return where a term begins in a log."""
    for lsn, record in Journal.open(MemoryStorage(storage.image()), OPTIONS).replay():
        if isinstance(record, Started) and term_of(record.epoch) == term:
            return lsn
    raise AssertionError(f"term {term} begins nowhere in the log")


def run_seed(seed: int, focus: str = "") -> Outcome:
    """Lead the life of a seed; see `plan_of`."""
    return run_plan(plan_of(seed, focus))


def run_plan(plan: Plan) -> Outcome:
    """Lead a life; never raises for what goes wrong in it."""
    loop = VirtualLoop(plan.seed, **BOUNDS)
    config, gap = structlog.get_config(), vars(engine.venue)["RENUMBER_GAP"]
    vars(engine.venue)["RENUMBER_GAP"] = GAP
    with seeded(plan.seed):
        life = Life(loop, plan)
        structlog.configure(
            processors=[life.log],
            wrapper_class=structlog.make_filtering_bound_logger(20),
            cache_logger_on_first_use=False,
        )
        try:
            loop.run_until_complete(life.lead())
        except (Deadlock, OutOfBounds, AssertionError, StanchionError) as error:
            life.history.violations.append(f"{type(error).__name__}: {error}")
        finally:
            for host in life.hosts.values():
                host.bury()
            loop.finish()
            structlog.configure(**config)
            vars(engine.venue)["RENUMBER_GAP"] = gap
    said = [*life.history.violations, *(f"nobody looked at: {its}" for its in loop.complaints)]
    violations = list(dict.fromkeys(said))
    history = life.history
    trace = [sentence(plan), *history.trace]
    return Outcome(plan, violations, trace, loop.steps, len(history.promotions), len(history.answers))
