"""The composition root: one daemon from its configuration to its last breath. Everything is put together here.

Order: bind the ports (a port that is taken shows before anything is touched), keys, the role this process has
(`server.replication.roles`), the API over its seat, then listen. It ends in one of three ways. A signal: readyz says
no, no new connections, sockets are sent away with 4001, running requests finish, a last snapshot, exit 0. A failed
log: waiters have got their 503, exit 74 at once, nothing more is promised. A core task that died: logged, exit 70.
"""

import asyncio
import gc
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import NamedTuple

import aiohttp
import structlog
import uvloop

from engine.actor import By
from engine.backend import Backend
from engine.errors import BadConfiguration, Refused, StanchionError, StorageFailed
from server import logs
from server.app import App
from server.assembly import Surroundings, assemble
from server.clockwork import Schedule, Snapshots, release_due
from server.config import Config
from server.connections import HttpServer
from server.gate import Gate
from server.key_ring import digest_of
from server.keys import FOLDER, Keys, load_or_create, settle, stored_ring, watch
from server.ports import Ports
from server.replication.ground import Ground
from server.replication.key_sharing import SharedKeys
from server.replication.leading import Clocks
from server.replication.peers import Peers
from server.replication.roles import Member
from server.replication.settings import ReplicationSettings
from server.replication.sockets import open_link
from server.replication.witness import Witness, open_witness
from server.routes import Listener, Route
from snapshots.options import JournalOptions
from snapshots.storage import DiskStorage

BACKLOG = 4096
LAST_WORDS_S = 0.25
DEMO_EVENT = "demo"
DEMO_SETTINGS: Mapping[str, object] = MappingProxyType({"name": "Demo", "batch_size": 5, "batch_interval_s": 10})

log = structlog.get_logger("stanchion.main")


@dataclass(frozen=True, slots=True)
class FollowOptions:
    """How to begin as a follower: where the primary is, and the replication key. `is_edge`: without a data folder."""

    url: str
    key: str
    is_edge: bool


class Line(NamedTuple):
    """Whoever holds the line in this process, and the keys it goes with; `new_keys` where they were just made."""

    member: Member
    keys: SharedKeys
    new_keys: Keys | None


async def open_line(
    config: Config,
    follow: FollowOptions | None,
    accept_loss: bool,
    now_ms: Callable[[], int],
    ports: Ports,
    ending: AsyncExitStack,
) -> Line:
    """Take up the role of this process over the embedded backend; a new follower waits for the first welcome."""
    is_edge = follow is not None and follow.is_edge
    storage = None if is_edge else DiskStorage(config.data)
    scratch = DiskStorage(Path(ending.enter_context(TemporaryDirectory(prefix="stanchion-")))) if is_edge else None
    peers = Peers(None if is_edge else config.data)
    session = await ending.enter_async_context(aiohttp.ClientSession(trust_env=False))
    fresh: Keys | None = None
    if follow is None:
        found, is_fresh = load_or_create(config.data, now_ms)
        fresh = found if is_fresh else None
        keys = SharedKeys(found.ring, "", config.data / FOLDER, now_ms)
    else:
        ring = None if is_edge else stored_ring(config.data, now_ms)
        keys = SharedKeys(ring, digest_of(follow.key), None if is_edge else config.data / FOLDER, now_ms)
    ground = Ground(
        ReplicationSettings(
            peers.node_id,
            _replication_url(config, ports),
            config.public_url or ports.urls[0],
            config.replication,
            config.lease_s,
            config.standby_timeout_s,
        ),
        storage,
        scratch,
        JournalOptions(segment_mib=config.segment_mib, keep_snapshots=config.keep_snapshots, accept_loss=accept_loss),
        lambda peer: open_link(peer, session),
        _witness_opener(config, peers.node_id),
        None if follow is None else follow.url,
        peers,
        keys,
        Clocks(boottime_ns, monotonic_ms, wall_ms),
    )
    member = Member(ground)
    await member.start()
    if follow is None:
        keys.replace(settle(config.data, now_ms).ring)
    elif not keys.has_ring:
        await member.first_welcome()
    return Line(member, keys, fresh)


def _replication_url(config: Config, ports: Ports) -> str:
    if config.replication_url is not None or config.replication_listen is not None:
        return config.replication_url or ports.urls[-1]
    return "" if config.is_public else ports.urls[0]


def _witness_opener(config: Config, node_id: str) -> Callable[[bytes], Witness] | None:
    url = config.witness
    return None if url is None else lambda cluster_id: open_witness(url, cluster_id, node_id)


def monotonic_ms() -> int:
    """Return milliseconds of a clock that never goes back."""
    return time.monotonic_ns() // 1_000_000


def boottime_ns() -> int:
    """Return nanoseconds of a clock that goes on while this process is frozen or the machine sleeps."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def wall_ms() -> int:
    """Return Unix time in milliseconds."""
    return time.time_ns() // 1_000_000


# Schemes of --backend that this version has.
BACKENDS = frozenset(("memory",))


def steady_wall_ms() -> Callable[[], int]:
    """Return a clock of Unix time that goes on by the monotonic one: no step of the wall clock moves it.

    What is promised to visitors (tokens, windows) goes by it; only scheduled times go by the wall clock itself.
    """
    monotonic_ns = time.monotonic_ns
    ahead_ns = time.time_ns() - monotonic_ns()
    return lambda: (ahead_ns + monotonic_ns()) // 1_000_000


def serve(config: Config, *, accept_loss: bool = False, follow: FollowOptions | None = None) -> int:
    """Run a daemon until it is told to stop; returns the exit code. Raises StanchionError for a start that fails."""
    logs.configure(config)
    _raise_file_limit()
    try:
        return uvloop.run(run(config, accept_loss=accept_loss, follow=follow))
    except StanchionError:
        raise
    except Exception:
        log.critical("unexpected_error", exc_info=True, exit_code=StanchionError.exit_code)
        return StanchionError.exit_code


async def run(config: Config, *, accept_loss: bool = False, follow: FollowOptions | None = None) -> int:
    """Run a daemon on this loop until a signal, a failed log, or a dead core task; returns the exit code."""
    if config.backend.partition(":")[0] not in BACKENDS:
        raise BadConfiguration(
            f"backend: {config.backend.partition(':')[0]}: is not built in this version; use memory:"
        )
    with Ports(config) as ports:
        log.info("starting", data=str(config.data))
        now_ms = steady_wall_ms()
        async with AsyncExitStack() as ending:
            line = await open_line(config, follow, accept_loss, now_ms, ports, ending)
            stop = _signals()  # not before: a recovery may be killed at any point, and then is
            daemon = Daemon(config, line, now_ms, config.public_url or ports.urls[0])
            if config.demo and line.member.role == "primary":
                await prepare_demo(line.member.seat)
            await daemon.listen(ports)
            _announce(config, ports, line)
            gc.collect()
            gc.freeze()
            gc.disable()
            return await daemon.live(stop)


class Daemon:
    """The running parts, and their end."""

    def __init__(self, config: Config, line: Line, now_ms: Callable[[], int], url: str) -> None:
        self._config = config
        self._member = line.member
        self._backend: Backend = line.member.seat
        self._snapshots = Snapshots(
            self._backend, time.monotonic, config.snapshot_interval_s, config.snapshot_every_records
        )
        self._schedule = Schedule(self._backend, wall_ms)
        self._ring = line.keys.ring
        self._servers: list[asyncio.Server] = []
        self._http: list[HttpServer] = []
        origins = frozenset(config.allowed_origins)
        around = Surroundings(
            now_ms,
            time.monotonic,
            url,
            origins,
            config.push_interval_ms,
            warnings=weaker_than_default(config),
        )
        gate = Gate(self._ring, time.monotonic, config.trusted_proxies)
        parts = assemble(self._backend, self._ring, gate, around, (line.member, line.keys))
        self._hub, self._health, self._metrics = parts.hub, parts.health, parts.metrics
        listeners = [Listener.PUBLIC, Listener.ADMIN] + [Listener.REPLICATION] * bool(config.replication_listen)
        split = [listener_routes(parts.routes, listener) for listener in listeners]
        tables = split if config.is_public else [parts.routes]
        self._apps = [App(table, observe=self._metrics.observe, allowed_origins=origins) for table in tables]

    async def listen(self, ports: Ports) -> None:
        """Begin to accept connections: the public port first, the admin port where there is one."""
        loop = asyncio.get_running_loop()
        limits = [self._config.max_connections_per_address, None, None]
        for app, limit, sockets in zip(self._apps, limits, ports.sockets, strict=False):
            http = app.server(max_connections_per_address=limit)
            self._http.append(http)
            for listening in sockets:
                self._servers.append(await loop.create_server(http, sock=listening, backlog=BACKLOG))

    async def live(self, stop: asyncio.Event) -> int:
        """Run the core tasks until the end; returns the exit code."""
        core = {
            asyncio.create_task(self._member.run(), name="replication"),
            asyncio.create_task(release_due(self._backend), name="pacer"),
            asyncio.create_task(self._schedule.run(), name="schedule"),
            asyncio.create_task(self._hub.run(), name="push"),
            asyncio.create_task(self._metrics.run(), name="metrics"),
            asyncio.create_task(watch(self._ring), name="keys"),
            asyncio.create_task(self._snapshots.run(), name="snapshots"),
        }
        stopped = asyncio.create_task(stop.wait(), name="stop")
        await asyncio.wait({stopped, *core}, return_when=asyncio.FIRST_COMPLETED)
        if not any(task.done() for task in core):
            drained = asyncio.create_task(self._drain(core), name="drain")
            replication = next(task for task in core if task.get_name() == "replication")
            await asyncio.wait({drained, replication}, return_when=asyncio.FIRST_COMPLETED)
            if drained.done() or replication.cancelled():
                return await drained
        return await self._give_up(core)

    async def _drain(self, core: Iterable[asyncio.Task[None]]) -> int:
        """End in good order."""
        self._health.draining = True
        log.info("draining", timeout_s=self._config.drain_timeout_s)
        await self._hub.close()
        self._stop_listening()
        await asyncio.gather(*(app.drain(self._config.drain_timeout_s) for app in self._apps))
        await self._hang_up()
        for task in core:
            task.cancel()
        await asyncio.wait(core)
        self._member.retire()
        if self._backend.capabilities.snapshots:
            await self._snapshots.write()
        await self._member.close()
        log.info("stopped")
        return 0

    async def _give_up(self, core: Iterable[asyncio.Task[None]]) -> int:
        """End at once: say why, and let those who wait have their refusal."""
        code = StanchionError.exit_code
        for task in core:
            error = None if not task.done() or task.cancelled() else task.exception()
            if isinstance(error, StorageFailed):
                code = error.exit_code
                log.critical("log_failed", problem=str(error), exit_code=code)
            elif isinstance(error, StanchionError):
                code = error.exit_code
                log.critical("cannot_go_on", problem=str(error), exit_code=code)
            elif task.done() and not task.cancelled():
                log.critical("core_task_died", task=task.get_name(), exc_info=error, exit_code=code)
        self._stop_listening()
        await self._hang_up()
        return code

    async def _hang_up(self) -> None:
        """End all connections; handlers that still run get a moment to say so."""
        with suppress(TimeoutError):
            async with asyncio.timeout(3 * LAST_WORDS_S):
                await asyncio.gather(*(http.shutdown(LAST_WORDS_S) for http in self._http))

    def _stop_listening(self) -> None:
        for server in self._servers:
            server.close()


def listener_routes(routes: Iterable[Route], listener: Listener) -> list[Route]:
    """Return the rows that one listener serves when the admin API has a port of its own."""
    return [route for route in routes if route.listener in (listener, Listener.BOTH)]


# ---- small parts --------------------------------------------------------------------------------------


async def prepare_demo(backend: Backend) -> None:
    """Make and open the demo event, unless somebody has done something else with it."""
    try:
        view = await backend.event(DEMO_EVENT)
    except Refused:
        view, _ = await backend.configure(DEMO_EVENT, DEMO_SETTINGS, By(DEMO_EVENT), replace=True)
    if view.state == "draft":
        await backend.control(DEMO_EVENT, "open", By(DEMO_EVENT))


def _announce(config: Config, ports: Ports, line: Line) -> None:
    """Say where it listens and what it is, and show the admin key once to whoever sits at the terminal."""
    url, admin_url = ports.urls[0], ports.urls[1] if config.is_public else ports.urls[0]
    member = line.member
    status = member.seat.status()
    admin = f", admin API on {admin_url}" if config.is_public else ""
    admin += f", followers on {ports.urls[-1]}" if config.replication_listen is not None else ""
    verb = "listens" if member.role == "primary" else "follows"
    lines = [f"Stanchion {verb} on {url}{admin} (epoch {status.epoch}; {'; '.join(member.found)})"]
    if config.demo:
        join = f"{url}/v1/events/{DEMO_EVENT}/join"
        lines.append(f"Demo event: five are let in every ten seconds. Wait for your turn at {url}/w/{DEMO_EVENT}, or:")
        lines.append(f"  curl -X POST {join} -H 'Content-Type: application/json' -d '{{\"user_id\": \"u1\"}}'")
    if line.new_keys is not None and sys.stdout.isatty():
        lines.append(
            f"Admin key, shown this once (it is in {config.data / FOLDER / 'admin.key'}): {line.new_keys.admin}"
        )
    with suppress(OSError):  # nobody reads it any more
        print("\n".join(lines), flush=True)
    log.info("listening", url=url, admin_url=admin_url, epoch=status.epoch, role=member.role, mode=config.replication)
    for alarm in member.alarms:
        log.error("recovery_alarm", problem=alarm)
    for sentence in weaker_than_default(config):
        log.warning("weaker_than_default", what=sentence)


def weaker_than_default(config: Config) -> list[str]:
    """Return one sentence for everything that is weaker than the safe defaults."""
    is_open = config.data.exists() and config.data.stat().st_mode & 0o077
    return config.weaker() + [f"Others may look into the data folder {config.data}; chmod 700 it."] * bool(is_open)


def _signals() -> asyncio.Event:
    """Return an event that the first SIGTERM or SIGINT sets; the second one has its usual effect."""
    stop, loop = asyncio.Event(), asyncio.get_running_loop()

    def on_signal() -> None:
        stop.set()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    return stop


def _raise_file_limit() -> None:
    """Allow as many connections as the system does: each is a file."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
