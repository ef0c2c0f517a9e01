"""Measures are made of sums: however a test set is cut in batches, they are those of the whole."""

from __future__ import annotations

import math

import pytest
import torch

from clplat.metrics import measures
from clplat.scenario import Target

N, T, C = 12, 5, 3


def example(target: Target) -> tuple[torch.Tensor, torch.Tensor]:
    source = torch.Generator().manual_seed(0)
    steps = (T,) if target in ("token", "bits", "series") else ()
    output = torch.randn(N, *steps, C, generator=source, dtype=torch.float64)
    if target in ("value", "series"):
        y = torch.randn(output.shape, generator=source, dtype=torch.float64)
        return output, y.masked_fill(torch.rand(y.shape, generator=source) < 0.3, torch.nan) if steps else y
    y = torch.randint(2 if target == "bits" else C, output.shape if target == "bits" else output.shape[:-1])
    return output, y.masked_fill(torch.rand(y.shape, generator=source) < 0.3, measures.IGNORED) if steps else y


@pytest.mark.parametrize("target", measures.NAMES)
@pytest.mark.parametrize("sizes", [[12], [1, 11], [5, 4, 3]])
def test_batches_add_up(target: Target, sizes: list[int]) -> None:
    output, y = example(target)
    whole = measures.values(target, measures.sums(target, output, y))
    parts = zip(output.split(sizes), y.split(sizes), strict=True)
    summed = torch.stack([measures.sums(target, o, t) for o, t in parts]).sum(0)
    assert measures.values(target, summed) == pytest.approx(whole, rel=1e-12)
    assert list(whole) == ["loss", *measures.NAMES[target]]


def test_likelihood_of_tokens() -> None:
    output, y = example("token")
    terms = [-output[n, t].log_softmax(-1)[y[n, t]].item() for n in range(N) for t in range(T) if y[n, t] >= 0]
    found = measures.values("token", measures.sums("token", output, y))
    assert found["nll"] == pytest.approx(sum(terms) / len(terms))
    assert found["perplexity"] == pytest.approx(math.exp(sum(terms) / len(terms)))
    assert found["bits"] == pytest.approx(sum(terms) / len(terms) / math.log(2))


@pytest.mark.parametrize("target", ["value", "series"])
def test_errors_of_values(target: Target) -> None:
    output, y = example(target)
    known = ~y.isnan()
    errors, kept = (output - y)[known], y[known]
    found = measures.values(target, measures.sums(target, output, y))
    assert found["mse"] == pytest.approx(errors.square().mean().item())
    assert found["nrmse"] == pytest.approx((errors.square().mean() / kept.var(correction=0)).sqrt().item())
    mean = torch.full_like(output, kept.mean().item())
    assert measures.values(target, measures.sums(target, mean, y))["nrmse"] == pytest.approx(1)
    assert math.isnan(measures.values(target, measures.sums(target, output, torch.ones_like(y)))["nrmse"])


def test_loss_of_a_series_is_the_mean_over_asked_steps() -> None:
    output, y = torch.zeros(2, 3, 2), torch.full((2, 3, 2), torch.nan)
    y[0, 0] = torch.tensor([1.0, 2.0])
    y[0, 2, 1] = 3.0
    assert measures.base_loss("series", output, y).tolist() == [0.5 * (1 + 4 + 9) / 2, 0]
    output.requires_grad_()
    measures.base_loss("series", output, y).sum().backward()
    assert output.grad is not None
    assert ((output.grad != 0) == ~y.isnan()).all()
