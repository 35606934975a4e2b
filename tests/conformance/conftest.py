"""Each backend of the table in turn, started on a folder of its own."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from engine.backend import Backend
from tests.conformance.backends import BACKENDS, Host, hosting


@pytest.fixture(params=BACKENDS)
async def host(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Host]:
    """Yield a running backend without any event."""
    async with hosting(request.param, tmp_path / "data") as running:
        yield running


@pytest.fixture
async def backend(host: Host) -> Backend:
    """Return a backend whose event e1 is open."""
    await host.event(batch_size=5, batch_interval_s=1)
    return host.backend
