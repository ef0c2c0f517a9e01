"""What a batch of predictions is worth: sums and counts that add up over batches, experiences and ranks.

Each measure of a target is a numerator and a denominator; the value on an experience is their quotient over all of its
batches, so that uneven batches weigh what they should.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as nnf
from torch import Tensor

from clplat.scenario import Target

IGNORED = -100  # label of a step at which nothing is asked

Sums = dict[str, tuple[Tensor, Tensor | int]]


def class_sums(logits_NC: Tensor, y_N: Tensor) -> Sums:
    """accuracy: share of samples whose largest logit is the label's."""
    return {"accuracy": ((logits_NC.argmax(-1) == y_N).sum(), len(y_N))}


def token_sums(logits_NTV: Tensor, y_NT: Tensor) -> Sums:
    """accuracy: share of labelled steps that are right. sequence_accuracy: share of samples whose labelled steps are
    all right."""
    asked_NT = y_NT != IGNORED
    right_NT = logits_NTV.argmax(-1) == y_NT
    return {
        "accuracy": ((right_NT & asked_NT).sum(), asked_NT.sum()),
        "sequence_accuracy": ((right_NT | ~asked_NT).all(-1).sum(), len(y_NT)),
    }


def bit_sums(logits_NTF: Tensor, y_NTF: Tensor) -> Sums:
    """accuracy: share of asked bits that are right, a bit being 1 where its logit is positive. sequence_accuracy: share
    of samples whose asked bits are all right."""
    asked_NTF = y_NTF != IGNORED
    right_NTF = (logits_NTF > 0) == (y_NTF == 1)
    return {
        "accuracy": ((right_NTF & asked_NTF).sum(), asked_NTF.sum()),
        "sequence_accuracy": ((right_NTF | ~asked_NTF).flatten(1).all(1).sum(), len(y_NTF)),
    }


def value_sums(predicted_NK: Tensor, y_NK: Tensor) -> Sums:
    """mse: mean squared error over samples and values."""
    return {"mse": ((predicted_NK - y_NK).double().square().sum(), y_NK.numel())}


MEASURES: dict[Target, Callable[[Tensor, Tensor], Sums]] = {
    "class": class_sums,
    "token": token_sums,
    "bits": bit_sums,
    "value": value_sums,
}
NAMES: dict[Target, tuple[str, ...]] = {
    "class": ("accuracy",),
    "token": ("accuracy", "sequence_accuracy"),
    "bits": ("accuracy", "sequence_accuracy"),
    "value": ("mse",),
}


def base_loss(target: Target, logits: Tensor, y: Tensor) -> Tensor:
    """The loss of each sample, (N,): cross-entropy; for tokens its mean over the sample's labelled steps; for bits the
    binary cross-entropy, its mean over the sample's asked bits; for values half the squared error summed over values,
    the negative log-likelihood of a unit-variance Gaussian up to a constant.
    """
    if target == "value":
        return 0.5 * (logits - y).square().flatten(1).sum(1)
    if target == "class":
        return nnf.cross_entropy(logits, y, reduction="none")
    if target == "bits":
        asked_NTF = (y != IGNORED).to(logits.dtype)
        bits_NTF = (y == 1).to(logits.dtype)
        loss_NTF = nnf.binary_cross_entropy_with_logits(logits, bits_NTF, reduction="none") * asked_NTF
        return loss_NTF.flatten(1).sum(1) / asked_NTF.flatten(1).sum(1).clamp(min=1)
    loss_NT = nnf.cross_entropy(logits.transpose(1, 2), y, ignore_index=IGNORED, reduction="none")
    return loss_NT.sum(1) / (y != IGNORED).sum(1).clamp(min=1)


def table(target: Target, logits: Tensor, y: Tensor) -> Tensor:
    """The sums of a batch as (measures + 1, 2) numerators and denominators in double precision, the loss first."""
    loss = base_loss(target, logits, y)
    sums = [(loss.double().sum(), len(y)), *(MEASURES[target](logits, y)[name] for name in NAMES[target])]
    return torch.stack(
        [torch.stack([torch.as_tensor(part, dtype=torch.float64, device=y.device) for part in pair]) for pair in sums]
    )
