"""The diagonal Fisher by hooks is the one by one loop, for every kind and every way a parameter can be used."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from clplat import registry
from clplat.fisher import FisherBatch, coverage, diagonal_fisher, naive_fisher
from clplat.heads import StackedLinear
from clplat.heads.head import TiedHead
from tests.backbones.helpers import each_name

KINDS = ("exact", "sampled", "empirical", "batched", "sensitivity")
N, T, D, C = 7, 5, 6, 4


@pytest.fixture(autouse=True)
def _double():
    before, threads = torch.get_default_dtype(), torch.get_num_threads()
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)  # small operations: threads would only wait for each other
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(before)
    torch.set_num_threads(threads)


def make_batch(x, classes=C, tasks=1):
    n = len(x)
    return FisherBatch(x, torch.randint(classes, (n,)), torch.randint(tasks, (n,)), torch.rand(n))


def close(found, expected, tolerance=1e-12):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].shape == value.shape
        assert not found[name].requires_grad
        error = (found[name] - value).abs().max() if value.numel() else 0.0
        # A gradient that is zero but for rounding has a square below 1e-30.
        assert error <= max(tolerance * value.abs().max(), 1e-30), name


def agree(module, batches, logits=None, kinds=KINDS, expected_ways=None, parameters=None):
    """Hooks = loop, and the ways that are expected."""
    logits = logits or (lambda x, task: module(x, task))
    parameters = parameters or dict(module.named_parameters())
    for kind in kinds:
        total = len(batches) if kind == "batched" else sum(len(b.x) for b in batches)
        found = diagonal_fisher(logits, module, parameters, batches, kind=kind, n_total=total)
        expected = naive_fisher(logits, module, parameters, batches, kind=kind, n_total=total)
        close(found, expected)
        assert any((value > 0).any() for value in expected.values())
    ways = coverage(logits, module, parameters, batches)
    if expected_ways is not None:
        by_way = {name: way for name, way in ways.items() if way != "hooks"}
        assert by_way == expected_ways
    return ways


class MLP(nn.Sequential):
    def __init__(self, inplace=False):
        super().__init__(
            nn.Linear(D, 9),
            nn.ReLU(inplace),
            nn.Dropout(0.5),
            nn.Linear(9, 8, bias=False),
            nn.ReLU(inplace),
            nn.Linear(8, C),
        )

    def forward(self, x, task=None):
        return super().forward(x)


class Recurrent(nn.Module):
    """A gated loop: one module on the whole sequence, one called at every step."""

    def __init__(self):
        super().__init__()
        self.ih, self.hh, self.out = nn.Linear(D, 3 * 8), nn.Linear(8, 3 * 8), nn.Linear(8, C)

    def forward(self, x, task):
        gates, h = self.ih(x), x.new_zeros(len(x), 8)
        for g in gates.unbind(1):
            (ri, zi, ni), (rh, zh, nh) = g.chunk(3, -1), self.hh(h).chunk(3, -1)
            z = torch.sigmoid(zi + zh)
            h = (1 - z) * torch.tanh(ni + torch.sigmoid(ri + rh) * nh) + z * h
        return self.out(h)


class Attention(nn.Module):
    """A causal block with layer norms; ``fold`` runs its MLP on (n * T, D), ``task`` picks the head."""

    def __init__(self, fold=False, tasks=3):
        super().__init__()
        self.fold = fold
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(D), nn.RMSNorm(D, eps=1e-6), nn.LayerNorm(D, bias=False)
        self.qkv, self.proj = nn.Linear(D, 3 * D), nn.Linear(D, D)
        self.up, self.down = nn.Linear(D, 2 * D), nn.Linear(2 * D, D)
        self.head = StackedLinear(tasks, D, C)
        for norm in (self.norm1, self.norm2, self.norm3):
            nn.init.uniform_(norm.weight, 0.5, 1.5)

    def forward(self, x, task):
        q, k, v = (s.unflatten(-1, (2, -1)).transpose(1, 2) for s in self.qkv(self.norm1(x)).chunk(3, -1))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        x = x + self.proj(y)
        if self.fold:
            rows = x.reshape(-1, D)
            x = (rows + self.down(F.gelu(self.up(self.norm2(rows))))).reshape(x.shape)
        else:
            x = x + self.down(F.gelu(self.up(self.norm2(x))))
        return self.head(self.norm3(x)[:, -1], task)


def sequences(tasks=1, n=N):
    return [make_batch(torch.randn(n, T, D), tasks=tasks), make_batch(torch.randn(n - 3, T, D), tasks=tasks)]


@pytest.mark.parametrize("inplace", [False, True])
def test_mlp(inplace):
    module = MLP(inplace)
    agree(module, [make_batch(torch.randn(N, D)), make_batch(torch.randn(3, D))], expected_ways={})


def test_recurrent_loop():
    agree(Recurrent(), sequences(), expected_ways={})


@pytest.mark.parametrize("fold", [False, True])
def test_attention_norms_and_stacked_heads_with_mixed_tasks(fold):
    agree(Attention(fold), sequences(tasks=3), expected_ways={})


def test_linear_on_several_inner_dimensions():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.out = nn.Linear(3, 4), nn.Linear(T * 2 * 4, C)

        def forward(self, x, task):
            return self.out(self.inner(x.unflatten(-1, (2, 3))).tanh().flatten(1))

    agree(Model(), sequences(), expected_ways={})


def test_stacked_head_on_every_step():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = StackedLinear(3, D, C)

        def forward(self, x, task):
            step = (task[:, None] + torch.arange(T)) % 3  # labels that change within a sample
            return self.head(x.reshape(-1, D), step.reshape(-1)).unflatten(0, (-1, T)).tanh().sum(1)

    agree(Model(), sequences(tasks=3), expected_ways={})


def test_embedding():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.token, self.task = nn.Embedding(5, D, padding_idx=0), nn.Embedding(3, D)
            self.out = nn.Linear(D, C)

        def forward(self, x, task):
            h = self.token(x) + self.task(task)[:, None]
            return self.out(torch.cummax(h, 1).values.square().mean(1))

    batches = [make_batch(torch.randint(5, (n, T)), tasks=3) for n in (N, 3)]  # tokens occur more than once in a sample
    agree(Model(), batches, expected_ways={})


@pytest.mark.parametrize("groups", [1, 2])
def test_convolutions(groups):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.one = nn.Conv1d(D, 4, 3, padding=1, groups=groups)
            self.two = nn.Conv2d(1, 2, 3, stride=2, padding="valid" if groups == 2 else 1, bias=groups == 2)
            self.norm = nn.BatchNorm1d(4)
            self.norm.running_mean.uniform_(-1, 1)
            self.out = nn.LazyLinear(C)

        def forward(self, x, task):
            a = self.norm(self.one(x.mT)).tanh().flatten(1)
            frames = self.two(x.reshape(-1, 1, 2, 3).repeat(1, 1, 2, 1))  # time folded into the batch
            return self.out(torch.cat([a, frames.tanh().reshape(len(x), -1)], 1))

    module, batches = Model(), sequences()
    module(batches[0].x, None)
    agree(module, batches, expected_ways={})


class Tied(nn.Module):
    """One matrix as embedding and as output layer."""

    def __init__(self):
        super().__init__()
        self.token, self.out = nn.Embedding(C, D), nn.Linear(D, C)
        self.out.weight = self.token.weight
        self.mix = nn.Linear(D, D)

    def forward(self, x, task):
        return self.out(self.mix(self.mix(self.token(x).mean(1))).tanh())  # mix is used twice


def test_tied_weights_and_a_module_used_twice():
    agree(Tied(), [make_batch(torch.randint(C, (N, T)))], expected_ways={"token.weight": "vmap"})


def test_a_head_that_is_tied_to_the_embeddings():
    embedding = nn.Embedding(C, D)
    module = nn.ModuleDict({"embedding": embedding, "head": TiedHead(D, embedding, C)})

    def logits(x, task):
        return module["head"](embedding(x).mean(1).tanh(), task)

    batches = [make_batch(torch.randint(C, (N, T)))]
    agree(module, batches, logits=logits, expected_ways={"embedding.weight": "vmap"})


def test_one_parameter_under_two_names():
    module = MLP()
    parameters = {"a": module[0].weight, "b": module[0].weight, "c": module[-1].bias}
    agree(module, [make_batch(torch.randn(N, D))], expected_ways={}, parameters=parameters)


class Bare(nn.Module):
    """Parameters no rule can see: a bare one, one used by a module and past it, one of a module that is bypassed."""

    def __init__(self):
        super().__init__()
        self.decay, self.shared, self.passed, self.out = (
            nn.Parameter(torch.randn(D)), nn.Linear(D, D), nn.Linear(D, D), nn.Linear(D, C)
        )  # fmt: skip

    def forward(self, x, task):
        h = x * self.decay.sigmoid()
        h = (self.shared(h) + F.linear(h, self.shared.weight)).tanh()
        return self.out(F.linear(h, self.passed.weight, self.passed.bias).tanh().mean(1))


def test_bare_parameters():
    ways = dict.fromkeys(("decay", "shared.weight", "passed.weight", "passed.bias"), "vmap")
    agree(Bare(), sequences(), expected_ways=ways)


def test_parameter_outside_the_module():
    prompt, module = nn.Parameter(torch.randn(D)), MLP()

    def logits(x, task):
        return module(x + prompt, task)

    parameters = {"prompt": prompt, **dict(module.named_parameters())}
    batches = [make_batch(torch.randn(N, D))]
    agree(module, batches, logits=logits, expected_ways={"prompt": "loop"}, parameters=parameters)


def test_frozen_values_in_a_closure_do_not_fool_vmap():
    module = Bare()
    decay = [module.decay]  # read past the attribute, so a swapped value is not seen

    def logits(x, task):
        return module.out((x * decay[0]).tanh().mean(1))

    agree(module, sequences(), logits=logits, expected_ways={"decay": "loop"})


def test_branch_on_values_goes_by_the_loop():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale, self.out = nn.Parameter(torch.randn(D)), nn.Linear(D, C)

        def forward(self, x, task):
            return self.out(x * self.scale if float(x.detach().sum()) < 1e9 else x)

    agree(Model(), [make_batch(torch.randn(N, D))], expected_ways={"scale": "loop"})


@pytest.mark.parametrize(("n", "steps"), [(N, N), (N, 2 * N), (N, 3), (20, 20), (20, 40), (40, 16)])
def test_time_first_is_found_out(n, steps):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.norm, self.out = nn.Linear(D, D), nn.LayerNorm(D), nn.Linear(D, C)

        def forward(self, x, task):
            return self.out(self.norm(self.inner(x.transpose(0, 1)).tanh()).mean(0).square())

    ways = dict.fromkeys(("inner.weight", "inner.bias", "norm.weight", "norm.bias"), "vmap")
    kinds = KINDS if n == N else ("empirical",)
    agree(Model(), [make_batch(torch.randn(n, steps, D))], kinds=kinds, expected_ways=ways)


def test_heads_by_a_loop_over_tasks():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Linear(D, D)
            self.heads = nn.ModuleList(nn.Linear(D, C) for _ in range(2))

        def forward(self, x, task):
            h, y = self.body(x).tanh(), x.new_zeros(len(x), C)
            for k in task.unique().tolist():
                y[task == k] = self.heads[k](h[task == k])
            return y

    x = torch.randn(4, D)
    zero, one = torch.zeros(4, dtype=torch.long), torch.ones(4, dtype=torch.long)
    mixed = torch.tensor([0, 1, 1, 0])
    batches = [make_batch(x)._replace(task=task) for task in (zero, one, mixed, zero, mixed)]
    ways = {f"heads.{k}.{name}": "loop" for k in range(2) for name in ("weight", "bias")}
    assert agree(Model(), batches[:2], expected_ways={})  # one head at a time: hooks see whole batches
    agree(Model(), batches, expected_ways=ways)


def test_rows_that_are_permuted_by_the_data():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.out = nn.Linear(D, D), nn.Linear(D, C)

        def forward(self, x, task):
            order = task.argsort(stable=True)
            return self.out(self.inner(x[order]).tanh()[order.argsort()])

    task = torch.tensor([0, 0, 1, 1])
    batches = [make_batch(torch.randn(4, D))._replace(task=t) for t in (task, task.flip(0))]
    ways = agree(Model(), batches)
    assert ways["inner.weight"] != "hooks"
    assert ways["out.weight"] == "hooks"


def test_a_batch_that_is_run_in_pieces():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.out = nn.Linear(D, D), nn.Linear(D, C)

        def forward(self, x, task):  # pieces of 20: a batch of 40 is two calls, and a few rows do not show it
            return self.out(torch.cat([self.inner(piece).tanh() for piece in x.split(20)]))

    ways = {"inner.weight": "vmap", "inner.bias": "vmap"}
    agree(Model(), [make_batch(torch.randn(40, D))], kinds=("exact",), expected_ways=ways)


def test_large_batches():
    agree(Attention(), sequences(tasks=1, n=30), kinds=("exact", "empirical"), expected_ways={})
    agree(Bare(), sequences(n=30), kinds=("exact", "empirical"))


def test_fused_form_is_opened():
    from clplat.backbones.rnn.gru import GRU

    backbone, head = GRU(D, hidden=8, layers=2).double(), nn.Linear(8, C)
    module = nn.ModuleList([backbone, head])
    agree(module, sequences(), logits=lambda x, task: head(backbone(x)[0][:, -1]), expected_ways={})


def test_torch_gru_goes_by_the_loop():
    module = nn.ModuleList([nn.GRU(D, 4, batch_first=True), nn.Linear(4, C)])
    ways = agree(module, sequences(n=4), logits=lambda x, task: module[1](module[0](x)[0][:, -1]), kinds=("exact",))
    assert {way for name, way in ways.items() if name.startswith("0.")} == {"loop"}
    assert {way for name, way in ways.items() if name.startswith("1.")} == {"hooks"}


@pytest.mark.parametrize("make", [MLP, Bare])
@pytest.mark.parametrize("kind", KINDS)
def test_masked_classes(make, kind):
    module = make()
    mask = torch.zeros(C).masked_fill_(torch.tensor([False, True, False, True]), -torch.inf)
    x = torch.randn(N, D) if make is MLP else torch.randn(N, T, D)
    batch = make_batch(x)._replace(y=torch.randint(2, (N,)) * 2)
    parameters = dict(module.named_parameters())

    def logits(x, task):
        return module(x, task) + mask

    found = diagonal_fisher(logits, module, parameters, [batch], kind=kind, n_total=N)
    close(found, naive_fisher(logits, module, parameters, [batch], kind=kind, n_total=N))
    alone = diagonal_fisher(
        lambda x, task: module(x, task)[:, ::2],
        module,
        parameters,
        [batch._replace(y=batch.y // 2)],
        kind=kind,
        n_total=N,
    )
    close(found, alone)  # masked is the same as not there
    assert all(value.isfinite().all() for value in found.values())


def test_a_masked_or_missing_label_is_refused():
    module, x = MLP(), torch.randn(2, D)
    parameters = dict(module.named_parameters())
    for y in (torch.tensor([0, C]), torch.tensor([0, 1])):
        batch = FisherBatch(x, y, torch.zeros(2, dtype=torch.long))
        mask = torch.tensor([0.0, -torch.inf, 0.0, 0.0])
        with pytest.raises(ValueError, match="not masked"):
            diagonal_fisher(
                lambda x, task: module(x) + mask, module, parameters, [batch], kind="empirical", n_total=2  # noqa: B023
            )  # fmt: skip
    with pytest.raises(ValueError, match="uniform"):
        diagonal_fisher(module, module, parameters, [batch], kind="sampled", n_total=2)


@pytest.mark.parametrize("kind", KINDS)
def test_slices_add_up_and_an_empty_one_is_zero(kind):
    module = Bare()
    parameters = dict(module.named_parameters())
    whole = make_batch(torch.randn(N, T, D))

    def fisher(*parts):
        batches = [FisherBatch(*(t[a:b] for t in whole)) for a, b in parts]
        total = 2 if kind == "batched" else N
        return diagonal_fisher(lambda x, k: module(x, k), module, parameters, batches, kind=kind, n_total=total)

    both, first, second, nothing = fisher((0, 4), (4, N)), fisher((0, 4)), fisher((4, N), (N, N)), fisher((2, 2))
    close({name: first[name] + second[name] for name in both}, both)
    assert nothing.keys() == both.keys()
    assert all((value == 0).all() for value in nothing.values())
    assert all((value == 0).all() for value in fisher().values())
    if kind != "batched":
        close(fisher((0, N)), both)


def test_logistic_regression_in_closed_form():
    module = nn.Linear(D, 2)
    x = torch.randn(50, D)
    p = module(x).softmax(-1)[:, 1]
    y = torch.randint(2, (50,))
    batch = FisherBatch(x, y, torch.zeros(50, dtype=torch.long))

    def fisher(kind):
        return diagonal_fisher(
            lambda x, task: module(x),
            module,
            {"w": module.weight, "b": module.bias},
            [batch],
            kind=kind,
            n_total=1 if kind == "batched" else 50,
        )

    spread = p * (1 - p)
    expected = (spread[:, None] * x**2).mean(0).detach()
    close(fisher("exact"), {"w": expected.expand(2, -1), "b": spread.mean().detach().expand(2)})
    error = (y - p).detach()
    expected = (error[:, None] ** 2 * x**2).mean(0)
    close(fisher("empirical"), {"w": expected.expand(2, -1), "b": error.square().mean().expand(2)})
    expected = (error[:, None] * x).mean(0) ** 2
    close(fisher("batched"), {"w": expected.expand(2, -1), "b": (error.mean() ** 2).expand(2)})


def test_sampled_approaches_exact():
    module, x, draws = MLP(), torch.randn(6, D), 4000
    parameters = dict(module.named_parameters())
    exact = diagonal_fisher(module, module, parameters, [make_batch(x)], kind="exact", n_total=6)
    many = make_batch(x.repeat(draws, 1))
    sampled = diagonal_fisher(module, module, parameters, [many], kind="sampled", n_total=6 * draws)
    for name, value in exact.items():
        assert (sampled[name] - value).norm() < 0.06 * value.norm(), name


def test_draws_follow_the_inverse_cdf():
    from clplat.fisher.definition import draw

    p = torch.tensor([[0.2, 0.0, 0.5, 0.3, 0.0]]).expand(6, -1)
    u = torch.tensor([0.0, 0.19, 0.21, 0.69, 0.71, 1.0])
    assert draw(p, u).tolist() == [0, 0, 2, 2, 3, 3]
    assert draw(p.float(), u.float()).tolist() == [0, 0, 2, 2, 3, 3]


def test_batched_is_too_small_by_the_batch():
    """At a random initialisation gradients of samples have no common direction: the shortcut is about 1/batch."""
    size = 64
    module = nn.Linear(D, C)
    with torch.no_grad():
        module.weight.mul_(0.01), module.bias.zero_()
    batches = [make_batch(torch.randn(size, D)) for _ in range(40)]
    parameters = {"w": module.weight}

    def fisher(kind, total):
        return diagonal_fisher(lambda x, k: module(x), module, parameters, batches, kind=kind, n_total=total)[
            "w"
        ].mean()

    ratio = fisher("batched", len(batches)) / fisher("exact", size * len(batches))
    assert 0.6 < ratio * size < 1.7


def test_leaves_no_trace():
    module = Bare()
    module.shared.eval()
    module.passed.weight.requires_grad_(False)
    batch = make_batch(torch.randn(N, T, D))
    module(batch.x, batch.task).sum().backward()
    grads = {name: None if p.grad is None else p.grad.clone() for name, p in module.named_parameters()}
    modes = {name: m.training for name, m in module.named_modules()}
    flags = {name: p.requires_grad for name, p in module.named_parameters()}
    parameters = dict(module.named_parameters())
    seen, state = [], torch.get_rng_state()

    def logits(x, task):
        seen.append(any(m.training for m in module.modules()))
        return module(x, task)

    def fisher(**grad_mode):
        return diagonal_fisher(logits, module, parameters, [batch], kind="exact", n_total=N)

    plain = fisher()
    for mode in (torch.no_grad(), torch.inference_mode(), torch.autocast("cpu", torch.bfloat16)):
        with mode:
            close(fisher(), plain, 0.0)
    assert plain["passed.weight"].abs().sum() > 0  # frozen, and asked for
    assert not any(seen)
    assert torch.equal(torch.get_rng_state(), state)
    assert {name: m.training for name, m in module.named_modules()} == modes
    assert {name: p.requires_grad for name, p in module.named_parameters()} == flags
    assert not any(m._forward_hooks for m in module.modules())
    for name, p in module.named_parameters():
        assert (p.grad is None) == (grads[name] is None)
        assert p.grad is None or torch.equal(p.grad, grads[name])

    def broken(x, task):
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        diagonal_fisher(broken, module, parameters, [batch], kind="exact", n_total=N)
    assert {name: m.training for name, m in module.named_modules()} == modes
    assert {name: p.requires_grad for name, p in module.named_parameters()} == flags


def test_parameters_without_influence_are_zero():
    module = MLP()
    module.add_module("unused", nn.Linear(2, 2))
    parameters = {"w": module[0].weight, "unused": module.unused.weight}
    batch = make_batch(torch.randn(N, D))

    def logits(x, task):
        h = x
        for layer in list(module)[:6]:
            h = layer(h)
        return h

    for kind in KINDS:
        found = diagonal_fisher(logits, module, parameters, [batch], kind=kind, n_total=N)
        assert (found["unused"] == 0).all()
        assert (found["w"] > 0).any()
        alone = diagonal_fisher(logits, module, {"u": parameters["unused"]}, [batch], kind=kind, n_total=N)
        assert (alone["u"] == 0).all()


def test_single_precision_stays_on_hooks():
    module = Attention().float()
    batches = [b._replace(x=b.x.float()) for b in sequences(tasks=3)]
    parameters = dict(module.named_parameters())
    assert set(coverage(module, module, parameters, batches).values()) == {"hooks"}
    found = diagonal_fisher(module, module, parameters, batches, kind="exact", n_total=1)
    close(found, naive_fisher(module, module, parameters, batches, kind="exact", n_total=1), 1e-4)


SMALL = {"hidden": 8, "dim": 8, "heads": 2, "layers": 2, "memory": 4}


@pytest.mark.parametrize("name", each_name())
def test_every_backbone(name):
    entry = registry.entries("backbone")[name]
    small = {key: value for key, value in SMALL.items() if key in entry.options}
    backbone = entry.load()(D, **small).double()
    head = StackedLinear(2, backbone.output_size, C)
    module = nn.ModuleDict({"backbone": backbone, "head": head})

    def logits(x, task):
        return head(backbone(x)[0].mean(1), task)

    ways = agree(module, sequences(tasks=2), logits=logits, kinds=("exact", "empirical"))
    assert "loop" not in ways.values()
