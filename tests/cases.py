"""What the registry-wide suites run: every strategy of conf/, and combinations, small."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from clplat import registry
from clplat.build import Built, build
from clplat.config import compose
from clplat.loop import Run
from clplat.ranks import Ranks

COMBINATIONS = (
    "center-loss+er",
    "er+infinite-lr",
    "ewc+derpp",
    "ewc+er",
    "ewc+hypernet",
    "hypernet+er",
    "l2p+er",
    "lwf+agem",
    "lwf+power-law-rehearsal",
    "mfcl+er",
    "si+er",
    "task-arithmetic+er",
)
CORE = (
    "agem",
    "cumulative",
    "er",
    "ewc",
    "ewc+er",
    "gem",
    "hypernet",
    "lwf",
    "naive",
    "packnet",
    "tests.probes:TwoPhase",
)
TEST_ONLY = ("tests.probes:TwoPhase",)  # named as users name a class of their own


def strategies() -> list[str]:
    """Every strategy in conf/, the combinations, and those that tests bring."""
    return [*registry.names("strategy"), *COMBINATIONS, *TEST_ONLY]


def each_strategy() -> list[Any]:
    """For ``parametrize``: all of them, of which most are tried only where slow tests are."""
    return [name if name in CORE else pytest.param(name, marks=pytest.mark.slow) for name in strategies()]


def small(strategy: str, *, brief: bool = False) -> list[str]:
    """Overrides of a run that a strategy can do in a second: three experiences, a small network, dropout, uneven
    batches (359 samples, or about 140, in batches of 51), accumulation in one epoch's odd last window.

    Args:
        brief: an eighth of the samples to be tested on, as many to learn from; two experiences where it is not in CORE.
    """
    parts = strategy.split("+")
    needs = {need for part in parts for need in registry.find("strategy", part).info.get("needs", [])}
    scenario = ["scenario=permuted-digits", "scenario.experiences=3"]
    if "task-labels" in needs:
        scenario = ["scenario=split-digits", "scenario.setting=task", "scenario.experiences=3"]
    elif "new-classes" in needs:
        scenario = ["scenario=split-digits", "scenario.setting=class", "scenario.experiences=3"]
    if needs & {"tokens", "steps"}:
        scenario = ["scenario=mqar-memorize", "scenario.experiences=3", "scenario.pairs=8", "scenario.length=8"]
        scenario += ["scenario.queries=4", "scenario.vocabulary=40", "scenario.samples=359", "scenario.test_samples=60"]
        scenario += ["learner.embedding=6"]
    backbone = ["backbone=mlp", "backbone.hidden=12", "backbone.dropout=0.2"]
    if needs & {"prompts", "prefixes"}:
        scenario = ["scenario=split-digits", "scenario.setting=class", "scenario.experiences=3"]
    if needs & {"prompts", "prefixes"} or "lofit" in parts:  # whose offsets are those of attention heads
        backbone = ["backbone=transformer", "backbone.dim=8", "backbone.heads=2", "backbone.dropout=0.2"]
    options = {
        "adamerging": ["samples=30", "epochs=2"],
        "agem": ["memory=20", "batch_size=7"],
        "center-loss": ["strength=0.3"],
        "coda-prompt": ["components=2", "length=4", "orthogonality=0.1", "lr=0.02"],
        "continual-backprop": ["rate=0.02", "maturity=2"],
        "der": ["memory=20", "batch_size=7"],
        "derpp": ["memory=20", "batch_size=7"],
        "dp-hypernet": ["chunk=100", "hidden=8", "embedding=4", "growth=3", "regularizer=states"],
        "dualprompt": ["general_length=2", "expert_length=2", "inherit=true", "lr=0.02"],
        "ebbinghaus-replay": ["memory=20", "batch_size=7", "tau=5"],
        "ema-teacher": ["memory=20", "batch_size=7", "stable_decay=0.8", "plastic_decay=0.7"],
        "er": ["memory=20", "batch_size=7"],
        "er-ace": ["memory=20", "batch_size=7", "policy=class-balanced"],
        "ewc": ["importance=10"],
        "frequency-replay": ["size=12", "choose=random"],
        "gdumb": ["memory=20", "epochs=3"],
        "gem": ["memory=20"],
        "generative-replay": ["hidden=8", "latent=3", "epochs=1"],
        "gpm": ["samples=40"],
        "gss": ["memory=20", "batch_size=7", "batches=2"],
        "hlop": ["directions=4", "more=3"],
        "homeostatic-lr": ["memory=9", "step=0.3"],
        "hyperinterval": ["chunk=100", "hidden=8", "embedding=4"],
        "hypernet": ["chunk=100", "hidden=8", "embedding=4"],
        "icarl": ["memory=20"],
        "l2p": ["pool=4", "length=2", "chosen=2", "base=2", "pretrain_epochs=1", "diversify=true"],
        "lfl": ["strength=0.3"],
        "mas": ["strength=2"],
        "mfcl": ["hidden=8"],
        "mir": ["memory=20", "batch_size=7", "candidates=15", "policy=ring"],
        "multi-lane": ["selectors=2", "prompts=2", "lr=0.02"],
        "ncm": ["base=2"],
        "ogd": ["samples=15"],
        "packnet": ["prune=0.5"],
        "pairwise-layer": ["active=0.5"],
        "power-law-rehearsal": ["budget=0.5", "exponent=1", "offset=0", "criterion=0.3"],
        "proto-merge": ["clients=3", "ways=4", "shots=2", "base=2"],
        "protocl": ["memory=20", "batch_size=7"],
        "rehearsal-kd": ["memory=40"],
        "rwalk": ["interval=3", "strength=2"],
        "shrink-perturb": ["shrink=0.6", "noise=0.1"],
        "si": ["strength=2", "damping=0.01"],
        "slda": ["pretrain_epochs=1"],
        "task-arithmetic": ["scale=0.6"],
        "temporal-consistency": ["strength=0.1", "over=quiet"],
        "temporary-forgetting": ["every=5", "until=17"],
        "vcl": ["samples=2", "test_samples=2", "coreset=12", "coreset_epochs=2", "likelihood_epochs=1"],
    }
    data = ["scenario.test=0.1", "scenario.share=0.222"] if brief else ["scenario.test=0.8"]
    own = [f"strategy.{part}.{option}" for part in parts for option in options.get(part, [])]
    own += ["optimizer=sgd"] if "pairwise-layer" in parts else []  # the one it is made for
    return [
        f"strategy={strategy}",
        *backbone,
        *scenario,
        *([] if needs & {"tokens", "steps"} else data),
        *(["scenario.experiences=2"] if brief and strategy not in CORE else []),
        *own,
        "trainer.max_epochs=2",
        "trainer.batch_size=51",
        "trainer.accumulate=2",
        "trainer.clip=0.5",
        "trainer.log_every=3",
        "trainer.checkpoint_every=3",
        "trainer.dispatch=4",
        "eval.every=5",
        "optimizer.lr=0.01",
    ]


def built(strategy: str, *overrides: str, brief: bool = False) -> Built:
    """The parts of a small run, in this process, which is asked at ends of experiences alone; another backbone comes
    without the small one's options."""
    other = any(override.startswith("backbone=") for override in overrides)
    own = [override for override in small(strategy, brief=brief) if not (other and override.startswith("backbone"))]
    return build(compose([*own, "trainer.accelerator=cpu", "eval.every=0", *overrides]), Ranks())


def run(one: Built) -> dict[str, Any]:
    """Run it; nothing is written."""
    return Run(one.learner, one.scenario, eval_settings=one.eval_settings).execute()


def before(strategy: Any, hook: str, call: Callable[..., object]) -> None:
    """Call something with a hook's arguments each time before the hook runs."""
    original = getattr(strategy, hook)

    def both(*arguments: Any) -> Any:
        call(*arguments)
        return original(*arguments)

    setattr(strategy, hook, both)
