"""All evaluations of a run: the matrix, the looks in between, what is written down of them, and how they go on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from clplat import evaluate, faults, memory
from clplat.learner import Learner
from clplat.metrics import answers, catalogue, store
from clplat.metrics.evidence import Evidence, Look, average_of, looks_in
from clplat.scenario import Scenario
from clplat.settings import EvalSettings
from clplat.tracking.record import Record, lines


class Evaluations:
    """What has been measured of a run so far.

    Args:
        learner, scenario: what is judged on what.
        settings: what is evaluated, and what is kept of it.
        run_dir: the run directory, on every rank; None keeps no answers.
        record: where evaluations are written down, by the first rank.
    """

    def __init__(
        self, learner: Learner, scenario: Scenario, settings: EvalSettings, run_dir: Path | None, record: Record
    ) -> None:
        self.learner, self.scenario, self.settings = learner, scenario, settings
        self.run_dir, self.record = run_dir, record
        self.matrix: list[list[float | None]] = []
        self.baseline: list[float | None] | None = None
        self.looks: list[Look] = []
        rows = answers.rows(scenario.spec.target, scenario.test_stream)
        kept = store.form(settings.store, rows * (1 + len(scenario.train_stream)))
        self.form = None if run_dir is None else kept

    @property
    def begun(self) -> bool:
        """Whether the untrained network has been evaluated."""
        return self.baseline is not None

    @property
    def new(self) -> list[int]:
        """Test experiences that were not known when the untrained network was evaluated."""
        known = len(self.scenario.test_stream) if self.baseline is None else len(self.baseline)
        return list(range(known, len(self.scenario.test_stream)))

    def end(self, after: int) -> list[float | None]:
        """Evaluate at the end of a train experience, or the untrained network (-1), and write down what was found."""
        stream, tested = self.scenario.test_stream, self.scenario.tested
        which = list(range(len(stream)))
        if after >= 0:
            which = evaluate.chosen(self.settings.experiences, after + 1, len(stream), tested)
        said = None
        if self.form is not None:
            said = answers.Collected(self.learner.target, stream, which, self.learner.ranks)
        found = self._judge(which, said)
        row = self._row(found)
        line: dict[str, Any] = {"event": "evaluate", "experience": after, "step": self.learner.step}
        line[self.scenario.spec.metric] = row
        line["test_loss"] = [found[j]["loss"] if j in found else None for j in range(len(stream))]
        if self.scenario.slices:
            line["slices"] = evaluate.slices(self.learner, self.scenario, which, self.settings.batch_size)
        if after < 0:
            self.baseline = row
            line |= self._stream()
        else:
            self.matrix.append(row)
            line["summary"], _ = self.summary()
            line["average_seen"] = average_of(row, set(tested[: after + 1]))
            if kept := memory.by_experience(self.learner.strategy):
                line["memory"] = kept
        if said is not None and self.form is not None:
            whole = said.whole()
            if self.record.run_dir is not None:
                store.write(self.record.run_dir, after, whole, self.form)
        faults.point("evaluated")
        self.record.log(**line)
        return row

    def look(self, experience: int) -> None:
        """Evaluate the experiences so far between two optimiser steps."""
        row = self._row(self._judge(sorted(set(self.scenario.tested[: experience + 1]))))
        self.looks.append(Look(experience, row, self.learner.step))
        line = {"event": "look", "experience": experience, "step": self.learner.step}
        self.record.log(**line, **{self.scenario.spec.metric: row})

    def _judge(self, which: Sequence[int], said: answers.Collected | None = None) -> dict[int, dict[str, float]]:
        stream, size = self.scenario.test_stream, self.settings.batch_size
        return evaluate.evaluate(self.learner, stream, which, size, said)

    def _row(self, found: Mapping[int, Mapping[str, float]]) -> list[float | None]:
        """The primary metric of each test experience."""
        return evaluate.row(found, self.scenario.spec.metric, len(self.scenario.test_stream))

    def summary(self) -> tuple[dict[str, Any], dict[str, str]]:
        """All metrics that follow from the matrix and the looks, and for each that is None the reason."""
        return catalogue.compute(catalogue.having("matrix", "looks"), self.known())

    def known(self) -> Evidence:
        """What has been measured so far, as evidence."""
        assert self.baseline is not None
        return Evidence(
            matrix=self.matrix,
            baseline=self.baseline,
            direction=self.scenario.spec.direction,
            tests=self.scenario.tests,
            new_classes=self.scenario.spec.new_classes,
            looks=self.looks if self.settings.every else None,
        )

    def results(self) -> dict[str, Any]:
        """For ``results.json``."""
        values, reasons = self.summary()
        return {
            "metric": self.scenario.spec.metric,
            "matrix": self.matrix,
            "baseline": self.baseline,
            **self._stream(),
            "summary": values,
            "reasons": reasons,
        }

    def _stream(self) -> dict[str, Any]:
        """What must be known of the stream to read the matrix."""
        spec, tests = self.scenario.spec, self.scenario.tests
        return {
            "direction": spec.direction,
            "new_classes": spec.new_classes,
            **({"tests": tests} if tests else {}),
        }

    # --- going on

    def state(self) -> dict[str, Any]:
        """For a checkpoint. The looks are in the record."""
        return {"matrix": self.matrix, "baseline": self.baseline}

    def load(self, state: Mapping[str, Any]) -> None:
        """Take what :meth:`state` gave."""
        self.matrix, self.baseline = state["matrix"], state["baseline"]

    def lengthen(self) -> int:
        """Evaluate the network, which must be the untrained one, on test experiences that the checkpoint did not know;
        earlier rows of the matrix have no value there. Returns how many."""
        new = self.new
        if new:
            assert self.baseline is not None
            row = self._row(self._judge(new))
            self.baseline = [*self.baseline, *row[new[0] :]]
            self.matrix = [[*known, *(None for _ in new)] for known in self.matrix]
        return len(new)

    def resume(self) -> None:
        """Take up the record where the checkpoint stood: its looks, and no answers that came later. The record has
        been cut by now."""
        assert self.run_dir is not None
        self.looks = looks_in(lines(self.run_dir, "metrics.jsonl"), self.scenario.spec.metric)
        if self.record.run_dir is not None:
            store.cut(self.record.run_dir, len(self.matrix) if self.begun else -1)

    def note_longer(self, experience: int) -> None:
        """Write down that the stream has become longer."""
        line = {"event": "extend", "experience": experience, "step": self.learner.step}
        self.record.log(**line, baseline=self.baseline, **self._stream())
