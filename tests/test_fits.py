"""Which strategies fit: the quick answer is the one that building a run would give."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from clplat import fits, registry
from clplat.build import backbone_maker, pairing
from clplat.cli import main
from clplat.errors import UsageError
from clplat.scenario import PER_STEP
from tests.scenarios.streams import NAMES

SCENARIOS = NAMES  # whose data is here
BACKBONES = ("mlp", "gru", "transformer", "resnet18")


def _possible(strategy: str, scenario: str, backbone: str) -> bool:
    """Whether a run could be built in some setting of the scenario."""
    entry = registry.find("scenario", scenario)
    choices = entry.info["settings"] if "setting" in entry.options else [None]
    for setting in choices:
        built = entry.build(0, **({"setting": setting} if setting else {}))
        network = backbone_maker(registry.find("backbone", backbone))(64, (1, 8, 8))
        try:
            pairing(registry.find("strategy", strategy).build(), built.spec, backbone=network)
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
        options = {"setting": setting} if "setting" in entry.options else {}
        spec = entry.build(0, **options).spec
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


def test_the_question_is_for_strategies_only() -> None:
    assert main(["list", "backbones", "--for", "split-digits"]) == 2
