"""What the scripts share that write a page of docs/: what was measured is kept, and --check compares."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

MARKS = ("<!-- measured -->\n", "<!-- /measured -->\n")


def write(page: Path, make: Callable[[str], str]) -> int:
    """Write a page, or with --check only say whether it is what it should be; returns the exit code.

    Args:
        make: the whole page, given what stands between the marks of the page that is there.
    """
    there = page.read_text(encoding="utf-8") if page.exists() else ""
    measured = there.split(MARKS[0])[1].split(MARKS[1])[0] if MARKS[0] in there else ""
    made = make(f"{MARKS[0]}{measured}{MARKS[1]}")
    if "--check" not in sys.argv[1:]:
        page.write_text(made, encoding="utf-8")
    elif there != made:
        print(f"docs/{page.name} is not what conf/ says: run scripts/{Path(sys.argv[0]).name}", file=sys.stderr)
        return 1
    return 0
