"""What is estimated: the words, the likelihood of each target, and the one-by-one loop that is the specification.

With ``p(y | x)`` the model's own distribution, the Fisher information of parameter ``i`` is::

    F_i = E_x E_{y ~ p(y | x)} [ (d log p(y | x) / d theta_i)^2 ]

The distribution is that of the target:

- ``class``: the softmax of logits (N, C).
- ``token``: at each labelled step of logits (N, T, V) a softmax, the labels independent of each other given the input.
- ``bits``: each asked output of logits (N, T, F) a Bernoulli variable of its own.
- ``value``: a Gaussian of unit variance around predictions (N, K).
- ``series``: the same around each asked value of predictions (N, T, K).

The log-likelihood of a sample is the *sum* over its steps, bits or values. The loss that is trained on
(:func:`clplat.metrics.measures.base_loss`) is its negative for classes and values, but takes the *mean* over steps and
bits; so the Fisher of a sequence grows with its labelled steps and the loss does not.

- ``exact``: the inner expectation in full. For classes a sum over all of them weighted by p; for tokens one over
  labelled steps and vocabulary, because the scores of independent labels do not correlate; for bits and values one over
  outputs. More than 64 terms of tokens, bits or a series are refused.
- ``sampled``: one ``y`` drawn from the model for each sample, a label at each of its steps: unbiased, one backward.
- ``empirical``: the ``y`` of the data in place of the draw. Not the Fisher: it does not see the model's own
  uncertainty, and vanishes where the data are fitted (Kunstner et al. 2019).
- ``batched``: the square of the gradient of the mean *loss* of a batch, the common wrong shortcut. Gradients of
  different samples cancel before they are squared, so it is roughly 1/batch of the empirical value and depends on the
  batch size (van de Ven 2025). Kept for comparison with published code only.
- ``sensitivity``: ``E_x |d ||f(x)||^2 / d theta_i|`` with f the outputs, which needs no labels (Aljundi et al. 2018,
  eq. 2 and 4). No Fisher either, but made of the same per-sample gradients. Masked outputs (-inf) do not count.

Sources: Kirkpatrick et al. 2017, "Overcoming catastrophic forgetting in neural networks", PNAS 114(13); Kunstner,
Hennig and Balles 2019, "Limitations of the empirical Fisher approximation for natural gradient descent", NeurIPS; van
de Ven 2025, "On the computation of the Fisher information in continual learning", ICLR blog post track; Aljundi et al.
2018, "Memory aware synapses: learning what (not) to forget", ECCV.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from clplat.errors import UsageError
from clplat.metrics import measures
from clplat.metrics.measures import base_loss
from clplat.scenario import Target

FisherKind = Literal["exact", "sampled", "empirical", "batched", "sensitivity"]
Logits = Callable[[Tensor, Tensor], Tensor]  # (x, task) of n samples -> (n, ...); C may differ from call to call
LIMIT = 64  # terms of the exact Fisher of targets with an answer at each step


class FisherBatch(NamedTuple):
    """Samples to estimate on.

    Attributes:
        x: inputs, sample first; may be empty (a rank's share of a small batch).
        y: labels (n,), tokens (n, T), bits (n, T, F), values (n, K) or a series (n, T, K). The kinds ``exact`` and
            ``sampled`` look only at what is asked (not -100, not NaN).
        task: task labels (n,).
        uniform: for the kind ``sampled``, one number in [0, 1) for each entry of ``y``, which picks what is drawn by
            the inverse of the cumulative distribution. Drawn by the caller for the global batch and sliced like ``x``,
            so that the draws are the same on any number of ranks.
    """

    x: Tensor
    y: Tensor
    task: Tensor
    uniform: Tensor | None = None


def draw(probability_xC: Tensor, uniform_x: Tensor) -> Tensor:
    """Labels by inverse CDF: the first class whose cumulative probability exceeds u, never one of probability 0."""
    cumulative_xC = probability_xC.double().cumsum(-1)
    total_x = cumulative_xC[..., -1]
    below_x = torch.nextafter(total_x, torch.zeros_like(total_x))
    target_x = torch.minimum(uniform_x.double() * total_x, below_x)
    return (cumulative_xC <= target_x[..., None]).sum(-1)


def normal(uniform: Tensor) -> Tensor:
    """Standard normal numbers by inverse CDF."""
    return torch.special.ndtri(uniform.double().clamp(2**-54, 1 - 2**-53))


def passes(y: Tensor, outputs: int, target: Target) -> int:
    """Terms of the exact Fisher: at most as many backward passes does it take.

    Args:
        y: targets of all samples.
        outputs: C, V, F or K.
        target: what is predicted.

    Raises:
        UsageError: they are more than 64 and the target has an answer at each step.
    """
    if target in ("class", "value"):
        return outputs
    asked = int(measures.asked(target, y).flatten(1).sum(1).max()) if y.numel() else 0
    count = asked * outputs if target == "token" else asked
    if count > LIMIT:
        kind = "bits" if target == "bits" else "values"
        what = f"{asked} labelled steps of {outputs} tokens" if target == "token" else f"{asked} {kind}"
        raise UsageError(
            f"the exact Fisher of {what} would take {count} backward passes a batch, more than {LIMIT}: choose the "
            "sampled one, which takes one, by strategy.fisher=sampled"
        )
    return count


def check(output: Tensor, batch: FisherBatch, kind: FisherKind, target: Target) -> None:
    """Raise ValueError where shapes or labels do not fit, UsageError where ``exact`` would take too long."""
    n, y = len(batch.x), batch.y
    dimensions = {"class": "NC", "token": "NTV", "bits": "NTF", "value": "NK", "series": "NTK"}[target]
    if output.ndim != len(dimensions) or len(output) != n:
        wanted = ", ".join([str(n), *dimensions[1:]])
        raise ValueError(f"logits of {n} samples must be ({wanted}), not {tuple(output.shape)}")
    shape = output.shape[:-1] if target in ("class", "token") else output.shape
    if y.shape != shape and kind != "sensitivity" and (target != "class" or kind in ("empirical", "batched")):
        raise ValueError(f"targets must be {tuple(shape)}, not {tuple(y.shape)}")
    if kind == "sensitivity":
        return
    if kind == "exact":
        passes(y, output.shape[-1], target)
    elif kind == "sampled":
        if batch.uniform is None or batch.uniform.shape != shape:
            raise ValueError(f"the sampled Fisher needs FisherBatch.uniform, numbers in [0, 1) of shape {tuple(shape)}")
    elif target not in ("value", "series"):
        asked = measures.asked(target, y)
        logits, label = output.detach()[asked], y[asked].long()
        count = 2 if target == "bits" else output.shape[-1]
        wrong = bool(((label < 0) | (label >= count)).any())
        if not wrong:
            of_label = logits.masked_fill(label == 0, 0) if target == "bits" else logits.gather(-1, label[..., None])
            wrong = bool((of_label == -torch.inf).any())
        if wrong:
            raise ValueError(f"the {kind} Fisher needs labels of classes that are not masked, 0 to {count - 1}")


def folding(kind: FisherKind) -> Callable[[Tensor], Tensor]:
    """What is done, in place, to per-sample gradients before they are added up: they are squared, or made positive."""
    return Tensor.abs_ if kind == "sensitivity" else Tensor.square_


def scores(output: Tensor, one: FisherBatch, kind: FisherKind, target: Target) -> Iterator[Tensor]:
    """The scalars whose squared gradients (:func:`folding`) add up to what one sample contributes.

    For discrete targets they are ``sqrt(p(c)) log p(c)`` of all labels c if exact, the square turning the root into p;
    else ``log p`` of the label that was drawn or given.
    """
    out, y, uniform = output[0], one.y[0], None if one.uniform is None else one.uniform[0]
    if kind == "sensitivity":
        yield out.masked_fill(out == -torch.inf, 0.0).square().sum()
        return
    if target in ("value", "series"):
        known = measures.asked(target, y)
        out, y, uniform = out[known], y[known], None if uniform is None else uniform[known]
        if kind == "exact":
            yield from out  # E (y - mu)^2 = 1
        else:
            yield (
                (normal(uniform).to(out) * out).sum()
                if uniform is not None and kind == "sampled"
                else (-0.5 * (y - out).square().sum())
            )
        return
    if target == "class":
        out, y, uniform = out[None], y[None], None if uniform is None else uniform[None]
    else:
        asked = measures.asked(target, y)
        out, y, uniform = out[asked], y[asked].long(), None if uniform is None else uniform[asked]
    if target == "bits":
        log_p = torch.stack([nnf.logsigmoid(-out), nnf.logsigmoid(out)], -1)
    else:
        log_p = out.log_softmax(-1)
    p = log_p.detach().exp()
    if kind == "exact":
        for factor, c in p.nonzero().tolist():
            yield p[factor, c].sqrt() * log_p[factor, c]
    else:
        label = draw(p, uniform) if uniform is not None and kind == "sampled" else y
        yield log_p.gather(-1, label[:, None]).sum()


def batched_squares(
    logits: Logits, parameters: Mapping[str, nn.Parameter], batch: FisherBatch, target: Target
) -> dict[str, Tensor]:
    """``(d mean_n loss_n / d theta)^2`` of one whole batch: the shortcut of the kind ``batched``."""
    output = logits(batch.x, batch.task)
    check(output, batch, "batched", target)
    mean = base_loss(target, output, batch.y).mean()
    return {name: g.square() for name, g in zip(parameters, gradients(mean, parameters), strict=True)}


def gradients(value: Tensor, parameters: Mapping[str, nn.Parameter], *, keep: bool = False) -> list[Tensor]:
    """Gradients of a scalar, zeros where it does not depend on the parameter. ``.grad`` is not touched."""
    values = list(parameters.values())
    if not value.requires_grad or not values:
        return [torch.zeros_like(p) for p in values]
    found = torch.autograd.grad(value, values, retain_graph=keep, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(values, found, strict=True)]


def one_by_one(
    logits: Logits, parameters: Mapping[str, nn.Parameter], batch: FisherBatch, kind: FisherKind, target: Target
) -> dict[str, Tensor]:
    """Sum over a batch's samples of their folded gradients: a forward for each sample, a backward for each term."""
    sums = {name: torch.zeros_like(p, requires_grad=False) for name, p in parameters.items()}
    for i in range(len(batch.x)):
        one = FisherBatch(*(None if t is None else t[i : i + 1] for t in batch))  # type: ignore[arg-type]
        output = logits(one.x, one.task)
        check(output, one, kind, target)
        for score in scores(output, one, kind, target):
            for name, g in zip(parameters, gradients(score, parameters, keep=True), strict=True):
                sums[name] += folding(kind)(g.clone())  # one parameter may come under two names
    return sums


@contextlib.contextmanager
def estimation(module: nn.Module, parameters: Mapping[str, nn.Parameter]) -> Iterator[None]:
    """Evaluation mode, gradients on, every asked parameter differentiable, full precision; all as before afterwards."""
    modes = [(m, m.training) for m in module.modules()]
    frozen = [p for p in parameters.values() if not p.requires_grad]
    devices = {p.device.type for p in parameters.values()}
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for device in devices:
            stack.enter_context(torch.autocast(device, enabled=False))
        if any(isinstance(m, nn.RNNBase) for m in module.modules()):  # cuDNN's have no backward in evaluation mode
            stack.enter_context(torch.backends.cudnn.flags(enabled=False))
        try:
            module.eval()
            for p in frozen:
                p.requires_grad_(True)
            yield
        finally:
            for p in frozen:
                p.requires_grad_(False)
            for m, training in modes:
                m.training = training


def naive_fisher(
    logits: Logits,
    module: nn.Module,
    parameters: Mapping[str, nn.Parameter],
    batches: Iterable[FisherBatch],
    *,
    kind: FisherKind,
    n_total: int,
    target: Target = "class",
) -> dict[str, Tensor]:
    """The specification of :func:`clplat.fisher.diagonal_fisher`: same arguments and result, one sample at a time."""
    with estimation(module, parameters):
        sums = {name: torch.zeros_like(p, requires_grad=False) for name, p in parameters.items()}
        for batch in batches:
            if len(batch.x) == 0:
                continue
            if kind == "batched":
                found = batched_squares(logits, parameters, batch, target)
            else:
                found = one_by_one(logits, parameters, batch, kind, target)
            for name, squares in found.items():
                sums[name] += squares
        return {name: total / n_total for name, total in sums.items()}
