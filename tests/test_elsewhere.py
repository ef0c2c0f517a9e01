"""What runs on the CPU runs on another device, to the same end: nothing is left behind, nothing is made elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from clplat import probing
from clplat.backbones.base import state_tensors
from clplat.build import build
from clplat.config import compose
from clplat.loop import Run
from clplat.metrics.probes import base
from clplat.ranks import Ranks
from clplat.tracking.record import Record
from tests import cases
from tests.backbones.helpers import NONE_AND_BOTH, D, assert_close, each_entry, flags, inputs
from tests.backbones.helpers import build as network_of
from tests.elsewhere import DEVICE, Elsewhere, elsewhere, moved


def results(overrides: list[str], ranks: Ranks) -> dict[str, Any]:
    one = build(compose([*overrides, "trainer.accelerator=cpu"]), ranks)
    return Run(one.learner, one.scenario, eval_settings=one.eval_settings).execute()


def assert_same_there(overrides: list[str]) -> None:
    here = results(overrides, Ranks())
    with elsewhere():
        there = results(overrides, Ranks(device=DEVICE))
    assert torch.allclose(torch.tensor(there["matrix"]), torch.tensor(here["matrix"]), atol=1e-6)
    assert there["summary"] == pytest.approx(here["summary"], abs=1e-6)


def test_that_device_finds_what_is_left_behind() -> None:
    class Forgetful(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = torch.ones(3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * self.scale

    with elsewhere():
        x = torch.arange(3.0, device=DEVICE)
        assert isinstance(x, Elsewhere)
        assert torch.tensor([1.0, 2.0], device=DEVICE).tolist() == [1, 2]
        with pytest.raises(RuntimeError, match=r"on the CPU"):
            Forgetful().to(DEVICE)(x)
        with pytest.raises(RuntimeError, match="generator of the CPU"):
            torch.randn(3, generator=torch.Generator(), device=DEVICE)
        x[[0, 2]] = 7.0
        assert x.cpu().tolist() == [7, 1, 7]


@pytest.mark.parametrize("entry", each_entry())
@pytest.mark.parametrize("kind", NONE_AND_BOTH)
def test_a_backbone_is_the_same_there(entry: Any, kind: str) -> None:
    found = []
    for place in (torch.clone, moved):
        network = network_of(entry)
        with elsewhere():
            network.to(place(torch.ones(1)).device)
            x = place(inputs(2, 5, D)).requires_grad_()  # a chunk of four steps, and one step
            arguments = {name: place(t) for name, t in flags(kind, 2, 5).items()}
            _, state = network(x, None, **arguments)
            y, after = network(x, state, **arguments)
            (gradient,) = torch.autograd.grad(y.sum(), [x])
            tensors = [y, gradient, *state_tensors(after)]
            assert {tensor.device for tensor in tensors} == {x.device}
            found.append([tensor.detach().cpu() for tensor in tensors])
    for here, there in zip(*found, strict=True):
        assert_close(there, here, 1e-8)


@pytest.mark.parametrize("strategy", cases.each_strategy())
def test_a_strategy_is_the_same_there(strategy: str) -> None:
    if "hyperinterval" in strategy:
        pytest.skip("intervals are tensors of a kind of their own, as those of that device are")
    short = ["scenario.experiences=2", "trainer.max_epochs=1", "eval.every=0"]
    if "ewc" in strategy.split("+"):
        short += ["strategy.ewc.samples=20"]
    assert_same_there([*cases.small(strategy, brief=True), *short, "trainer.precision=64"])


TOKENS = [
    "scenario=mqar", "scenario.experiences=2", "scenario.pairs=2", "scenario.length=12", "scenario.vocabulary=20",
    "scenario.samples=36", "scenario.test_samples=8", "learner.embedding=6", "trainer.max_epochs=1",
    "trainer.batch_size=16",
]  # fmt: skip
RUNS = {
    "state carried on": [*TOKENS, "strategy=er", "backbone=gru", "backbone.hidden=8", "trainer.carry_state=true"],
    "one weight at both ends": [*TOKENS, "strategy=er", "backbone=gru", "backbone.hidden=8", "learner.head=tied"],
    "metrics": [
        *cases.small("er"), "strategy.policy=class-balanced", "trainer.until=0.5",
        "eval.metrics=[cka,effective_rank,dormant_units,head_drift,gradient_interference,plasticity,flops]",
    ],
    "bits": [
        "scenario=permuted-copy", "scenario.experiences=2", "scenario.samples=36", "backbone=gru", "backbone.hidden=8",
        "trainer.max_epochs=1",
    ],
    "series": ["scenario=lorenz96", "scenario.samples=36", "backbone=gru", "backbone.hidden=8", "trainer.max_epochs=1"],
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("run", RUNS)
def test_a_run_is_the_same_there(run: str) -> None:
    assert_same_there([*RUNS[run], "trainer.precision=64"])


class StoppedError(Exception):
    pass


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*copying from a non-meta parameter")  # which is no "no-op" there
@pytest.mark.parametrize("strategy", ["agem", "er", "ewc", "hypernet", "packnet", "power-law-rehearsal"])
def test_a_run_that_was_stopped_there_goes_on_there_and_here(
    strategy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = compose([*cases.small(strategy), "trainer.precision=64", "trainer.accelerator=cpu"])
    save = Run._save

    def run(ranks: Ranks, home: Path, stop: int | None = None) -> dict[str, Any]:
        """As far as the checkpoint of that number, counted from where it goes on."""
        saved = 0

        def save_and_stop(self: Run) -> None:
            nonlocal saved
            save(self)
            saved += 1
            if saved == stop:
                raise StoppedError

        monkeypatch.setattr(Run, "_save", save_and_stop)
        home.mkdir(exist_ok=True)
        one = build(config, ranks)
        job = Run(one.learner, one.scenario, eval_settings=one.eval_settings, run_dir=home, record=Record(home))
        return job.execute()

    whole = run(Ranks(), tmp_path / "whole")
    for place in ("here", "there"):
        with elsewhere(), pytest.raises(StoppedError):
            run(Ranks(device=DEVICE), tmp_path / place, 4)  # within the second experience
    ends = [run(Ranks(), tmp_path / "here")]
    with elsewhere():
        ends.append(run(Ranks(device=DEVICE), tmp_path / "there"))
    for end in ends:
        assert torch.allclose(torch.tensor(end["matrix"]), torch.tensor(whole["matrix"]), atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["assoc-capacity", "attention-sink", "cmr-induction", "gdv", "serial-position"])
def test_a_probe_is_the_same_there(name: str) -> None:
    words = [*TOKENS, "strategy=naive", "backbone=transformer", "trainer.precision=64", "trainer.accelerator=cpu"]

    def taken(ranks: Ranks) -> dict[str, float | None]:
        one = build(compose(words), ranks)
        one.learner.to(ranks.device, torch.float64)
        return base.numbers(base.take(probing.make(name), one.learner, one.scenario))

    here = taken(Ranks())
    with elsewhere():
        there = taken(Ranks(device=DEVICE))
    assert there.keys() == here.keys()
    for key, value in here.items():
        assert there[key] == (value if value is None else pytest.approx(value, rel=1e-5, abs=1e-9)), key
