"""What MLflow has of a run, read back through its own client."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from clplat.errors import MissingError
from clplat.tracking.mirrors.mlflow import MlflowMirror
from clplat.tracking.names import scalars
from tests.tracking.conftest import CONFIG, LINES, RESULTS
from tests.tracking.test_loggers import play


def stored(run_dir: Path, experiment: str = "clplat") -> list[Any]:
    """The runs, those that were deleted left out."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{run_dir / 'mlflow' / 'mlflow.db'}")
    number = client.get_experiment_by_name(experiment).experiment_id
    runs = client.search_runs([number])
    for run in runs:
        run.histories = {
            name: sorted((m.step, m.value) for m in client.get_metric_history(run.info.run_id, name))
            for name in run.data.metrics
        }
    return list(runs)


def expected() -> dict[str, list[tuple[int, float]]]:
    wanted: dict[str, list[tuple[int, float]]] = {}
    for line in LINES:
        for name, value in scalars(line).items():
            wanted.setdefault(name, []).append((line["step"], value))
    return wanted


@pytest.mark.slow
def test_mlflow_holds_the_record_once_also_when_the_run_goes_on(run_dir):
    pytest.importorskip("mlflow", reason="MLflow is not installed")
    play(MlflowMirror(), run_dir, LINES[:5])
    (failed,) = stored(run_dir)
    assert (failed.info.run_name, failed.info.status) == ("some-run", "FAILED")
    added = {"evaluations": 2, "values": {"ece(bins=5)": 0.25}, "reasons": {}, "references": {}}
    (run_dir / "metrics.json").write_text(json.dumps(added), encoding="utf-8")
    play(MlflowMirror(), run_dir, LINES, RESULTS, before=4)
    (run,) = stored(run_dir)
    assert run.info.status == "FINISHED"
    assert {name: run.histories[name] for name in expected()} == expected()
    assert run.data.metrics["ece_bins_5_"] == 0.25
    assert (run.data.metrics["ACC"], run.data.metrics["steps"]) == (0.7, 8)
    assert (run.data.tags["strategy"], run.data.tags["status"]) == ("ewc", "done")
    assert run.data.params["strategy.importance"] == str(CONFIG["strategy"]["importance"])
    assert run.data.params["backbone.hidden"] == "[8, 8]"


def test_mlflow_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(MissingError, match=r"pip install 'clplat\[mlflow\]'"):
        MlflowMirror()
