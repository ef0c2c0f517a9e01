"""Shared by all tests: one thread, since two processes of a test share two cores."""

from __future__ import annotations

import os

import torch

torch.set_num_threads(1)
os.environ.setdefault("WANDB_MODE", "offline")
