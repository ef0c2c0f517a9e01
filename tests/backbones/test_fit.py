"""Every backbone is trained by ewc and by er, on images read as sequences and on tokens; and its state is carried."""

from __future__ import annotations

import math

import pytest

from clplat import registry
from clplat.build import build
from clplat.config import compose
from clplat.loop import Run
from clplat.ranks import Ranks

from .helpers import each_name, options

STREAMS = {
    "digits": ["scenario=permuted-digits", "scenario.experiences=2", "scenario.test=0.03", "scenario.share=0.03"],
    "tokens": [
        "scenario=mqar", "scenario.experiences=2", "scenario.pairs=2", "scenario.length=12", "scenario.vocabulary=12",
        "scenario.samples=36", "scenario.test_samples=8", "learner.embedding=6",
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", each_name())
@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize("strategy", ["ewc", "er"])
def test_it_is_trained(name: str, stream: str, strategy: str) -> None:
    entry = registry.find("backbone", name)
    if stream == "tokens" and entry.info["encoder"] == "image":
        pytest.skip("a network for images")
    small = {key: value for key, value in options(entry).items() if value != entry.defaults.get(key)}
    carries = stream == "tokens" and entry.load().sequential
    config = compose(
        [
            f"strategy={strategy}", f"backbone={name}", *STREAMS[stream],
            *(f"backbone.{key}={value}" for key, value in small.items()),
            "trainer.max_epochs=1", "trainer.batch_size=16", "trainer.accelerator=cpu", "optimizer.lr=0.003",
            f"trainer.carry_state={str(carries).lower()}", *(["strategy.samples=3"] if strategy == "ewc" else []),
        ]
    )  # fmt: skip
    built = build(config, Ranks())
    results = Run(built.learner, built.scenario, eval_settings=built.eval_settings).execute()
    assert results["status"] == "done"
    losses = [value for row in results["matrix"] for value in row]
    assert all(value is not None and math.isfinite(value) for value in losses)
    if strategy == "ewc":
        importance = built.learner.strategy.quadratic.importance
        assert {parameter for parameter, values in importance.items() if (values > 0).any()} & {
            parameter for parameter in importance if parameter.startswith("backbone.")
        }
