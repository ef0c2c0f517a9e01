"""``clplat eval``: evaluate a run's newest checkpoint once more."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from clplat.cli import flags, output
from clplat.errors import EXIT_FAILED, EXIT_OK, RunFailedError, UsageError

EPILOG = flags.examples("clplat eval runs/ewc-transformer-permuted-digits-s0")


def evaluate(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The run directory.")],
    as_json: flags.Json = False,
    traceback: flags.Traceback = False,
) -> int:
    """Evaluate a run's newest checkpoint.

    On all test experiences, as the run itself does. Nothing is written. Where the run has evaluated the same weights,
    the two rows are compared, and it is an error if they differ.
    """
    from clplat.tracking import directory

    if not directory.is_run(run):
        raise UsageError(f"{run} is not a run directory.")
    found = _evaluate(run)
    differs = found["recorded"] is not None and any(
        was is not None and was != now for was, now in zip(found["recorded"], found["row"], strict=True)
    )
    if as_json:
        print(json.dumps(found, indent=2))
        return EXIT_FAILED if differs else EXIT_OK
    print(f"{run}: checkpoint {found['checkpoint']}, {found['trained']} of {found['experiences']} experiences trained")
    rows = [
        (str(j + 1), f"{value:.4f}", f"{loss:.4f}")
        for j, (value, loss) in enumerate(zip(found["row"], found["test_loss"], strict=True))
    ]
    output.table(("on experience", found["metric"], "loss"), rows)
    if differs:
        raise RunFailedError(f"the run recorded another row for these weights: {found['recorded']}")
    if found["recorded"] is not None:
        print("the same as the run recorded")
    return EXIT_OK


def _evaluate(run_dir: Path) -> dict[str, Any]:
    from clplat import evaluate
    from clplat.loop import EVALUATE
    from clplat.report.runs import load
    from clplat.restored import restored

    job, name = restored(run_dir)
    stream, spec = job.scenario.test_stream, job.scenario.spec
    values = evaluate.evaluate(job.learner, stream, range(len(stream)), job.eval_settings.batch_size)
    trained = job.marker == EVALUATE
    record = load(run_dir)
    recorded = record.matrix[job.number] if trained and job.number < len(record.matrix) else None
    return {
        "run": str(run_dir),
        "checkpoint": name,
        "experience": job.number,
        "trained": job.number + trained,
        "experiences": len(stream),
        "step": job.learner.step,
        "metric": spec.metric,
        "row": [values[j][spec.metric] for j in range(len(stream))],
        "test_loss": [values[j]["loss"] for j in range(len(stream))],
        "recorded": recorded,
    }
