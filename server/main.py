"""The composition root: one daemon from its configuration to its last breath. Everything is put together here.

Order: bind the ports (a port that is taken shows before anything is touched), keys, storage, journal, backend,
the API over it, then listen. It ends in one of three ways. A signal: readyz says no, no new connections, sockets
are sent away with 4001, running requests finish, a last snapshot, exit 0. A failed log: waiters have got their
503, exit 74 at once, nothing more is promised. A core task that died: logged, exit 70.
"""

import asyncio
import gc
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import structlog
import uvloop

from engine.backend import Backend
from engine.backends.memory import MemoryBackend
from engine.errors import BadConfiguration, Refused, StanchionError, StorageFailed
from engine.room import By
from engine.tokens import QueueTokens
from server import logs
from server.admin import AdminApi
from server.api import VisitorApi
from server.app import App, HttpServer
from server.clockwork import Schedule, Snapshots, release_due
from server.config import Config
from server.health import Health
from server.keys import FOLDER, Gate, Keys, load_or_create
from server.metrics import Metrics
from server.openapi import document_routes
from server.places import PlaceDesk
from server.push import Hub
from server.routes import Listener, Route
from server.updates import Updates
from snapshots.journal import Journal, JournalOptions
from snapshots.storage import DiskStorage

BACKLOG = 4096
UNSENT_LIMIT_BYTES = 16 * 1024
LAST_WORDS_S = 0.25
DEMO_EVENT = "demo"
DEMO_SETTINGS: Mapping[str, object] = MappingProxyType({"name": "Demo", "batch_size": 5, "batch_interval_s": 10})

log = structlog.get_logger("stanchion.main")


class Engine(NamedTuple):
    """A backend and how it came up: `failed` resolves when it can promise nothing any more."""

    backend: Backend
    failed: "asyncio.Future[StorageFailed | None]"
    found: Sequence[str]
    alarms: Sequence[str]


class MemoryJournal(Journal):
    """The journal, in the words of the memory backend's contract."""

    def facts(self) -> Mapping[str, object]:
        """Return the numbers of log and snapshots by name."""
        return asdict(self.stats())


async def open_memory(config: Config, accept_loss: bool) -> Engine:
    """Open the journal in the data folder and rebuild the line from it."""
    storage = DiskStorage(config.data)
    options = JournalOptions(
        segment_mib=config.segment_mib, keep_snapshots=config.keep_snapshots, accept_loss=accept_loss
    )
    journal = MemoryJournal.open(storage, options)
    assert isinstance(journal, MemoryJournal)
    backend = MemoryBackend(journal, monotonic_ms, wall_ms)
    await backend.start()
    return Engine(backend, journal.failed, journal.found.sentences, journal.found.alarms)


# Scheme of --backend → how to open it.
BACKENDS: Mapping[str, Callable[[Config, bool], Coroutine[Any, Any, Engine]]] = MappingProxyType(
    {"memory": open_memory},
)


def monotonic_ms() -> int:
    """Return milliseconds of a clock that never goes back."""
    return time.monotonic_ns() // 1_000_000


def wall_ms() -> int:
    """Return Unix time in milliseconds."""
    return time.time_ns() // 1_000_000


def serve(config: Config, *, accept_loss: bool = False) -> int:
    """Run a daemon until it is told to stop; returns the exit code. Raises StanchionError for a start that fails."""
    logs.configure(config)
    _raise_file_limit()
    try:
        return uvloop.run(run(config, accept_loss=accept_loss))
    except StanchionError:
        raise
    except Exception:
        log.critical("unexpected_error", exc_info=True, exit_code=StanchionError.exit_code)
        return StanchionError.exit_code


async def run(config: Config, *, accept_loss: bool = False) -> int:
    """Run a daemon on this loop until a signal, a failed log, or a dead core task; returns the exit code."""
    opener = BACKENDS.get(config.backend.partition(":")[0])
    if opener is None:
        raise BadConfiguration(
            f"backend: {config.backend.partition(':')[0]}: is not built in this version; use memory:"
        )
    stop = _signals()
    with _Ports(config) as ports:
        keys, fresh = load_or_create(config.data)
        engine = await opener(config, accept_loss)
        daemon = Daemon(config, keys, engine)
        if config.demo:
            await prepare_demo(engine.backend)
        await daemon.listen(ports)
        _announce(config, ports, engine, keys if fresh else None)
        gc.collect()
        gc.freeze()
        gc.disable()
        return await daemon.live(stop)


class Daemon:
    """The running parts, and their end."""

    def __init__(self, config: Config, keys: Keys, engine: Engine) -> None:
        backend, origins = engine.backend, frozenset(config.allowed_origins)
        self._config = config
        self._backend = backend
        self._failed = engine.failed
        self._hub = Hub(backend, config.push_interval_ms)
        self._snapshots = Snapshots(backend, time.monotonic, config.snapshot_interval_s, config.snapshot_every_records)
        self._schedule = Schedule(backend, wall_ms)
        self._servers: list[asyncio.Server] = []
        self._http: list[HttpServer] = []
        gate = Gate(keys, time.monotonic, config.trusted_proxies)
        desk = PlaceDesk(backend, QueueTokens(keys.queue_secrets, keys.queue_signing), wall_ms)
        updates = Updates(backend, desk, self._hub, origins, time.monotonic)
        self._health = Health(backend)
        self._metrics = Metrics(backend, self._hub)
        routes = [
            *VisitorApi(backend, desk, gate, updates).routes(),
            *AdminApi(backend, gate, time.monotonic).routes(),
            *self._health.routes(),
            *self._metrics.routes(),
        ]
        routes += document_routes(routes, title_version=f"Stanchion {version('stanchion')}")
        split = [listener_routes(routes, listener) for listener in (Listener.PUBLIC, Listener.ADMIN)]
        tables = split if config.is_public else [routes]
        self._apps = [App(table, observe=self._metrics.observe, allowed_origins=origins) for table in tables]

    async def listen(self, ports: "_Ports") -> None:
        """Begin to accept connections: the public port first, the admin port where there is one."""
        loop = asyncio.get_running_loop()
        limits = [self._config.max_connections_per_address, None]
        for app, limit, sockets in zip(self._apps, limits, ports.sockets, strict=False):
            http = app.server(max_connections_per_address=limit)
            self._http.append(http)
            for listening in sockets:
                self._servers.append(await loop.create_server(http, sock=listening, backlog=BACKLOG))

    async def live(self, stop: asyncio.Event) -> int:
        """Run the core tasks until the end; returns the exit code."""
        core = {
            asyncio.create_task(release_due(self._backend), name="pacer"),
            asyncio.create_task(self._schedule.run(), name="schedule"),
            asyncio.create_task(self._hub.run(), name="push"),
            asyncio.create_task(self._metrics.run(), name="metrics"),
        }
        if self._backend.capabilities.snapshots:
            core.add(asyncio.create_task(self._snapshots.run(), name="snapshots"))
        stopped = asyncio.create_task(stop.wait(), name="stop")
        endings: set[asyncio.Future[Any]] = {stopped, self._failed, *core}
        await asyncio.wait(endings, return_when=asyncio.FIRST_COMPLETED)
        if not self._failed.done() and not any(task.done() for task in core):
            drained = asyncio.create_task(self._drain(core), name="drain")
            endings = {drained, self._failed}
            await asyncio.wait(endings, return_when=asyncio.FIRST_COMPLETED)
            if drained.done():
                return drained.result()
        return await self._give_up(core)

    async def _drain(self, core: Iterable[asyncio.Task[None]]) -> int:
        """End in good order."""
        self._health.draining = True
        log.info("draining", timeout_s=self._config.drain_timeout_s)
        await self._hub.close()
        self._stop_listening()
        timeout_s = max(0.01, self._config.drain_timeout_s)
        await asyncio.gather(*(http.shutdown(timeout_s) for http in self._http))
        for task in core:
            task.cancel()
        await asyncio.wait(core)
        if self._backend.capabilities.snapshots:
            await self._snapshots.write()
        await self._backend.close()
        log.info("stopped")
        return 0

    async def _give_up(self, core: Iterable[asyncio.Task[None]]) -> int:
        """End at once: say why, and let those who wait have their refusal."""
        code = StanchionError.exit_code
        if self._failed.done():
            failure = self._failed.result()
            code = StorageFailed.exit_code
            log.critical("log_failed", problem=str(failure), exit_code=code)
        for task in core:
            if task.done() and not task.cancelled():
                log.critical("core_task_died", task=task.get_name(), exc_info=task.exception(), exit_code=code)
        self._stop_listening()
        with suppress(TimeoutError):
            async with asyncio.timeout(2 * LAST_WORDS_S):
                await asyncio.gather(*(http.shutdown(LAST_WORDS_S) for http in self._http))
        return code

    def _stop_listening(self) -> None:
        for server in self._servers:
            server.close()


def listener_routes(routes: Iterable[Route], listener: Listener) -> list[Route]:
    """Return the rows that one listener serves when the admin API has a port of its own."""
    return [route for route in routes if route.listener in (listener, Listener.BOTH)]


# ---- ports --------------------------------------------------------------------------------------------


class _Ports:
    """The bound sockets: `sockets` and `urls` hold the public listener first, then the admin's if it has its own."""

    def __init__(self, config: Config) -> None:
        self.sockets = [_bind(config.host, config.port, "port")]
        if config.is_public:
            try:
                self.sockets.append(_bind(config.admin_host, config.admin_port, "admin_port"))
            except BaseException:
                self._close()
                raise
        self.urls = [_url(sockets[0]) for sockets in self.sockets]

    def __enter__(self) -> "_Ports":
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def _close(self) -> None:
        for sockets in self.sockets:
            for bound in sockets:
                bound.close()


def _bind(host: str, port: int, setting: str) -> list[socket.socket]:
    """Bind every address of a host; raises BadConfiguration."""
    bound: list[socket.socket] = []
    try:
        for family, kind, _, _, address in socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        ):
            port_now = bound[0].getsockname()[1] if bound else port
            bound.append(_bound(socket.socket(family, kind), (address[0], port_now, *address[2:])))
    except OSError as error:
        for opened in bound:
            opened.close()
        problem = error.strerror or str(error)
        raise BadConfiguration(f"{setting}: cannot listen on {host}:{port}: {problem}") from None
    return bound


def _bound(listening: socket.socket, address: tuple[Any, ...]) -> socket.socket:
    """Bind one socket; what is set here, its connections inherit.

    The kernel takes at most UNSENT_LIMIT_BYTES that it has not sent yet, so that a slow reader shows at once
    and costs no memory; see `server.push`.
    """
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_LIMIT_BYTES)
        if listening.family == socket.AF_INET6:
            listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listening.setblocking(False)
        listening.bind(address)
    except OSError:
        listening.close()
        raise
    return listening


def _url(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


# ---- small parts --------------------------------------------------------------------------------------


async def prepare_demo(backend: Backend) -> None:
    """Make and open the demo event, unless somebody has done something else with it."""
    try:
        view = await backend.event(DEMO_EVENT)
    except Refused:
        view, _ = await backend.configure(DEMO_EVENT, DEMO_SETTINGS, By(DEMO_EVENT), replace=True)
    if view.state == "draft":
        await backend.control(DEMO_EVENT, "open", By(DEMO_EVENT))


def _announce(config: Config, ports: _Ports, engine: Engine, new_keys: Keys | None) -> None:
    """Say where it listens and what it found, and show the admin key once to whoever sits at the terminal."""
    url, admin_url = ports.urls[0], ports.urls[-1]
    status = engine.backend.status()
    admin = f", admin API on {admin_url}" if config.is_public else ""
    lines = [f"Stanchion listens on {url}{admin} (epoch {status.epoch}; {'; '.join(engine.found)})"]
    if config.demo:
        join = f"{url}/v1/events/{DEMO_EVENT}/join"
        lines.append(f"Demo event: {url}/v1/events/{DEMO_EVENT} lets five in every ten seconds. Join it:")
        lines.append(f"  curl -X POST {join} -H 'Content-Type: application/json' -d '{{\"user_id\": \"u1\"}}'")
    if new_keys is not None and sys.stdout.isatty():
        lines.append(f"Admin key, shown this once (it is in {config.data / FOLDER / 'admin.key'}): {new_keys.admin}")
    print("\n".join(lines), flush=True)
    log.info("listening", url=url, admin_url=admin_url, epoch=status.epoch, backend=status.name)
    for alarm in engine.alarms:
        log.error("recovery_alarm", problem=alarm)
    for sentence in (*config.weaker(), *_open_folder(config.data)):
        log.warning("weaker_than_default", what=sentence)


def _open_folder(data: Path) -> list[str]:
    mode = data.stat().st_mode
    return [f"Others may look into the data folder {data}; chmod 700 it."] if mode & 0o077 else []


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
