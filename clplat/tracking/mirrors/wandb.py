"""A run in Weights & Biases."""

from __future__ import annotations

import hashlib
import importlib.util
import netrc
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from clplat.errors import EXIT_FAILED, EXIT_REQUEUE, MissingError
from clplat.tracking.directory import read_status, sweep, write_atomic
from clplat.tracking.names import Row, cells, matrix_row, scalars
from clplat.tracking.names import results as results_of

if TYPE_CHECKING:
    import wandb

# Matrices of longer streams become a table once, at the end: one after each of n experiences is n**3 cells in all.
TABLE_EACH = 50
# Seconds that W&B may take to answer at the start, and to take what is left at the end; offline it needs neither.
START_TIMEOUT, FINISH_TIMEOUT = 30.0, 60.0


class WandbMirror:
    """Weights & Biases, online or offline (no account and no network are needed).

    Everything lies in ``RUN/wandb``. The run's id is made of the run's own history, so a run that goes on after a stop,
    or is sent later (``clplat wandb push``), is the same run in W&B. The axes are ``experience`` for ``eval/*`` and
    ``step`` for all else, and W&B's own step is the number of the line in ``metrics.jsonl``. A run that goes on
    shows all of its record again, but for what the server has: what a killed run had not yet written to disk is there
    all the same, and the newest offline run alone is the whole run.

    Args:
        project: the W&B project.
        entity: the W&B user or team that the project belongs to; null takes the one of the account.
        mode: where to; auto takes WANDB_MODE, else goes online where an API key is configured, else offline. A server
            that does not answer makes an online run an offline one, for ``clplat wandb push RUN`` later.
        group: the W&B group; null takes the sweep's name, or makes one of strategy, backbone and scenario, so that
            seeds are grouped.
        tags: the W&B tags.
        artifacts: send the last checkpoint as well, when the run is done.
    """

    def __init__(
        self,
        *,
        project: str = "clplat",
        entity: str | None = None,
        mode: Literal["auto", "online", "offline"] = "auto",
        group: str | None = None,
        tags: tuple[str, ...] = (),
        artifacts: bool = False,
    ) -> None:
        if importlib.util.find_spec("wandb") is None:  # asked without importing it, which takes more than a second
            raise MissingError(
                "the logger 'wandb' needs the package 'wandb', which is not installed: pip install wandb"
            )
        self.project, self.entity, self.mode, self.group, self.tags = project, entity, mode, group, tags
        self.artifacts = artifacts
        self._run: wandb.Run | None = None
        self._run_dir = Path()
        self._rows: list[tuple[int, Row]] = []
        self._in_table = 0  # how many of them have been shown
        self._lines = 0  # how many lines the record holds
        self._axes: dict[str, int] = {}

    def start(self, run_dir: Path, config: Mapping[str, Any], lines: Iterable[Mapping[str, Any]]) -> None:
        self._run_dir, self._run = run_dir, self._open(run_dir, config, "train")
        if self._run is None:
            return
        self._run.define_metric("experience")
        self._run.define_metric("step")
        for name in ("train", "optim", "system"):
            self._run.define_metric(f"{name}/*", step_metric="step")
        self._run.define_metric("eval/*", step_metric="experience")
        for line in lines:
            self._show(line, table=False)

    def measured(self, run_dir: Path, config: Mapping[str, Any], values: Mapping[str, float | str]) -> None:
        """Show what was measured of a run after its end as a run beside it: of job type ``eval``, in the same group."""
        self._run_dir, self._run = run_dir, self._open(run_dir, config, "eval")
        if self._run is not None:
            self._run.summary.update(dict(values))
            self._run.finish(exit_code=0)
            self._run = None

    def _open(self, run_dir: Path, config: Mapping[str, Any], job_type: Literal["train", "eval"]) -> wandb.Run | None:
        """Start the run in W&B, or go on with it; None where W&B is disabled."""
        # An offline run must not touch the network: W&B would look for the place where it reports its own errors.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        wandb.setup(_settings())
        mode: Any = self.mode if self.mode != "auto" else os.environ.get("WANDB_MODE") or "auto"
        if mode == "disabled":
            return None
        key = mode in ("auto", "online", "run") and _has_key(wandb.setup().settings)
        if mode in ("online", "run") and not key:  # W&B itself would ask for one on a terminal, and wait
            raise MissingError("no W&B API key is configured: `wandb login`, or set WANDB_API_KEY, or go offline")
        options: dict[str, Any] = {
            "project": self.project,
            "entity": self.entity,
            "group": (self.group or sweep(run_dir) or default_group(config))[:128],  # W&B takes no more
            "tags": self.tags,
            "name": run_dir.resolve().name[:128],
            "id": run_id(run_dir) + ("" if job_type == "train" else f"-{job_type}"),
            "config": dict(config),
            "dir": str(run_dir),
            "job_type": job_type,
            "resume": "allow",
            "settings": _settings(),
        }
        run: wandb.Run | None = None
        if key:
            try:
                run = wandb.init(mode="online", **options)
            except wandb.errors.Error as error:
                wandb.teardown()  # the failed attempt holds the run's id
                self.unreachable(str(error).partition("\n")[0])
                wandb.setup(_settings())
                mode = "offline"
        run = run or wandb.init(mode="offline" if mode == "auto" else mode, **options)
        if run.url and config.get("trainer", {}).get("progress") != "quiet":
            print(f"W&B: {run.url}", file=sys.stderr, flush=True)
        return run

    def unreachable(self, reason: str) -> None:
        """The server does not answer; the run goes on offline unless this raises."""
        # A key in the home directory and a machine without network: the rule on clusters, not the exception.
        print(f"W&B cannot be reached, going on offline: {reason}", file=sys.stderr, flush=True)

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
            if table and len(self._rows[-1][1]) <= TABLE_EACH:
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
        values: dict[str, Any] = {f"eval/{name}": figure for name, figure in self._figures().items()}
        if self._in_table < len(self._rows):
            values["eval/matrix"] = self._table()
        run.log({**values, **self._axes}, step=self._lines, commit=True)
        run.summary.update(results_of(self._run_dir))
        if self.artifacts:
            self._send_checkpoint(run)
        run.finish(exit_code=0)

    def _table(self) -> wandb.Table:
        import wandb

        self._in_table = len(self._rows)
        data = [list(cell) for cell in cells(self._rows)]
        wandb.Table.MAX_ROWS = max(wandb.Table.MAX_ROWS, len(data))  # W&B drops what is beyond
        return wandb.Table(columns=["after", "on", "value"], data=data)

    def _figures(self) -> dict[str, wandb.Plotly]:
        """The matrix, and a curve for each experience, as the report draws them."""
        import wandb
        from plotly import graph_objects

        from clplat.report import figures
        from clplat.report.runs import load

        data = load(self._run_dir)
        drawn = {"heatmap": figures.matrix(data), "curves": figures.curves(data)}
        return {name: wandb.Plotly(graph_objects.Figure(figure)) for name, figure in drawn.items()}

    def _send_checkpoint(self, run: wandb.Run) -> None:
        import wandb

        from clplat import checkpoint

        ends = [path for path in checkpoint.named(self._run_dir / "checkpoints") if checkpoint.check(path) is None]
        if not ends:
            raise FileNotFoundError(f"{self._run_dir} has no checkpoint to send")
        artifact = wandb.Artifact(f"checkpoint-{run.id}", type="model", metadata={"checkpoint": ends[-1].name})
        artifact.add_dir(str(ends[-1]))
        run.log_artifact(artifact)


def run_id(run_dir: Path) -> str:
    """The run's id in W&B: always the same for a run, wherever its directory is copied to.

    It is made of the first line of ``history.jsonl``, which says when and where the run was first started, or where
    there is none, of where the directory lies; and kept in ``RUN/wandb/id``.
    """
    path = run_dir / "wandb" / "id"
    try:
        return path.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        pass
    try:
        with open(run_dir / "history.jsonl", "rb") as file:
            origin = file.readline()
    except FileNotFoundError:
        origin = os.fsencode(run_dir.resolve())
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, hashlib.blake2b(origin, digest_size=8).hexdigest() + "\n")
    return path.read_text(encoding="utf-8").strip()


def default_group(config: Mapping[str, Any]) -> str:
    """``<strategy>-<backbone>-<scenario>``: the same for all seeds."""
    return "-".join(config[section]["name"] for section in ("strategy", "backbone", "scenario"))


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
        "finish_timeout_raises": True,
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
