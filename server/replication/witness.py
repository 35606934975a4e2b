"""The witness: one small row outside both machines that says who the primary is.

A witness stores one `Lease` for each line (`cluster_id`, the id of its log) and does two things with it: read it, and
swap it for another if nobody was faster. Who may swap when, and why two processes never both have the right to
answer, is the affair of `lease`; a witness decides nothing and its clock is never asked.

Which kinds there are stands in `KINDS`. A process opens one witness and shares it between all who need it, because
the flock witness holds its lock in that object.
"""

import asyncio
import contextvars
import importlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, cast

from engine.errors import BadConfiguration

# The holder of a lease that was given back.
NOBODY = ""
# Every operation of a witness ends within this, with an answer or with WitnessUnreachable.
TIMEOUT_S = 1.0
# Scheme of the URL: the module that has `open(url, cluster_id, node_id)` for it.
KINDS = {
    "postgresql": "server.replication.witness_postgres",
    "flock": "server.replication.witness_flock",
}


class WitnessUnreachable(Exception):
    """The witness did not answer in time. Whether a swap that was sent has happened is then not known."""


class Lease(NamedTuple):
    """The row: who is the primary, and who may take over from it.

    `version` is one higher after each swap, `holder` and `standby` are node ids, `url` is where the holder is
    reached. `holder` is NOBODY in a lease that was given back; `standby` then is who it was given to.
    """

    version: int
    term: int
    holder: str
    url: str
    standby: str | None


class Witness(Protocol):
    """Where the lease is kept."""

    @property
    def needs_renewal(self) -> bool:
        """Whether a holder that no longer renews loses the lease; False where the kernel notices its end."""

    def describe(self) -> str:
        """Return what this is and what it cannot do, as a sentence for people, without secrets."""

    async def read(self) -> Lease | None:
        """Return the lease, or None where there never was one; raises WitnessUnreachable."""

    async def swap(self, seen: Lease | None, wanted: Lease) -> Lease | None:
        """Store `wanted` in place of the version `seen` (None: in place of no row) and return it as stored.

        The version of what is stored is one higher than that of `seen`, whatever `wanted` says. Returns None when
        somebody was faster. Raises WitnessUnreachable, and then it may have been stored, or may be stored later.
        """

    async def is_abandoned(self, seen: Lease, unchanged_s: float, lease_s: float) -> bool:
        """Return whether the holder of `seen`, unchanged for `unchanged_s`, has lost its right to answer."""

    async def close(self) -> None:
        """Let go of everything that is held."""


def successor(seen: Lease | None, wanted: Lease) -> Lease:
    """Return `wanted` with the version it has once it is stored in place of `seen`."""
    return wanted._replace(version=seen.version + 1 if seen else 1)


def open_witness(url: str, cluster_id: bytes, node_id: str) -> Witness:
    """Return the witness a URL names; raises BadConfiguration. It is spoken to only when it is first used."""
    module = KINDS.get(url.partition(":")[0])
    if module is None:
        kinds = " or ".join(f"{kind}:" for kind in KINDS)
        raise BadConfiguration(f"witness: must begin with {kinds}, not {url.partition(':')[0]!r}")
    try:
        opener = importlib.import_module(module).open
    except ModuleNotFoundError as error:
        raise BadConfiguration(
            f"witness: a {url.partition(':')[0]}: witness needs the library {error.name}; install stanchion[postgres]"
        ) from None
    return cast(Witness, opener(url, cluster_id, node_id))


async def _at_once(stage: str) -> None:
    """Travel in no time."""


@dataclass
class LeaseTable:
    """What the memory witnesses of several processes share."""

    rows: dict[bytes, Lease] = field(default_factory=dict)
    under_way: set[asyncio.Task[Lease | None]] = field(default_factory=set)

    async def settle(self) -> None:
        """Wait until everything that was ever sent has arrived or was lost."""
        while self.under_way:
            await asyncio.wait(self.under_way)


class MemoryWitness:
    """A witness in this process, for tests: a table and the way to it.

    `travel("request")` is awaited before the table is touched and `travel("answer")` behind that. What takes longer
    than TIMEOUT_S is unreachable for the caller and goes on all the same; a WitnessUnreachable loses the message.
    """

    needs_renewal = True

    def __init__(
        self,
        table: LeaseTable,
        cluster_id: bytes,
        node_id: str,
        travel: Callable[[str], Awaitable[None]] = _at_once,
    ) -> None:
        self._table = table
        self._cluster_id = cluster_id
        self._node_id = node_id
        self.travel = travel

    def describe(self) -> str:
        """Say that it is a table in memory."""
        return f"A table in memory, as seen by {self._node_id}."

    async def read(self) -> Lease | None:
        """Return the row, or None."""
        return await self._send(lambda: self._table.rows.get(self._cluster_id))

    async def swap(self, seen: Lease | None, wanted: Lease) -> Lease | None:
        """Compare the version and store."""

        def compare_and_set() -> Lease | None:
            found = self._table.rows.get(self._cluster_id)
            if (found and found.version) != (seen and seen.version):
                return None
            stored = successor(seen, wanted)
            self._table.rows[self._cluster_id] = stored
            return stored

        return await self._send(compare_and_set)

    async def is_abandoned(self, seen: Lease, unchanged_s: float, lease_s: float) -> bool:
        """Return whether the lease has run out."""
        return unchanged_s >= lease_s

    async def close(self) -> None:
        """Hold nothing."""

    async def _send(self, operation: Callable[[], Lease | None]) -> Lease | None:
        # Once it is sent it belongs to nobody: a sender that is frozen or killed does not hold it up.
        task = asyncio.create_task(self._carry(operation), context=contextvars.Context())
        self._table.under_way.add(task)
        task.add_done_callback(self._arrived)
        done, _ = await asyncio.wait({task}, timeout=TIMEOUT_S)
        if not done:
            raise WitnessUnreachable(f"no answer within {TIMEOUT_S:g} s")
        return task.result()

    async def _carry(self, operation: Callable[[], Lease | None]) -> Lease | None:
        await self.travel("request")
        answer = operation()
        await self.travel("answer")
        return answer

    def _arrived(self, task: asyncio.Task[Lease | None]) -> None:
        self._table.under_way.discard(task)
        if not task.cancelled():
            task.exception()  # nobody may be waiting for it any more
