"""Weights as associative memories: a two-layer transformer small enough to plant an induction head in, and what each of
its matrices recalls (Bietti et al. 2023, Birth of a transformer: a memory viewpoint, arXiv 2306.00802, section 4)."""

from __future__ import annotations

import torch
import torch.nn.functional as nnf
from torch import Generator, Tensor, nn


def outer_products(out_ND: Tensor, key_ND: Tensor) -> Tensor:
    """The associative memory ``W = sum_n out_n key_n^T``, (D, D): with keys that are nearly orthogonal and of length
    one, ``W key_n`` is nearly ``out_n``."""
    return out_ND.T @ key_ND


def recall(weight_DD: Tensor, key_ND: Tensor, out_MD: Tensor, wanted_N: Tensor) -> float:
    """How much of what a memory should hold it gives back: the share of n for which ``argmax_m out_m^T W key_n`` is
    ``wanted_n`` (the paper's memory recall, section 4.2)."""
    return (key_ND @ weight_DD.T @ out_MD.T).argmax(1).eq(wanted_N).double().mean().item()


class InductionTransformer(nn.Module):
    """The paper's simplified transformer: tokens (N, T) from 0 on -> logits (N, T, V) of the next one::

        x_t = e(z_t) + p_t
        x'_t = x_t + V_1 sum_s a_ts x_s              a_t = softmax_{s <= t}(x_t^T K_1 x_s)
        x''_t = x'_t + O_2 V_2 sum_s b_ts x'_s       b_t = softmax_{s <= t}(x'_t^T K_2 x'_s)
        logits_t = U (x''_t + F x_t)

    One head in each layer, no norm, no matrix for queries. Embeddings e, positions p, the rows u of U, and V_1 (for
    ``W_O^1 W_V^1``) and V_2 (``W_V^2``) are random with entries from N(0, 1 / D) and stand still: vectors are of about
    length one and nearly orthogonal if D is large. K_1, K_2, O_2 and F are learnt, from zero.

    F stands for the bigrams of the language and reads the token alone, as a layer beside the second one; the authors'
    code has it behind. Nothing is divided by sqrt(D), as with their option for vectors of length one.

    Args:
        tokens: V.
        length: T, at most.
        dim: D.
        source: of what stands still.
    """

    def __init__(self, tokens: int, length: int, dim: int, source: Generator) -> None:
        super().__init__()
        shapes = {
            "embeddings": (tokens, dim),
            "places": (length, dim),
            "outputs": (tokens, dim),
            "value_1": (dim, dim),
            "value_2": (dim, dim),
        }
        for name, shape in shapes.items():
            self.register_buffer(name, torch.randn(shape, generator=source) / dim**0.5)
        self.key_1, self.key_2, self.out_2, self.bigrams = (nn.Parameter(torch.zeros(dim, dim)) for _ in range(4))

    embeddings: Tensor
    places: Tensor
    outputs: Tensor
    value_1: Tensor
    value_2: Tensor

    def forward(self, z_NT: Tensor) -> Tensor:
        token_NTD = self.embeddings[z_NT]
        x_NTD = token_NTD + self.places[: z_NT.shape[1]]
        x_NTD = x_NTD + _attend(x_NTD, self.key_1) @ self.value_1.T
        x_NTD = x_NTD + _attend(x_NTD, self.key_2) @ (self.out_2 @ self.value_2).T
        return (x_NTD + token_NTD @ self.bigrams.T) @ self.outputs.T

    @torch.no_grad()
    def plant(self, triggers: Tensor, log_bigram_VV: Tensor, *, sharp: float = 30.0, strong: float = 20.0) -> None:
        """Set the weights by hand to the paper's solution (section 4.2, eq. 6-8): K_1 finds the step before, K_2 the
        steps behind the token that is read, O_2 says the token that is found there; F holds the bigrams::

            K_1 = sharp sum_t p_t p_{t-1}^T      K_2 = sharp sum_{k in triggers} e_k (V_1 e_k)^T
            O_2 = strong sum_v u_v (V_2 e_v)^T   F = sum_{v, w} (log pi(w | v) - mean_w) u_w e_v^T

        What vectors that are not quite orthogonal add to each other falls with 1 / sqrt(D); the mean that is taken off
        changes no probability and makes it smaller.

        Args:
            triggers: tokens that K_2 looks for.
            log_bigram_VV: finite.
            sharp: how much more a right step scores than others.
            strong: how much more likely, in nats, a token that is found becomes.
        """
        seen_VD = self.embeddings @ self.value_1.T
        self.key_1.copy_(sharp * outer_products(self.places[1:], self.places[:-1]))
        self.key_2.copy_(sharp * outer_products(self.embeddings[triggers], seen_VD[triggers]))
        self.out_2.copy_(strong * outer_products(self.outputs, self.embeddings @ self.value_2.T))
        centred_VV = log_bigram_VV - log_bigram_VV.mean(1, keepdim=True)
        self.bigrams.copy_(outer_products(centred_VV.float() @ self.outputs, self.embeddings))

    @torch.no_grad()
    def recalls(self, triggers: Tensor, log_bigram_VV: Tensor, length: int | None = None) -> dict[str, float]:
        """The paper's probes: ``key_1``, the share of steps whose best key is the step before; ``key_2``, of triggers
        whose best key is what V_1 makes of themselves, among triggers; ``out_2``, of tokens that O_2 V_2 says when it
        reads them; and ``bigrams``, the Kullback-Leibler divergence in nats of what F alone says from the bigrams of
        tokens that are no triggers.

        Args:
            length: steps that key_1 is asked about; all if None.
        """
        places_TD, every_V = self.places[:length], torch.arange(len(self.embeddings), device=triggers.device)
        before_T = torch.arange(len(places_TD) - 1, device=triggers.device)
        own_KD = self.embeddings[triggers]
        own_K = torch.arange(len(triggers), device=triggers.device)
        others_V = every_V[~torch.isin(every_V, triggers)]
        says_VV = (self.embeddings[others_V] @ self.bigrams.T @ self.outputs.T).log_softmax(1)
        true_VV = log_bigram_VV[others_V].to(says_VV)
        return {
            "key_1": recall(self.key_1.T, places_TD[1:], places_TD[:-1], before_T),
            "key_2": recall(self.key_2.T, own_KD, own_KD @ self.value_1.T, own_K),
            "out_2": recall(self.out_2 @ self.value_2, self.embeddings, self.outputs, every_V),
            "bigrams": nnf.kl_div(says_VV, true_VV, reduction="batchmean", log_target=True).item(),
        }


def _attend(x_NTD: Tensor, key_DD: Tensor) -> Tensor:
    """The mean of x up to each step with weights ``softmax(x_t^T K x_s)``."""
    later_TT = torch.ones(x_NTD.shape[1], x_NTD.shape[1], dtype=torch.bool, device=x_NTD.device).triu(1)
    return (x_NTD @ key_DD @ x_NTD.mT).masked_fill(later_TT, -torch.inf).softmax(-1) @ x_NTD
