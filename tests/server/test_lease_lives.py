"""Whole lives of two nodes and a witness, by seed: never have both the right to answer, whatever happens to them.

Messages to and from the witness are delayed (past every timeout), lost, and arrive after their sender was killed;
nodes are frozen and killed; their clocks start anywhere and go apart as far as is allowed. The moments at which a node
has the right are kept as intervals of virtual time, exactly, and intervals of two nodes must not touch.
"""

import asyncio
import contextvars
from collections.abc import Iterator
from contextlib import suppress
from itertools import pairwise

import pytest
import structlog

from server.replication import lease as lease_module
from server.replication.lease import LeaseKeeper, LeaseWatch
from server.replication.witness import NOBODY, Lease, LeaseTable, MemoryWitness, WitnessUnreachable
from tests.simulation.virtual_loop import OWNER, Group, VirtualLoop, lead

LEASE_S = 1.0
TROUBLE_S, PEACE_S = 60.0, 12.0
RATES = (0.991, 1.009)


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Keep what these lives would log out of the report."""
    with structlog.testing.capture_logs():
        yield


class Node:
    """One machine: its clock, its term, its present process, and when it had the right to answer."""

    def __init__(self, name: str, loop: VirtualLoop, table: LeaseTable) -> None:
        self.name, self.other = name, "b" if name == "a" else "a"
        self.loop, self.table, self.random = loop, table, loop.random
        self.rate, self.offset_s = self.random.uniform(*RATES), self.random.uniform(0, 1e6)
        self.term, self.is_primary = 1, name == "a"
        self.rights: list[tuple[float, float]] = []
        self.group = Group(name)
        self.is_cut_off = False
        self.is_peace = False

    def now_ns(self) -> int:
        return int((self.loop.time() * self.rate + self.offset_s) * 1e9)

    def note_right(self, until_ns: int) -> None:
        """Note that from now on the right ends at a moment of this node's clock; whatever was said before is over."""
        now_s, until_s = self.loop.time(), (until_ns / 1e9 - self.offset_s) / self.rate
        if self.rights and self.rights[-1][1] > now_s:
            self.rights[-1] = (self.rights[-1][0], now_s)
        if until_s > now_s:
            self.rights.append((now_s, until_s))

    # ---- what happens to it --------------------------------------------------------------------------------

    async def travel(self, stage: str) -> None:
        chance = 1.0 if self.is_peace else self.random.random()
        if self.is_cut_off or chance < 0.03:
            await asyncio.sleep(self.random.uniform(0, 3))
            raise WitnessUnreachable(f"the {stage} is lost")
        slow_s = self.random.expovariate(1.5) if chance < 0.12 else 0.0
        await asyncio.sleep(self.random.uniform(0.001, 0.02) + slow_s)

    def begin(self) -> None:
        """Start a process; it remembers what its folder does."""
        context = contextvars.copy_context()
        self.group = Group(self.name)
        context.run(OWNER.set, self.group)
        self.loop.create_task(self.live(), context=context)

    def kill(self) -> None:
        self.group.is_dead = True
        self.note_right(0)

    async def suffer(self, end_s: float) -> None:
        """Let things happen to it, and make them good at the end."""
        while self.loop.time() < end_s:
            await asyncio.sleep(self.random.expovariate(0.5))
            what = self.random.choice(("freeze", "kill", "cut off", "nothing"))
            lasts_s = self.random.choice((0.05, 0.5, 1.0, 1.3, 2.5)) * self.random.uniform(0.8, 1.2)
            if what == "freeze":
                self.group.is_frozen = True
            elif what == "kill":
                self.kill()
            self.is_cut_off = what == "cut off"
            await asyncio.sleep(lasts_s)
            self.is_cut_off = False
            if what == "freeze":
                self.loop.thaw(self.group)
            elif what == "kill":
                self.begin()
        self.is_peace = True

    # ---- what it does --------------------------------------------------------------------------------------

    async def live(self) -> None:
        """Lead or follow, as the witness says."""
        witness = MemoryWitness(self.table, b"line", self.name, self.travel)
        while True:
            if self.is_primary:
                await self.try_to_lead(witness)
            self.is_primary = False
            row = await self.follow(witness)
            self.is_primary, self.term = True, row.term

    async def try_to_lead(self, witness: MemoryWitness) -> None:
        keeper = Recorded(witness, self)
        row = await keeper.acquire(self.term, self.name)
        if row.holder == self.name and row.term > self.term:
            self.term = row.term
            row = await keeper.acquire(self.term, self.name)
        if (row.holder, row.term) == (self.name, self.term):
            running = asyncio.create_task(keeper.run())
            await self.lead_on(keeper)
            running.cancel()

    async def lead_on(self, keeper: LeaseKeeper) -> None:
        while not keeper.lost.done():
            await asyncio.wait({keeper.lost}, timeout=self.random.uniform(0.05, 1.5))
            with suppress(TimeoutError):
                async with asyncio.timeout(None if self.is_peace else self.random.uniform(0.01, 4)):
                    if self.random.random() < 0.04 and not self.is_peace:
                        await keeper.resign(self.other)
                        return
                    await keeper.name_standby(self.other if self.random.random() < 0.9 else None)
            if keeper._resigned:
                return

    async def follow(self, witness: MemoryWitness) -> Lease:
        """Watch until the lease is this node's; returns its row."""
        watch = LeaseWatch(witness, LEASE_S, self.now_ns)
        looking = asyncio.create_task(watch.run())
        followed: tuple[int, str] | None = None
        while True:
            await asyncio.sleep(LEASE_S / 15)
            row = watch.lease
            if row is None:
                continue
            if row.holder == self.name and row.term > self.term:
                break  # an earlier process of this node took it, and was killed before it knew
            if row.holder == self.name:
                row = row._replace(term=self.term)  # given up without the witness having been told: hold it again
                break
            followed = (row.term, self.other if row.holder == NOBODY else row.holder)
            with suppress(WitnessUnreachable):
                if (taken := await watch.try_take(*followed, self.name, self.name)) is not None:
                    row = taken
                    break
        looking.cancel()
        return row


class Recorded(LeaseKeeper):
    """A keeper whose node notes every change of its right."""

    def __init__(self, witness: MemoryWitness, node: Node) -> None:
        self._node = node
        self._until_ns = 0
        super().__init__(witness, node.name, LEASE_S, node.now_ns)

    @property
    def valid_until_ns(self) -> int:  # type: ignore[override]
        return self._until_ns

    @valid_until_ns.setter
    def valid_until_ns(self, until_ns: int) -> None:
        self._until_ns = until_ns
        self._node.note_right(until_ns)


def overlaps(one: Node, other: Node) -> list[tuple[float, float]]:
    """Return the times at which both had the right to answer."""
    both = ((max(a[0], b[0]), min(a[1], b[1])) for a in one.rights for b in other.rights)
    return [(begin_s, end_s) for begin_s, end_s in both if begin_s < end_s]


def lived(seed: int) -> tuple[Node, Node]:
    """Lead a life through its trouble and into peace; returns both nodes."""

    async def life(loop: VirtualLoop) -> tuple[Node, Node]:
        table = LeaseTable()
        a, b = Node("a", loop, table), Node("b", loop, table)
        end_s = loop.time() + TROUBLE_S
        a.begin()
        b.begin()
        await asyncio.gather(a.suffer(end_s), b.suffer(end_s))
        await asyncio.sleep(PEACE_S)
        return a, b

    a, b = lead(seed, life)
    return a, b


@pytest.mark.slow
@pytest.mark.parametrize("seed", (0, 10))
def test_two_nodes_never_have_the_right_at_once_and_one_has_it_when_all_is_well(seed: int) -> None:
    for its in range(seed, seed + 10):
        a, b = lived(its)
        assert not overlaps(a, b), f"seed {its}"
        now_s = max(a.loop.time(), b.loop.time())
        assert any(begin_s <= now_s < end_s for node in (a, b) for begin_s, end_s in node.rights), f"seed {its}"


@pytest.mark.slow
def test_both_nodes_lead_in_most_lives_and_often() -> None:
    changes = 0
    for seed in range(10):
        a, b = lived(seed)
        spans = sorted([(span, "a") for span in a.rights] + [(span, "b") for span in b.rights])
        changes += sum(one[1] != next_one[1] for one, next_one in pairwise(spans))
    assert changes >= 40


@pytest.mark.slow
def test_a_watcher_that_waits_for_less_than_the_lease_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease_module, "MARGIN", 0.7)
    assert any(overlaps(*lived(seed)) for seed in range(60))


@pytest.mark.slow
def test_a_holder_that_counts_from_the_answer_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    class Late(Recorded):
        async def _swap(self, seen: Lease | None, wanted: Lease) -> Lease | None:
            stored = await super()._swap(seen, wanted)
            if stored is not None and not self._resigned:
                self.valid_until_ns = self._now_ns() + int(LEASE_S * 1e9)
            return stored

    monkeypatch.setitem(globals(), "Recorded", Late)
    assert any(overlaps(*lived(seed)) for seed in range(60))


@pytest.mark.slow
def test_a_holder_that_counts_what_it_only_found_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    class Hopeful(Recorded):
        async def _look(self) -> None:
            before = self.lease
            await super()._look()
            if self.lease != before and not self._resigned:
                self.valid_until_ns = self._now_ns() + int(LEASE_S * 1e9)

    monkeypatch.setitem(globals(), "Recorded", Hopeful)
    assert any(overlaps(*lived(seed)) for seed in range(60))


@pytest.mark.slow
def test_a_watcher_that_counts_from_when_the_read_was_started_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    async def look(watch: LeaseWatch) -> Lease | None:
        async with watch._turn:
            began_ns = watch._now_ns()
            row = await watch._witness.read()
            if row != watch.lease:
                watch.lease, watch._since_ns = row, began_ns
            return row

    monkeypatch.setattr(LeaseWatch, "look", look)
    assert any(overlaps(*lived(seed)) for seed in range(60))
