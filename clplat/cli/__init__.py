"""The command line. Importing it, listing, showing and printing a configuration cost no torch."""

from __future__ import annotations

from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code; ``argv`` are the words after ``clplat``."""
    # First of all: a signal that comes during the imports below, or torch's, must not kill the process.
    from clplat import signals

    signals.install()
    from clplat.cli import app

    return app.run(argv)
