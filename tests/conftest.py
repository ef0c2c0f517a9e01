"""Shared by all tests: one thread, since two processes of a test share two cores; and which files come first."""

from __future__ import annotations

import os

import pytest
import torch
from hypothesis import settings

settings.register_profile("machines differ", deadline=None)  # no example fails for being slow
settings.load_profile("machines differ")
torch.set_num_threads(1)
os.environ.setdefault("WANDB_MODE", "offline")

# Minutes each. A worker takes a file whole, so one of them that begins late ends alone.
LONG = [
    "tests/backbones/test_contract.py", "tests/test_elsewhere.py", "tests/test_resume.py",
    "tests/backbones/test_fit.py", "tests/sweep/test_sweep.py", "tests/test_ranks.py",
]  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of servers first, since they mostly wait and others run meanwhile; then the long files, then the others."""

    def place(item: pytest.Item) -> tuple[bool, int]:
        file = item.nodeid.partition("::")[0]
        return not file.startswith("tests/integration/"), LONG.index(file) if file in LONG else len(LONG)

    items.sort(key=place)
