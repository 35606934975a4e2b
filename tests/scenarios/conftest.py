"""Fixtures for scenarios: the server's daemons."""

from tests.server.conftest import start_daemon

__all__ = ["start_daemon"]
