"""The program of a simulated node: a whole `Member` as the daemon runs it, without HTTP, key folder and files."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from engine.errors import StorageFailed
from server.clockwork import release_due
from server.replication.ground import Ground
from server.replication.leading import Clocks
from server.replication.link import Link, LinkClosed
from server.replication.messages import Ring
from server.replication.roles import Member
from server.replication.settings import ReplicationSettings
from server.replication.witness import LeaseTable, MemoryWitness, Witness
from snapshots.journal import JournalOptions
from snapshots.memory_storage import MemoryStorage
from tests.simulation.commits import VirtualCommits
from tests.simulation.network import Network
from tests.simulation.processes import Host, Process

KEY = "0123456789abcdef0123456789abcdef"
LEASE_S = 1.0
STANDBY_TIMEOUT_S = 1.3
OPTIONS = JournalOptions(segment_mib=1 / 128, idle_frame_ms=200, commit_thread=VirtualCommits)
WITNESS_HOST = "w"


async def _serve(member: Member, link: Link) -> None:
    with suppress(LinkClosed, StorageFailed):  # a disk that cannot be read ends the link
        await member.serve(link)


class OneKey:
    """A `KeyPort` with one key for everything, which never changes."""

    draw_key = bytes(32)

    def handshake_keys(self) -> list[str]:
        return [KEY]

    def sealed(self, key: str) -> Ring:
        return Ring(0, b"")

    def take(self, sealed: bytes, key: str) -> None:
        """Every node has the same key already."""

    def lead(self, hand_on: Callable[[Ring], Awaitable[None]] | None) -> None:
        """Keys do not change."""


@dataclass(slots=True)
class Remembered:
    """A `PeerStore` that outlives the processes of its host."""

    urls: list[str] = field(default_factory=list)

    def load(self) -> list[str]:
        return list(self.urls)

    def save(self, urls: list[str]) -> None:
        self.urls = list(urls)


@dataclass(slots=True)
class Node:
    """One host with what its operator set up: the mode, whom it follows (None: it begins as primary), its witness."""

    host: Host
    network: Network
    mode: str
    follow: str | None
    table: LeaseTable | None
    is_edge: bool = False
    peers: Remembered = field(default_factory=Remembered)

    @property
    def name(self) -> str:
        return self.host.name

    @property
    def member(self) -> Any:
        """The member that runs here now, None where nothing runs or it has not begun."""
        return None if self.host.process is None else self.host.process.node

    def start(self) -> Process:
        """Start the program on the host."""
        return self.host.start(self.live)

    async def live(self, process: Process) -> None:
        """Be a member until something ends it."""
        member = Member(self._ground(process))
        await member.start()
        process.node = member
        process.listen(lambda link: _serve(member, link))
        running = [asyncio.create_task(member.run()), asyncio.create_task(release_due(member.seat))]
        await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
        for task in running:
            if task.done() and (error := task.exception()) is not None:
                raise error

    def _ground(self, process: Process) -> Ground:
        host = self.host
        settings = ReplicationSettings(
            host.name,
            host.url,
            mode=self.mode,
            lease_s=LEASE_S,
            standby_timeout_s=STANDBY_TIMEOUT_S,
            slice_bytes=2048,
            ship_bytes=4096,
            recent_bytes=8192,
        )

        def open_link(url: str) -> Coroutine[Any, Any, Link]:
            return self.network.connect(process, url)

        return Ground(
            settings,
            None if self.is_edge else host.disk.storage,
            MemoryStorage() if self.is_edge else None,
            OPTIONS,
            open_link,
            None if self.table is None or self.is_edge else self._open_witness,
            self.follow,
            self.peers,
            OneKey(),
            Clocks(host.boottime_ns, host.clock_ms, host.wall_ms),
        )

    def _open_witness(self, cluster_id: bytes) -> Witness:
        assert self.table is not None

        async def travel(leg: str) -> None:
            there, back = (self.name, WITNESS_HOST), (WITNESS_HOST, self.name)
            await self.network.pass_over(*(there if leg == "request" else back))

        return MemoryWitness(self.table, cluster_id, self.name, travel)
