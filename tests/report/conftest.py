"""Run directories without runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

CONFIG: dict[str, Any] = {
    "strategy": {"name": "ewc", "importance": 100.0},
    "backbone": {"name": "mlp", "hidden": 8},
    "scenario": {"name": "permuted-digits", "experiences": 2},
    "optimizer": {"name": "adam", "lr": 0.001},
    "run": {"root": "runs", "dir": None},
    "seed": 0,
}
SUMMARY = {"ACC": 0.7, "forgetting": 0.3, "BWT": -0.3, "FWT": 0.05, "learning_accuracy": 0.85}
LINES: list[dict[str, Any]] = [
    {"event": "evaluate", "experience": -1, "step": 0, "accuracy": [0.1, 0.125], "test_loss": [2.0, 2.0]},
    {"event": "train", "experience": 0, "phase": "train", "step": 2, "terms": {"loss": 2.0}},
    {
        "event": "evaluate",
        "experience": 0,
        "step": 4,
        "accuracy": [0.9, None],
        "test_loss": [0.1, None],
        "summary": {**SUMMARY, "ACC": 0.9, "forgetting": None},
        "average_seen": 0.9,
    },
    {
        "event": "evaluate",
        "experience": 1,
        "step": 8,
        "accuracy": [0.6, 0.8],
        "test_loss": [0.4, 0.2],
        "summary": SUMMARY,
        "average_seen": 0.7,
    },
]
RESULTS: dict[str, Any] = {
    "status": "done",
    "metric": "accuracy",
    "direction": "max",
    "matrix": [[0.9, None], [0.6, 0.8]],
    "baseline": [0.1, 0.125],
    "summary": SUMMARY,
    "reasons": {},
    "steps": 8,
    "seconds": 1.5,
}
Maker = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path) -> Maker:
    """A function that makes a run directory: done unless it is given another status."""

    def make(name: str, *, status: str = "done", lines: list[Any] = LINES, time: float = 0.0, **config: Any) -> Path:
        path = tmp_path / name
        path.mkdir(parents=True)
        (path / "config.yaml").write_text(json.dumps({**CONFIG, **config}), encoding="utf-8")
        (path / "status.json").write_text(json.dumps({"status": status, "time": time}), encoding="utf-8")
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (path / "metrics.jsonl").write_text(text, encoding="utf-8")
        (path / "timings.jsonl").write_text('{"at_seconds": 0.75}\n', encoding="utf-8")
        if status == "done":
            (path / "results.json").write_text(json.dumps(RESULTS), encoding="utf-8")
        return path

    return make
