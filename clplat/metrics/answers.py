"""What a network answers to each test sample, in columns: what metrics need to know when the model is gone.

Targets of one class give the label (``y``), the label ``predicted``, the label predicted when only the experience's
``own`` classes, those of its test samples, may be chosen, and the ``confidence`` (the softmax of the predicted label).
Tokens and bits give how many were ``asked`` and how many were ``right`` in a sample, and the negative log-likelihood of
all that was asked (``nll``, nats). Values and series give how many were ``asked``, their squared and ``absolute``
``error``, their ``total`` and the sum of their ``squares``; and the same in columns of several numbers for a sample,
one for each of the T steps (``step_asked``, ``step_error``) or K values of a step (``channel_...``); values without
steps are one step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as nnf
from torch import Tensor

from clplat.metrics.measures import bit_entries, token_entries, value_entries
from clplat.metrics.store import Columns
from clplat.ranks import Ranks
from clplat.scenario import Experience, Target

Named = dict[str, Tensor]


def class_answers(logits_NC: Tensor, y_N: Tensor, own_K: Tensor) -> Named:
    """The columns of samples with one class each; ``own_K`` are the classes of their experience."""
    predicted_N = logits_NC.argmax(-1)
    confidence_NC = logits_NC.softmax(-1)
    return {
        "y": y_N,
        "predicted": predicted_N,
        "own": own_K[logits_NC[:, own_K].argmax(-1)],
        "confidence": confidence_NC.gather(-1, predicted_N[:, None])[:, 0].float(),
    }


def token_answers(logits_NTV: Tensor, y_NT: Tensor, own_K: Tensor) -> Named:
    """The columns of samples with a token at each step."""
    return {name: entry.sum(1) for name, entry in token_entries(logits_NTV, y_NT).items()}


def bit_answers(logits_NTF: Tensor, y_NTF: Tensor, own_K: Tensor) -> Named:
    """The columns of samples with bits at each step."""
    found = bit_entries(logits_NTF, y_NTF)
    one_NTF = (y_NTF == 1).to(logits_NTF.dtype)
    loss_NTF = nnf.binary_cross_entropy_with_logits(logits_NTF, one_NTF, reduction="none")
    found["nll"] = loss_NTF.double() * found["asked"]
    return {name: entry.flatten(1).sum(1) for name, entry in found.items()}


def value_answers(predicted: Tensor, y: Tensor, own_K: Tensor) -> Named:
    """The columns of samples with real values; what is NaN was not asked."""
    entries = value_entries(predicted, y)
    found = {name: entry.flatten(1).sum(1) for name, entry in entries.items()}
    for name, (of, axis) in WIDE.items():
        found[name] = _by_step(entries[of]).sum(3 - axis)
    return found


def _by_step(y: Tensor) -> Tensor:
    """Values as a series of one step: (N, K) -> (N, 1, K); a series as it is."""
    return y[:, None] if y.ndim == 2 else y


ANSWERS: dict[Target, Callable[[Tensor, Tensor, Tensor], Named]] = {
    "class": class_answers,
    "token": token_answers,
    "bits": bit_answers,
    "value": value_answers,
    "series": value_answers,
}
_STEPS = {"asked": torch.int64, "right": torch.int64, "nll": torch.float64}
# Columns of several numbers for a sample: which entries are added up, and the axis of (N, T, K) that is left.
WIDE = {"step_asked": ("asked", 1), "step_error": ("error", 1)} | {
    f"channel_{of}": (of, 2) for of in ("asked", "error", "total", "squares")
}
_NUMBERS = ("asked", "error", "absolute", "total", "squares", *WIDE)
_VALUES = {name: torch.int64 if name.endswith("asked") else torch.float64 for name in _NUMBERS}
COLUMNS: dict[Target, dict[str, torch.dtype]] = {
    "class": {"y": torch.int64, "predicted": torch.int64, "own": torch.int64, "confidence": torch.float32},
    "token": _STEPS,
    "bits": _STEPS,
    "value": _VALUES,
    "series": _VALUES,
}


def widths(target: Target, y: Tensor) -> dict[str, int]:
    """How many numbers each column has for a sample with such targets (N, ...)."""
    return {name: _by_step(y).shape[WIDE[name][1]] if name in WIDE else 1 for name in COLUMNS[target]}


def rows(target: Target, stream: Sequence[Experience]) -> int:
    """How many samples with one class each would take as much room as the answers to a stream."""
    each = sum(widths(target, stream[0].dataset.y).values())
    return sum(len(experience.dataset) for experience in stream) * each // len(COLUMNS["class"])


class Collected:
    """The answers to the test samples of some experiences, collected over batches and ranks.

    Every rank fills its rows of a table of zeros, so that the sum over ranks holds the numbers themselves and is the
    same on one rank and on N, bit for bit.

    Args:
        target: what is predicted.
        stream: the test stream.
        which: positions in it.
        ranks: the processes of the run.
    """

    def __init__(self, target: Target, stream: Sequence[Experience], which: Sequence[int], ranks: Ranks) -> None:
        self.target, self.ranks = target, ranks
        labels = {j: stream[j].dataset.y if target == "class" else torch.zeros(0) for j in which}
        self.own = {j: torch.unique(y).to(ranks.device) for j, y in labels.items()}
        lengths = [len(stream[j].dataset) for j in which]
        self.widths = widths(target, stream[which[0]].dataset.y) if which else {}
        shape = (sum(lengths), sum(self.widths.values()))
        self.table = torch.zeros(shape, dtype=torch.float64, device=ranks.device)
        self.parts = dict(zip(which, self.table.split(lengths), strict=True))  # views of the table

    def add(self, j: int, rows: slice | Tensor, logits: Tensor, y: Tensor) -> None:
        """The answers to some samples of test experience j."""
        found = ANSWERS[self.target](logits, y, self.own[j])
        columns = [found[name].double().reshape(len(y), width) for name, width in self.widths.items()]
        self.parts[j][rows] = torch.cat(columns, 1)

    def whole(self) -> dict[int, Columns]:
        """The columns of each experience, on every rank; call it on all ranks alike."""
        self.ranks.all_reduce(self.table)
        types = COLUMNS[self.target]

        def columns(part: Tensor) -> Columns:
            split = zip(types.items(), part.split(list(self.widths.values()), 1), strict=True)
            return {n: (c if n in WIDE else c[:, 0]).to("cpu", dtype).numpy() for (n, dtype), c in split}

        return {j: columns(part) for j, part in self.parts.items()}
