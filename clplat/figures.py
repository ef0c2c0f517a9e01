"""The figures of ``clplat report`` for notebooks: ``clplat.figures.matrix(run)``, ``clplat.figures.average(runs)``.

Each takes a run, or several where it compares them, and returns a :class:`plotly.graph_objects.Figure`; where a run
holds nothing to draw it raises :class:`clplat.metrics.evidence.NotMeasuredError` with the reason. The names are the
keys of :data:`clplat.report.views.VIEWS`, with ``_`` for ``-``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from clplat.errors import suggestion
from clplat.report.runs import RunData
from clplat.report.views import VIEWS, View

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


def _of(view: View) -> Callable[[RunData | Sequence[RunData]], Figure]:
    def figure(runs: RunData | Sequence[RunData]) -> Figure:
        import plotly.graph_objects as go

        return go.Figure(view.draw([runs] if isinstance(runs, RunData) else runs))

    figure.__name__ = figure.__qualname__ = view.key.replace("-", "_")
    figure.__doc__ = f"{view.title}: of {'a run' if view.each else 'one or more runs'}."
    return figure


_FIGURES = {figure.__name__: figure for figure in map(_of, VIEWS)}
__all__ = sorted(_FIGURES)


def __getattr__(name: str) -> Any:
    if name in _FIGURES:
        return _FIGURES[name]
    raise AttributeError(f"there is no figure '{name}'.{suggestion(name, _FIGURES)}")


def __dir__() -> list[str]:
    return __all__
