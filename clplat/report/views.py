"""What there is to see of runs: the views that the page of ``clplat report`` and the dashboard draw alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from clplat.errors import UsageError
from clplat.metrics.evidence import NotMeasuredError
from clplat.report import figures, figures_answers, figures_compare, figures_record, figures_system
from clplat.report.figures import Figure
from clplat.report.runs import RunData, text


@dataclass(frozen=True)
class View:
    """One kind of figure.

    Args:
        key: a short name, the same for ever: for addresses and file names.
        title: what it shows, for headings.
        draw: makes the figure, or raises :class:`NotMeasuredError` with the reason why there is none.
        each: it shows one run and is drawn for each; else it shows all runs together.
    """

    key: str
    title: str
    draw: Callable[[Sequence[RunData]], Figure]
    each: bool

    def figure(self, runs: Sequence[RunData]) -> Figure | str:
        """The figure of all the runs (of the one run where the view is for each), or one line that says why there is
        none. What is wrong with one run's files must not cost the others their figures."""
        try:
            return self.draw(runs)
        except (NotMeasuredError, UsageError) as reason:
            return text(reason)
        except Exception as error:
            return text(f"cannot be drawn: {type(error).__name__}: {error}")


def _of_one(draw: Callable[[RunData], Figure]) -> Callable[[Sequence[RunData]], Figure]:
    def drawn(runs: Sequence[RunData]) -> Figure:
        (run,) = runs
        return draw(run)

    return drawn


def _each(key: str, title: str, draw: Callable[[RunData], Figure]) -> View:
    return View(key, title, _of_one(draw), each=True)


def _all(key: str, title: str, draw: Callable[[Sequence[RunData]], Figure]) -> View:
    return View(key, title, draw, each=False)


VIEWS = (
    _all("average", "Mean over the experiences seen", figures_compare.average_seen),
    _all("strategies", "Strategies", figures_compare.strategies),
    _all("forgetting", "Forgetting by experience", figures_compare.forgetting),
    _all("memory-cost", "Against memory", figures_compare.against_memory),
    _all("time-cost", "Against time", figures_compare.against_time),
    _all("state-cost", "Against the size of the state", figures_compare.against_state),
    _all("config", "Configurations", figures_compare.configurations),
    _each("matrix", "Accuracy matrix", figures.matrix),
    _each("curves", "Each experience over the run", figures.curves),
    _each("gap", "Stability gap", figures.gap),
    _each("blocks", "Confusion of experiences", figures_answers.blocks),
    _each("classes", "Confusion of classes", figures_answers.classes),
    _each("memory", "What the memory holds", figures_record.memory),
    _each("rehearsal", "Rehearsal, expected and realised", figures_record.rehearsal),
    _each("prompts", "Prompts chosen", figures_record.prompts),
    _each("losses", "Loss terms", figures_record.losses),
    _each("penalties", "Terms of the strategy", figures_record.penalties),
    _each("importance", "Importances by parameter", figures_record.importance),
    _each("seconds", "Seconds by phase", figures_record.seconds),
    _each("throughput", "Samples a second", figures_record.throughput),
    _each("system", "Learning rate, gradient norm, use of the machine", figures_system.system),
    _each("jobs", "Starts of the run", figures_record.jobs),
)
