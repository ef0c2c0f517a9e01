"""How many pairs of keys and values a matrix holds before what is read is something else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from clplat.errors import UsageError
from clplat.metrics.probes.base import Figure, Probe, Result
from clplat.metrics.probes.sampling import batches, draw_tests, look
from clplat.report import plots

if TYPE_CHECKING:
    from clplat.learner import Learner
    from clplat.scenario import Scenario

Rule = Literal["hebbian", "delta", "decay", "oja"]


def write(
    key_BnK: Tensor,
    value_BnV: Tensor,
    rule: Rule = "hebbian",
    *,
    beta: float = 1.0,
    decay: float = 0.95,
    passes: int = 1,
) -> Tensor:
    """The memory S (B, K, V) after n pairs, one after another; ``S' k`` is what is read.

    Args:
        rule: hebbian ``S += k v'``; delta ``S += beta k (v - S' k)'`` (Rescorla and Wagner 1972; Widrow and Hoff 1960);
            decay ``S = decay S + k v'``; oja ``S += beta (k u' - S diag(u)^2)`` with u the value at unit length (Oja
            1982, each column by itself).
        beta, decay: of the rules that have them.
        passes: how often all pairs are gone through.
    """
    B, n, K = key_BnK.shape
    S = key_BnK.new_zeros(B, K, value_BnV.shape[-1])
    for i in list(range(n)) * passes:
        k, v = key_BnK[:, i, :, None], value_BnV[:, i, None, :]
        if rule == "hebbian":
            S = S + k * v
        elif rule == "delta":
            S = S + beta * k * (v - k.mT @ S)
        elif rule == "decay":
            S = decay * S + k * v
        else:
            u = v / v.norm(dim=-1, keepdim=True).clamp(min=1e-30)
            S = S + beta * (k * u - S * u.square())
    return S


def read(S_BKV: Tensor, key_BnK: Tensor) -> Tensor:
    """``S' k`` for each key, (B, n, V)."""
    return key_BnK @ S_BKV


def cosines(read_BnV: Tensor, value_BnV: Tensor) -> Tensor:
    """The cosine of what is read by each key and each value that is stored, (B, n, n)."""
    a, b = (x / x.norm(dim=-1, keepdim=True).clamp(min=1e-30) for x in (read_BnV, value_BnV))
    return a @ b.mT


def retrieved(cosine_Bnn: Tensor, threshold: float) -> Tensor:
    """Whether each pair is retrieved, (B, n): the cosine with its own value reaches the threshold; at threshold 0, its
    own value is the nearest."""
    if threshold:
        return cosine_Bnn.diagonal(dim1=-2, dim2=-1) >= threshold
    return cosine_Bnn.argmax(-1) == torch.arange(cosine_Bnn.shape[-1], device=cosine_Bnn.device)


def crosstalk(read_BnV: Tensor, key_BnK: Tensor, value_BnV: Tensor) -> Tensor:
    """What is read less ``|k|^2 v``: the other pairs' share, (B, n, V)."""
    return read_BnV - key_BnK.square().sum(-1, keepdim=True) * value_BnV


def unit_keys(kind: Literal["random", "orthogonal"], B: int, n: int, K: int, source: torch.Generator) -> Tensor:
    """Unit keys (B, n, K): random directions; or columns of random orthogonal matrices, K at a time."""
    drawn = torch.randn(B, -(-n // K) * K, K, generator=source, dtype=torch.float64)
    if kind == "orthogonal":
        q = torch.linalg.qr(drawn.unflatten(1, (-1, K)))[0]
        return q.flatten(1, 2)[:, :n]
    return torch.nn.functional.normalize(drawn[:, :n], dim=-1)


def capacity(rates: list[tuple[int, float]], level: float = 0.95) -> int:
    """The largest number of pairs up to which each number that was tried was retrieved at ``level``; 0 for none."""
    found = 0
    for n, rate in sorted(rates):
        if rate < level:
            break
        found = n
    return found


class AssocCapacity(Probe):
    """Capacity of linear attention as associative memory, with the network's own keys (Qiao 2025, Understanding
    Transformers through the Lens of Pavlovian Conditioning, arXiv 2508.08289).

    n keys of unit length are written with random values and read again, for numbers n up to ``most`` times the width
    d_k of a head's keys; the capacity n* is the largest n with 95% of the pairs retrieved: what is read has a cosine of
    ``threshold`` with the value. (To be the nearest of the stored values is an easier question, whose answer grows
    faster than d_k; threshold 0 asks it.) Keys are random, orthogonal (d_k at a time), and those of each of the
    network's own heads on test samples, different ones drawn from all steps: keys that a network has made alike hold
    fewer pairs, and the ratio to random keys says how much of the width is used. Softmax attention reads otherwise;
    this is what a linear read of its keys could tell apart. How the mean cosine grows when H heads with keys of their
    own are averaged is reported at n = d_k: the variance of the noise falls by 1/H.

    For random keys and the Hebbian rule what is read is the value plus crosstalk of variance (n - 1) / d_k of it. The
    delta rule goes beyond the Hebbian one when pairs come again (``passes``); in one pass it keeps late pairs at the
    cost of early ones. The paper's bound on how errors propagate through layers, and its list of rules, are not
    verified and not here.

    Args:
        rule: how pairs are written; see :func:`write`.
        beta: of delta and oja.
        decay: of decay.
        passes: how often all pairs are gone through.
        threshold: cosine that counts as retrieved; 0 where the nearest of the stored values counts.
        most: largest n, in units of d_k.
        trials: memories for each n.
        samples: test samples that keys are taken from.
    """

    needs = ("attention",)

    def __init__(
        self,
        *,
        rule: Literal["hebbian", "delta", "decay", "oja"] = "hebbian",
        beta: float = 1.0,
        decay: float = 0.95,
        passes: int = 1,
        threshold: float = 0.9,
        most: float = 2.0,
        trials: int = 20,
        samples: int = 64,
    ) -> None:
        if (
            not 0 < decay <= 1
            or not 0 < beta <= 2
            or most <= 0
            or min(trials, samples, passes) < 1
            or not 0 <= threshold < 1
        ):
            raise UsageError(
                f"assoc-capacity: decay={decay} must be at most 1, beta={beta} at most 2, and these, most={most}, "
                f"trials={trials}, samples={samples} and passes={passes} positive; threshold={threshold} below 1"
            )
        self.rule: Rule = rule
        self.beta, self.decay, self.most, self.trials, self.samples = beta, decay, most, trials, samples
        self.threshold, self.passes = threshold, passes

    def measure(self, learner: Learner, scenario: Scenario) -> Result:
        pools = self._own_keys(learner, scenario)
        K = pools[0][0].shape[-1]
        numbers = sorted({max(1, round(self.most * K * k / 16)) for k in range(1, 17)})
        curves: dict[str, list[tuple[int, float]]] = {"random": [], "orthogonal": []}
        own: list[list[list[tuple[int, float]]]] = [[[] for _ in layer] for layer in pools]
        for n in numbers:
            source = learner.generator("probe/assoc-capacity", n)
            for kind in ("random", "orthogonal"):
                curves[kind].append((n, self._rate(unit_keys(kind, self.trials, n, K, source), source)))
            for layer, heads in enumerate(pools):
                for head, pool in enumerate(heads):
                    if n <= len(pool):
                        rows = torch.rand(self.trials, len(pool), generator=source).argsort(1)[:, :n]
                        own[layer][head].append((n, self._rate(pool[rows], source)))
        each = [[capacity(rates) for rates in layer] for layer in own]
        flat = [n for layer in each for n in layer]
        return {
            "key_width": K,
            "random": capacity(curves["random"]),
            "orthogonal": capacity(curves["orthogonal"]),
            "own_mean": sum(flat) / len(flat),
            "own_best": max(flat),
            "own": each,
            "curves": curves,
            "own_curves": own,
            "redundancy": self._redundancy(learner, K),
        }

    def _own_keys(self, learner: Learner, scenario: Scenario) -> list[list[Tensor]]:
        """Different unit keys of each head of each layer, (n, K)."""
        data = draw_tests(learner, scenario, self.samples, "probe/assoc-capacity")
        parts: list[list[Tensor]] = []
        for x, _, task in batches(data):
            _, seen = look(learner, x, task)
            parts.append([layer.own_key.transpose(0, 1).flatten(1, 2).double().cpu() for layer in seen])
        layers = [torch.cat(layer, 1) for layer in zip(*parts, strict=True)]
        return [[torch.nn.functional.normalize(head, dim=-1).unique(dim=0) for head in layer] for layer in layers]

    def _rate(self, keys: Tensor, source: torch.Generator) -> float:
        """Share of pairs that are retrieved, with random values."""
        values = torch.randn(keys.shape, generator=source, dtype=torch.float64)
        found = self._through(keys, values)
        return float(retrieved(cosines(found, values), self.threshold).double().mean())

    def _through(self, keys: Tensor, values: Tensor) -> Tensor:
        """What is read by the keys after they were written."""
        S = write(keys, values, self.rule, beta=self.beta, decay=self.decay, passes=self.passes)
        return read(S, keys)

    def _redundancy(self, learner: Learner, K: int) -> list[tuple[int, float]]:
        """Mean cosine of what H heads with random keys read on average, at n = K."""
        found = []
        for H in (1, 2, 4, 8):
            source = learner.generator("probe/assoc-capacity/redundancy", H)
            values = torch.randn(self.trials, K, K, generator=source, dtype=torch.float64)
            total = torch.zeros_like(values)
            for _ in range(H):
                keys = unit_keys("random", self.trials, K, K, source)
                total += self._through(keys, values) / H
            found.append((H, float(cosines(total, values).diagonal(dim1=-2, dim2=-1).mean())))
        return found

    def figure(self, result: Result) -> Figure:
        curves = {
            f"{kind} keys": ([n / result["key_width"] for n, _ in rates], [rate for _, rate in rates])
            for kind, rates in result["curves"].items()
        }
        for layer, heads in enumerate(result["own_curves"]):
            rates = max(heads, key=len)
            curves[f"layer {layer}, own keys"] = ([n / result["key_width"] for n, _ in rates], [r for _, r in rates])
        return plots.lines("Pairs that are retrieved", "pairs over the width of keys", "share", curves)
