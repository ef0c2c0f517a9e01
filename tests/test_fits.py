"""Which strategies fit: the quick answer is the one that building a run would give."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache

import pytest
import torch

from clplat import fits, optim, registry
from clplat.backbones.base import Backbone
from clplat.build import assemble, backbone_maker, pairing
from clplat.cli import main
from clplat.errors import UsageError
from clplat.scenario import PER_STEP
from clplat.settings import EvalSettings, LearnerSettings, TrainerSettings
from tests.scenarios.streams import NAMES, made

SCENARIOS = NAMES  # whose data is here
BACKBONES = ("mlp", "gru", "transformer", "resnet18")


@cache
def _network(backbone: str) -> Backbone:
    return backbone_maker(registry.find("backbone", backbone))(64, (1, 8, 8))


@cache
def _told_of_scenarios(backbone: str) -> list[fits.Verdict]:
    return fits.scenarios(backbone)


def _possible(strategy: str, scenario: str, backbone: str) -> bool:
    """Whether a run could be built in some setting of the scenario."""
    entry = registry.find("scenario", scenario)
    choices = entry.info["settings"] if "setting" in entry.options else [None]
    for setting in choices:
        try:
            spec = made(scenario, setting).spec
            pairing(registry.find("strategy", strategy).build(), spec, backbone=_network(backbone))
        except UsageError:
            continue
        return True
    return False


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_verdicts_are_those_of_building_a_run(scenario: str) -> None:
    for backbone in BACKBONES[:2]:
        for verdict in fits.verdicts(scenario, backbone):
            assert verdict.fits == _possible(verdict.name, scenario, backbone), (verdict, backbone)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_what_an_entry_says_that_its_scenario_gives_is_true(scenario: str) -> None:
    entry = registry.find("scenario", scenario)
    for setting in entry.info["settings"]:
        spec = made(scenario, setting if "setting" in entry.options else None).spec
        assert spec.setting == setting
        true = {
            "classes": spec.target == "class",
            "steps": spec.target in PER_STEP,
            "tokens": spec.vocabulary is not None,
            "boundaries": spec.boundaries,
        }
        assert {word for word, holds in true.items() if holds} == set(entry.info["gives"])


@pytest.mark.parametrize("backbone", registry.names("backbone"))
def test_what_an_entry_says_that_its_backbone_gives_is_true(backbone: str) -> None:
    entry = registry.find("backbone", backbone)
    network = backbone_maker(entry)(64, (1, 8, 8))
    assert fits.given_by_backbone(entry) == network.gives()
    for maker, reader in network.hidden():
        made = network.get_submodule(maker).out_features
        assert made == (network.get_submodule(reader).in_features if reader else network.output_size)


def test_the_command_answers_without_torch(capsys: pytest.CaptureFixture[str]) -> None:
    code = (
        "import sys\nfrom clplat.cli import main\n"
        "main(['list', 'strategies', '--for', 'split-digits', '--backbone', 'gru', '--json'])\n"
        "assert 'torch' not in sys.modules"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    rows = {row["name"]: row for row in json.loads(found.stdout)}
    assert rows["er"] == {"name": "er", "fits": True, "remark": ""}
    assert rows["hypernet"]["remark"] == "with scenario.setting=task"
    assert "forget nearly everything" in rows["ewc"]["remark"]
    assert not rows["temporary-forgetting"]["fits"]
    assert "hidden-layers" in rows["continual-backprop"]["remark"]
    assert main(["list", "strategies", "--for", "mqar-memorize"]) == 0
    lines = {line.split()[0]: line.split()[1] for line in capsys.readouterr().out.splitlines()}
    assert (lines["temporary-forgetting"], lines["lwf"], lines["ewc"]) == ("yes", "no", "yes")


def test_a_scenario_of_ones_own_is_built_and_asked() -> None:
    found = {v.name: v.fits for v in fits.verdicts("clplat.scenarios.digits:PermutedDigits", None)}
    assert found["lwf"]
    assert not found["hypernet"]


READERS = ("mlp", "gru", "jrt-rnn", "resnet18", "vit")  # without and with memory, not causal, of whole images


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_backbone_fits_where_a_run_can_be_built(scenario: str) -> None:
    told = {verdict.name: verdict for verdict in fits.backbones(scenario)}
    assert sorted(told) == registry.names("backbone")
    stream = made(scenario)
    for name in READERS:
        entry = registry.find("backbone", name)
        possible, warned = True, False
        try:
            built = assemble(
                stream, registry.find("strategy", "naive").build, backbone_maker(entry), hints=entry.info,
                trainer=TrainerSettings(), learner_settings=LearnerSettings(), eval_settings=EvalSettings(),
                make_optimizer=optim.adam,
            )  # fmt: skip
            warned = any("not causal" in warning for warning in built.warnings)
        except UsageError:
            possible = False
        assert told[name].fits == possible, name
        assert ("not causal" in told[name].remark) == (warned and registry.find("backbone", name).load().sequential), (
            name
        )
        assert fits.Verdict(scenario, told[name].fits, told[name].remark) in _told_of_scenarios(name)


@pytest.mark.slow
@pytest.mark.parametrize("backbone", registry.names("backbone"))
def test_every_backbone_answers_every_kind_of_sample(backbone: str) -> None:
    """One scenario for each kind of input and target: tokens, vectors, bits and images; a batch goes through."""
    for scenario in ("mqar", "sines", "permuted-copy", "pendulum", "split-digits"):
        entry, stream = registry.find("backbone", backbone), made(scenario)
        told = {verdict.name: verdict.fits for verdict in fits.backbones(scenario)}
        if not told[backbone]:
            continue
        built = assemble(
            stream, registry.find("strategy", "naive").build, backbone_maker(entry), hints=entry.info,
            trainer=TrainerSettings(), learner_settings=LearnerSettings(embedding=16), eval_settings=EvalSettings(),
            make_optimizer=optim.adam,
        )  # fmt: skip
        x, y, task = stream.train_stream[0].dataset.rows(slice(0, 3))
        with torch.no_grad():
            logits = built.learner.respond(x, task, None).logits
        assert logits.shape[:-1] == y.shape[: logits.ndim - 1]
        assert logits.isfinite().all()


def test_what_cannot_be_looked_at_is_neither_fit_nor_unfit(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "scenarios", "--for", "resnet18"]) == 0
    lines = {line.split()[0]: line.split()[1] for line in capsys.readouterr().out.splitlines()[1:]}
    assert (lines["avalanche"], lines["split-digits"], lines["mqar"]) == ("?", "yes", "no")
    assert main(["list", "backbones", "--for", "mqar", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["resnet18"] == {"name": "resnet18", "fits": False, "remark": "reads images, and these are tokens"}


def test_most_questions_need_no_torch() -> None:
    code = (
        "import sys\nfrom clplat.cli import main\n"
        "main(['list', 'scenarios', '--for', 'mlp'])\nmain(['list', 'backbones', '--for', 'lorenz96'])\n"
        "assert 'torch' not in sys.modules"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr


@pytest.mark.parametrize(
    "argv",
    [
        ["optimizers", "--for", "split-digits"], ["--for", "split-digits"], ["backbones", "--backbone", "mlp"],
        ["scenarios", "--for", "mlp", "--backbone", "gru"], ["backbones", "--for", "no-such-thing"],
    ],
)  # fmt: skip
def test_questions_without_an_answer_are_refused(argv: list[str]) -> None:
    assert main(["list", *argv]) == 2
