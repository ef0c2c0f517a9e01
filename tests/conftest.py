"""Shared by all tests: one thread, since two processes of a test share two cores; and which files come first."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from hypothesis import settings

settings.register_profile("machines differ", deadline=None)  # no example fails for being slow
settings.load_profile("machines differ")
torch.set_num_threads(1)
os.environ.setdefault("WANDB_MODE", "offline")

HERE = Path(__file__).parent
# Minutes each. A worker takes a file whole, so one of them that begins late ends alone.
LONG = [
    "backbones/test_contract.py", "test_elsewhere.py", "test_resume.py", "backbones/test_fit.py", "sweep/test_sweep.py",
    "test_ranks.py",
]  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of servers first, since they mostly wait and others run meanwhile; then the long files, then the others."""

    def place(item: pytest.Item) -> tuple[bool, int]:
        file = item.path.relative_to(HERE).as_posix() if item.path.is_relative_to(HERE) else ""
        return not file.startswith("integration/"), LONG.index(file) if file in LONG else len(LONG)

    items.sort(key=place)
