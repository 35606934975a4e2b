"""The ports a daemon listens on: bound before anything else happens, with the options their connections inherit."""

import socket
from typing import Any

from engine.errors import BadConfiguration
from server.config import Config

UNSENT_LIMIT_BYTES = 16 * 1024


class Ports:
    """The bound sockets: `sockets` and `urls` hold the public listener first, then those of admin and replication."""

    def __init__(self, config: Config) -> None:
        self.sockets = [bind(config.host, config.port, "port")]
        if config.is_public:
            try:
                self.sockets.append(bind(config.admin_host, config.admin_port, "admin_port"))
            except BaseException:
                self._close()
                raise
        if config.replication_listen is not None:
            host, _, port = config.replication_listen.rpartition(":")
            try:
                self.sockets.append(bind(host.strip("[]"), int(port), "replication_listen"))
            except BaseException:
                self._close()
                raise
        self.urls = [_url(sockets[0]) for sockets in self.sockets]

    def __enter__(self) -> "Ports":
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def _close(self) -> None:
        for sockets in self.sockets:
            for bound in sockets:
                bound.close()


def bind(host: str, port: int, setting: str) -> list[socket.socket]:
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
