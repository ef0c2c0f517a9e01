"""Center loss: centres move as Wen et al. say, stay once learnt, and draw new data to where its class was."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from clplat.build import build_strategy
from clplat.errors import UsageError
from clplat.strategies.center_loss import moves
from tests.cases import before, built, run


def test_two_classes_by_hand() -> None:
    """c = 0; class 0 has the features 1 and 3, class 1 none: c_0 moves by ((1 - 0) + (3 - 0)) / (1 + 2)."""
    found = moves(torch.zeros(2, 1), torch.tensor([[4.0], [0.0]]), torch.tensor([2.0, 0.0]))
    torch.testing.assert_close(found, torch.tensor([[4 / 3], [0.0]]))


def test_centres_and_term_follow_a_loop_over_samples() -> None:
    one = built("center-loss", "trainer.precision=64", "scenario.experiences=1", "strategy.rate=0.3")
    strategy = one.learner.strategy
    centres: dict[int, Tensor] = {}
    checked = []

    def term(learner: Any, batch: Any, output: Any) -> None:
        found = type(strategy).loss(strategy, learner, batch, output).get("centre")
        if found is not None:
            for n, (f, y) in enumerate(zip(output.features.detach(), batch.y.tolist(), strict=True)):
                expected = 0.15 * ((f - centres[y]) ** 2).sum() if y in centres else torch.zeros(()).double()
                torch.testing.assert_close(found[n].detach(), expected, rtol=1e-9, atol=1e-12)
            checked.append(len(batch))

    def centre(learner: Any, batch: Any, output: Any) -> None:
        for k in set(batch.y.tolist()):
            rows = output.features[batch.y == k]
            if k in centres:
                centres[k] = centres[k] + 0.3 * sum(f - centres[k] for f in rows) / (1 + len(rows))
            else:
                centres[k] = rows.mean(0)

    before(strategy, "loss", term)
    before(strategy, "observe", centre)
    run(one)
    assert len(checked) > 5
    found = strategy.recall("centres")["centre_KF"]
    for k, expected in centres.items():
        torch.testing.assert_close(found[k], expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("setting", ["domain", "class", "task"])
def test_centres_stay_bit_for_bit_once_their_experience_is_over(setting: str) -> None:
    one = built(
        "center-loss+er" if setting == "class" else "center-loss", "scenario=split-digits",
        f"scenario.setting={setting}", "scenario.experiences=2",
    )  # fmt: skip
    strategy = one.learner.strategy.parts["center-loss"] if setting == "class" else one.learner.strategy
    held: list[dict[str, Tensor]] = []
    before(strategy, "start", lambda *_: held.append({n: t.clone() for n, t in strategy.recall("centres").items()}))
    run(one)
    known, last = held[1]["known_K"], strategy.recall("centres")
    assert int(known.sum()) == 5
    assert torch.equal(last["centre_KF"][known], held[1]["centre_KF"][known])
    assert int(last["known_K"].sum()) == (5 if setting == "domain" else 10)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_beats_naive_on_digits_turned_by_30_and_60_degrees(seed: int) -> None:
    options = [
        "scenario=rotated-digits", "scenario.experiences=3", "scenario.max_angle=60", "trainer.max_epochs=10",
        "trainer.accumulate=1", "trainer.clip=null", "backbone.dropout=0", "scenario.test=0.5", "optimizer.lr=0.001",
        "backbone.hidden=256", f"seed={seed}",
    ]  # fmt: skip
    naive = run(built("naive", *options))["summary"]
    centre = run(built("center-loss", *options, "strategy.strength=1"))["summary"]
    assert centre["ACC"] > naive["ACC"] + 0.02
    assert centre["forgetting"] < naive["forgetting"]


def test_options_out_of_range_are_refused() -> None:
    for options in ({"strength": -1.0}, {"rate": 2.0}):
        with pytest.raises(UsageError, match=next(iter(options))):
            build_strategy({"name": "center-loss", **options})
