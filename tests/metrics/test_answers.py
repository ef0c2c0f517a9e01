"""Stored answers, and what follows from them without the model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from clplat.metrics import catalogue, labels, measures, store
from clplat.metrics.answers import ANSWERS, COLUMNS, WIDE, Collected, rows
from clplat.metrics.evidence import Evidence, NotMeasuredError
from clplat.ranks import Ranks
from clplat.scenario import Experience, Target, TensorData

PREDICTIONS = [name for name in catalogue.having("matrix", "predictions") if "predictions" in catalogue.needs(name)]


def drawn(target: Target, n: int = 40, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits and targets of which some are not asked."""
    source = torch.Generator().manual_seed(seed)
    if target == "class":
        return torch.randn(n, 6, generator=source), torch.randint(0, 6, (n,), generator=source)
    logits = torch.randn(n, 5, 3, generator=source)
    hidden = torch.rand(n, 5, generator=source) < 0.3
    if target == "token":
        return logits, torch.randint(0, 3, (n, 5), generator=source).masked_fill(hidden, measures.IGNORED)
    if target == "bits":
        return logits, torch.randint(0, 2, (n, 5, 3), generator=source).masked_fill(hidden[..., None], -100)
    if target == "series":
        return logits, torch.randn(n, 5, 3, generator=source).masked_fill(hidden[..., None], torch.nan)
    return logits[:, 0], torch.randn(n, 3, generator=source)


@pytest.mark.parametrize("target", list(COLUMNS))
def test_columns_add_up_to_the_sums_that_measures_are_made_of(target: Target) -> None:
    logits, y = drawn(target)
    found = ANSWERS[target](logits, y, torch.tensor([0, 1]))
    assert set(found) == set(COLUMNS[target])
    sums = dict(zip(measures.SUM_NAMES[target], measures.sums(target, logits, y).tolist(), strict=True))
    if target == "class":
        assert (found["predicted"] == found["y"]).sum() == sums["right"]
        masked = logits.masked_fill(torch.arange(6) > 1, -torch.inf)
        assert torch.equal(found["own"], masked.argmax(-1))
        assert torch.equal(found["confidence"], logits.softmax(-1).max(-1).values)
        return
    for name in set(found) & set(sums):
        assert float(found[name].sum()) == pytest.approx(sums[name], rel=1e-12), name
    assert set(found) - set(sums) <= {"nll", "absolute", *WIDE}
    for name in set(found) & set(WIDE):
        kept = {1: "step_", 2: "channel_"}[WIDE[name][1]]
        assert float(found[name].sum()) == pytest.approx(sums[name.removeprefix(kept)], rel=1e-12)
    if target == "bits":
        each = torch.nn.functional.binary_cross_entropy_with_logits(logits, (y == 1).float(), reduction="none")
        assert float(found["nll"].sum()) == pytest.approx(float(each[y != -100].sum()), rel=1e-5)


# --- files


def stream(*targets: Tensor) -> list[Experience]:
    return [
        Experience(TensorData(torch.zeros(len(y), 1), y), j, 0, tuple(torch.unique(y).tolist()), "test")
        for j, y in enumerate(targets)
    ]


LABELS = (torch.tensor([0, 0, 1, 1]), torch.tensor([2, 3, 3]))


def stored(run_dir: Path, logits: list[list[Tensor]], kept: store.Form = "predictions") -> Evidence:
    """A run of two experiences with these logits after each, on each; the matrix is that of the accuracies."""
    matrix = []
    for i, row in enumerate(logits):
        collected = Collected("class", stream(*LABELS), [0, 1], Ranks())
        for j, given in enumerate(row):
            collected.add(j, slice(0, 2), given[:2], LABELS[j][:2])
            collected.add(j, torch.arange(2, len(given)), given[2:], LABELS[j][2:])
        store.write(run_dir, i, collected.whole(), kept)
        matrix.append([float((given.argmax(-1) == y).double().mean()) for given, y in zip(row, LABELS, strict=True)])
    return Evidence(matrix=matrix, new_classes=True, predictions=store.Answers(run_dir))


def confident(*classes: int, among: int = 4, logit: float = 2.0) -> Tensor:
    return logit * torch.nn.functional.one_hot(torch.tensor(classes), among).float()


FIRST = [confident(0, 0, 1, 0), confident(0, 0, 0)]
# Half of experience 0 is taken for 2 and 3; among its own classes, which are all equal there, the first is answered.
SECOND = [confident(0, 2, 3, 1), confident(2, 3, 2)]


@pytest.fixture
def run(tmp_path: Path) -> Evidence:
    return stored(tmp_path, [FIRST, SECOND])


def test_known_answers(run: Evidence) -> None:
    assert labels.masked(run).matrix == [[0.75, 1 / 3], [0.75, 2 / 3]]  # 0: 0, 0, 0, 1; 1: 2, 3, 2 of 2, 3, 3
    assert labels.average_masked(run) == pytest.approx((0.75 + 2 / 3) / 2)
    assert labels.forgetting_masked(run) == 0.0
    assert labels.average_pooled(run) == pytest.approx((2 + 2) / 7)
    assert labels.class_accuracy(run) == {"0": 0.5, "1": 0.5, "2": 1.0, "3": 0.5}
    assert labels.confusion(run) == {
        "labels": [0, 1, 2, 3],
        "counts": [[1, 0, 1, 0], [0, 1, 0, 1], [0, 0, 1, 0], [0, 0, 1, 1]],
    }
    assert labels.confusion_blocks(run) == {"experiences": [0, 1], "shares": [[0.5, 0.5, 0.0], [0.0, 1.0, 0.0]]}
    assert labels.recency_share(run) == pytest.approx(5 / 7 - 3 / 7)
    confidence = float(torch.tensor([2.0, 0, 0, 0]).softmax(0)[0])  # the same everywhere
    assert labels.calibration_error(run) == pytest.approx(abs(4 / 7 - confidence), rel=1e-6)


def test_counts_say_the_same_but_for_calibration(run: Evidence, tmp_path: Path) -> None:
    other = tmp_path / "counts"
    other.mkdir()
    counts = stored(other, [FIRST, SECOND], "counts")
    whole, _ = catalogue.compute(PREDICTIONS, run)
    less, reasons = catalogue.compute(PREDICTIONS, counts)
    assert less["ece"] is None
    assert "eval.store=predictions" in reasons["ece"]
    assert {**whole, "ece": None} == less


def test_what_is_stored_comes_back(run: Evidence, tmp_path: Path) -> None:
    y, predicted, count = run.known().column(1, 1, "y", "predicted")
    assert (y.tolist(), predicted.tolist(), count.tolist()) == ([2, 3, 3], [2, 3, 2], [1, 1, 1])
    before = store.path(tmp_path, 1).read_bytes()
    stored(tmp_path, [FIRST, SECOND])
    assert store.path(tmp_path, 1).read_bytes() == before  # equal answers, equal bytes
    with np.load(store.path(tmp_path, 1), allow_pickle=False) as file:
        assert file["y"].dtype == np.uint8
    with pytest.raises(NotMeasuredError, match="stored no predictions after experience 2"):
        run.known().after(2)
    with pytest.raises(NotMeasuredError, match="experience 5 was not evaluated"):
        run.known().column(1, 5, "y")
    with pytest.raises(NotMeasuredError, match="no nll"):
        run.known().column(1, 1, "nll")
    store.cut(tmp_path, 1)
    assert [path.name for path in (tmp_path / store.FOLDER).iterdir()] == ["e000.npz"]


@pytest.mark.parametrize("damage", ["torn", "pickle"])
def test_a_damaged_file_is_named(damage: str, tmp_path: Path) -> None:
    run = stored(tmp_path, [FIRST, SECOND])
    path = store.path(tmp_path, 1)
    if damage == "torn":
        path.write_bytes(path.read_bytes()[:-40])
    else:
        np.savez(path, experience=[0], length=[1], y=np.array([{}], dtype=object))
    values, reasons = catalogue.compute(["ACC", "ACC_masked", "ece"], run)
    assert values["ACC"] is not None
    assert "e001.npz cannot be read" in reasons["ece"]
    assert "e001.npz cannot be read" in reasons["ACC_masked"]


def test_shared_classes_have_no_blocks(tmp_path: Path) -> None:
    columns = {"y": np.array([0, 1]), "predicted": np.array([0, 0]), "own": np.array([0, 0])}
    store.write(tmp_path, 0, {0: columns, 1: columns}, "counts")
    store.write(tmp_path, 1, {0: columns, 1: columns}, "counts")
    run = Evidence(matrix=[[0.5, 0.5], [0.5, 0.5]], predictions=store.Answers(tmp_path))
    values, reasons = catalogue.compute(PREDICTIONS, run)
    assert values["recency_share"] is values["confusion_blocks"] is None
    assert "experiences share classes" in reasons["recency_share"]
    assert values["confusion"] == {"labels": [0, 1], "counts": [[2, 0], [2, 0]]}


def test_steps(tmp_path: Path) -> None:
    first = {"asked": np.array([3, 1]), "right": np.array([3, 0]), "nll": np.array([0.3, 0.5])}
    second = {"asked": np.array([2, 2]), "right": np.array([1, 1]), "nll": np.array([4.0, 4.0])}
    store.write(tmp_path, 0, {0: first}, "predictions")
    store.write(tmp_path, 1, {0: first, 1: second}, "predictions")
    run = Evidence(matrix=[[0.75, None], [0.75, 0.5]], predictions=store.Answers(tmp_path))
    assert labels.average_pooled(run) == pytest.approx(5 / 8)
    assert labels.nats(run) == pytest.approx((0.8 / 4 + 8.0 / 4) / 2)
    _, reasons = catalogue.compute(PREDICTIONS, run)
    assert "no y" in reasons["confusion"]


def test_automatic_form() -> None:
    assert rows("class", stream(*LABELS)) == 7
    series = stream(torch.zeros(8, 10, 3))  # five columns of one number, two of ten, four of three
    assert rows("series", series) == 8 * (5 + 2 * 10 + 4 * 3) // 4
    assert store.form("auto", store.AUTO_ROWS) == "predictions"
    assert store.form("auto", store.AUTO_ROWS + 1) == "counts"
    assert [store.form(word, 1) for word in ("predictions", "counts", "none")] == ["predictions", "counts", None]


def test_torchmetrics_has_the_same_values(tmp_path: Path) -> None:
    from torchmetrics.functional.classification import multiclass_calibration_error, multiclass_confusion_matrix

    source = torch.Generator().manual_seed(3)
    given = [3 * torch.randn(len(y), 4, generator=source) for y in LABELS]
    run = stored(tmp_path, [FIRST, given])
    logits, y = torch.cat(given), torch.cat(LABELS)
    expected = multiclass_calibration_error(logits, y, num_classes=4, n_bins=15, norm="l1")
    assert labels.calibration_error(run) == pytest.approx(float(expected), abs=1e-6)
    found: dict[str, Any] = labels.confusion(run)
    assert found["labels"] == [0, 1, 2, 3]
    assert found["counts"] == multiclass_confusion_matrix(logits, y, num_classes=4).tolist()


def test_all_values_are_plain(run: Evidence) -> None:
    values, _ = catalogue.compute(PREDICTIONS, run)
    assert json.loads(json.dumps(values)) == values
