"""What is estimated: the words, the labels and weights of each kind, and the one-by-one loop that is the specification.

With ``p(c | x)`` the model's own softmax, the Fisher information of parameter ``i`` is::

    F_i = E_x E_{c ~ p(c | x)} [ (d log p(c | x) / d theta_i)^2 ]

- ``exact``: the inner expectation in full, a sum over all classes weighted by p. Costs a backward for each class.
- ``sampled``: one label drawn from p for each sample: unbiased, one backward.
- ``empirical``: the label of the data in place of the draw. Not the Fisher: it does not see the model's own
  uncertainty, and vanishes where the data are fitted (Kunstner et al. 2019).
- ``batched``: the square of the gradient of the mean loss of a *batch*, the common wrong shortcut. Gradients of
  different samples cancel before they are squared, so it is roughly 1/batch of the empirical value and depends on the
  batch size (van de Ven 2025). Kept for comparison with published code only.

Sources: Kirkpatrick et al. 2017, "Overcoming catastrophic forgetting in neural networks", PNAS 114(13); Kunstner,
Hennig and Balles 2019, "Limitations of the empirical Fisher approximation for natural gradient descent", NeurIPS; van
de Ven 2025, "On the computation of the Fisher information in continual learning", ICLR blog post track.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

FisherKind = Literal["exact", "sampled", "empirical", "batched"]
Logits = Callable[[Tensor, Tensor], Tensor]  # (x, task) of n samples -> (n, C); C may differ from call to call


class FisherBatch(NamedTuple):
    """Samples to estimate on.

    Attributes:
        x: inputs, sample first; may be empty (a rank's share of a small batch).
        y: labels (n,); not looked at by the kinds ``exact`` and ``sampled``.
        task: task labels (n,).
        uniform: for the kind ``sampled``, one number in [0, 1) for each sample, which picks the label by the inverse of
            the cumulative distribution. Drawn by the caller for the global batch and sliced like ``x``, so that the
            labels are the same on any number of ranks.
    """

    x: Tensor
    y: Tensor
    task: Tensor
    uniform: Tensor | None = None


def log_probabilities(logits_NC: Tensor) -> Tensor:
    """Log-softmax in which a masked class (logit -inf) is 0 with gradient 0, so that ``0 * log p`` is 0 and not NaN."""
    return logits_NC.log_softmax(-1).masked_fill(logits_NC == -torch.inf, 0.0)


def draw(probability_NC: Tensor, uniform_N: Tensor) -> Tensor:
    """Labels by inverse CDF: the first class whose cumulative probability exceeds u, never one of probability 0."""
    cumulative_NC = probability_NC.double().cumsum(-1)
    total_N = cumulative_NC[:, -1]
    below_N = torch.nextafter(total_N, torch.zeros_like(total_N))
    target_N = torch.minimum(uniform_N.double() * total_N, below_N)
    return (cumulative_NC <= target_N[:, None]).sum(-1)


def terms(logits_NC: Tensor, batch: FisherBatch, kind: FisherKind) -> tuple[Tensor, Tensor]:
    """The squares to add for each sample, as classes (N, R) and weights (N, R), without gradient.

    Sample n contributes ``sum_r (d [weight_nr * log p(class_nr | x_n)] / d theta)^2``: for ``exact`` the weight is
    ``sqrt(p)``, which the square turns into p; for the other kinds there is one class of weight 1. Classes that have no
    probability in any sample (masked ones) are left out.
    """
    logits_NC = logits_NC.detach()
    n, classes = logits_NC.shape
    probability_NC = logits_NC.softmax(-1)
    if kind == "exact":
        possible_C = (probability_NC != 0).any(0).nonzero().squeeze(-1)
        return possible_C.expand(n, -1), probability_NC[:, possible_C].sqrt()
    if kind == "sampled":
        if batch.uniform is None:
            raise ValueError("the sampled Fisher needs FisherBatch.uniform, one number in [0, 1) for each sample")
        label_N = draw(probability_NC, batch.uniform)
    else:
        label_N = batch.y
        if bool(((label_N < 0) | (label_N >= classes)).any()) or bool(
            (logits_NC.gather(1, label_N[:, None]) == -torch.inf).any()
        ):
            raise ValueError(f"the {kind} Fisher needs labels of classes that are not masked, 0 to {classes - 1}")
    return label_N[:, None], torch.ones_like(probability_NC[:, :1])


def batched_squares(logits: Logits, parameters: Mapping[str, nn.Parameter], batch: FisherBatch) -> dict[str, Tensor]:
    """``(d mean_n log p(y_n | x_n) / d theta)^2`` of one whole batch: the shortcut of the kind ``batched``."""
    logits_NC = logits(batch.x, batch.task)
    classes, _ = terms(logits_NC, batch, "batched")
    mean = log_probabilities(logits_NC).gather(1, classes).mean()
    return {name: g.square() for name, g in zip(parameters, gradients(mean, parameters), strict=True)}


def gradients(value: Tensor, parameters: Mapping[str, nn.Parameter], *, keep: bool = False) -> list[Tensor]:
    """Gradients of a scalar, zeros where it does not depend on the parameter. ``.grad`` is not touched."""
    values = list(parameters.values())
    if not value.requires_grad or not values:
        return [torch.zeros_like(p) for p in values]
    found = torch.autograd.grad(value, values, retain_graph=keep, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(values, found, strict=True)]


def one_by_one(
    logits: Logits, parameters: Mapping[str, nn.Parameter], batch: FisherBatch, kind: FisherKind
) -> dict[str, Tensor]:
    """Sum of the squared gradients of a batch's samples: a forward for each sample, a backward for each term."""
    sums = {name: torch.zeros_like(p, requires_grad=False) for name, p in parameters.items()}
    for i in range(len(batch.x)):
        one = FisherBatch(*(None if t is None else t[i : i + 1] for t in batch))  # type: ignore[arg-type]
        logits_1C = logits(one.x, one.task)
        classes, weights = terms(logits_1C, one, kind)
        log_p = log_probabilities(logits_1C)[0]
        for c, w in zip(classes[0].tolist(), weights[0], strict=True):
            for name, g in zip(parameters, gradients(w * log_p[c], parameters, keep=True), strict=True):
                sums[name] += g.square()
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
) -> dict[str, Tensor]:
    """The specification of :func:`clplat.fisher.diagonal_fisher`: same arguments and result, one sample at a time."""
    with estimation(module, parameters):
        sums = {name: torch.zeros_like(p, requires_grad=False) for name, p in parameters.items()}
        for batch in batches:
            if len(batch.x) == 0:
                continue
            if kind == "batched":
                found = batched_squares(logits, parameters, batch)
            else:
                found = one_by_one(logits, parameters, batch, kind)
            for name, squares in found.items():
                sums[name] += squares
        return {name: total / n_total for name, total in sums.items()}
