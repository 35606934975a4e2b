"""Simulated hosts and processes: what is started, killed, frozen, thawed, and robbed of its power."""

import asyncio
from collections.abc import Callable, Coroutine
from contextvars import Context, copy_context
from typing import Any

from server.replication.link import Link
from tests.simulation.disks import Disk
from tests.simulation.network import Handler, Network, url_of
from tests.simulation.virtual_loop import OWNER, Group, VirtualLoop

UPTIME_MAX_S = 1_000_000
NANOSECONDS = 1_000_000_000


class Process:
    """What runs on a host from a start to an end.

    `ended` resolves with the exception that ended it, or with None. Everything it starts carries its context, and
    so stops with it.
    """

    def __init__(self, host: "Host", number: int) -> None:
        self.host_name = host.name
        self.group = Group(f"{host.name}#{number}")
        self.context: Context = copy_context()
        self.context.run(OWNER.set, self.group)
        self.is_listening = False
        self.handler: Handler | None = None
        self.node: Any = None
        self.ended: asyncio.Future[BaseException | None] = host.loop.create_future()
        self._host = host

    def wall_ms(self) -> int:
        """Return what this process takes for Unix time."""
        return self._host.wall_ms()

    def accept(self, link: Link) -> None:
        """Take a new link; runs in this process."""
        if self.handler is None or not self.is_listening:
            link.close()
        else:
            asyncio.get_running_loop().create_task(self.handler(link))  # type: ignore[arg-type]

    def listen(self, handler: Handler) -> None:
        """Take links from now on."""
        self.handler, self.is_listening = handler, True
        self._host.network.listening[self.host_name] = self

    def spawn(self, coroutine: Coroutine[Any, Any, Any]) -> "asyncio.Task[Any]":
        """Run a coroutine as a part of this process."""
        return self._host.loop.create_task(coroutine, context=self.context.copy())


class Host:
    """A machine: a disk, a clock that goes on while a process is frozen, and one process at a time.

    The clocks of two hosts agree in nothing but their pace, except that of Unix time, which somebody sets.
    """

    def __init__(self, name: str, loop: VirtualLoop, network: Network) -> None:
        self.name = name
        self.url = url_of(name)
        self.loop = loop
        self.network = network
        self.disk = Disk(loop.random)
        self.process: Process | None = None
        self.is_powered = True
        self._booted_s = loop.time() - loop.random.uniform(1, UPTIME_MAX_S)
        self._wall_off_ms = loop.random.randint(-100, 100)
        self._dead: list[Process] = []

    @property
    def is_running(self) -> bool:
        return self.process is not None

    # ---- clocks ----------------------------------------------------------------------------------------

    def boottime_ns(self) -> int:
        """Return CLOCK_BOOTTIME of this host."""
        return int((self.loop.time() - self._booted_s) * NANOSECONDS)

    def clock_ms(self) -> int:
        """Return the monotonic clock of this host in milliseconds."""
        return self.boottime_ns() // 1_000_000

    def wall_ms(self) -> int:
        """Return what this host takes for Unix time."""
        return 1_700_000_000_000 + int(self.loop.time() * 1000) + self._wall_off_ms

    # ---- life ------------------------------------------------------------------------------------------

    def start(self, program: Callable[[Process], Coroutine[Any, Any, None]]) -> Process:
        """Start a process: `program(process)` runs until it returns or raises, and the process ends with it."""
        assert self.process is None, f"{self.name} is running"
        if not self.is_powered:
            self.is_powered = True
            self._booted_s = self.loop.time()
            self.network.host_is_back(self.name)
        process = self.process = Process(self, len(self._dead) + 1)
        process.spawn(self._live(process, program))
        return process

    async def _live(self, process: Process, program: Callable[[Process], Coroutine[Any, Any, None]]) -> None:
        ending: BaseException | None = None
        try:
            await program(process)
        except Exception as error:
            ending = error
        # What is left of a process that ends is gone at once, as by exit(): nothing else of it runs.
        self.loop.call_soon(self._end, process, ending, context=Context())

    def _end(self, process: Process, ending: BaseException | None) -> None:
        if self.process is process:
            self._bring_down(process, power=False, ending=ending)

    def kill(self) -> None:
        """SIGKILL the process: what it wrote stays, connections end."""
        if self.process is not None:
            self._bring_down(self.process, power=False, ending=None)

    def cut_power(self) -> None:
        """Take the power away: unflushed data is lost as the disk likes, the network falls silent."""
        if self.process is not None:
            self._bring_down(self.process, power=True, ending=None)
        self.is_powered = False
        self.network.silent.add(self.name)

    def _bring_down(self, process: Process, *, power: bool, ending: BaseException | None) -> None:
        process.group.is_dead = True
        self.disk.crash(process.group, power=power)
        self.network.process_ended(process, silently=power)
        self.process = None
        self._dead.append(process)
        if not process.ended.done():
            process.ended.set_result(ending)

    def freeze(self) -> None:
        """SIGSTOP the process: nothing of it runs, its clock goes on, what is sent to it waits."""
        if self.process is not None:
            self.process.group.is_frozen = True

    def thaw(self) -> None:
        """SIGCONT the process."""
        if self.process is not None:
            self.loop.thaw(self.process.group)

    def bury(self) -> None:
        """At the end of a life: let go of everything the dead had."""
        if self.process is not None:
            self.kill()
        for process in self._dead:
            self.loop.bury(process.group)
