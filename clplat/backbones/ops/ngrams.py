"""What followed earlier occurrences of the last n steps: the mean of vectors behind equal n-grams."""

from __future__ import annotations

import torch
import torch.nn.functional as nnf
from torch import Tensor


def after_ngrams(
    x_BSD: Tensor, h_BSE: Tensor, live_BP: Tensor, reset_BT: Tensor, mask_BT: Tensor, orders: int
) -> Tensor:
    """For each new step t and each n the mean of h behind the earlier steps s at which the last n inputs were those at
    t, and 0 where there is none (Akyürek et al. 2024, arXiv 2401.12973, section on n-gram heads)::

        a_n(t) = mean { h_{s+1} : s < t, x_{s-i} = x_{t-i} for all i < n }

    Two inputs are the same if all of their numbers are. No gradient passes through that. S = P + T: carried steps come
    first. Sequences do not see each other, and padding is passed over as if it were not there.

    Args:
        x_BSD: inputs.
        h_BSE: what is averaged.
        live_BP: True for carried steps of the sequence that the samples are in.
        reset_BT: True where a new sequence begins.
        mask_BT: False for padding.
        orders: N, the largest n.

    Returns:
        (B, N, T, E); what stands where a step is padding means nothing.
    """
    S, T = x_BSD.shape[1], mask_BT.shape[1]
    sequence_BS = _sequences(live_BP, reset_BT, mask_BT)
    order_BS = (sequence_BS >= 0).long().argsort(dim=1, stable=True)  # padding first, so that steps are neighbours
    x, h = (part.take_along_dim(order_BS[..., None], 1) for part in (x_BSD, h_BSE))
    sequence_BS = sequence_BS.gather(1, order_BS)

    R = min(S, T + orders - 1)  # the new steps and those before that their n-grams reach back to
    exact = torch.promote_types(x.dtype, torch.float32)
    numbers_apart_BRS = torch.cdist(x[:, S - R :].detach().to(exact), x.detach().to(exact), p=0.0)
    earlier_RS = x.new_ones((R, S), dtype=torch.bool).tril(S - R - 1)
    mine_BRS = sequence_BS[:, S - R :, None] == sequence_BS[:, None]
    same_BRS = (numbers_apart_BRS == 0) & earlier_RS & mine_BRS & (sequence_BS >= 0)[:, None]
    match_BRS, found = same_BRS, []
    for n in range(1, orders + 1):
        if n > 1:  # the steps before both must match by n - 1
            match_BRS = same_BRS & nnf.pad(match_BRS, (1, -1, 1, -1))
        weight_BTS = nnf.pad(match_BRS[:, R - T :], (1, -1)).to(h.dtype)
        found.append(weight_BTS / weight_BTS.sum(-1, keepdim=True).clamp(min=1) @ h)
    place_BT = (order_BS.argsort(1)[:, S - T :] - (S - T)).clamp(min=0)
    return torch.stack(found, 1).take_along_dim(place_BT[:, None, :, None], 2)


def after_ngrams_loop(
    x_BSD: Tensor, h_BSE: Tensor, live_BP: Tensor, reset_BT: Tensor, mask_BT: Tensor, orders: int
) -> Tensor:
    """The naive reference of :func:`after_ngrams`: for each pair of steps the length of what they have in common, from
    that of the pair before them."""
    B, S, _ = x_BSD.shape
    P = S - mask_BT.shape[1]
    sequence_BS = _sequences(live_BP, reset_BT, mask_BT)
    none_B = torch.zeros(B, dtype=torch.long, device=x_BSD.device)
    before: list[Tensor] = [none_B] * S  # for the last step that was no padding: common length with each step
    found = []
    for t in range(S):
        lives_B, length_B, mean, many = sequence_BS[:, t] >= 0, none_B, [], []
        common, behind_B = [none_B] * S, none_B
        for s in range(t + 1):
            usable_B = lives_B & (sequence_BS[:, s] == sequence_BS[:, t])
            mean.append(torch.stack([(usable_B & (behind_B >= n)).to(h_BSE.dtype) for n in range(1, orders + 1)], 1))
            many.append(mean[-1])
            mean[-1] = mean[-1][..., None] * h_BSE[:, s, None]
            if s < t:
                equal_B = usable_B & (x_BSD[:, s] == x_BSD[:, t]).all(-1)
                common[s] = torch.where(equal_B, length_B + 1, 0)
                length_B = torch.where(usable_B, before[s], length_B)
                behind_B = torch.where(usable_B, common[s], behind_B)
        before = [torch.where(lives_B, new_B, old_B) for new_B, old_B in zip(common, before, strict=True)]
        if t >= P:
            found.append(sum(mean) / sum(many).clamp(min=1)[..., None])  # type: ignore[union-attr]
    return torch.stack(found, 2)


def _sequences(live_BP: Tensor, reset_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """The number of each step's sequence, (B, S): 0 for what goes on, -1 for padding and what is over."""
    new_BT = reset_BT.long().cumsum(1).masked_fill(~mask_BT, -1)
    return torch.cat([torch.where(live_BP, 0, -1), new_BT], 1)
