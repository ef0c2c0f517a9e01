"""A run in MLflow."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clplat.changes import flatten
from clplat.errors import MissingError
from clplat.tracking.directory import read_status, write_atomic
from clplat.tracking.names import outcome, scalars

if TYPE_CHECKING:
    from mlflow import MlflowClient

# What MLflow takes in one call, and of a parameter's value.
METRICS, PARAMS, LONGEST = 1000, 100, 6000
STATES = {"preempted": "SCHEDULED", "failed": "FAILED"}


class MlflowMirror:
    """MLflow: a server, or a database in ``RUN/mlflow`` for ``mlflow ui --backend-store-uri``.

    MLflow has one axis for all, the optimiser steps, and forgets nothing of what it was told. So a run that goes on is
    a new one there with the whole record, and the one before it is marked as deleted. What MLflow takes in no name
    (brackets, commas, ...) is an underscore there.

    Args:
        uri: where to; null takes MLFLOW_TRACKING_URI, else the database in the run directory.
        experiment: MLflow's experiment, which holds many runs.
    """

    def __init__(self, *, uri: str | None = None, experiment: str = "clplat") -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # a run that is offline must not touch the network
        try:
            from mlflow import MlflowClient
        except ImportError as error:  # now and not in start(): a run without what was asked for had better not begin
            raise MissingError(f"the logger 'mlflow' needs MLflow: pip install 'clplat[mlflow]' ({error})") from error
        self._make: type[MlflowClient] = MlflowClient
        self.uri, self.experiment = uri, experiment
        self._client: MlflowClient | None = None
        self._run_dir, self._id = Path(), ""

    def start(self, run_dir: Path, config: Mapping[str, Any], lines: Sequence[Mapping[str, Any]]) -> None:
        from mlflow.entities import Param
        from mlflow.exceptions import MlflowException

        folder = run_dir / "mlflow"
        folder.mkdir(exist_ok=True)
        own = f"sqlite:///{(folder / 'mlflow.db').resolve()}"
        client = self._make(tracking_uri=self.uri or os.environ.get("MLFLOW_TRACKING_URI") or own)
        try:
            experiment = client.create_experiment(self.experiment)
        except MlflowException:  # it is there, or another run has just made it
            found = client.get_experiment_by_name(self.experiment)
            if found is None:
                raise
            experiment = found.experiment_id
        kept = folder / "id"
        if kept.exists():
            client.delete_run(kept.read_text(encoding="utf-8").strip())
        names = {key: config[key]["name"] for key in ("strategy", "backbone", "scenario")}
        tags = {**names, "seed": str(config["seed"])}
        made = client.create_run(experiment, tags=tags, run_name=run_dir.resolve().name)
        self._client, self._run_dir, self._id = client, run_dir, made.info.run_id
        write_atomic(kept, self._id + "\n")
        params = [Param(key, str(value)[:LONGEST]) for key, value in flatten(config).items()]
        for first in range(0, len(params), PARAMS):
            client.log_batch(self._id, params=params[first : first + PARAMS])
        self._send(lines)

    def log(self, line: Mapping[str, Any]) -> None:
        self._send([line])

    def _send(self, lines: Sequence[Mapping[str, Any]]) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        metrics = [
            Metric(_named(name), value, now, line["step"])
            for line in lines
            if (values := scalars(line))
            for name, value in {**values, "experience": line["experience"]}.items()
        ]
        for first in range(0, len(metrics), METRICS):
            assert self._client is not None
            self._client.log_batch(self._id, metrics=metrics[first : first + METRICS])

    def finish(self, results: Mapping[str, Any] | None) -> None:
        client, self._client = self._client, None
        if client is None:
            return
        if results is None:
            client.set_terminated(self._id, STATES.get(read_status(self._run_dir)["status"], "FAILED"))
            return
        from mlflow.entities import Metric, RunTag

        now, found = int(1000 * time.time()), outcome(self._run_dir)
        tags = [RunTag(name, value) for name, value in found.items() if isinstance(value, str)]
        metrics = [Metric(_named(n), float(v), now, 0) for n, v in found.items() if not isinstance(v, str)]
        client.log_batch(self._id, metrics=metrics, tags=tags)
        client.set_terminated(self._id)


def _named(name: str) -> str:
    return re.sub(r"[^\w\-. :/]", "_", name)
