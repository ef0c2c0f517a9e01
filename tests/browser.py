"""A headless Chromium for tests of pages: what it complains of and what it asks for is written down.

With CLPLAT_SCREENSHOTS=FOLDER each test of a page leaves a picture of it as it was at the end.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

PATIENCE = 120.0  # seconds for anything to happen; a machine that is busy with other things takes its time
NAMES = ("chromium", "chromium-browser", "google-chrome")


@dataclass
class Seen:
    """What a page did.

    Args:
        page: Playwright's.
        errors: what went to the console as an error, and errors that nobody caught.
        requests: addresses that the page asked for.
    """

    page: Any
    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def wait(self, expression: str, seconds: float = PATIENCE) -> None:
        """Wait until an expression of the page is true. Playwright's own way needs ``eval``, which our pages forbid."""
        end = time.monotonic() + seconds
        while not self.page.evaluate(expression):
            assert time.monotonic() < end, f"it did not become true: {expression}"
            self.page.wait_for_timeout(20)


def executable() -> str:
    """The browser's path; the test is skipped where there is none."""
    path = next(filter(None, map(shutil.which, NAMES)), None)
    return path or pytest.skip(f"there is no browser: none of {', '.join(NAMES)}")


@contextlib.contextmanager
def opened() -> Iterator[Seen]:
    """An empty page; the test is skipped where there is no browser, or no Playwright to drive it."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = executable()
    with playwright.sync_playwright() as driver:
        # Chromium's own sandbox needs rights that root in a container does not have.
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        try:
            seen = Seen(browser.new_page(viewport={"width": 1300, "height": 900}))
            seen.page.set_default_timeout(1000 * PATIENCE)
            seen.page.on("console", lambda told: seen.errors.append(told.text) if told.type == "error" else None)
            seen.page.on("pageerror", lambda error: seen.errors.append(str(error)))
            seen.page.on("request", lambda request: seen.requests.append(request.url))
            yield seen
            _picture(seen)
        finally:
            browser.close()


def _picture(seen: Seen) -> None:
    folder, test = (os.environ.get(name) for name in ("CLPLAT_SCREENSHOTS", "PYTEST_CURRENT_TEST"))
    if folder and test:
        Path(folder).mkdir(parents=True, exist_ok=True)
        name = re.sub(r"\W+", "-", test.partition(" (")[0].removeprefix("tests/"))
        seen.page.screenshot(path=Path(folder) / f"{name.strip('-')}.png")
