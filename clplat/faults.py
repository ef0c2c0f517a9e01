"""Named points at which a test may end the process; in a run they do nothing.

The kill harness sets :data:`hook` and so reaches the moments that matter: a half-written checkpoint, the instant before
a rename, the middle of a Fisher estimate.
"""

from __future__ import annotations

from collections.abc import Callable

hook: Callable[[str], None] | None = None


def point(name: str) -> None:
    """Pass the point ``name``."""
    if hook is not None:
        hook(name)
