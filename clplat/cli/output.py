"""Tables: drawn on a terminal, plain columns that nothing wraps or cuts anywhere else."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from clplat.report.columns import columns


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows of text under their headings."""
    if sys.stdout.isatty():
        from rich import box
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        drawn = Table(*head, box=box.SIMPLE_HEAD, pad_edge=False)
        for row in rows:
            drawn.add_row(*map(Text, row))  # Text: [1, 2] is a value and no markup
        Console().print(drawn)
        return
    print(columns(head, rows))
