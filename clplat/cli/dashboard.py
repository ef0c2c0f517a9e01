"""``clplat dashboard``: runs in a browser, also while they go on."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Annotated

import typer

from clplat.cli import flags
from clplat.cli.runs import Places

EPILOG = flags.examples(
    "clplat dashboard",
    "clplat dashboard runs/sweep --port 9000",
    "ssh -L 8642:localhost:8642 cluster clplat dashboard runs",
)


def dashboard(
    places: Places = None,
    port: Annotated[int, typer.Option("--port", metavar="N", help="Where to listen; 0 for any free port.")] = 8642,
    host: Annotated[
        str, typer.Option("--host", metavar="ADDRESS", help="Any but a loopback address asks for a token.")
    ] = "127.0.0.1",
    token: Annotated[
        str | None,
        typer.Option(
            "--token", metavar="T", envvar="CLPLAT_TOKEN", help="What to ask for; made up where one is needed."
        ),
    ] = None,
    traceback: flags.Traceback = False,
) -> None:
    """Show runs in a browser, until Ctrl-C.

    Reads run directories and writes nothing. Runs that go on are followed.
    """
    from clplat.dashboard.index import Index
    from clplat.dashboard.server import Server

    index = Index(places or [Path("runs")])
    with Server(index, host, port, token) as server:
        threading.Thread(target=index.refresh, daemon=True).start()  # while somebody opens the page
        print(server.url + (f"?token={server.token}" if server.token else ""), flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:  # how one ends it
            print()
