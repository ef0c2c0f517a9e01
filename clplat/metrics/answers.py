"""What a network answers to each test sample, in columns: what metrics need to know when the model is gone.

Targets of one class give the label (``y``), the label ``predicted``, the label predicted when only the experience's
``own`` classes, those of its test samples, may be chosen, and the ``confidence`` (the softmax of the predicted label).
Tokens and bits give how many were ``asked`` and how many were ``right`` in a sample, and the negative log-likelihood of
all that was asked (``nll``, nats). Values and series give how many were ``asked``, their squared ``error``, their
``total`` and the sum of their ``squares``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as nnf
from torch import Tensor

from clplat.metrics.measures import IGNORED
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
    asked_NT = y_NT != IGNORED
    nll_NT = nnf.cross_entropy(logits_NTV.transpose(1, 2), y_NT, ignore_index=IGNORED, reduction="none")
    right_NT = (logits_NTV.argmax(-1) == y_NT) & asked_NT
    return {"asked": asked_NT.sum(1), "right": right_NT.sum(1), "nll": nll_NT.double().sum(1)}


def bit_answers(logits_NTF: Tensor, y_NTF: Tensor, own_K: Tensor) -> Named:
    """The columns of samples with bits at each step."""
    asked_NTF = y_NTF != IGNORED
    one_NTF = y_NTF == 1
    loss_NTF = nnf.binary_cross_entropy_with_logits(logits_NTF, one_NTF.to(logits_NTF.dtype), reduction="none")
    right_NTF = ((logits_NTF > 0) == one_NTF) & asked_NTF
    nll_N = (loss_NTF.double() * asked_NTF).flatten(1).sum(1)
    return {"asked": asked_NTF.flatten(1).sum(1), "right": right_NTF.flatten(1).sum(1), "nll": nll_N}


def value_answers(predicted: Tensor, y: Tensor, own_K: Tensor) -> Named:
    """The columns of samples with real values; what is NaN was not asked."""
    known_NX = ~y.flatten(1).isnan()
    y_NX = y.flatten(1).nan_to_num()
    error_NX = torch.where(known_NX, predicted.flatten(1) - y_NX, 0.0).double()
    return {
        "asked": known_NX.sum(1),
        "error": error_NX.square().sum(1),
        "total": y_NX.double().sum(1),
        "squares": y_NX.double().square().sum(1),
    }


ANSWERS: dict[Target, Callable[[Tensor, Tensor, Tensor], Named]] = {
    "class": class_answers,
    "token": token_answers,
    "bits": bit_answers,
    "value": value_answers,
    "series": value_answers,
}
_STEPS = {"asked": torch.int64, "right": torch.int64, "nll": torch.float64}
_VALUES = {"asked": torch.int64, "error": torch.float64, "total": torch.float64, "squares": torch.float64}
COLUMNS: dict[Target, dict[str, torch.dtype]] = {
    "class": {"y": torch.int64, "predicted": torch.int64, "own": torch.int64, "confidence": torch.float32},
    "token": _STEPS,
    "bits": _STEPS,
    "value": _VALUES,
    "series": _VALUES,
}


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
        self.table = torch.zeros(sum(lengths), len(COLUMNS[target]), dtype=torch.float64, device=ranks.device)
        self.parts = dict(zip(which, self.table.split(lengths), strict=True))  # views of the table

    def add(self, j: int, rows: slice | Tensor, logits: Tensor, y: Tensor) -> None:
        """The answers to some samples of test experience j."""
        found = ANSWERS[self.target](logits, y, self.own[j])
        self.parts[j][rows] = torch.stack([found[name].double() for name in COLUMNS[self.target]], 1)

    def whole(self) -> dict[int, Columns]:
        """The columns of each experience, on every rank; call it on all ranks alike."""
        self.ranks.all_reduce(self.table)
        types = COLUMNS[self.target].items()
        return {
            j: {name: part[:, k].to("cpu", dtype).numpy() for k, (name, dtype) in enumerate(types)}
            for j, part in self.parts.items()
        }
