"""EWC: the penalty is the papers', whatever form it is kept in."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from clplat.batch import Batch
from clplat.build import Built, build
from clplat.config import compose
from clplat.fisher import FisherBatch, naive_fisher
from clplat.learner import Learner
from clplat.loop import Run
from clplat.ranks import Ranks
from tests.cases import built, run


def _explicit(one: Built, online: bool) -> tuple[list[dict[str, Tensor]], list[dict[str, Tensor]]]:
    """Run, and keep each experience's Fisher (by the one-by-one loop) and weights as the penalty's definition says."""
    fishers: list[dict[str, Tensor]] = []
    anchors: list[dict[str, Tensor]] = []
    strategy = one.learner.strategy
    finish = strategy.finish

    def keep(learner: Learner, experience: Any) -> None:
        data = experience.dataset.to(torch.device("cpu"), torch.float64)
        learner.eval()
        everything = [FisherBatch(data.x, data.y, data.task)]
        fishers.append(naive_fisher(learner, learner, learner.network(), everything, kind="exact", n_total=len(data)))
        anchors.append({name: p.detach().clone() for name, p in learner.network().items()})
        finish(learner, experience)

    strategy.finish = keep  # type: ignore[method-assign]
    run(one)
    return fishers, anchors


@pytest.mark.parametrize("online", [False, True])
def test_ewc_penalty_is_the_papers(online: bool) -> None:
    decay = 0.7 if online else 1.0
    one = built("ewc", "trainer.precision=64", f"strategy.online={online}", f"strategy.decay={decay}")
    fishers, anchors = _explicit(one, online)
    learner = one.learner
    with torch.no_grad():
        for p in learner.network().values():
            p.add_(torch.randn_like(p) * 0.1)
    if online:
        running: dict[str, Tensor] = {}
        for fisher in fishers:
            running = {name: decay * running.get(name, 0.0) + f for name, f in fisher.items()}
        pairs = [(running, anchors[-1])]
    else:
        pairs = list(zip(fishers, anchors, strict=True))
    network = learner.network()
    expected = sum((f[n] * (network[n] - a[n]).square()).sum() for f, a in pairs for n in network)
    expected_grads = torch.autograd.grad(5.0 * expected, list(network.values()))  # importance 10, halved
    batch = Batch([], experience=3, epoch=0, step=0)
    found = learner.strategy.loss(learner, batch, None)["penalty"]  # type: ignore[arg-type]
    torch.testing.assert_close(found, 5.0 * torch.as_tensor(expected), rtol=1e-10, atol=0)
    found_grads = torch.autograd.grad(found, list(network.values()))
    torch.testing.assert_close(found_grads, expected_grads, rtol=1e-8, atol=1e-12)


def test_ewc_kinds_differ_and_are_recorded_in_the_config() -> None:
    digests = {
        run(built("ewc", f"strategy.fisher={kind}"))["weights_sha256"]
        for kind in ("exact", "sampled", "empirical", "batched")
    }
    assert len(digests) == 4


def test_ewc_with_no_importance_is_naive() -> None:
    matrix = run(built("ewc", "strategy.importance=0"))["matrix"]
    assert matrix == run(built("naive"))["matrix"]


def test_auto_is_exact_or_says_that_it_samples() -> None:
    assert run(built("ewc"))["weights_sha256"] == run(built("ewc", "strategy.fisher=exact"))["weights_sha256"]
    small = [
        "scenario=mqar-memorize", "scenario.experiences=2", "scenario.samples=64", "scenario.test_samples=32",
        "backbone=gru", "backbone.hidden=8",
    ]  # fmt: skip
    overrides = ["strategy=ewc", *small, "trainer.max_epochs=1", "trainer.accelerator=cpu"]
    said: list[str] = []
    digests = []
    for kind in ("auto", "sampled"):
        one = build(compose([*overrides, f"strategy.fisher={kind}"]), Ranks())
        job = Run(one.learner, one.scenario, eval_settings=one.eval_settings)
        one.learner.note = said.append
        digests.append(job.execute()["weights_sha256"])
    assert digests[0] == digests[1]
    assert len(said) == 1
    assert "sampled" in said[0]
