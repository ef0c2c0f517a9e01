"""Power-law rehearsal: counts follow the law, the budget is spent, and what is reported is what happened."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clplat.apportion import apportion
from clplat.errors import UsageError
from clplat.scenario import Experience, TensorData
from clplat.strategies.power_law_rehearsal import PowerLawRehearsal
from tests.cases import before, built, run

# Samples of a task by phases since it was introduced, in the main environment of the authors' code.
AUTHORS = [57927, 33969, 20867, 13329, 8802, 5981, 4167, 2968, 2155, 1592]


def _experience(number: int, n: int) -> Experience:
    """n samples that carry the experience's number and their own."""
    x = torch.stack([torch.full((n,), float(number)), torch.arange(float(n))], 1)
    return Experience(TensorData(x, torch.zeros(n, dtype=torch.long)), number, 0, (0,))


def _phases(sizes: list[int], **options: Any) -> list[torch.Tensor]:
    """The training data of each experience of a stream."""
    strategy = PowerLawRehearsal(**options)
    strategy.name = "power-law-rehearsal"
    learner = built("naive").learner
    found = []
    for number, n in enumerate(sizes):
        experience = _experience(number, n)
        strategy.adapt(learner, experience)
        (phase,) = strategy.phases(learner, experience)
        assert phase.data is not None
        found.append(phase.data.x)
    return found


def _counts(x: torch.Tensor) -> list[int]:
    return torch.bincount(x[:, 0].long()).tolist()


def test_the_defaults_are_the_authors_main_environment() -> None:
    strategy = PowerLawRehearsal()
    strategy._seen = [TensorData(torch.zeros(60000), torch.zeros(60000))] * 9
    found = strategy._counts(9, AUTHORS[0])
    for lag, expected in enumerate(AUTHORS[1:], 1):
        assert found[9 - lag] == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("exponent", [0.5, 1.0, 2.0])
def test_rehearsal_follows_the_power_of_the_lag(exponent: float) -> None:
    """The seed's check: a chi-square test of the counts against t^-b."""
    sizes = [400] * 8
    x = _phases(sizes, exponent=exponent, offset=0, budget=0.5)[-1]
    counts = torch.tensor(_counts(x), dtype=torch.float64)
    assert counts[-1] == 400
    assert counts[:-1].sum() == 200
    weights = torch.tensor([(7.0 - j) ** -exponent for j in range(7)], dtype=torch.float64)
    expected = 200 * weights / weights.sum()
    statistic = ((counts[:-1] - expected).square() / expected).sum()
    assert statistic < 16.8  # chi-square, 6 degrees of freedom, p = 0.01
    assert (counts[:-1] - expected).abs().max() < 1


def test_samples_are_drawn_anew_without_replacement() -> None:
    phases = _phases([200] * 4, environment="uniform", budget=0.9)
    drawn = []
    for x in phases[1:]:
        of_first = x[x[:, 0] == 0][:, 1].tolist()
        assert len(set(of_first)) == len(of_first)
        drawn.append(set(of_first))
    assert len(drawn[1] | drawn[2]) > max(len(drawn[1]), len(drawn[2]))
    # Over many phases every sample has its turn.
    many = _phases([50] * 30, environment="uniform", budget=1.0)
    assert len({int(i) for x in many[1:] for i in x[x[:, 0] == 0][:, 1]}) == 50


def test_environments_differ_as_they_say() -> None:
    sizes = [1000] * 5
    power, exponential, uniform, none = (
        _counts(_phases(sizes, environment=environment)[-1])
        for environment in ("power", "exponential", "uniform", "none")
    )
    assert uniform == [1000] * 5
    assert none == [0, 0, 0, 0, 1000]
    assert exponential == [18, 49, 135, 367, 1000]  # 1000 exp(-lag), rounded down
    assert power == [int(1000 * ((10 + lag) / 10) ** -5.6) for lag in (4, 3, 2, 1, 0)]
    budgeted = _counts(_phases(sizes, environment="exponential", budget=0.3)[-1])
    assert sum(budgeted[:-1]) == 300
    assert budgeted[3] / budgeted[2] == pytest.approx(2.718, rel=0.05)


def test_no_experience_gives_more_than_it_has() -> None:
    counts = _counts(_phases([10, 500, 500], environment="uniform", budget=0.2)[-1])
    assert counts == [10, 90, 500]


def test_the_lag_may_count_from_the_last_rehearsal() -> None:
    options: dict[str, Any] = {"environment": "exponential", "decay": 0.5, "budget": 0.02}
    introduced = [_counts(x) for x in _phases([100] * 5, lag="introduced", **options)]
    trained = [_counts(x) for x in _phases([100] * 5, lag="trained", **options)]
    # Two samples an experience. By age the last experience gets both for ever; by last rehearsal, whatever was trained
    # on at the last experience ties with it.
    assert introduced[4] == [0, 0, 0, 2, 100]
    assert trained[2][:2] == [1, 1]
    assert trained[2] != introduced[2]


@settings(max_examples=80)
@given(
    total=st.integers(0, 500),
    pairs=st.lists(st.tuples(st.floats(0, 100, allow_subnormal=False), st.integers(0, 200)), min_size=1, max_size=8),
)
def test_apportion_spends_the_total_and_keeps_the_limits(total: int, pairs: list[tuple[float, int]]) -> None:
    weights, most = [w for w, _ in pairs], [m for _, m in pairs]
    counts = apportion(total, weights, most)
    assert all(0 <= c <= m for c, m in zip(counts, most, strict=True))
    reachable = sum(m for w, m in pairs if w > 0)
    assert sum(counts) == min(total, reachable)
    assert all(c == 0 for c, w in zip(counts, weights, strict=True) if w == 0)
    if total <= min(m for _, m in pairs):  # nobody's limit counts: within one of the exact share
        for c, w in zip(counts, weights, strict=True):
            assert abs(c - total * w / (sum(weights) or 1)) < 1 + 1e-6


def test_steps_to_criterion_are_those_of_the_batches() -> None:
    one = built(
        "power-law-rehearsal", "strategy.criterion=0.5", "strategy.window=2", "trainer.accumulate=1",
        "trainer.max_epochs=12", "backbone.hidden=64", "strategy.budget=0.3",
    )  # fmt: skip
    strategy = one.learner.strategy
    shares: dict[int, list[tuple[int, int]]] = {}

    def watch(learner: Any, batch: Any, output: Any) -> None:
        own = batch["stream"].index < len(one.scenario.train_stream[batch.experience].dataset)
        right = (output.logits.argmax(1) == batch.y)[own]
        shares.setdefault(batch.experience, []).append((int(right.sum()), int(own.sum())))

    before(strategy, "observe", watch)
    results = run(one)["strategy"]
    expected: list[int | None] = []
    for e in range(3):
        pairs = shares[e]
        windows = [(pairs[i - 1], pairs[i]) for i in range(1, len(pairs))]
        reached = [i + 2 for i, ((a, b), (c, d)) in enumerate(windows) if a + c >= 0.5 * (b + d)]
        expected.append(reached[0] if reached else None)
    assert results["steps_to_criterion"] == expected
    first = expected[0]
    assert first is not None
    assert results["forward_facilitation"] == [first / n if n else None for n in expected]


def test_what_was_not_reached_is_said() -> None:
    results = run(built("power-law-rehearsal", "strategy.criterion=1.1"))["strategy"]
    assert results["steps_to_criterion"] == [None] * 3
    assert results["forward_facilitation"] == [None] * 3


@pytest.mark.parametrize("budget", [None, 0.5])
def test_what_the_law_asks_for_is_reported_beside_what_was_shown(budget: float | None) -> None:
    strategy = PowerLawRehearsal(exponent=1.0, offset=1.0, budget=budget)
    strategy._seen, strategy._last = [TensorData(torch.zeros(4, 1), torch.zeros(4)) for _ in range(2)], [0, 1]
    expected, realised = strategy._expected(2, 12), strategy._counts(2, 12)
    # weights 1/3 and 1/2 of lags 2 and 1; of 12 samples, or of the 6 of the budget, and at most the 4 that there are
    assert expected == pytest.approx([4, 6] if budget is None else [2.4, 3.6])
    assert realised == ([4, 4] if budget is None else [2, 4])


def test_without_rehearsal_it_is_naive() -> None:
    options = ["trainer.accumulate=1", "strategy.environment=none", "strategy.budget=null", "strategy.offset=10"]
    assert run(built("power-law-rehearsal", *options))["matrix"] == run(built("naive", options[0]))["matrix"]


@pytest.mark.slow
def test_power_law_rehearsal_beats_naive_and_rehearsing_the_last_task_alone() -> None:
    """The seed's check: 5 permuted digit tasks, an MLP, a budget of a fifth."""
    options = ["scenario.experiences=5", "scenario.test=0.2", "backbone.hidden=100", "backbone.dropout=0"]
    options += ["trainer.accumulate=1", "trainer.batch_size=32", "trainer.max_epochs=3", "optimizer.lr=0.005"]
    ours = ["strategy.budget=0.2", "strategy.offset=10", "strategy.exponent=5.6"]
    last = [*ours, "strategy.environment=exponential", "strategy.decay=0.01"]
    naive, power, recent = (
        run(built(name, *options, *own))["summary"]["ACC"]
        for name, own in (("naive", []), ("power-law-rehearsal", ours), ("power-law-rehearsal", last))
    )
    assert power > naive + 0.2
    assert power > recent + 0.05


@pytest.mark.parametrize(
    "options", [["exponent=-1"], ["decay=0"], ["budget=-0.1"], ["window=0"], ["offset=0", "budget=null"]]
)
def test_options_out_of_range_are_refused(options: list[str]) -> None:
    with pytest.raises(UsageError, match=options[0].split("=")[0]):
        built("power-law-rehearsal", *(f"strategy.{option}" for option in options))
