"""What a batch of predictions is worth: sums that add up over batches, experiences and ranks, and what follows from
them.

The sums of a target are counts and totals of a batch; added over all batches of an experience they give each measure,
so that uneven batches weigh what they should and nothing is averaged twice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as nnf
from torch import Tensor

from clplat.scenario import PER_STEP, Target

IGNORED = -100  # label of a step at which nothing is asked

Sums = dict[str, Tensor | int]


def asked(target: Target, y: Tensor) -> Tensor:
    """Which entries of the targets are asked for: a mask of their shape."""
    if target in ("value", "series"):
        return ~y.isnan()
    return torch.ones_like(y, dtype=torch.bool) if target == "class" else y != IGNORED


def asked_steps(target: Target, y: Tensor) -> Tensor:
    """The steps of each sample at which anything is asked, (N, T), for targets with an answer at each step."""
    assert target in PER_STEP, target
    return asked(target, y).flatten(2).any(-1) if y.ndim == 3 else asked(target, y)


def class_sums(logits_NC: Tensor, y_N: Tensor) -> Sums:
    """right: samples whose largest logit is the label's."""
    return {"right": (logits_NC.argmax(-1) == y_N).sum()}


# What is true of each entry of the targets, from which both the sums of a batch and the columns of a sample
# (:mod:`clplat.metrics.answers`) are made.


def token_entries(logits_NTV: Tensor, y_NT: Tensor) -> dict[str, Tensor]:
    """asked: whether the step is labelled. right: it is, and its largest logit is the label's. nll: the negative
    log-likelihood of its label in nats, 0 where there is none. (N, T) each."""
    asked_NT = y_NT != IGNORED
    nll_NT = nnf.cross_entropy(logits_NTV.transpose(1, 2), y_NT, ignore_index=IGNORED, reduction="none")
    return {"asked": asked_NT, "right": (logits_NTV.argmax(-1) == y_NT) & asked_NT, "nll": nll_NT.double()}


def bit_entries(logits_NTF: Tensor, y_NTF: Tensor) -> dict[str, Tensor]:
    """asked, and right: asked, and 1 just where the logit is positive. (N, T, F) each."""
    asked_NTF = y_NTF != IGNORED
    return {"asked": asked_NTF, "right": ((logits_NTF > 0) == (y_NTF == 1)) & asked_NTF}


def value_entries(predicted: Tensor, y: Tensor) -> dict[str, Tensor]:
    """asked; error: the squared error; absolute: the absolute one; total: the value itself; squares: its square. All
    but the first 0 where nothing is asked. Of the targets' shape each, in double precision."""
    asked_ = ~y.isnan()
    error = torch.where(asked_, predicted - y.nan_to_num(), 0.0).double()
    known = y.nan_to_num().double()
    squares = {"error": error.square(), "squares": known.square()}
    return {"asked": asked_, "absolute": error.abs(), "total": known, **squares}


def _whole(entries: dict[str, Tensor]) -> Tensor:
    """Samples in which all that is asked is right."""
    return (entries["right"] | ~entries["asked"]).flatten(1).all(1).sum()


def token_sums(logits_NTV: Tensor, y_NT: Tensor) -> Sums:
    """The sums of :func:`token_entries`, and whole: samples whose labelled steps are all right."""
    found = token_entries(logits_NTV, y_NT)
    return {**{name: entry.sum() for name, entry in found.items()}, "whole": _whole(found)}


def bit_sums(logits_NTF: Tensor, y_NTF: Tensor) -> Sums:
    """The sums of :func:`bit_entries`, and whole: samples whose asked bits are all right."""
    found = bit_entries(logits_NTF, y_NTF)
    return {**{name: entry.sum() for name, entry in found.items()}, "whole": _whole(found)}


def value_sums(predicted: Tensor, y: Tensor) -> Sums:
    """The sums of :func:`value_entries`."""
    return {name: entry.sum() for name, entry in value_entries(predicted, y).items()}


SUMS: dict[Target, Callable[[Tensor, Tensor], Sums]] = {
    "class": class_sums,
    "token": token_sums,
    "bits": bit_sums,
    "value": value_sums,
    "series": value_sums,
}
SUM_NAMES: dict[Target, tuple[str, ...]] = {
    "class": ("samples", "loss", "right"),
    "token": ("samples", "loss", "asked", "right", "whole", "nll"),
    "bits": ("samples", "loss", "asked", "right", "whole"),
    "value": ("samples", "loss", "asked", "error", "total", "squares"),
    "series": ("samples", "loss", "asked", "error", "total", "squares"),
}


def _share(of: str, over: str) -> Callable[[Mapping[str, float]], float]:
    return lambda sums: sums[of] / sums[over] if sums[over] else math.nan


def _perplexity(sums: Mapping[str, float]) -> float:
    nats = _share("nll", "asked")(sums)
    return math.exp(nats) if nats < 700 else math.inf


def _bits(sums: Mapping[str, float]) -> float:
    return _share("nll", "asked")(sums) / math.log(2)


def _nrmse(sums: Mapping[str, float]) -> float:
    deviation = sums["squares"] - sums["total"] ** 2 / sums["asked"] if sums["asked"] else 0.0
    return math.sqrt(sums["error"] / deviation) if deviation > 0 else math.nan


# What the first measure of each target is a quotient of.
FIRST: dict[Target, tuple[str, str]] = {
    "class": ("right", "samples"),
    "token": ("right", "asked"),
    "bits": ("right", "asked"),
    "value": ("error", "asked"),
    "series": ("error", "asked"),
}
# The measures of each target by name, the first being the one that is looked at where one is needed.
#   accuracy           share of samples, asked steps or asked bits that are right
#   sequence_accuracy  share of samples in which all that is asked is right
#   nll                nats for each asked token; perplexity is exp(nll), bits is nll / ln 2 (of bytes: bits per byte)
#   mse                mean squared error over asked values
#   nrmse              sqrt(sum (y' - y)^2 / sum (y - mean y)^2) over asked values: 1 is what their mean would get
MEASURES: dict[Target, dict[str, Callable[[Mapping[str, float]], float]]] = {
    "class": {"accuracy": _share(*FIRST["class"])},
    "token": {
        "accuracy": _share(*FIRST["token"]),
        "sequence_accuracy": _share("whole", "samples"),
        "nll": _share("nll", "asked"),
        "perplexity": _perplexity,
        "bits": _bits,
    },
    "bits": {"accuracy": _share(*FIRST["bits"]), "sequence_accuracy": _share("whole", "samples")},
    "value": {"mse": _share(*FIRST["value"]), "nrmse": _nrmse},
    "series": {"mse": _share(*FIRST["series"]), "nrmse": _nrmse},
}
NAMES: dict[Target, tuple[str, ...]] = {target: tuple(measures) for target, measures in MEASURES.items()}
SMALLER_IS_BETTER = frozenset({"nll", "perplexity", "bits", "mse", "nrmse"})


def base_loss(target: Target, logits: Tensor, y: Tensor) -> Tensor:
    """The loss of each sample, (N,): cross-entropy; for tokens its mean over the sample's labelled steps; for bits the
    binary cross-entropy, its mean over the sample's asked bits; for values half the squared error summed over values,
    the negative log-likelihood of a unit-variance Gaussian up to a constant; for a series the same at each step, its
    mean over the steps at which anything is asked.
    """
    if target == "value":
        return 0.5 * (logits - y).square().flatten(1).sum(1)
    if target == "class":
        return nnf.cross_entropy(logits, y, reduction="none")
    if target == "series":
        known_NTK = ~y.isnan()
        error_NTK = torch.where(known_NTK, logits - y.nan_to_num(), 0.0)
        return 0.5 * error_NTK.square().flatten(1).sum(1) / known_NTK.any(-1).sum(1).clamp(min=1)
    if target == "bits":
        asked_NTF = (y != IGNORED).to(logits.dtype)
        bits_NTF = (y == 1).to(logits.dtype)
        loss_NTF = nnf.binary_cross_entropy_with_logits(logits, bits_NTF, reduction="none") * asked_NTF
        return loss_NTF.flatten(1).sum(1) / asked_NTF.flatten(1).sum(1).clamp(min=1)
    loss_NT = nnf.cross_entropy(logits.transpose(1, 2), y, ignore_index=IGNORED, reduction="none")
    return loss_NT.sum(1) / (y != IGNORED).sum(1).clamp(min=1)


def sums(target: Target, logits: Tensor, y: Tensor) -> Tensor:
    """The sums of a batch in double precision, one for each of ``SUM_NAMES[target]``."""
    found: Sums = {"samples": len(y), "loss": base_loss(target, logits, y).double().sum()}
    found |= SUMS[target](logits, y)
    return torch.stack([torch.as_tensor(found[n], dtype=torch.float64, device=y.device) for n in SUM_NAMES[target]])


def first_parts(target: Target, logits: Tensor, y: Tensor) -> Tensor:
    """The two sums of a batch, (2,) in double precision, whose quotient is the target's first measure. Whole numbers
    wherever it is an accuracy, so that the order in which ranks add does not matter."""
    found: Sums = {"samples": len(y), **SUMS[target](logits, y)}
    return torch.stack([torch.as_tensor(found[n], dtype=torch.float64, device=y.device) for n in FIRST[target]])


def first_is_error(target: Target) -> bool:
    """Whether less is better of the target's first measure."""
    return NAMES[target][0] in SMALLER_IS_BETTER


def parts_of_outputs(target: Target, logits: Tensor, y: Tensor) -> Tensor:
    """:func:`first_parts` of each output of bits by itself, (2, F); of any other target (2, 1)."""
    if target != "bits":
        return first_parts(target, logits, y).unsqueeze(1)
    entries = bit_entries(logits, y)
    return torch.stack([entries[name].flatten(0, -2).sum(0) for name in FIRST[target]]).double()


def values(target: Target, totals: Tensor) -> dict[str, float]:
    """The mean loss of a sample and each measure, from sums (len(SUM_NAMES),) of all batches."""
    named = dict(zip(SUM_NAMES[target], totals.tolist(), strict=True))
    return {"loss": _share("loss", "samples")(named)} | {
        name: measure(named) for name, measure in MEASURES[target].items()
    }
