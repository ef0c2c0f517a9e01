"""Features, heads and gradients: answers that are known beforehand, and whole runs."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from clplat.cli import main
from clplat.metrics.evidence import Evidence, NotMeasuredError
from clplat.metrics.flops import flops
from clplat.metrics.models import Models
from clplat.metrics.representation import dormant, effective_rank, linear_cka, mean_cosine
from clplat.metrics.runs import evidence
from tests import cases, harness


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rotation(d: int) -> Tensor:
    return torch.linalg.qr(drawn(d, d, seed=9)).Q


def test_cka_forgets_rotation_scale_and_shift_and_nothing_else() -> None:
    X = drawn(50, 6)
    assert linear_cka(X, 3 * X @ rotation(6) + 1) == pytest.approx(1)
    assert linear_cka(X, X @ torch.diag(torch.tensor([9.0, 1, 1, 1, 1, 1]).double())) < 0.9
    assert linear_cka(X, drawn(50, 4, seed=1)) == pytest.approx(linear_cka(drawn(50, 4, seed=1), X))
    # orthogonal features: nothing in common
    assert linear_cka(torch.tensor([[1.0], [-1], [1], [-1]]), torch.tensor([[1.0], [1], [-1], [-1]])) == pytest.approx(
        0
    )
    with pytest.raises(NotMeasuredError, match="do not vary"):
        linear_cka(X, torch.ones(50, 3))


def test_cka_is_that_of_its_definition_by_kernels() -> None:
    """HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)) with linear kernels, which the norms of products stand for."""
    X, Y = drawn(20, 5), drawn(20, 3, seed=1)
    H = torch.eye(20, dtype=torch.float64) - 1 / 20
    K, L = H @ X @ X.T @ H, H @ Y @ Y.T @ H
    expected = (K * L).sum() / ((K * K).sum() * (L * L).sum()).sqrt()
    assert linear_cka(X, Y) == pytest.approx(float(expected))


def test_effective_rank_counts_equal_directions() -> None:
    basis = rotation(8)
    assert effective_rank(5 * basis[:, :3]) == pytest.approx(3)
    assert effective_rank(drawn(30, 1) @ drawn(1, 8, seed=1)) == pytest.approx(1)
    two = torch.diag(torch.tensor([3.0, 1.0]))
    assert effective_rank(two) == pytest.approx(math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25))))
    with pytest.raises(NotMeasuredError, match="zero"):
        effective_rank(torch.zeros(4, 2))


def test_dormant_units() -> None:
    X = torch.tensor([[1.0, 0.0, -0.01, 2.0], [-3.0, 0.0, 0.01, 2.0]])  # mean activity 2, 0, 0.01, 2: mean 1.0025
    assert dormant(X, 0.0) == 0.25
    assert dormant(X, 0.025) == 0.5
    assert dormant(100 * X, 0.025) == 0.5


def test_mean_cosine() -> None:
    a, b = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 5.0])
    assert mean_cosine([a, b]) == 0
    assert mean_cosine([a, 2 * a, -a]) == pytest.approx((1 - 1 - 1) / 3)
    with pytest.raises(NotMeasuredError):
        mean_cosine([a, 0 * b])


# --- whole runs

SMALL = [*cases.small("naive"), "scenario=split-digits", "scenario.experiences=3"]
NAMES = ("cka", "effective_rank", "dormant_units", "head_drift", "gradient_interference", "flops")


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = harness.make(tmp_path_factory.mktemp("models") / "run", [*SMALL, "trainer.keep_boundaries=true"])
    outcome = harness.run(run_dir)
    assert outcome.codes == [0], outcome.output
    return run_dir


@pytest.mark.slow
def test_computed_from_checkpoints_of_a_run(done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.read_bytes() for path in done.iterdir() if path.is_file()}
    assert main(["metrics", str(done), "--add", ",".join(NAMES), "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert found["reasons"] == {}
    values = found["values"]
    assert set(values) == set(NAMES)
    assert values["cka"].keys() == values["head_drift"].keys() == {"0", "1"}
    assert all(0 < value < 1 for value in values["cka"].values())
    assert values["head_drift"]["0"] > 0
    assert 1 <= values["effective_rank"] <= 12
    assert 0 <= values["dormant_units"] < 1
    assert -1 < values["gradient_interference"] < 1
    assert json.loads((done / "metrics.json").read_text())["values"] == values
    assert {path: path.read_bytes() for path in before} == before


def test_networks_are_those_that_the_run_had(done: Path) -> None:
    known, _ = evidence(done, with_models=True)
    models = known.network()
    for i in range(known.n):
        learner = models.at(i).learner
        data = models.at(i).scenario.test_stream[0].dataset
        with learner.evaluating():
            right = learner(data.x, data.task).argmax(-1) == data.y
        assert float(right.double().mean()) == known.at(i, 0)
    head = models.head(2)
    assert {name: p.shape for name, p in head.items()} == {"linear.weight": (10, 12), "linear.bias": (10,)}


def test_the_gradient_is_that_of_the_mean_loss(done: Path) -> None:
    models = Models(done)
    learner, data = models.at(2).learner, models.at(2).scenario.train_stream[1].dataset
    found = models.gradient(2, 1, 300)
    learner.eval()
    learner.zero_grad()
    n = min(300, len(data))
    learner.base_loss(learner(data.x[:n], data.task[:n]), data.y[:n]).mean().backward()
    expected = torch.cat([p.grad.flatten() for p in learner.network().values() if p.grad is not None])
    torch.testing.assert_close(found.float(), expected, rtol=1e-4, atol=1e-6)


def test_flops_of_a_step_are_those_of_its_products(done: Path) -> None:
    """A network of two layers and a head: forward 2 N D H for each matrix, and as much twice over in the backward
    pass, but for the first, whose inputs need no gradient."""
    job = Models(done).fresh()
    n = 2 * 51  # accumulated batches
    assert len(job.scenario.train_stream[0].dataset) >= n
    first, *others = [2 * n * p.numel() for p in job.learner.parameters() if p.ndim == 2]
    assert flops(Evidence(matrix=[], models=Models(done))) == 2 * first + 3 * sum(others)


def test_without_boundaries_only_the_end_is_known(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_dir = harness.make(tmp_path / "run", SMALL)
    assert harness.run(run_dir).codes == [0]
    assert main(["metrics", str(run_dir), "--add", "cka,effective_rank", "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert found["values"]["cka"] is None
    assert "trainer.keep_boundaries=true" in found["reasons"]["cka"]
    assert found["values"]["effective_rank"] > 1
