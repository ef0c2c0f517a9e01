"""The Fisher of tokens, bits and values: the one-by-one loop, known answers, and EWC on such streams."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from clplat.backbones.attention.transformer import Transformer
from clplat.backbones.encoder import Encoder
from clplat.backbones.rnn.gru import GRU
from clplat.errors import UsageError
from clplat.fisher import FisherBatch, FisherKind, coverage, diagonal_fisher, naive_fisher
from clplat.fisher.directions import factor
from clplat.heads.head import SharedHead
from clplat.learner import Learner
from clplat.loop import Run
from clplat.metrics.measures import IGNORED, asked
from clplat.scenario import PER_STEP, LazyData, Scenario, Spec, Target, TensorData, stream
from clplat.settings import EvalSettings, TrainerSettings
from clplat.strategies.ewc import EWC

KINDS: tuple[FisherKind, ...] = ("exact", "sampled", "empirical", "batched")
TARGETS: tuple[Target, ...] = ("class", "token", "bits", "value", "series")
N, T, D, C = 7, 5, 4, 3


@pytest.fixture(autouse=True)
def _double() -> Iterator[None]:
    before, threads = torch.get_default_dtype(), torch.get_num_threads()
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(before)
    torch.set_num_threads(threads)


class Network(nn.Module):
    """A backbone and a linear head: on every step for tokens and bits, on the last for the rest."""

    def __init__(self, name: str, target: Target) -> None:
        super().__init__()
        self.target = target
        if name == "gru":
            self.body: nn.Module = GRU(D, hidden=8)
        elif name == "transformer":
            self.body = Transformer(D, dim=8, heads=2, layers=1)
        else:
            self.body = nn.Sequential(nn.Linear(D, 8), nn.Tanh(), nn.Linear(8, 8), nn.ReLU())
        self.scale = nn.Parameter(torch.rand(8) + 0.5) if name == "bare" else None
        self.head = nn.Linear(8, C)

    def forward(self, x: Tensor, task: Tensor | None = None) -> Tensor:
        h = self.body(x)
        h = h[0] if isinstance(h, tuple) else h
        h = h if self.scale is None else h * self.scale
        return self.head(h if self.target in PER_STEP else h[:, -1])


def targets(target: Target, n: int) -> Tensor:
    if target == "class":
        return torch.randint(C, (n,))
    if target == "value":
        return torch.randn(n, C)
    if target == "series":
        return torch.randn(n, T, C).masked_fill(torch.rand(n, T, C) < 0.4, torch.nan)
    shape = (n, T) if target == "token" else (n, T, C)
    return torch.randint(C if target == "token" else 2, shape).masked_fill(torch.rand(shape) < 0.4, IGNORED)


def make_batch(target: Target, n: int = N) -> FisherBatch:
    y = targets(target, n)
    return FisherBatch(torch.randn(n, T, D), y, torch.zeros(n, dtype=torch.long), torch.rand(y.shape))


def fisher(
    module: nn.Module, batches: list[FisherBatch], *, kind: FisherKind, target: Target, naive: bool = False
) -> Any:
    total = len(batches) if kind == "batched" else sum(len(b.x) for b in batches)
    function = naive_fisher if naive else diagonal_fisher
    parameters = dict(module.named_parameters())
    return function(
        module, module, parameters, batches, kind=kind, n_total=max(total, 1), target=target
    )  # fmt: skip


def close(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-10) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert (found[name] - value).abs().max() <= tolerance * value.abs().max(), name


@pytest.mark.parametrize("name", ["mlp", "gru", "transformer", "bare"])
@pytest.mark.parametrize("target", TARGETS)
def test_one_by_one(name: str, target: Target) -> None:
    module, batches = Network(name, target), [make_batch(target), make_batch(target, 3)]
    for kind in KINDS:
        expected = fisher(module, batches, kind=kind, target=target, naive=True)
        close(fisher(module, batches, kind=kind, target=target), expected)
        assert any((value > 0).any() for value in expected.values())
    ways = coverage(module, module, dict(module.named_parameters()), batches, target=target)
    assert {key for key, way in ways.items() if way != "hooks"} == ({"scale"} if name == "bare" else set())


@pytest.mark.parametrize("target", TARGETS)
def test_by_the_loop(target: Target) -> None:
    """A parameter that is no part of the module: one sample at a time."""
    module, shift, batch = Network("mlp", target), nn.Parameter(torch.randn(D)), make_batch(target)

    def logits(x: Tensor, task: Tensor) -> Tensor:
        return module(x + shift)

    for kind in KINDS:
        found, expected = (
            function(logits, module, {"shift": shift}, [batch], kind=kind, n_total=N, target=target)
            for function in (diagonal_fisher, naive_fisher)
        )
        close(found, expected)
    assert coverage(logits, module, {"shift": shift}, [batch], target=target) == {"shift": "loop"}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("kind", KINDS)
def test_slices_add_up(kind: FisherKind, target: Target) -> None:
    module, whole = Network("transformer", target), make_batch(target)
    parameters = dict(module.named_parameters())

    def of(*parts: tuple[int, int]) -> dict[str, Tensor]:
        batches = [FisherBatch(*(t[a:b] for t in whole if t is not None)) for a, b in parts]
        return diagonal_fisher(module, module, parameters, batches, kind=kind, n_total=N, target=target)

    first, second, nothing = of((0, 4)), of((4, N), (N, N)), of((2, 2))
    close({name: first[name] + second[name] for name in first}, of((0, 4), (4, N)))
    assert all((value == 0).all() for value in nothing.values())
    if kind != "batched":
        close({name: first[name] + second[name] for name in first}, of((0, N)))


@pytest.mark.parametrize("target", ["token", "bits", "series"])
@pytest.mark.parametrize("kind", ["exact", "sampled", "empirical"])
def test_what_is_not_asked_does_not_count(kind: FisherKind, target: Target) -> None:
    module, batch = Network("mlp", target), make_batch(target)
    step = torch.rand(N, T) < 0.5  # steps at which nothing is asked
    nothing_asked = torch.nan if target == "series" else IGNORED
    y = batch.y.masked_fill(step if target == "token" else step[..., None], nothing_asked)
    y[2] = nothing_asked
    plain = fisher(module, [batch._replace(y=y)], kind=kind, target=target)
    other = torch.where(step[..., None], torch.randn(N, T, D), batch.x)
    other[2] = torch.randn(T, D)
    assert batch.uniform is not None
    redrawn = torch.where(asked(target, y), batch.uniform, torch.rand(y.shape))
    close(fisher(module, [batch._replace(x=other, y=y, uniform=redrawn)], kind=kind, target=target), plain)
    nothing = fisher(module, [batch._replace(y=torch.full_like(y, nothing_asked))], kind=kind, target=target)
    assert all((value == 0).all() for value in nothing.values())


def on_steps(module: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda x, task: module(x)


@pytest.mark.parametrize("kind", KINDS)
def test_one_step_is_one_class(kind: FisherKind) -> None:
    module, x = nn.Sequential(nn.Linear(D, 6), nn.Tanh(), nn.Linear(6, C)), torch.randn(N, D)
    y, u, task = torch.randint(C, (N,)), torch.rand(N), torch.zeros(N, dtype=torch.long)
    parameters = dict(module.named_parameters())

    def of(batch: FisherBatch, target: Target) -> dict[str, Tensor]:
        return diagonal_fisher(on_steps(module), module, parameters, [batch], kind=kind, n_total=N, target=target)

    found = of(FisherBatch(x[:, None], y[:, None], task, u[:, None]), "token")
    close(found, of(FisherBatch(x, y, task, u), "class"), 0.0 if kind != "batched" else 1e-14)


def test_linear_regression_in_closed_form() -> None:
    module, x, y = nn.Linear(D, C), torch.randn(50, D), torch.randn(50, C)
    batch = FisherBatch(x, y, torch.zeros(50, dtype=torch.long), torch.rand(50, C))
    parameters = {"w": module.weight, "b": module.bias}

    def of(kind: FisherKind) -> dict[str, Tensor]:
        total = 1 if kind == "batched" else 50
        return diagonal_fisher(on_steps(module), module, parameters, [batch], kind=kind, n_total=total, target="value")

    close(of("exact"), {"w": x.square().mean(0).expand(C, -1), "b": torch.ones(C)})
    error = (y - module(x)).detach()
    close(of("empirical"), {"w": error.square().T @ x.square() / 50, "b": error.square().mean(0)})
    close(of("batched"), {"w": (error.T @ x / 50).square(), "b": error.mean(0).square()})


def test_logistic_bits_in_closed_form() -> None:
    module, x = nn.Linear(D, 2), torch.randn(50, 1, D)
    y = torch.randint(2, (50, 1, 2)).double()
    batch = FisherBatch(x, y, torch.zeros(50, dtype=torch.long), torch.rand(50, 1, 2))
    p = module(x).sigmoid().detach()[:, 0]
    parameters = {"w": module.weight, "b": module.bias}

    def of(kind: FisherKind) -> dict[str, Tensor]:
        return diagonal_fisher(on_steps(module), module, parameters, [batch], kind=kind, n_total=50, target="bits")

    spread = p * (1 - p)
    close(of("exact"), {"w": spread.T @ x[:, 0].square() / 50, "b": spread.mean(0)})
    error = (y[:, 0] - p).square()
    close(of("empirical"), {"w": error.T @ x[:, 0].square() / 50, "b": error.mean(0)})


@pytest.mark.parametrize("target", ["token", "bits", "value", "series"])
def test_sampled_approaches_exact(target: Target) -> None:
    module, draws = Network("gru", target), 3000
    batch = make_batch(target, 3)
    exact = fisher(module, [batch], kind="exact", target=target)
    y = batch.y.repeat(draws, *[1] * (batch.y.ndim - 1))
    task = torch.zeros(3 * draws, dtype=torch.long)
    many = FisherBatch(batch.x.repeat(draws, 1, 1), y, task, torch.rand(y.shape))
    for name, value in fisher(module, [many], kind="sampled", target=target).items():
        assert (value - exact[name]).norm() < 0.1 * exact[name].norm(), name


def test_factor_of_the_covariance() -> None:
    logits = torch.randn(6, 5) * torch.tensor([1, 1, 5, 30, 300, 1.0])[:, None]
    logits[1:, 2] = -torch.inf
    logits[5] = torch.tensor([0.0, -torch.inf, -torch.inf, -torch.inf, -torch.inf])
    p = logits.softmax(-1)
    u = torch.stack(list(factor(p)), -1)
    assert u.shape[-1] == 4
    torch.testing.assert_close(u @ u.mT, torch.diag_embed(p) - p[:, :, None] * p[:, None], rtol=0, atol=1e-15)
    assert len(list(factor(p[1:2]))) == 3  # the masked class takes no pass


def test_masked_tokens() -> None:
    module, batch = Network("mlp", "token"), make_batch("token")
    batch = batch._replace(y=batch.y.where(batch.y != 1, 2))
    mask = torch.tensor([0.0, -torch.inf, 0.0])

    def logits(x: Tensor, task: Tensor) -> Tensor:
        return module(x) + mask

    parameters = dict(module.named_parameters())
    for kind in KINDS:
        found, expected = (
            function(logits, module, parameters, [batch], kind=kind, n_total=N, target="token")
            for function in (diagonal_fisher, naive_fisher)
        )
        close(found, expected)
        assert (found["head.bias"][1] == 0).all()
    batch.y[0, 0] = 1
    with pytest.raises(ValueError, match="not masked"):
        diagonal_fisher(logits, module, parameters, [batch], kind="empirical", n_total=N, target="token")


def test_what_does_not_fit_is_refused() -> None:
    module = Network("mlp", "token")
    batch = make_batch("token")
    with pytest.raises(ValueError, match=r"\(7, 5\)"):
        fisher(module, [batch._replace(uniform=torch.rand(N))], kind="sampled", target="token")
    with pytest.raises(ValueError, match="uniform"):
        fisher(module, [batch._replace(uniform=None)], kind="sampled", target="token")
    with pytest.raises(ValueError, match="targets must be"):
        fisher(module, [batch._replace(y=batch.y[:, :-1])], kind="exact", target="token")
    with pytest.raises(ValueError, match=r"must be \(7, C\)"):
        fisher(module, [batch], kind="exact", target="class")
    twos = batch._replace(y=torch.full((N, T, C), 2))
    with pytest.raises(ValueError, match="0 to 1"):
        fisher(Network("mlp", "bits"), [twos], kind="empirical", target="bits")
    long = FisherBatch(torch.randn(2, 22, D), torch.zeros(2, 22, dtype=torch.long), torch.zeros(2, dtype=torch.long))
    with pytest.raises(UsageError, match=r"66 backward passes.*strategy\.fisher=sampled"):
        fisher(module, [long], kind="exact", target="token")
    long.y[:, 0] = IGNORED  # 21 labelled steps of 3 tokens: 63
    assert fisher(module, [long], kind="exact", target="token")["head.bias"].sum() > 0
    fisher(module, [long], kind="empirical", target="token")


# --- EWC


def scenario(target: Target, T: int = 4) -> Scenario:
    """Two experiences: the tokens so far modulo V, their parity in bits, or a linear function of vectors."""
    parts = []
    for k in range(2):
        x = torch.randint(3, (24, T), generator=torch.Generator().manual_seed(k))
        total = (x.cumsum(1) + k) % 3
        y = total if target == "token" else torch.stack([total % 2, total // 2], -1)
        if target == "value":
            x = torch.randn(24, D, generator=torch.Generator().manual_seed(k), dtype=torch.float64)
            y = x @ torch.linspace(-1, 1, 2 * D, dtype=torch.float64).reshape(D, 2).roll(k, 0)
        else:
            y[:, 0] = IGNORED
        parts.append(TensorData(x, y))
    experiences = stream("train", parts)
    tokens = target != "value"
    spec = Spec(
        shape=(T,) if tokens else (D,),
        classes=3 if target == "token" else 2,
        setting="domain",
        target=target,
        vocabulary=3 if tokens else None,
        metric="accuracy" if tokens else "mse",
        direction="max" if tokens else "min",
    )
    return Scenario(spec, experiences, experiences)


def run(target: Target, strategy: EWC, T: int = 4) -> tuple[Learner, dict[str, Any]]:
    made = scenario(target, T)
    tokens = made.spec.vocabulary is not None
    encoder = Encoder("tokens" if tokens else "vectors", made.spec.shape, vocabulary=made.spec.vocabulary, dim=D)
    backbone = GRU(D, hidden=8)
    learner = Learner(
        backbone,
        SharedHead(backbone.output_size, made.spec.classes),
        strategy,
        encoder=encoder,
        readout="last",
        target=target,
        settings=TrainerSettings(max_epochs=1, batch_size=8, precision="64", progress="none", accelerator="cpu"),
        make_optimizer=lambda groups: torch.optim.SGD(groups, lr=0.05),
    )
    strategy.attach(learner)
    return learner.double(), Run(learner, made, eval_settings=EvalSettings()).execute()


@pytest.mark.parametrize("target", ["token", "value"])
@pytest.mark.parametrize("kind", KINDS)
def test_ewc_on_a_stream(target: Target, kind: FisherKind) -> None:
    strategy = EWC(importance=1.0, fisher=kind)
    learner, results = run(target, strategy)
    importance = strategy.quadratic.importance
    assert importance.keys() == learner.network().keys()
    assert all(value.isfinite().all() for value in importance.values())
    assert sum(float(value.sum()) for value in importance.values()) > 0
    assert len(results["matrix"]) == 2
    _, free = run(target, EWC(importance=0.0, fisher=kind))
    assert results["weights_sha256"] != free["weights_sha256"]


def test_ewc_estimates_the_fisher_of_its_target() -> None:
    learner, _ = run("token", EWC())
    experience = scenario("token").train_stream[0]
    data = experience.dataset
    batch = FisherBatch(data.x, data.y, data.task)
    expected = naive_fisher(
        learner, learner, learner.network(), [batch], kind="exact", n_total=len(data), target="token"
    )  # fmt: skip
    strategy = learner.strategy
    assert isinstance(strategy, EWC)
    close(strategy.estimate(learner, experience), expected)


def test_ewc_takes_samples_that_are_loaded_one_by_one() -> None:
    strategy = EWC(fisher="sampled", samples=10)
    learner, _ = run("token", strategy)
    held = scenario("token").train_stream[0]
    x = held.dataset.x
    lazy = replace(held, dataset=LazyData(lambda i: x[i], held.dataset.y, held.dataset.task))
    close(strategy.estimate(learner, lazy), strategy.estimate(learner, held), 0.0)


def test_ewc_refuses_before_it_trains() -> None:
    with pytest.raises(UsageError, match=r"strategy\.fisher=sampled"):
        run("token", EWC(fisher="exact"), T=30)
    learner, _ = run("token", EWC(fisher="sampled"), T=30)
    assert learner.step > 0
