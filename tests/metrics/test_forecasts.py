"""Errors of forecasts from stored answers, against scikit-learn on the predictions themselves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import mean_absolute_error, mean_squared_error, r2_score
from torch import Tensor

from clplat.metrics import catalogue, store
from clplat.metrics.answers import Collected
from clplat.metrics.evidence import Evidence
from clplat.ranks import Ranks
from clplat.scenario import TensorData, stream

FORECASTS = ("mae", "rmse_by_step", "r2_by_channel")


def stored(
    run_dir: Path, target: str, pairs: list[tuple[Tensor, Tensor]], kept: store.Form = "predictions"
) -> Evidence:
    """A run of as many experiences as there are pairs of predictions and values; all are evaluated at the end."""
    experiences = stream("test", [TensorData(torch.zeros(len(y), 1), y) for _, y in pairs])
    said = Collected(target, experiences, range(len(pairs)), Ranks())  # type: ignore[arg-type]
    for j, (predicted, y) in enumerate(pairs):
        for rows in (slice(0, 3), torch.arange(3, len(y))):
            said.add(j, rows, predicted[rows], y[rows])
    store.write(run_dir, len(pairs) - 1, said.whole(), kept)
    return Evidence(matrix=[[0.0] * len(pairs)] * len(pairs), direction="min", predictions=store.Answers(run_dir))


def drawn(*shape: int, seed: int) -> tuple[Tensor, Tensor]:
    source = torch.Generator().manual_seed(seed)
    y = 3 + torch.randn(shape, generator=source)
    return y + 0.5 * torch.randn(shape, generator=source), y


def test_a_series_is_judged_as_scikit_learn_judges_it(tmp_path: Path) -> None:
    pairs = [drawn(9, 4, 2, seed=seed) for seed in (0, 1)]
    values, reasons = catalogue.compute(FORECASTS, stored(tmp_path, "series", pairs))
    assert not reasons
    flat = [(y.flatten().numpy(), predicted.flatten().numpy()) for predicted, y in pairs]
    assert values["mae"] == pytest.approx(np.mean([mean_absolute_error(*pair) for pair in flat]), rel=1e-6)
    for t in range(4):
        each = [mean_squared_error(y[:, t].flatten(), predicted[:, t].flatten()) ** 0.5 for predicted, y in pairs]
        assert values["rmse_by_step"][t] == pytest.approx(np.mean(each), rel=1e-6)
    for k in range(2):
        each = [r2_score(y[..., k].flatten(), predicted[..., k].flatten()) for predicted, y in pairs]
        assert values["r2_by_channel"][k] == pytest.approx(np.mean(each), rel=1e-5)


def test_values_are_one_step(tmp_path: Path) -> None:
    predicted, y = drawn(30, 3, seed=2)
    values, _ = catalogue.compute(FORECASTS, stored(tmp_path, "value", [(predicted, y)]))
    assert values["rmse_by_step"] == pytest.approx([mean_squared_error(y, predicted) ** 0.5], rel=1e-6)
    assert values["r2_by_channel"] == pytest.approx(r2_score(y, predicted, multioutput="raw_values").tolist(), rel=1e-5)


def test_what_is_not_asked_counts_nowhere(tmp_path: Path) -> None:
    predicted, y = drawn(8, 5, 2, seed=3)
    hidden = y.clone()
    hidden[:, 0] = torch.nan  # a warm-up
    hidden[2:, 3, 1] = torch.nan
    hidden[..., 1] = torch.where(hidden[..., 1].isnan(), torch.nan, 7.0)  # and a channel that stands still
    values, _ = catalogue.compute(FORECASTS, stored(tmp_path, "series", [(predicted, hidden)]))
    known = ~hidden.isnan()
    assert values["mae"] == pytest.approx(float((predicted - hidden)[known].abs().mean()), rel=1e-6)
    assert values["rmse_by_step"][0] is None
    third = (predicted - hidden)[:, 3][known[:, 3]]
    assert values["rmse_by_step"][3] == pytest.approx(float(third.square().mean().sqrt()), rel=1e-6)
    assert values["r2_by_channel"][0] == pytest.approx(
        r2_score(y[:, 1:, 0].flatten(), predicted[:, 1:, 0].flatten()), rel=1e-5
    )
    assert values["r2_by_channel"][1] is None


def test_counts_and_classes_have_no_errors(tmp_path: Path) -> None:
    counts = tmp_path / "counts"
    counts.mkdir()
    _, reasons = catalogue.compute(FORECASTS, stored(counts, "series", [drawn(9, 4, 2, seed=4)], "counts"))
    assert all("eval.store=predictions" in reasons[name] for name in FORECASTS)
    classes = stored(tmp_path, "class", [(torch.randn(9, 2), torch.arange(9) % 2)])
    _, reasons = catalogue.compute(FORECASTS, classes)
    assert "no absolute" in reasons["mae"]
