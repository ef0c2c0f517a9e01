"""What a run has spent, as it wrote it down itself: ``results.json`` and ``timings.jsonl``."""

from __future__ import annotations

from typing import Any

from clplat.metrics.evidence import Evidence, NotMeasuredError


def _result(run: Evidence, key: str) -> Any:
    if not run.results:
        raise NotMeasuredError("the run is not done")
    if key not in run.results:
        raise NotMeasuredError(f"the run did not write down {key}: it is older than that")
    return run.results[key]


def parameters(run: Evidence) -> int:
    """Numbers in all parameters at the end, the strategy's own included."""
    return int(_result(run, "parameters"))


def trainable_parameters(run: Evidence) -> int:
    """Numbers in the parameters that could still be trained in the last experience; entries that a strategy holds still
    within a parameter are counted."""
    return int(_result(run, "trainable_parameters"))


def stored_bytes(run: Evidence) -> int:
    """Bytes of all tensors that the strategy keeps at the end."""
    return int(_result(run, "stored_bytes"))


def stored_bytes_by_kind(run: Evidence) -> dict[str, int]:
    """Bytes that the strategy keeps at the end: samples (memory), importances, teacher, prototypes, parameters of its
    own (prompts, hypernetworks), and other."""
    return dict(_result(run, "stored_bytes_by_kind"))


def peak_bytes(run: Evidence) -> int:
    """The most memory that the first rank's process held since it was last started: of its GPU, or at all."""
    return int(_result(run, "peak_bytes"))


def _events(run: Evidence, event: str) -> list[dict[str, Any]]:
    found = [dict(line) for line in run.timings if line.get("event") == event]
    if not found:
        raise NotMeasuredError(f"timings.jsonl has no line for '{event}'")
    return found


def seconds_by_phase(run: Evidence) -> dict[str, float]:
    """Seconds in each phase of training, in finishing experiences, in evaluating and in writing checkpoints. Looks and
    checkpoints inside training count to its phase as well; what was computed twice after a stop counts once. The
    writing of a checkpoint that the run went on from is not in it."""
    found: dict[str, float] = {}
    for line in _events(run, "phase"):
        found[line["phase"]] = found.get(line["phase"], 0.0) + line["seconds"]
    for event in ("evaluate", "checkpoint"):
        found[event] = sum(line["seconds"] for line in run.timings if line.get("event") == event)
    return found


def samples_per_second(run: Evidence) -> float:
    """Samples of the stream that were trained on in a second, over all phases; rehearsed ones are not counted."""
    trained = [line for line in _events(run, "phase") if line.get("samples")]
    seconds = sum(line["seconds"] for line in trained)
    if not seconds:
        raise NotMeasuredError("no phase of training was timed")
    return float(sum(line["samples"] for line in trained) / seconds)
