"""A recurrent network that noise alone drives, trained to emit sequences of given statistics, and its dynamics (Torre
et al. 2025, Mechanistic interpretability of RNNs emulating hidden Markov models, arXiv 2510.25674)."""

from __future__ import annotations

import torch
import torch.nn.functional as nnf
from torch import Generator, Tensor, nn

from clplat.metrics.transport import sinkhorn_divergence


class NoiseDriven(nn.Module):
    """A vanilla network whose only input is noise: ``h_t = relu(W h_{t-1} + W_in xi_t)``, logits ``W_out h_t``, without
    biases and from h = 0; xi_t ~ N(0, sigma^2 I). Symbols are drawn from the softmax of the logits (Gumbel's way, with
    temperature 1), which in training passes gradients straight through.

    Nothing but the noise sets a scale: sigma multiplies states and logits, so which symbol is likeliest does not depend
    on it, and symbols that are drawn follow the likeliest the more closely the larger it is. A published optimum at a
    middle strength must therefore be of another measure. It is not measured here; nor are orbits and the neurons that
    kick.

    Published (authors' code, EliaTorre/hmmrnn): 50 to 200 hidden units, 1 to 200 numbers of noise, sigma = 1, 30,000
    sequences of 30 to 150 steps in batches of 4096, 500 to 1000 epochs of Adam with rate 0.001 and betas (0.9, 0.9),
    gradients clipped at 0.9, Sinkhorn divergence with blur 0.2.

    Args:
        symbols: A.
        hidden: units.
        noise: numbers in xi.
        source: of the initial weights, uniform below 1 / sqrt(hidden).
    """

    def __init__(self, symbols: int, hidden: int, noise: int, source: Generator) -> None:
        super().__init__()
        self.symbols, self.hidden, self.noise = symbols, hidden, noise
        self.rnn = nn.RNN(noise, hidden, nonlinearity="relu", bias=False, batch_first=True)
        self.out = nn.Linear(hidden, symbols, bias=False)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -(hidden**-0.5), hidden**-0.5, generator=source)

    def forward(self, noise_NTI: Tensor, start_NH: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Logits (N, T, A) and hidden states (N, T, hidden) from noise, and from states or 0."""
        h_NTH, _ = self.rnn(noise_NTI, None if start_NH is None else start_NH[None])
        return self.out(h_NTH), h_NTH

    def paths(
        self, n: int, length: int, source: Generator, *, sigma: float = 1.0, start_NH: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Logits and states of ``n`` sequences of fresh noise."""
        noise_NTI = sigma * torch.randn((n, length, self.noise), generator=source)
        logits_NTA, h_NTH = self(noise_NTI, start_NH)
        return logits_NTA, h_NTH

    def emit(self, n: int, length: int, source: Generator) -> Tensor:
        """Symbols (n, length, A) as one-hot vectors, through which gradients pass as through the softmax."""
        return drawn(self.paths(n, length, source)[0], source)


def drawn(logits_NTA: Tensor, source: Generator) -> Tensor:
    """One-hot symbols from the softmax of logits by the Gumbel trick, straight through (Jang et al. 2017, Categorical
    reparameterization with Gumbel-softmax, arXiv 1611.01144)."""
    gumbel_NTA = -torch.empty(logits_NTA.shape).exponential_(generator=source).log()
    soft_NTA = (logits_NTA + gumbel_NTA).softmax(-1)
    hard_NTA = nnf.one_hot(soft_NTA.argmax(-1), logits_NTA.shape[-1]).to(soft_NTA.dtype)
    return hard_NTA + (soft_NTA - soft_NTA.detach())


def train(
    network: NoiseDriven,
    symbols_NT: Tensor,
    source: Generator,
    *,
    steps: int,
    batch: int = 128,
    lr: float = 1e-3,
    blur: float = 0.2,
) -> None:
    """Make the network's sequences the given ones' as a distribution: each step takes the Sinkhorn divergence between a
    batch of its own and a batch of given sequences, as one-hot vectors of all steps, down by Adam.

    Args:
        symbols_NT: numbers from 0 on.
    """
    optimizer = torch.optim.Adam(network.parameters(), lr=lr, betas=(0.9, 0.9))
    for _ in range(steps):
        rows = torch.randint(len(symbols_NT), (batch,), generator=source)
        given = nnf.one_hot(symbols_NT[rows], network.symbols).float().flatten(1)
        own = network.emit(batch, symbols_NT.shape[1], source).flatten(1)
        loss = sinkhorn_divergence(own, given, blur=blur)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 0.9)
        optimizer.step()


@torch.no_grad()
def settling(network: NoiseDriven, start_NH: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Without noise: the speed ``|h_{t+1} - h_t|`` of each state after ``steps`` steps, (N,), and the states there."""
    quiet_NTI = torch.zeros(len(start_NH), steps + 1, network.noise)
    h_NTH = network(quiet_NTI, start_NH)[1]
    return (h_NTH[:, -1] - h_NTH[:, -2]).norm(dim=1), h_NTH[:, -1]


@torch.no_grad()
def switch_rate(network: NoiseDriven, sigma: float, source: Generator, *, n: int = 64, length: int = 200) -> float:
    """The share of steps at which the likeliest symbol changes under noise of that strength, in the second half of
    sequences, when their start is forgotten."""
    likeliest_NT = network.paths(n, length, source, sigma=sigma)[0].argmax(-1)[:, length // 2 :]
    return (likeliest_NT[:, 1:] != likeliest_NT[:, :-1]).double().mean().item()
