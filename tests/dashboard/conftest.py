"""A dashboard of the runs below a folder, served by a thread of the test."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from clplat.dashboard import index
from clplat.dashboard.index import Index
from clplat.dashboard.server import Server
from tests.report.conftest import Maker, make  # noqa: F401 - a fixture

Serve = Callable[..., Server]


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Serve]:
    """A function that serves the folder ``runs`` of the test's own folder, which looks at it whenever it is asked."""
    monkeypatch.setattr(index, "PAUSE", 0.0)
    servers: list[Server] = []

    def start(*places: Path, host: str = "127.0.0.1", token: str | None = None) -> Server:
        (tmp_path / "runs").mkdir(exist_ok=True)
        server = Server(Index(places or [tmp_path / "runs"]), host, 0, token)
        servers.append(server)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return server

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()
