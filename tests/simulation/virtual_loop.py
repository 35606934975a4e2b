"""An event loop without a clock, without sockets and without threads: the same seed leads the same life.

Time stands still while anything is ready and jumps to the next timer when nothing is; a wait for what can never
come is an error at once (`Deadlock`), and so is a life that does not end (`OutOfBounds`).

Work for another thread runs in this one. It takes a seeded time, and has its effect either at the beginning of that
time or at its end, so that what a thread does still falls between any two steps of the loop.

Every callback, timer and task step carries a context, and the context says whose it is (`OWNER`). So a simulated
process can be stopped in the middle of everything, as SIGKILL and SIGSTOP do it: the handles of a dead group are
dropped, no `finally` runs; those of a frozen one are put by until it is thawed.
"""

import asyncio
import contextvars
import heapq
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any

BEGINNING_S = 1000.0
WORK_S = (0.0001, 0.005)
SLOW_WORK_S = 0.5
SLOW_WORK_SHARE = 0.002


class Deadlock(Exception):
    """Nothing is ready, no timer is set, and the life is not over."""


class OutOfBounds(Exception):
    """The life took more steps or more virtual time than it may."""


@dataclass(eq=False, slots=True)
class Group:
    """What belongs to one process: whether it runs, what waits for it to be thawed, and its unfinished work.

    `slow_s` is the most that work takes longer than usual.
    """

    name: str
    is_dead: bool = False
    is_frozen: bool = False
    slow_s: float = 0.0
    parked: list[asyncio.Handle] = field(default_factory=list)
    work: list["Work"] = field(default_factory=list)
    tasks: list["asyncio.Task[Any]"] = field(default_factory=list)


OWNER: contextvars.ContextVar[Group | None] = contextvars.ContextVar("owner", default=None)


class Work:
    """A call for another thread, which has its effect when `run` is called, and is answered later."""

    def __init__(self, future: "asyncio.Future[Any]", call: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        self._future = future
        self._context = contextvars.copy_context()
        self._call = call
        self._arguments = arguments
        self._result: Any = None
        self._error: BaseException | None = None

    def run(self) -> None:
        """Do the work; what it came to is kept for `answer`."""
        try:
            self._result = self._context.run(self._call, *self._arguments)
        except Exception as error:
            self._error = error

    def answer(self) -> None:
        """Tell whoever waits, unless nobody does any more."""
        if self._future.done():
            return
        if self._error is None:
            self._future.set_result(self._result)
        else:
            self._future.set_exception(self._error)
        self._error = None


class VirtualLoop(asyncio.BaseEventLoop):
    """The loop; see the top of this module.

    `shuffled` lets those who are ready at the same moment run in an order of the seed's choosing, process by process:
    within one process callbacks keep their order, which asyncio promises. `complaints` are what asyncio would have
    logged: exceptions that nobody looked at.
    """

    def __init__(
        self, seed: int, *, max_steps: int = 2_000_000, max_virtual_s: float = 3600.0, shuffled: bool = True
    ) -> None:
        super().__init__()
        self.random = Random(seed)
        self.steps = 0
        self.complaints: list[str] = []
        self._now_s = BEGINNING_S
        self._max_steps = max_steps
        self._end_s = BEGINNING_S + max_virtual_s
        self._shuffled = shuffled
        self._thread = threading.get_ident()
        self._ready: Any  # of BaseEventLoop: a deque of handles
        self._timers: list[tuple[float, int, Any]] = []  # a heap that compares no handles, for speed
        self._timers_set = 0
        self.set_task_factory(self._make_task)
        self.set_exception_handler(self._complain)

    def time(self) -> float:
        """Return the virtual time in seconds."""
        return self._now_s

    # ---- running -------------------------------------------------------------------------------------

    def _run_once(self) -> None:
        ready, timers = self._ready, self._timers
        if not ready:
            self._jump()
        while timers and timers[0][0] <= self._now_s:
            ready.append(heapq.heappop(timers)[2])
        count = len(ready)
        self.steps += count
        if self.steps > self._max_steps:
            raise OutOfBounds(f"more than {self._max_steps} steps, at {self._now_s - BEGINNING_S:.3f} s")
        if count > 1 and self._shuffled:
            batch = self._in_some_order(list(ready))
            ready.clear()
            ready.extend(batch)
        for _ in range(count):
            handle = ready.popleft()
            if handle._cancelled:
                continue
            owner = handle._context.get(OWNER)
            if owner is None or not (owner.is_dead or owner.is_frozen):
                handle._run()
            elif owner.is_frozen and not owner.is_dead:
                owner.parked.append(handle)

    def _jump(self) -> None:
        """Go to the moment of the next timer."""
        timers = self._timers
        while timers and timers[0][2]._cancelled:
            heapq.heappop(timers)
        if self._stopping:
            return
        if not timers:
            waiting = sorted(task.get_name() for task in asyncio.all_tasks(self))
            raise Deadlock(f"nothing is ready and no timer is set; waiting: {', '.join(waiting)}")
        self._now_s = max(self._now_s, timers[0][0])
        if self._now_s > self._end_s:
            raise OutOfBounds(f"not over at {self._now_s - BEGINNING_S:.0f} s")

    def _in_some_order(self, batch: list[Any]) -> list[Any]:
        ranks: dict[Group | None, float] = {}
        for handle in batch:
            owner = handle._context.get(OWNER)
            if owner not in ranks:
                ranks[owner] = self.random.random()
        return sorted(batch, key=lambda handle: ranks[handle._context.get(OWNER)]) if len(ranks) > 1 else batch

    def call_at(
        self, when: float, callback: Callable[..., Any], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        """Call at a moment of virtual time; those of the same moment in the order in which they were set."""
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        self._timers_set += 1
        heapq.heappush(self._timers, (when, self._timers_set, handle))
        return handle

    def call_later(
        self, delay: float, callback: Callable[..., Any], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        """Call after so many seconds of virtual time."""
        return self.call_at(self._now_s + delay, callback, *args, context=context)

    def call_soon(
        self, callback: Callable[..., Any], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        """Call as soon as what is ready already has run."""
        handle = asyncio.Handle(callback, args, self, context)
        self._ready.append(handle)
        return handle

    def call_soon_threadsafe(
        self, callback: Callable[..., Any], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        """Call soon; there is one thread, and another one that calls this has no place in a simulation."""
        assert threading.get_ident() == self._thread, "a real thread runs in the simulation"
        return self.call_soon(callback, *args, context=context)

    # ---- processes -----------------------------------------------------------------------------------

    def thaw(self, group: Group) -> None:
        """Let a frozen group go on: everything that came meanwhile is ready now, in order."""
        group.is_frozen = False
        parked, group.parked = group.parked, []
        self._ready.extend(parked)

    def _make_task(
        self, loop: asyncio.AbstractEventLoop, coroutine: Any, context: contextvars.Context | None = None
    ) -> "asyncio.Task[Any]":
        task: asyncio.Task[Any] = asyncio.Task(coroutine, loop=loop, context=context)
        owner = (context or contextvars.copy_context()).get(OWNER)
        if owner is not None:
            owner.tasks.append(task)
            if len(owner.tasks) > 256:
                owner.tasks = [its for its in owner.tasks if not its.done()]
        return task

    def bury(self, group: Group) -> None:
        """End the coroutines of a dead group for good, at the end of a life, when nothing can come of it."""
        assert group.is_dead
        for task in group.tasks:
            if not task.done():
                task._log_destroy_pending = False  # type: ignore[attr-defined]
                _close_quietly(task.get_coro())
        group.tasks, group.parked, group.work = [], [], []

    def finish(self) -> None:
        """End the life: take away what is still waiting, without letting it run, and close."""
        for task in asyncio.all_tasks(self):
            task._log_destroy_pending = False  # type: ignore[attr-defined]
            _close_quietly(task.get_coro())
        self.close()

    def _complain(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        self.complaints.append(f"{context['message']}: {type(error).__name__ if error else ''} {error or ''}")

    # ---- work for other threads ------------------------------------------------------------------------

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> "asyncio.Future[Any]":
        """Do the work here, now or after its seeded time, and answer after that time."""
        future = self.create_future()
        self.do_work(Work(future, func, args))
        return future

    def do_work(self, work: Work, *, at_its_end: bool = False) -> None:
        """Begin a piece of work of the process whose context this is."""
        owner = OWNER.get()
        takes_s = SLOW_WORK_S if self.random.random() < SLOW_WORK_SHARE else self.random.uniform(*WORK_S)
        if owner is not None and owner.slow_s:
            takes_s += self.random.uniform(0, owner.slow_s)
        if not at_its_end and self.random.random() < 0.5:
            work.run()
            self.call_later(takes_s, work.answer)
            return
        if owner is not None:
            owner.work.append(work)
        self.call_later(takes_s, self._finish, owner, work)

    @staticmethod
    def _finish(owner: Group | None, work: Work) -> None:
        if owner is not None:
            owner.work.remove(work)
        work.run()
        work.answer()

    async def shutdown_default_executor(self) -> None:  # type: ignore[override]
        """Do nothing: there is no executor."""


def _close_quietly(coroutine: Any) -> None:
    try:
        coroutine.close()
    except RuntimeError:
        return  # a `finally` of it wants to wait for something; it is dead, so it does not get to


def lead(seed: int, life: Callable[[VirtualLoop], Any], **bounds: Any) -> Any:
    """Run `life(loop)`, a coroutine function, to its end on a loop of its own, and return what it returns."""
    loop = VirtualLoop(seed, **bounds)
    try:
        return loop.run_until_complete(life(loop))
    finally:
        loop.finish()
