"""Mirrors of a run: Weights & Biases, CSV files, TensorBoard. The run directory is the truth; these only show it.

All of them show the same scalars (:func:`scalars`), and all start from what ``metrics.jsonl`` holds when the run starts
or goes on: it was cut to the checkpoint by then, so what a mirror has beyond it belongs to steps that will come again.
"""

from __future__ import annotations

import csv
import importlib.util
import json
import netrc
import os
import secrets
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from clplat.errors import EXIT_FAILED, EXIT_REQUEUE, MissingError
from clplat.tracking.directory import read_status, write_atomic
from clplat.yamlfile import dump

if TYPE_CHECKING:
    import wandb
    from torch.utils.tensorboard import SummaryWriter

Row = Sequence[float | None]

# Matrices of longer streams become a table once, at the end: one after each of n experiences is n**3 cells in all.
TABLE_EACH = 50
# Seconds that W&B may take to answer at the start, and to take what is left at the end; offline it needs neither.
START_TIMEOUT, FINISH_TIMEOUT = 30.0, 60.0


# --- what the mirrors share ------------------------------------------------------------------------------------------


def scalars(line: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a line of ``metrics.jsonl`` by name; what was not measured (null) is left out.

    A training line gives ``train/<term>``, or ``train/<phase>/<term>`` in a phase of a strategy's own. An evaluation
    gives ``eval/task/<j>`` and ``eval/loss/<j>`` for each evaluated experience j, ``eval/<name>`` for each summary
    metric over the experiences so far, and ``eval/average_seen``. A look inside training (``eval.every``) gives
    ``train/look/<j>``, a probe ``eval/<probe>/<name>``.
    """
    found: dict[str, float | None] = {}
    if line.get("event") == "train":
        prefix = "train" if line.get("phase", "train") == "train" else f"train/{line['phase']}"
        found = {f"{prefix}/{name}": value for name, value in line["terms"].items()}
    elif line.get("event") == "evaluate":
        found = {f"eval/task/{j}": value for j, value in enumerate(matrix_row(line))}
        found |= {f"eval/loss/{j}": value for j, value in enumerate(line.get("test_loss", ()))}
        found |= {f"eval/{name}": value for name, value in line.get("summary", {}).items()}
        found["eval/average_seen"] = line.get("average_seen")
    elif line.get("event") == "look":
        found = {f"train/look/{j}": value for j, value in enumerate(matrix_row(line))}
    elif line.get("event") == "probe":
        found = {f"eval/{line['probe']}/{name}": value for name, value in line["values"].items()}
    return {name: float(value) for name, value in found.items() if value is not None}


def matrix_row(line: Mapping[str, Any]) -> Row:
    """The row of the matrix that an evaluation measured: the list under the name of the scenario's metric."""
    return next(value for key, value in line.items() if isinstance(value, list) and key != "test_loss")


def cells(rows: Iterable[tuple[int, Row]]) -> list[tuple[int, int, float]]:
    """``(after, on, value)`` of each measured entry; ``after`` is -1 for the untrained network."""
    return [(after, on, value) for after, row in rows for on, value in enumerate(row) if value is not None]


def recorded(run_dir: Path) -> list[dict[str, Any]]:
    """The lines of ``metrics.jsonl``."""
    try:
        text = (run_dir / "metrics.jsonl").read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in text.splitlines()]


# --- Weights & Biases ------------------------------------------------------------------------------------------------


class WandbMirror:
    """Weights & Biases, online or offline (no account and no network are needed).

    Everything lies in ``RUN/wandb``. The run's id is made once and kept there, so a run that goes on after a stop is
    the same run in W&B. The axes are ``step`` for ``train/*`` and ``experience`` for ``eval/*``, and W&B's own step is
    the number of the line in ``metrics.jsonl``. A run that goes on shows all of its record again, but for what the
    server has: what a killed run had not yet written to disk is there all the same, and the newest offline run alone is
    the whole run.

    Args:
        project: the W&B project.
        mode: where to; auto takes WANDB_MODE, else goes online where an API key is configured, else offline. A server
            that does not answer makes an online run an offline one, for ``wandb sync RUN/wandb/offline-run-*`` later.
        group: the W&B group; null makes one of strategy, backbone and scenario, so that seeds are grouped.
        tags: the W&B tags.
    """

    def __init__(
        self,
        *,
        project: str = "clplat",
        mode: Literal["auto", "online", "offline"] = "auto",
        group: str | None = None,
        tags: tuple[str, ...] = (),
    ) -> None:
        if importlib.util.find_spec("wandb") is None:  # asked without importing it, which takes more than a second
            raise MissingError(
                "the logger 'wandb' needs the package 'wandb', which is not installed: pip install wandb"
            )
        self.project, self.mode, self.group, self.tags = project, mode, group, tags
        self._run: wandb.Run | None = None
        self._run_dir = Path()
        self._rows: list[tuple[int, Row]] = []
        self._lines = 0  # how many lines the record holds
        self._axes: dict[str, int] = {}

    def start(self, run_dir: Path, config: Mapping[str, Any]) -> None:
        # An offline run must not touch the network: W&B would look for the place where it reports its own errors.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        wandb.setup(_settings())
        mode: Any = self.mode if self.mode != "auto" else os.environ.get("WANDB_MODE") or "auto"
        if mode == "disabled":
            return
        key = mode in ("auto", "online", "run") and _has_key(wandb.setup().settings)
        if mode in ("online", "run") and not key:  # W&B itself would ask for one on a terminal, and wait
            raise MissingError("no W&B API key is configured: `wandb login`, or set WANDB_API_KEY, or go offline")
        self._run_dir = run_dir
        options: dict[str, Any] = {
            "project": self.project,
            "group": self.group or default_group(config),
            "tags": self.tags,
            "name": run_dir.resolve().name[:128],  # W&B takes no more
            "id": run_id(run_dir),
            "config": dict(config),
            "dir": str(run_dir),
            "job_type": "fit",
            "resume": "allow",
            "settings": _settings(),
        }
        if key:
            try:
                self._run = wandb.init(mode="online", **options)
            except wandb.errors.Error as error:
                # A key in the home directory and a machine without network: the rule on clusters, not the exception.
                reason = str(error).partition("\n")[0]
                print(f"W&B cannot be reached, going on offline: {reason}", file=sys.stderr, flush=True)
                wandb.teardown()  # the failed attempt holds the run's id
                wandb.setup(_settings())
                mode = "offline"
        self._run = self._run or wandb.init(mode="offline" if mode == "auto" else mode, **options)
        if self._run.url:
            print(f"W&B: {self._run.url}", file=sys.stderr, flush=True)
        self._run.define_metric("experience")
        self._run.define_metric("step")
        self._run.define_metric("train/*", step_metric="step")
        self._run.define_metric("eval/*", step_metric="experience")
        for line in recorded(run_dir):
            self._show(line, table=False)

    def log(self, line: Mapping[str, Any]) -> None:
        self._show(line, table=True)

    def _show(self, line: Mapping[str, Any], *, table: bool) -> None:
        if self._run is None:
            return
        number, self._lines = self._lines, self._lines + 1
        self._axes = {name: line[name] for name in ("experience", "step") if name in line}
        values: dict[str, Any] = dict(scalars(line))
        if line.get("event") == "evaluate":
            self._rows.append((line["experience"], matrix_row(line)))
            if table and self._columns <= TABLE_EACH:
                values["eval/matrix"] = self._table()
        if values and number >= self._run.starting_step:  # a server that knows the run may be ahead of the record
            self._run.log({**values, **self._axes}, step=number, commit=True)

    def finish(self, results: Mapping[str, Any] | None) -> None:
        run, self._run = self._run, None
        if run is None:
            return
        if results is None:
            preempted = read_status(self._run_dir)["status"] == "preempted"
            if preempted:
                run.mark_preempting()  # shown as preempted, not as failed
            run.finish(exit_code=EXIT_REQUEUE if preempted else EXIT_FAILED)
            return
        import wandb

        values: dict[str, Any] = {"eval/heatmap": wandb.Plotly(heatmap(self._rows, results["metric"]))}
        if self._columns > TABLE_EACH:
            values["eval/matrix"] = self._table()
        run.log({**values, **self._axes}, step=self._lines, commit=True)
        plain = {name: value for name, value in results.items() if isinstance(value, (str, int, float))}
        measured = {name: value for name, value in results["summary"].items() if value is not None}
        run.summary.update({**plain, **measured})
        run.finish(exit_code=0)

    @property
    def _columns(self) -> int:
        return len(self._rows[-1][1]) if self._rows else 0

    def _table(self) -> wandb.Table:
        import wandb

        data = [list(cell) for cell in cells(self._rows)]
        wandb.Table.MAX_ROWS = max(wandb.Table.MAX_ROWS, len(data))  # W&B drops what is beyond
        return wandb.Table(columns=["after", "on", "value"], data=data)


def run_id(run_dir: Path) -> str:
    """The run's id in W&B, made at the first call and kept in ``RUN/wandb/id``."""
    path = run_dir / "wandb" / "id"
    try:
        return path.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, secrets.token_hex(4) + "\n")
        return path.read_text(encoding="utf-8").strip()


def default_group(config: Mapping[str, Any]) -> str:
    """``<strategy>-<backbone>-<scenario>``: the same for all seeds."""
    return "-".join(config[section]["name"] for section in ("strategy", "backbone", "scenario"))[:128]


def heatmap(rows: Sequence[tuple[int, Row]], metric: str) -> Any:
    """The matrix as a plotly figure, its first row on top."""
    import plotly.graph_objects as go

    values = [list(row) for _, row in rows]
    figure = go.Figure(
        go.Heatmap(
            z=values,
            x=[str(on) for on in range(len(values[0]))] if values else [],
            y=["start" if after < 0 else str(after) for after, _ in rows],
            text=[["" if value is None else f"{value:.3f}" for value in row] for row in values],
            texttemplate="%{text}",
            colorscale="Viridis",
        )
    )
    figure.update_layout(title=metric, xaxis_title="on experience", yaxis_title="after experience")
    figure.update_xaxes(type="category")
    figure.update_yaxes(type="category", autorange="reversed")
    return figure


def _settings() -> wandb.Settings:
    """Quiet, and nothing captured: code, versions, command and machine are in the run directory where they matter."""
    import wandb

    wanted: dict[str, Any] = {
        "silent": True,
        "console": "off",
        "disable_git": True,
        "disable_code": True,
        "save_code": False,
        "symlink": False,
        "use_dot_wandb": False,
        "reinit": "create_new",  # a run that somebody else has open in this process stays as it is
        "init_timeout": START_TIMEOUT,
        "finish_timeout": FINISH_TIMEOUT,
        "x_transaction_log_flush_interval": 5.0,  # seconds of the offline file that a killed run loses
        "x_disable_stats": True,
        "x_disable_meta": True,
        "x_disable_machine_info": True,
        "x_save_requirements": False,
    }
    # Not every release of W&B knows all of these, and one that it does not know is an error there.
    return wandb.Settings(**{name: value for name, value in wanted.items() if name in wandb.Settings.model_fields})


def _has_key(settings: wandb.Settings) -> bool:
    """Whether an API key is configured in the environment, in W&B's settings or in netrc."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE") or settings.api_key:
        return True
    host = urlsplit(settings.base_url).netloc
    named = os.environ.get("NETRC")
    for path in (Path(named),) if named else (Path.home() / ".netrc", Path.home() / "_netrc"):
        try:
            entry = netrc.netrc(path.expanduser()).authenticators(host)
        except (OSError, netrc.NetrcParseError):
            continue
        if entry and entry[2]:
            return True
    return False


# --- CSV -------------------------------------------------------------------------------------------------------------


class CsvMirror:
    """Plain tables: ``RUN/csv/train.csv`` and ``RUN/csv/eval.csv``, one number in each line.

    The columns are experience, step, name, value. When a run goes on both files are written anew from the record, so
    nothing is in them twice.
    """

    def __init__(self) -> None:
        self._files: dict[str, IO[str]] = {}

    def start(self, run_dir: Path, config: Mapping[str, Any]) -> None:
        folder = run_dir / "csv"
        folder.mkdir(exist_ok=True)
        for kind in ("train", "eval"):
            file = open(folder / f"{kind}.csv", "w", encoding="utf-8", newline="")  # noqa: SIM115 - closed in finish()
            self._files[kind] = file
            csv.writer(file, lineterminator="\n").writerow(("experience", "step", "name", "value"))
        for line in recorded(run_dir):
            self._write(line)
        self._flush()

    def log(self, line: Mapping[str, Any]) -> None:
        self._write(line)
        self._flush()

    def finish(self, results: Mapping[str, Any] | None) -> None:
        for file in self._files.values():
            file.close()
        self._files = {}

    def _write(self, line: Mapping[str, Any]) -> None:
        for name, value in scalars(line).items():
            file = self._files[name.partition("/")[0]]
            csv.writer(file, lineterminator="\n").writerow((line["experience"], line["step"], name, value))

    def _flush(self) -> None:
        for file in self._files.values():
            file.flush()


# --- TensorBoard -----------------------------------------------------------------------------------------------------


class TensorBoardMirror:
    """TensorBoard event files in ``RUN/tensorboard``, over the run's own count of optimiser steps.

    Evaluations too stand at the step after which they were made: TensorBoard has one axis for all, and by it forgets
    what an interrupted run had logged beyond its checkpoint.
    """

    def __init__(self) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:  # now and not in start(): a run without what was asked for had better not begin
            raise MissingError(
                f"the logger 'tensorboard' needs the package 'tensorboard': pip install tensorboard ({error})"
            ) from error
        self._make: type[SummaryWriter] = SummaryWriter
        self._writer: SummaryWriter | None = None

    def start(self, run_dir: Path, config: Mapping[str, Any]) -> None:
        lines = [line for line in recorded(run_dir) if scalars(line)]
        # All from the last recorded step on is forgotten and what the record has of that step written again: a step
        # may be trained and not yet evaluated in the record, while both were logged here.
        last = lines[-1]["step"] if lines else 0
        self._writer = self._make(str(run_dir / "tensorboard"), purge_step=last)
        if last == 0:
            self._writer.add_text("config", f"```\n{dump(dict(config))}```", 0)
        for line in lines:
            if line["step"] == last:
                self.log(line)

    def log(self, line: Mapping[str, Any]) -> None:
        values = scalars(line)
        if self._writer is None or not values:
            return
        for name, value in {**values, "experience": line["experience"]}.items():
            self._writer.add_scalar(name, value, line["step"])
        if line["event"] == "evaluate":
            self._writer.flush()

    def finish(self, results: Mapping[str, Any] | None) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None
