"""Options that Optuna proposes, by what earlier ones led to, in the place of all combinations or random draws.

Every candidate is a run of its own, judged as in :mod:`clplat.sweep.select`: by ACC on validation samples of the first
experiences. Proposals and results lie in ``optuna.journal`` in the sweep's folder, so a second call goes on with them.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from clplat.errors import MissingError, UsageError
from clplat.report.runs import load
from clplat.sweep.grid import Planned, digest, drawn

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.storages import BaseStorage
    from optuna.study import Study
    from optuna.trial import FrozenTrial

Plan = Callable[[Mapping[str, str], Mapping[str, str]], Planned]


class Search:
    """The proposals for one combination of the flags.

    Args:
        flags: the combination.
        axes: the options that vary, with their values, or one range.
        plan: makes the run of some values and the flags. Proposals are kept in the folder above that of the runs.
        trials: how many candidates there are to be in all.
        seed: of the proposals.

    Raises:
        UsageError: an option has a range beside other values, or nothing varies.
        MissingError: Optuna is not installed.
    """

    def __init__(
        self,
        flags: Mapping[str, str],
        axes: Mapping[str, Sequence[str]],
        plan: Plan,
        trials: int,
        seed: int,
    ) -> None:
        optuna = _optuna()
        self.flags, self.axes, self.plan, self.trials = dict(flags), dict(axes), plan, trials
        self.space = {key: _distribution(key, values) for key, values in axes.items()}
        if not self.space:
            raise UsageError(f"--optuna: nothing varies for {' '.join(flags.values())}; give options several values")
        # Another configuration or other values are another search: results of one say nothing about the other.
        example = plan({key: _first(values) for key, values in axes.items()}, flags)
        self.devices: int = example.config["trainer"].get("devices", 1)
        what = json.dumps([digest(example.config), sorted(axes.items())]).encode()
        self.study: Study = optuna.create_study(
            storage=_storage(example.path.parent.parent),
            study_name=f"{'-'.join(flags.values())}-{hashlib.blake2b(what, digest_size=4).hexdigest()}",
            direction="maximize",
            sampler=optuna.samplers.TPESampler(seed=seed, constant_liar=True),  # a batch is to differ within itself
            load_if_exists=True,
        )

    def proposals(self, most: int) -> list[tuple[FrozenTrial, Planned]]:
        """Up to so many candidates to run next; first those that were proposed before and came to no end."""
        from optuna.trial import TrialState

        open_ = self.study.get_trials(deepcopy=False, states=[TrialState.RUNNING])
        new = min(most - len(open_), self.trials - len(self.study.trials))
        for _ in range(new):
            self.study.ask(self.space)
        open_ = self.study.get_trials(deepcopy=False, states=[TrialState.RUNNING])
        return [(trial, self._planned(trial)) for trial in open_[:most]]

    def tell(self, trial: FrozenTrial, run: Planned) -> None:
        """What came of a candidate that has ended; one that failed is a failed trial."""
        from optuna.trial import TrialState

        data = load(run.path)
        acc = data.summary.get("ACC")
        if acc is None:
            self.study.tell(trial.number, state=TrialState.FAIL)
        else:
            self.study.tell(trial.number, acc if data.direction == "max" else -acc)

    def candidates(self) -> list[Planned]:
        """All that have been proposed."""
        return [self._planned(trial) for trial in self.study.get_trials(deepcopy=False)]

    def _planned(self, trial: FrozenTrial) -> Planned:
        values = {key: _spelled(value) for key, value in trial.params.items()}
        run = self.plan(values, self.flags)
        return replace(run, chosen={**self.flags, **values})


def _optuna() -> ModuleType:
    try:
        import optuna
    except ImportError as error:
        raise MissingError(f"--optuna needs Optuna: pip install 'clplat[optuna]' ({error})") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _storage(folder: Path) -> BaseStorage:
    """The journal in a sweep's folder."""
    import optuna
    from optuna.storages.journal import JournalFileBackend

    folder.mkdir(parents=True, exist_ok=True)
    return optuna.storages.JournalStorage(JournalFileBackend(str(folder / "optuna.journal")))


def _distribution(key: str, values: Sequence[str]) -> BaseDistribution:
    from optuna import distributions

    ranges = [found for value in values if (found := drawn(value)) is not None]
    if not ranges:
        return distributions.CategoricalDistribution(list(values))
    if len(values) > 1:
        raise UsageError(f"{key}={','.join(values)}: --optuna takes one range, or values, not both")
    kind, low, high = ranges[0]
    if kind == "int":
        return distributions.IntDistribution(math.ceil(low), math.floor(high))
    return distributions.FloatDistribution(low, high, log=kind == "log")


def _first(values: Sequence[str]) -> str:
    """A value, or the lower end of a range."""
    found = drawn(values[0])
    if found is None:
        return values[0]
    kind, low, _ = found
    return _spelled(math.ceil(low) if kind == "int" else low)


def _spelled(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
