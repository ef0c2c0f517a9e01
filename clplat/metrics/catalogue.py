"""The metrics of ``conf/metric``, by name, and their values on what is known of a run.

An entry names a function of :class:`~clplat.metrics.evidence.Evidence` and says in ``_info_.needs`` what it takes of
it, so that anybody's metric is found, listed and computed like ours.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from clplat import registry
from clplat.errors import UsageError
from clplat.metrics.evidence import NEEDS, Evidence, NotMeasuredError

Values = dict[str, Any]
Reasons = dict[str, str]


def needs(name: str) -> tuple[str, ...]:
    """What a metric says it needs.

    Raises:
        UsageError: there is no such metric, or it needs something that nobody gives.
    """
    declared = registry.find("metric", name).info.get("needs", ())
    unknown = [need for need in declared if need not in NEEDS]
    if unknown:
        raise UsageError(f"metric '{name}' needs {', '.join(unknown)}; known are {', '.join(NEEDS)}")
    return tuple(declared)


def label(name: str, options: Mapping[str, Mapping[str, Any]]) -> str:
    """A metric's name, with the options that it was given: other options make another value."""
    given = ", ".join(f"{option}={value}" for option, value in sorted(options.get(name, {}).items()))
    return f"{name}({given})" if given else name


def having(*given: str) -> list[str]:
    """The metrics that need nothing but what is given."""
    return [name for name in registry.names("metric") if set(needs(name)) <= set(given)]


def compute(
    names: Iterable[str], run: Evidence, options: Mapping[str, Mapping[str, Any]] | None = None
) -> tuple[Values, Reasons]:
    """Metrics by name, and for each that is None the reason.

    A metric that fails says so in its reason: a run must not be lost because one of its metrics is at fault.

    Args:
        options: of some of the metrics, by name.
    """
    values: Values = {}
    reasons: Reasons = {}
    for name in names:
        try:
            values[name] = registry.find("metric", name).build(run, **(options or {}).get(name, {}))
        except NotMeasuredError as reason:
            values[name], reasons[name] = None, str(reason)
        except UsageError:
            raise
        except Exception as error:
            values[name], reasons[name] = None, f"failed with {type(error).__name__}: {error}"
        if isinstance(values[name], float) and not math.isfinite(values[name]):
            values[name], reasons[name] = None, f"the value is {values[name]}"
    return values, reasons
