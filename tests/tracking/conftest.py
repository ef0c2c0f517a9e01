"""A synthetic run's lines, and surroundings in which nobody has an account."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

CONFIG: dict[str, Any] = {
    "strategy": {"name": "ewc", "importance": 100.0},
    "backbone": {"name": "mlp", "hidden": [8, 8]},
    "scenario": {"name": "permuted-digits", "experiences": 2},
    "seed": 3,
}
SUMMARY = {"ACC": 0.9, "forgetting": None, "BWT": None, "FWT": None, "learning_accuracy": 0.9}
LAST_SUMMARY = {"ACC": 0.7, "forgetting": 0.3, "BWT": -0.3, "FWT": 0.05, "learning_accuracy": 0.85}


def train(experience: int, step: int, loss: float | None, **extra: Any) -> dict[str, Any]:
    return {
        "event": "train",
        "experience": experience,
        "phase": "train",
        "step": step,
        "terms": {"loss": loss},
        **extra,
    }


def evaluation(experience: int, step: int, row: list[float | None], **extra: Any) -> dict[str, Any]:
    losses = [None if value is None else 1 - value for value in row]
    return {"event": "evaluate", "experience": experience, "step": step, "accuracy": row, "test_loss": losses, **extra}


LINES = [
    evaluation(-1, 0, [0.1, 0.125]),
    train(0, 2, 2.0),
    train(0, 4, None),
    evaluation(0, 4, [0.9, None], summary=SUMMARY, average_seen=0.9),
    train(1, 6, 1.5, lr=[0.125], grad_norm=3.0, use={"cpu": [0.75], "memory_bytes": [2.0**20]}),
    train(1, 8, 0.25),
    evaluation(1, 8, [0.6, 0.8], summary=LAST_SUMMARY, average_seen=0.7),
]
RESULTS = {
    "status": "done",
    "metric": "accuracy",
    "matrix": [[0.9, None], [0.6, 0.8]],
    "baseline": [0.1, 0.125],
    "summary": {**LAST_SUMMARY, "average_incremental": None},
    "reasons": {"average_incremental": "because"},
    "steps": 8,
    "seconds": 1.5,
}


def record(run_dir: Path, lines: list[dict[str, Any]]) -> None:
    """Make the record of a run say this."""
    run_dir.mkdir(exist_ok=True)
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def without_account(home: Path) -> dict[str, str]:
    """The environment without anything that W&B would read."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("WANDB_", "NETRC", "XDG_"))}
    return {**kept, "HOME": str(home)}


@pytest.fixture
def nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This process has no W&B account; what it has of W&B ends with the test."""
    for key in set(os.environ) - set(without_account(tmp_path)):
        monkeypatch.delenv(key)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    yield
    import wandb

    wandb.teardown()


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    path = tmp_path / "some-run"
    record(path, [])
    return path
