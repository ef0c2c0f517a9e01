"""A ready layout for a project in Weights & Biases: what there is to see of continual learning, by the names of
docs/tracking.md, with runs that differ in the seed alone as one mean with a band of one standard deviation."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from clplat.errors import MissingError

if TYPE_CHECKING:
    from wandb_workspaces.reports.v2 import LinePlot
    from wandb_workspaces.workspaces import Workspace

NAME = "Continual learning"
COLUMNS = (  # of the table of runs
    "config:strategy.name",
    "config:backbone.name",
    "config:scenario.name",
    "config:seed",
    "summary:ACC",
    "summary:forgetting",
    "summary:BWT",
    "summary:FWT",
    "summary:learning_accuracy",
    "summary:stored_bytes",
    "summary:seconds",
)


def build(project: str, entity: str) -> Workspace:
    """The layout, sent nowhere yet.

    Raises:
        MissingError: wandb-workspaces is not installed.
    """
    try:
        from wandb_workspaces import workspaces as ws
        from wandb_workspaces.reports import v2 as wr
    except ImportError as error:
        raise MissingError(f"a layout needs wandb-workspaces: pip install 'clplat[workspaces]' ({error})") from error

    def curve(*names: str, title: str, x: str = "experience") -> LinePlot:
        return _banded(wr.LinePlot(title=title, x=x, y=list(names)))

    def family(pattern: str, title: str, x: str = "experience") -> LinePlot:
        return _banded(wr.LinePlot(title=title, x=x, metric_regex=pattern))

    def bar(name: str) -> Any:
        by = wr.Config("strategy.name")
        return wr.BarPlot(title=name, metrics=[wr.SummaryMetric(name)], groupby=by, groupby_aggfunc="mean")

    def against(name: str) -> Any:
        return wr.ScatterPlot(title=f"ACC against {name}", x=wr.SummaryMetric(name), y=wr.SummaryMetric("ACC"))

    def _banded(plot: LinePlot) -> LinePlot:
        plot.groupby, plot.groupby_aggfunc, plot.groupby_rangefunc = wr.Config("strategy.name"), "mean", "stddev"
        return plot

    sections: dict[str, list[Any]] = {
        "What is forgotten": [
            curve("eval/ACC", title="ACC over the experiences so far"),
            curve("eval/forgetting", title="Forgetting"),
            curve("eval/BWT", title="Backward transfer"),
            curve("eval/FWT", title="Forward transfer"),
            curve("eval/learning_accuracy", title="Accuracy when learned"),
            family("^eval/task/", "Each experience"),
        ],
        "The matrix": [wr.MediaBrowser(title="After, on", media_keys=["eval/heatmap", "eval/curves"])],
        "Strategies": [bar("ACC"), bar("forgetting"), bar("learning_accuracy")],
        "What it costs": [against("stored_bytes"), against("train_seconds"), against("parameters")],
        "Inside training": [
            family("^train/(?!look/)", "Loss and its terms", "step"),
            family("^train/look/", "Looks between steps (eval.every)", "step"),
            family("^optim/lr", "Learning rate", "step"),
            curve("optim/grad_norm", title="Gradient norm before clipping", x="step"),
            family("^system/", "Use of the machine", "step"),
        ],
        "Differences": [wr.RunComparer(diff_only="split")],
    }
    return ws.Workspace(
        entity=entity,
        project=project,
        name=NAME,
        sections=[
            ws.Section(name=name, panels=panels, is_open=n < 2) for n, (name, panels) in enumerate(sections.items())
        ],
        runset_settings=ws.RunsetSettings(pinned_columns=list(COLUMNS)),
    )


def specification(workspace: Workspace) -> str:
    """A layout as JSON, without the panels' numbers, which are drawn anew each time."""
    model = workspace._to_model().model_dump(mode="json", by_alias=True)
    return json.dumps(_without_ids(model), indent=2, sort_keys=True) + "\n"


def _without_ids(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_ids(part) for key, part in value.items() if key != "__id__"}
    return [_without_ids(part) for part in value] if isinstance(value, list) else value
