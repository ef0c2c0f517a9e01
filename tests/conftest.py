"""Shared by all tests: one thread, since two processes of a test share two cores."""

from __future__ import annotations

import os

import pytest
import torch

torch.set_num_threads(1)
os.environ.setdefault("WANDB_MODE", "offline")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of servers first: they mostly wait, and other tests run meanwhile."""
    items.sort(key=lambda item: "integration" not in item.path.parts)
