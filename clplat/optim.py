"""Optimisers that can be chosen by name.

Each takes the parameters (or parameter groups) first and its options as keywords. ``keep_state`` is not the optimiser's
own affair: the training loop reads it from the configuration, and it is an option here so that it is typed, documented
and checked like the others.
"""

from __future__ import annotations

from torch import optim
from torch.optim.optimizer import ParamsT


def sgd(
    params: ParamsT,
    *,
    lr: float = 0.1,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
    keep_state: bool = False,
) -> optim.Optimizer:
    """Stochastic gradient descent, with momentum if wanted.

    Args:
        lr: learning rate.
        momentum: share of the last step that is taken again.
        weight_decay: weight of the squared 2-norm of the parameters.
        nesterov: Nesterov's form of momentum, which must then be above 0.
        keep_state: false: the optimiser's state starts anew at each experience, as in the papers; true: carried over.
    """
    return optim.SGD(params, lr=lr, momentum=momentum, weight_decay=weight_decay, nesterov=nesterov)


def adam(
    params: ParamsT,
    *,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    keep_state: bool = False,
) -> optim.Optimizer:
    """Adam (Kingma and Ba 2015).

    Args:
        lr: learning rate.
        betas: decay of the running means of the gradient and of its square.
        eps: added to the denominator.
        weight_decay: weight of the squared 2-norm of the parameters, added to the gradient.
        keep_state: false: the optimiser's state starts anew at each experience, as in the papers; true: carried over.
    """
    return optim.Adam(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)


def adamw(
    params: ParamsT,
    *,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.01,
    keep_state: bool = False,
) -> optim.Optimizer:
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019).

    Args:
        lr: learning rate.
        betas: decay of the running means of the gradient and of its square.
        eps: added to the denominator.
        weight_decay: share of each weight taken off per unit of learning rate.
        keep_state: false: the optimiser's state starts anew at each experience, as in the papers; true: carried over.
    """
    return optim.AdamW(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)
