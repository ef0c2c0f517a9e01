"""GPM: bases are the paper's, by a singular value decomposition, and old inputs meet the old weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from clplat.build import build_strategy
from clplat.errors import UsageError
from clplat.strategies.gpm import extended
from tests.cases import before, built, run


def _by_singular_values(basis: Tensor, R: Tensor, share: float) -> Tensor:
    """Section 4 of the paper, word by word: projector of M after some inputs (columns of R)."""
    rest = R - basis @ basis.T @ R
    U, S, _ = torch.linalg.svd(rest, full_matrices=False)
    total, inside = R.square().sum(), R.square().sum() - rest.square().sum()
    number = 0
    while inside + S[:number].square().sum() < share * total:
        number += 1
    found = torch.cat([basis, U[:, :number]], 1)
    return found @ found.T


@pytest.mark.parametrize("share", [0.6, 0.95, 0.999])
def test_the_basis_is_the_papers(share: float) -> None:
    torch.manual_seed(0)
    basis = torch.zeros(12, 0, dtype=torch.float64)
    sizes = []
    for rank in (3, 5, 8):
        R = torch.randn(12, rank, dtype=torch.float64) @ torch.randn(rank, 40, dtype=torch.float64)
        expected = _by_singular_values(basis, R, share)
        basis = extended(basis, R @ R.T, share)
        torch.testing.assert_close(basis @ basis.T, expected, rtol=0, atol=1e-9)
        torch.testing.assert_close(basis.T @ basis, torch.eye(basis.shape[1], dtype=torch.float64), rtol=0, atol=1e-10)
        sizes.append(basis.shape[1])
    assert sizes == sorted(sizes)
    assert sizes[-1] > sizes[0]


def test_energy_is_measured_against_all_inputs_not_against_the_rest() -> None:
    """Inputs that lie in the basis for nine tenths add nothing at a threshold of 0.85, and one direction at 0.95."""
    basis = torch.eye(4, 1, dtype=torch.float64)
    moment = torch.diag(torch.tensor([9.0, 0.6, 0.4, 0.0], dtype=torch.float64))
    assert extended(basis, moment, 0.85).shape[1] == 1
    assert extended(basis, moment, 0.95).shape[1] == 2
    assert extended(basis, moment, 1.0).shape[1] == 3


@pytest.mark.parametrize(
    ("backbone", "options"), [("mlp", ["hidden=60"]), ("gru", ["hidden=60"]), ("transformer", ["dim=64"])]
)
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_old_samples_keep_their_features_with_any_optimizer(backbone: str, options: list[str], optimizer: str) -> None:
    """With all that two samples of an experience bring in kept, what the head is given for them does not change."""
    one = built(
        "gpm", f"backbone={backbone}", "trainer.precision=64", "strategy.samples=2", "strategy.threshold=1",
        "scenario=split-digits",
        "scenario.setting=task", "scenario.experiences=2", f"optimizer={optimizer}", "optimizer.weight_decay=0.01",
        *(f"backbone.{option}" for option in options),
    )  # fmt: skip
    learner, data = one.learner, one.scenario.train_stream[0].dataset
    x, _, task = data.rows(torch.randperm(len(data), generator=learner.generator("gpm/samples", 0))[:2])
    held: dict[str, Any] = {}

    def begin(learner: Any, experience: Any) -> None:
        if experience.current_experience == 1:
            held["features"] = learner.eval().output(x.double(), task).features.detach()
            held["weights"] = {name: p.detach().clone() for name, p in learner.network().items()}

    before(learner.strategy, "start", begin)
    run(one)
    features = learner.eval().output(x.double(), task).features  # the old head feels weight decay
    torch.testing.assert_close(features, held["features"], rtol=0, atol=1e-6)
    moved = {name for name, p in learner.network().items() if not torch.equal(p, held["weights"][name])}
    covered = set(learner.strategy.recall("basis"))
    assert covered <= moved
    assert {name for name in moved - covered if not name.startswith("head.")} == set()


def test_the_threshold_grows_with_experiences_and_stops_at_one() -> None:
    few = run_sizes("strategy.threshold=0.9", "strategy.growth=0")
    more = run_sizes("strategy.threshold=0.9", "strategy.growth=0.09")
    assert few[0] == more[0]
    assert all(a < b for a, b in zip(few[-1], more[-1], strict=True))


def run_sizes(*options: str) -> list[list[int]]:
    """Sizes of all bases after each experience."""
    one = built("gpm", "backbone.hidden=40", *options)
    sizes: list[list[int]] = []
    original = one.learner.strategy.finish

    def finish(learner: Any, experience: Any) -> None:
        original(learner, experience)
        sizes.append([b.shape[1] for b in learner.strategy.recall("basis").values()])

    one.learner.strategy.finish = finish
    run(one)
    return sizes


@pytest.mark.slow
def test_forgets_less_than_naive() -> None:
    options = [
        "trainer.max_epochs=10", "trainer.accumulate=1", "trainer.clip=null", "backbone.dropout=0",
        "backbone.hidden=128", "optimizer.lr=0.003", "scenario.test=0.5",
    ]  # fmt: skip
    naive = run(built("naive", *options))["summary"]
    gpm = run(built("gpm", *options, "strategy.samples=300"))["summary"]
    assert gpm["forgetting"] < naive["forgetting"] - 0.2
    assert gpm["ACC"] > naive["ACC"] + 0.15


def test_options_out_of_range_are_refused() -> None:
    for options in ({"samples": 0}, {"threshold": 1.5}, {"growth": -0.1}):
        with pytest.raises(UsageError, match=next(iter(options))):
            build_strategy({"name": "gpm", **options})
