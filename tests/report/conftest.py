"""Run directories without runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clplat.metrics import store

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


# What a run of two classes in each of two experiences writes down when all is watched.
WATCHED: list[dict[str, Any]] = [
    LINES[0],
    {"event": "train", "experience": 0, "phase": "train", "step": 2, "terms": {"loss": 2.0}},
    {"event": "look", "experience": 0, "step": 2, "accuracy": [0.5, None]},
    {**LINES[2], "memory": {"0": 10}},
    {
        "event": "train",
        "experience": 1,
        "phase": "train",
        "step": 6,
        "lr": [0.1, 0.01],
        "grad_norm": 3.0,
        "terms": {"loss": 1.0, "penalty": 0.5},
    },
    {"event": "look", "experience": 1, "step": 5, "accuracy": [0.3, 0.2]},
    {"event": "look", "experience": 1, "step": 6, "accuracy": [0.5, 0.6]},
    {**LINES[3], "memory": {"0": 4, "1": 6}},
]
TIMINGS: list[dict[str, Any]] = [
    {"event": "evaluate", "experience": -1, "seconds": 0.1, "at_seconds": 0.1},
    {
        "event": "phase",
        "experience": 0,
        "phase": "train",
        "steps": 4,
        "samples": 100,
        "seconds": 0.5,
        "at_seconds": 0.6,
    },
    {"event": "use", "experience": 0, "step": 2, "use": {"cpu": [0.5], "memory_bytes": [2**21]}, "at_seconds": 0.7},
    {"event": "phase", "experience": 0, "phase": "finish", "seconds": 0.25, "at_seconds": 0.9},
    {"event": "phase", "experience": 1, "phase": "train", "samples": 90, "seconds": 0.3, "at_seconds": 1.4},
]
HISTORY: list[dict[str, Any]] = [
    {"event": "start", "time": 1000.0, "host": "a", "pid": 1, "job": "7"},
    {"event": "end", "time": 1060.0, "status": "preempted", "code": 75},
    {"event": "start", "time": 1100.0, "host": "b", "pid": 2, "job": "7", "restart": "1"},
    {"event": "start", "time": 1200.0, "host": "b", "pid": 3},
    {"event": "end", "time": 1230.5, "status": "done", "code": 0},
]
REPORT = {
    "chosen": {"0": [3, 1, 0], "1": [0, 0, 8]},
    "expected": [[], [2.5]],
    "realised": [[], [2]],
}


@pytest.fixture
def watched(make: Maker) -> Maker:
    """As ``make``, with all that the views draw."""

    def watched(name: str, **config: Any) -> Path:
        path = make(name, lines=WATCHED, **{"eval": {"every": 2}, **config})
        for file, lines in (("timings.jsonl", TIMINGS), ("history.jsonl", HISTORY)):
            (path / file).write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        more = {"stored_bytes": 100, "state_size": 8, "strategy": REPORT, "importance": {"a.weight": 3.0, "b": 1.0}}
        (path / "results.json").write_text(json.dumps({**RESULTS, **more}), encoding="utf-8")
        y = {0: np.array([0, 0, 1, 1]), 1: np.array([2, 2, 3, 3])}
        predicted = {0: np.array([0, 2, 2, 1]), 1: np.array([2, 2, 3, 0])}
        store.write(path, 1, {j: {"y": y[j], "predicted": predicted[j]} for j in y}, "predictions")
        return path

    return watched
