"""What befalls a simulated life, and what its operator does about it."""

import asyncio
import traceback
from collections.abc import Awaitable, Callable, Mapping
from types import MappingProxyType
from typing import Any

from engine.errors import Refused, StorageFailed
from server.replication.link import WrongKey
from tests.simulation.network import Network
from tests.simulation.nodes import Node
from tests.simulation.plans import Fault

DEATHS_MAX = 3
OPERATED = frozenset({"hand over", "fail over", "blackout"})
LONG_S = 0.5
SLOW_S = 0.8


class Fate:
    """Carries out faults. `has_witness`: nobody is promoted by hand, and commands never change.

    `holder` says whom the witness names.
    """

    def __init__(
        self, network: Network, nodes: Mapping[str, Node], has_witness: bool, note: Callable[[str], None]
    ) -> None:
        self._network = network
        self._nodes = nodes
        self._has_witness = has_witness
        self._note = note
        self.holder: Callable[[], str] = str
        self._restarts: set[str] = set()
        self._held_down: set[str] = set()
        self._operator = asyncio.Lock()  # there is one, and he does one thing after the other
        self._newest_term = 0
        self._deaths = 0
        self._broken: set[str] = set()
        self._flipped: list[str] = []

    async def befall(self, fault: Fault) -> None:
        """Do what a fault says."""
        self._note(f"FAULT {fault.kind} {fault.target} {fault.other} for {fault.lasting_s:.3f}")
        if fault.kind not in OPERATED:
            await _KINDS[fault.kind](self, fault)
            return
        async with self._operator:
            await _KINDS[fault.kind](self, fault)

    # ---- processes ---------------------------------------------------------------------------------------

    async def kill(self, fault: Fault) -> None:
        self._nodes[fault.target].host.kill()
        await self.restart(fault.target, fault.lasting_s)

    async def power(self, fault: Fault) -> None:
        self._nodes[fault.target].host.cut_power()
        await self.restart(fault.target, fault.lasting_s)

    async def restart(self, name: str, after_s: float) -> None:
        """Start a node again, as its supervisor does, unless somebody else is about to."""
        if name in self._restarts:
            return
        self._restarts.add(name)
        await asyncio.sleep(after_s)
        self._restarts.discard(name)
        self.make_run(name)

    def make_run(self, name: str) -> None:
        """Start a node that does not run, unless the operator wants it down."""
        node = self._nodes[name]
        if not node.host.is_running and name not in self._held_down:
            self._note(f"START {name}, following {node.follow}")
            node.start().ended.add_done_callback(lambda ended: self._on_end(name, ended.result()))

    def _on_end(self, name: str, ending: BaseException | None) -> None:
        if ending is None:
            return
        self._note(f"END of {name} by itself: {''.join(traceback.format_exception(ending)[-3:])}")
        if not self._is_excused(name, ending):
            self.on_death(name, ending)
            self._deaths += 1
        if self._deaths <= DEATHS_MAX:
            asyncio.get_running_loop().create_task(self.restart(name, 0.5))

    def _is_excused(self, name: str, ending: BaseException) -> bool:
        """Whether a fault explains this end: a failing disk, or a flipped bit in the proof of a new follower.

        The latter cannot be told from a wrong key, and a flip explains no more than one end.
        """
        if isinstance(ending, WrongKey) and name in self._flipped:
            self._flipped.remove(name)
            return True
        return name in self._broken and isinstance(ending, StorageFailed)

    def on_death(self, name: str, ending: BaseException) -> None:
        """A process ended by itself."""

    async def freeze(self, fault: Fault) -> None:
        host = self._nodes[fault.target].host
        host.freeze()
        process = host.process
        await asyncio.sleep(fault.lasting_s)
        if host.process is process:
            host.thaw()

    async def wipe(self, fault: Fault) -> None:
        """Give a standby an empty disk, while somebody else leads; from now on it is started as a follower."""
        node, leader = self._nodes[fault.target], self.leader()
        if leader in (None, node.name) or node.member is None or node.member.role != "follower":
            return
        if self.holder() == node.name:
            return  # about to lead, with what only it has: that would be more than one failure
        node.host.kill()
        node.host.disk.wipe()
        node.peers.urls, node.follow = [], self._nodes[leader].host.url
        await self.restart(fault.target, fault.lasting_s)

    async def slow(self, fault: Fault) -> None:
        """Let the disk of a node take long over everything."""
        process = self._nodes[fault.target].host.process
        if process is not None:
            process.group.slow_s = SLOW_S
            await asyncio.sleep(fault.lasting_s)
            process.group.slow_s = 0.0

    async def disk(self, fault: Fault) -> None:
        """Let one of the next operations of a disk fail, after which its process ends."""
        faults = self._nodes[fault.target].host.disk.storage.faults
        faults.fail_at_call = faults.calls + 1 + int(fault.lasting_s * 20)
        self._broken.add(fault.target)

    # ---- the network ---------------------------------------------------------------------------------------

    async def part(self, fault: Fault) -> None:
        await self._block([(fault.target, fault.other), (fault.other, fault.target)], fault.lasting_s)

    async def deafen(self, fault: Fault) -> None:
        await self._block([(fault.target, fault.other)], fault.lasting_s)

    async def isolate(self, fault: Fault) -> None:
        others = [name for name in (*self._nodes, "k", "w") if name != fault.target]
        ways = [(fault.target, other) for other in others]
        await self._block([*ways, *((to, of) for of, to in ways)], fault.lasting_s)

    async def cut_off(self, fault: Fault) -> None:
        """Let a node reach nobody but the clients."""
        others = [name for name in (*self._nodes, "w") if name != fault.target]
        ways = [(fault.target, other) for other in others]
        await self._block([*ways, *((to, of) for of, to in ways)], fault.lasting_s)

    async def _block(self, ways: list[tuple[str, str]], lasting_s: float) -> None:
        self._network.blocked.update(ways)
        await asyncio.sleep(lasting_s)
        self._network.blocked.difference_update(ways)

    async def reset(self, fault: Fault) -> None:
        self._network.reset(fault.target, fault.other)

    async def flip(self, fault: Fault) -> None:
        self._network.flip_a_bit(fault.target, fault.other)
        self._flipped += (fault.target, fault.other)

    # ---- the operator ----------------------------------------------------------------------------------------

    def leader(self) -> str | None:
        """Return who leads the newest term at this moment."""
        leading = [(its.member.term, name) for name, its in self._nodes.items() if its.member and its.member.leading]
        if not leading:
            return None
        self._newest_term = max(self._newest_term, max(leading)[0])
        return max(leading)[1]

    async def snapshots(self, fault: Fault) -> None:
        """Write snapshots until something of the log is pruned."""
        for _ in range(4):
            await self._do(fault.target, lambda member: member.seat.snapshot())
            await asyncio.sleep(0.2)

    async def hand_over(self, fault: Fault) -> None:
        """Ask a standby to take over in good order."""
        node = self._nodes[fault.target]
        if node.is_edge or node.member is None or node.member.role != "follower":
            return
        await self._do(fault.target, lambda member: member.promote())
        if node.member is not None and node.member.leading is not None:
            self.obey(fault.target)

    async def fail_over(self, fault: Fault) -> None:
        """Take the primary away and promote a standby in its place; no network may be broken then.

        If it takes its time the primary is cut off from the others before, and so dies with what only it has.
        """
        old = self.leader()
        heirs = [name for name, node in self._nodes.items() if name != old and not node.is_edge and node.member]
        if old is None or not heirs or self._network.blocked or self._network.silent:
            return
        self._held_down.add(old)
        if fault.lasting_s > LONG_S:
            ways = [(old, heir) for heir in heirs]
            await self._block([*ways, *((heir, way) for way, heir in ways)], fault.lasting_s)
        self._nodes[old].host.kill()
        await asyncio.sleep(min(fault.lasting_s, 1.0))
        await self._replace(old, fault.lasting_s)

    async def blackout(self, fault: Fault) -> None:
        """Take the power from all at once; the disk of the primary is late or never back, and a standby leads."""
        old = self.leader()
        for node in self._nodes.values():
            node.host.cut_power()
        if old is None or self._has_witness or all(node.is_edge for name, node in self._nodes.items() if name != old):
            for name in self._nodes:
                await self.restart(name, fault.lasting_s / 4)
            return
        self._held_down.add(old)
        await asyncio.sleep(0.1)
        for name in self._nodes:
            self.make_run(name)
        await asyncio.sleep(0.3)
        await self._replace(old, fault.lasting_s)

    async def _replace(self, old: str, after_s: float) -> None:
        """Promote somebody in the place of a primary that is held down, and only then let it up again.

        A promotion that was begun may have begun a term: so there is no way back, it is tried until it is done.
        """
        heir = await self.promote_best(old)
        while heir is not None and self.leader() is None:
            await asyncio.sleep(0.5)
            self.make_run(heir)
            await self.promote_best(old)
        self._held_down.discard(old)
        await self.restart(old, after_s)

    async def promote_best(self, besides: str | None) -> str | None:
        """Promote the standby that holds most, saying that the primary is dead, as it is.

        One that never heard of the last primary is not promoted: there the last primary has to come back itself.
        """
        held = []
        for name, node in self._nodes.items():
            is_standby = name != besides and node.member is not None and node.member._log is not None
            if is_standby and node.member.term >= self._newest_term:
                held.append((node.member.term, node.member._log.position.lsn, name))
        if not held:
            return None
        heir = max(held)[2]
        await self._do(heir, lambda member: member.promote(old_primary_is_dead=True))
        member = self._nodes[heir].member
        if member is not None and member.leading is not None:
            self.obey(heir)
        return heir

    def obey(self, primary: str) -> None:
        """Change the commands of all nodes to what the operator knows now."""
        if not self._has_witness:
            for name, node in self._nodes.items():
                node.follow = None if name == primary else self._nodes[primary].host.url

    async def _do(self, name: str, what: Callable[[Any], Awaitable[object]]) -> None:
        """Have a node do something, for at most five seconds; a refusal is no fault."""
        process = self._nodes[name].host.process
        if process is None or process.node is None:
            return

        async def do() -> None:
            try:
                await what(process.node)
            except Refused as refused:
                self._note(f"REFUSED by {name}: {refused.detail}")

        await asyncio.wait((process.spawn(do()), process.ended), timeout=5, return_when=asyncio.FIRST_COMPLETED)


_KINDS: Mapping[str, Callable[[Fate, Fault], Awaitable[None]]] = MappingProxyType(
    {
        "kill": Fate.kill,
        "power": Fate.power,
        "freeze": Fate.freeze,
        "wipe": Fate.wipe,
        "disk": Fate.disk,
        "slow": Fate.slow,
        "cut off": Fate.cut_off,
        "blackout": Fate.blackout,
        "part": Fate.part,
        "deafen": Fate.deafen,
        "isolate": Fate.isolate,
        "reset": Fate.reset,
        "flip": Fate.flip,
        "snapshots": Fate.snapshots,
        "hand over": Fate.hand_over,
        "fail over": Fate.fail_over,
    }
)
