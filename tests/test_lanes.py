"""States that are carried from batch to batch."""

from __future__ import annotations

import copy
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import clplat
from clplat import lanes
from clplat.backbones.attention.transformer import Transformer
from clplat.backbones.base import State
from clplat.backbones.rnn.gru import GRU
from clplat.errors import UsageError
from clplat.scenario import Experience, Scenario, Spec, TensorData
from clplat.settings import EvalSettings, TrainerSettings
from tests import cases, harness


@given(st.integers(0, 60), st.integers(1, 9))
def test_lanes_hold_neighbours_in_order(n: int, width: int) -> None:
    order = lanes.order(n, width).tolist()
    assert sorted(order) == list(range(n))
    batches = [order[start : start + width] for start in range(0, n, width)]
    for before, after in pairwise(batches):
        assert after == [sample + 1 for sample in before[: len(after)]]


def delayed(n: int = 240, T: int = 1, experiences: int = 2) -> Scenario:
    """Windows of one long row of bits: what is asked of each is the last bit of the window before."""
    stream = []
    for number in range(experiences):
        bits = torch.randint(2, (n, T), generator=torch.Generator().manual_seed(number))
        y = torch.cat([bits[:1, -1], bits[:-1, -1]])
        stream.append(Experience(TensorData(bits[..., None].float() * 2 - 1, y), number, 0, [0, 1]))
    return Scenario(Spec((T, 1), 2, "domain", contiguous=True), stream, stream)


def trained(carry_state: bool) -> dict:
    return clplat.fit(
        "naive",
        delayed(),
        lambda D: GRU(D, hidden=32),
        optimizer=lambda groups: torch.optim.Adam(groups, lr=0.01),
        trainer=TrainerSettings(max_epochs=8, batch_size=8, carry_state=carry_state, progress="none"),
        evaluation=EvalSettings(batch_size=8),
    )


def test_what_was_seen_in_the_window_before_is_known() -> None:
    assert trained(carry_state=True)["summary"]["ACC"] > 0.9
    assert trained(carry_state=False)["summary"]["ACC"] < 0.75


def test_without_carrying_samples_are_judged_by_themselves() -> None:
    matrices = [
        clplat.fit(
            "naive",
            delayed(),
            lambda D: GRU(D, hidden=8),
            trainer=TrainerSettings(max_epochs=1, batch_size=8, precision="64", progress="none"),
            evaluation=EvalSettings(batch_size=size),
        )["matrix"]
        for size in (7, 120)
    ]
    assert matrices[0] == matrices[1]


def test_a_step_is_truncated_backpropagation_by_hand() -> None:
    """Two steps of SGD with the state handed over, against the same by hand."""
    scenario = delayed(n=8, experiences=1)
    torch.manual_seed(0)
    ours, by_hand = GRU(1, hidden=5).double(), GRU(1, hidden=5).double()
    by_hand.load_state_dict(ours.state_dict())
    heads: list[nn.Module] = []

    def keep(D: int) -> GRU:
        return ours

    class Watched(clplat.Strategy):
        def start(self, learner: clplat.Learner, experience: Experience) -> None:
            heads.append(copy.deepcopy(learner.head))

    clplat.fit(
        Watched(),
        scenario,
        keep,
        optimizer=lambda groups: torch.optim.SGD(groups, lr=0.5),
        trainer=TrainerSettings(max_epochs=1, batch_size=4, precision="64", carry_state=True, progress="none"),
    )
    head, data = heads[0], scenario.train_stream[0].dataset
    learning = [*by_hand.parameters(), *head.parameters()]
    state = None
    for rows in ([0, 2, 4, 6], [1, 3, 5, 7]):
        y_BTD, state = by_hand(data.x[rows].double(), state)
        state = {name: part.detach() for name, part in state.items()}
        loss = nn.functional.cross_entropy(head(y_BTD[:, -1], torch.zeros(4, dtype=torch.long)), data.y[rows])
        for parameter, gradient in zip(learning, torch.autograd.grad(loss, learning), strict=True):
            parameter.data -= 0.5 * gradient
    for a, b in zip(ours.parameters(), by_hand.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-12)


CARRIED = [
    "backbone=gru",
    "backbone.hidden=8",
    "trainer.carry_state=true",
    "trainer.precision=64",
]


def without_backbone(strategy: str) -> list[str]:
    return [override for override in cases.small(strategy) if not override.startswith("backbone")]


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["naive", "er"])
def test_resumed_and_on_several_ranks_it_is_the_same(strategy: str, tmp_path: Path) -> None:
    overrides = [*without_backbone(strategy), *CARRIED]
    whole = harness.make(tmp_path / "whole", overrides)
    outcome = harness.run(whole)
    assert outcome.codes == [0], outcome.output
    for name, world, again in (("same", 1, 1), ("two", 2, 2), ("three", 3, 3), ("fewer", 2, 1)):
        run_dir = harness.make(tmp_path / name, overrides)
        assert harness.KILLED in harness.run(run_dir, world=world, kill_at=("step", 11)).codes
        outcome = harness.run(run_dir, world=again)
        assert outcome.codes == [0] * again, outcome.output
        expected, found = harness.last_state(whole), harness.last_state(run_dir)
        for key, value in expected.items():
            if isinstance(value, torch.Tensor):
                torch.testing.assert_close(found[key], value, rtol=0, atol=0 if world == 1 else 1e-9)


def test_keys_and_values_are_carried_beside_rows_from_a_memory() -> None:
    settings = TrainerSettings(max_epochs=2, batch_size=4, carry_state=True, progress="none")
    results = clplat.fit("er", delayed(), lambda D: Transformer(D, dim=8, heads=2), trainer=settings)
    assert results["status"] == "done"


def test_what_cannot_carry_is_refused_and_what_is_odd_is_said(tmp_path: Path) -> None:
    settings = TrainerSettings(carry_state=True, progress="none")
    with pytest.raises(UsageError, match="MLP"):
        clplat.fit("naive", delayed(), "mlp", trainer=settings)

    class Stateless(clplat.Strategy):
        def forward(self, learner: clplat.Learner, x_BTD: Tensor, task: Tensor, state: State = None) -> tuple:
            return learner.backbone(x_BTD)[0], None

    with pytest.raises(UsageError, match="leaves no state"):
        clplat.fit(Stateless(), delayed(), "gru", trainer=settings)
    run_dir = harness.make(tmp_path / "odd", [*without_backbone("naive"), *CARRIED])
    assert "do not go on from one another" in harness.run(run_dir).output
