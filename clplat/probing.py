"""Probes at the ends of experiences (``eval.probes``)."""

from __future__ import annotations

from clplat import registry
from clplat.errors import UsageError
from clplat.learner import Learner
from clplat.metrics.probes import base
from clplat.metrics.probes.base import Probe
from clplat.scenario import Scenario
from clplat.settings import EvalSettings
from clplat.tracking.record import Record


class Probes:
    """The probes of a run.

    Only the first rank takes them; the others go on, and wait for it at their next message.

    Args:
        settings: which, and their options.

    Raises:
        UsageError: a probe that is not there, or that cannot be taken of this run; all of them at once.
    """

    def __init__(self, settings: EvalSettings, learner: Learner, scenario: Scenario) -> None:
        self.learner, self.scenario = learner, scenario
        self.probes: dict[str, Probe] = {}
        problems: list[str] = []
        for name in settings.probes:
            try:
                self.probes[name] = make(name, **settings.options.get(name, {}))
                base.check(self.probes[name], learner, scenario)
            except UsageError as error:
                problems += [f"eval.probes: {message}" for message in error.messages]
        if problems:
            raise UsageError(*problems)

    def take(self, learned: int, record: Record) -> None:
        """Take all of them after ``learned`` experiences, and write down what they found."""
        if not self.learner.ranks.first:
            return
        for name, probe in self.probes.items():
            found = base.take(probe, self.learner, self.scenario)
            record.write(str(base.file_name(name, learned)), found)
            record.log(
                event="probe",
                probe=name,
                experience=learned - 1,
                step=self.learner.step,
                values=base.numbers(found),
            )


def make(name: str, **options: object) -> Probe:
    """A probe of the registry."""
    probe = registry.find("probe", name).build(**options)
    assert isinstance(probe, Probe)
    probe.name = name
    return probe
