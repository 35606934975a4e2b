"""Assembly: the parts that speak, put together over a backend and a key ring; the daemon and its tests use the same."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Protocol

from engine.backend import Backend
from server.admin import AdminApi
from server.admin_keys import AdminKeys
from server.admin_replication import AdminReplication, Promoter
from server.admin_visitors import AdminVisitors
from server.api import VisitorApi
from server.auth import ForwardAuth
from server.draws import Draws
from server.enter import Enter
from server.gate import Gate
from server.health import Health
from server.key_ring import KeyRing
from server.metrics import Metrics
from server.mint import Mint
from server.moving import Moving
from server.openapi import document_routes
from server.page import WaitingPage
from server.places import PlaceDesk
from server.push import Hub
from server.replication.key_sharing import SharedKeys
from server.replication.link import Link
from server.replication.sockets import ReplicationRoute
from server.routes import Route
from server.session_cookies import SessionDesk
from server.site import SiteApi
from server.updates import FIRST_MESSAGE_S, Updates


@dataclass(frozen=True, slots=True)
class Parts:
    """What speaks, and all the rows it answers."""

    hub: Hub
    health: Health
    metrics: Metrics
    mint: Mint
    routes: list[Route]


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the parts need to know of the process.

    `now_ms` is Unix time that no step of the wall clock moves, `monotonic_s` times silence; `url` is how visitors
    reach this server ("" where that is not known).
    """

    now_ms: Callable[[], int]
    monotonic_s: Callable[[], float]
    url: str = ""
    allowed_origins: frozenset[str] = frozenset()
    push_interval_ms: int = 500
    first_message_s: float = FIRST_MESSAGE_S
    warnings: Sequence[str] = ()


class Replication(Promoter, Protocol):
    """Whoever changes the role of this process, and takes in followers."""

    async def serve(self, link: Link) -> None:
        """Serve one link that somebody opened here."""


def assemble(
    backend: Backend,
    ring: KeyRing,
    gate: Gate,
    around: Surroundings,
    replication: tuple[Replication, SharedKeys] | None = None,
) -> Parts:
    """Return the parts over one backend; `replication` where it has followers, or is one."""
    mint = Mint(ring, around.now_ms)
    desk = PlaceDesk(backend, mint)
    hub = Hub(backend, desk, around.push_interval_ms)
    updates = Updates(backend, desk, hub, around.allowed_origins, around.monotonic_s, around.first_message_s)
    health, metrics = Health(backend), Metrics(backend, hub)
    admin = AdminApi(backend, gate, around.monotonic_s, around.warnings)
    site = SiteApi(backend, mint, gate)
    sessions = SessionDesk(backend, mint)
    moving = Moving(backend, mint, around.url)
    routes = [
        *VisitorApi(backend, desk, mint, moving, gate, updates, site).routes(),
        *Draws(backend).routes(),
        *site.routes(),
        *WaitingPage(backend, desk, moving, around.url).routes(),
        *ForwardAuth(backend, mint, sessions, around.url).routes(),
        *Enter(backend, mint, site, sessions, around.url).routes(),
        *admin.routes(),
        *AdminKeys(ring, None if replication is None else replication[1]).routes(admin),
        *([] if replication is None else AdminReplication(replication[0]).routes(admin)),
        *AdminVisitors(backend).routes(admin),
        *health.routes(),
        *metrics.routes(),
    ]
    routes += document_routes(routes, title_version=f"Stanchion {version('stanchion')}")
    if replication is not None:
        routes += ReplicationRoute(replication[0].serve).routes()
    return Parts(hub, health, metrics, mint, routes)
