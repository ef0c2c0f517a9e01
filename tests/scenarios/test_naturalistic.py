"""The naturalistic environment: the same samples in every environment, in an order that follows the law."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from clplat.config import compose
from clplat.errors import UsageError
from clplat.scenarios.naturalistic import Naturalistic
from tests.scenarios.streams import build

ENVIRONMENTS = ["power", "exponential", "uniform", "none"]


def samples(scenario: Naturalistic) -> dict[int, Counter[bytes]]:
    found: dict[int, Counter[bytes]] = {}
    for experience, task in zip(scenario.train_stream, scenario.tested, strict=True):
        found.setdefault(task, Counter()).update(row.numpy().tobytes() for row in experience.dataset.x)
    return found


@pytest.mark.parametrize("setting", ["domain", "class", "task"])
def test_environments_differ_in_nothing_but_the_order(setting: Any) -> None:
    base = build("permuted-digits" if setting == "domain" else "split-digits", 2, experiences=5,
                 **({} if setting == "domain" else {"setting": setting}))  # fmt: skip
    plain = {i: Counter(row.numpy().tobytes() for row in e.dataset.x) for i, e in enumerate(base.train_stream)}
    for environment in ENVIRONMENTS:
        scenario = Naturalistic(2, setting=setting, environment=environment)  # type: ignore[arg-type]
        assert samples(scenario) == plain
        assert scenario.tested == scenario.visits
        assert len(scenario.test_stream) == 5
        for experience, task in zip(scenario.train_stream, scenario.tested, strict=True):
            assert experience.task_label == (task if setting == "task" else 0)


def test_recent_tasks_are_more_likely_under_the_power_law_than_under_uniform_returns() -> None:
    def lags(environment: Any) -> list[int]:
        order = Naturalistic(0, experiences=400, environment=environment, exponent=1.5).visits
        last: dict[int, int] = {}
        found = []
        for i, task in enumerate(order):
            found += [i - last[task]] if task in last else []
            last[task] = i
        return sorted(found)

    power, uniform = lags("power"), lags("uniform")
    assert sum(lag == 1 for lag in power) > 1.5 * sum(lag == 1 for lag in uniform)
    assert max(power) > 2 * max(uniform)  # and yet old ones come back after long
    assert set(lags("none")) == {1}


def test_of_few_visits_only_the_first_tasks_are_met() -> None:
    scenario = Naturalistic(0, experiences=3, tasks=7, setting="class")
    assert scenario.visits == (0, 1, 2)
    assert [e.classes_in_this_experience for e in scenario.test_stream] == [(0, 1), (2, 3), (4, 5)]


def test_the_comparison_is_a_preset() -> None:
    for environment in ENVIRONMENTS:
        config = compose([f"strategy.environment={environment}"], preset="power-law-comparison")
        assert config["strategy"]["environment"] == environment
        assert config["scenario"]["name"] == "permuted-digits"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"experiences": 0, "tasks": 0}, "experiences=0.*\n.*tasks=0"),
        ({"setting": "class", "tasks": 11, "experiences": 20}, "experiences=11"),
        ({"exponent": -1.0}, "exponent=-1"),
        ({"offset": -1.0}, "offset=-1"),
        ({"decay": 0.0}, "decay=0"),
    ],
)
def test_nonsense_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build("naturalistic", **options)
