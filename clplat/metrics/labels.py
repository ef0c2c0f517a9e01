"""What stored answers say without the model: other settings by masking, calibration, confusion, counts that add up.

Unless said otherwise a metric looks at the evaluation after the last train experience, on the test experiences seen by
then. Rows carry a count, so that everything but calibration follows from stored counts as well.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from clplat.errors import UsageError
from clplat.metrics import matrix
from clplat.metrics.evidence import Evidence, NotMeasuredError, Row, mean


def _share(hit: np.ndarray, count: np.ndarray) -> float:
    if not count.sum():
        raise NotMeasuredError("an experience has no test samples")
    return float((hit * count).sum() / count.sum())


def _pooled(run: Evidence, *names: str) -> tuple[np.ndarray, ...]:
    """Columns over all test experiences seen, and ``count`` behind them."""
    if not run.seen:
        raise NotMeasuredError(matrix.NONE)
    parts = [run.known().column(run.n - 1, j, *names) for j in run.seen]
    return tuple(np.concatenate(columns) for columns in zip(*parts, strict=True))


def masked(run: Evidence) -> Evidence:
    """The run as if task labels had been given: the matrix of accuracies where only the classes of a test experience
    may be answered on it. One run then tells of class- and of task-incremental learning (van de Ven et al. 2022)."""

    def row(i: int) -> Row:
        answered = run.known().after(i)
        found: list[float | None] = [None] * max(len(r) for r in run.matrix)
        for j in answered:
            y, own, count = run.known().column(i, j, "y", "own")
            found[j] = _share(y == own, count)
        return found

    return replace(run, matrix=[row(i) for i in range(run.n)], direction="max", new_classes=False)


def average_masked(run: Evidence) -> float:
    """ACC of the masked matrix: task-incremental accuracy of the very same run."""
    return matrix.average(masked(run))


def forgetting_masked(run: Evidence) -> float:
    """Forgetting of the masked matrix: what was lost apart from confusing experiences with one another."""
    return matrix.forgetting(masked(run))


def backward_transfer_masked(run: Evidence) -> float:
    """BWT of the masked matrix."""
    return matrix.backward_transfer(masked(run))


def average_pooled(run: Evidence) -> float:
    """Accuracy over all samples (tokens, bits) of the experiences seen together, large experiences weighing more than
    in ACC."""
    if "right" in next(iter(run.known().after(run.n - 1).values()), {}):
        asked, right, count = _pooled(run, "asked", "right")
        return _share(right, count) / _share(asked, count)
    y, predicted, count = _pooled(run, "y", "predicted")
    return _share(y == predicted, count)


def class_accuracy(run: Evidence) -> dict[str, float]:
    """The share of each class's samples that are answered right, by class."""
    y, predicted, count = _pooled(run, "y", "predicted")
    return {str(c): _share((predicted == c)[y == c], count[y == c]) for c in np.unique(y).tolist()}


def confusion(run: Evidence) -> dict[str, Any]:
    """Confusion matrix: ``counts[k][l]`` samples of ``labels[k]`` were taken for ``labels[l]``; the labels are those
    that occur or were answered."""
    y, predicted, count = _pooled(run, "y", "predicted")
    labels, places = np.unique(np.concatenate([y, predicted]), return_inverse=True)
    counts = np.zeros((len(labels), len(labels)), np.int64)
    np.add.at(counts, (places[: len(y)], places[len(y) :]), count)
    return {"labels": labels.tolist(), "counts": counts.tolist()}


def _blocks(run: Evidence) -> dict[int, int]:
    """The test experience that each class belongs to."""
    owner: dict[int, int] = {}
    for j in run.seen:
        (y, _) = run.known().column(run.n - 1, j, "y")
        for c in np.unique(y).tolist():
            if owner.setdefault(c, j) != j:
                raise NotMeasuredError(f"undefined where experiences share classes: class {c} is in several")
    return owner


def confusion_blocks(run: Evidence) -> dict[str, Any]:
    """Confusion by experience: ``shares[k][l]`` of the samples of test experience ``experiences[k]`` were taken for
    classes of ``experiences[l]``, the last column for classes of none of them."""
    owner = _blocks(run)
    place = {j: k for k, j in enumerate(run.seen)}
    shares = np.zeros((len(place), len(place) + 1))
    for j, k in place.items():
        predicted, count = run.known().column(run.n - 1, j, "predicted")
        taken = np.array([place[owner[c]] if c in owner else len(place) for c in predicted.tolist()])
        np.add.at(shares[k], taken, count / count.sum())
    return {"experiences": run.seen, "shares": shares.tolist()}


def recency_share(run: Evidence) -> float:
    """Recency bias of the answers: the share of all answers that are classes of the last experience, less the share of
    the samples that are: 0 is no bias (Wu et al. 2019 and Masana et al. 2022 show it as confusion matrices)."""
    if len(run.seen) < 2:
        raise NotMeasuredError("recency bias needs two experiences")
    last = [c for c, j in _blocks(run).items() if j == run.test(run.n - 1)]
    y, predicted, count = _pooled(run, "y", "predicted")
    return _share(np.isin(predicted, last), count) - _share(np.isin(y, last), count)


def calibration_error(run: Evidence, *, bins: int = 15) -> float:
    """ECE: ``sum_b n_b/N |accuracy_b - confidence_b|`` over bins of equal width in the confidence of the answer, each
    closed on its right (Guo et al. 2017, eq. 3); over the samples of all experiences seen together.

    Args:
        bins: how many.
    """
    if bins < 1:
        raise UsageError(f"ece: bins={bins}: at least 1 is needed")
    y, predicted, confidence, count = _pooled(run, "y", "predicted", "confidence")
    which = np.clip(np.ceil(confidence.astype(np.float64) * bins) - 1, 0, bins - 1).astype(np.int64)
    gap = np.bincount(which, weights=((predicted == y) - confidence.astype(np.float64)) * count, minlength=bins)
    return float(np.abs(gap).sum() / count.sum())


def nats(run: Evidence) -> float:
    """Mean over the experiences seen of the negative log-likelihood of an asked token or bit, in nats."""
    values = []
    for j in run.seen:
        asked, nll, count = run.known().column(run.n - 1, j, "asked", "nll")
        if not (asked * count).sum():
            raise NotMeasuredError(f"nothing is asked in experience {j}")
        values.append(float((nll * count).sum() / (asked * count).sum()))
    return mean(values, matrix.NONE)
