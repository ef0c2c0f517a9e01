"""Backbones of a size or a number of parameters."""

from __future__ import annotations

import pytest
import torch

from clplat import config, registry
from clplat.build import backbone_maker, build
from clplat.errors import UsageError
from clplat.ranks import Ranks
from clplat.sizing import SIZES, WIDTHS

SIZABLE = [entry for entry in registry.entries("backbone").values() if set(WIDTHS) & set(entry.options)]


def parameters(entry: registry.Entry, **options: object) -> int:
    network = backbone_maker(entry, options)(*((64, (1, 8, 8)) if entry.load().takes_shape else (8, (8, 8))))
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize("entry", SIZABLE, ids=lambda entry: entry.name)
def test_parameters_come_near_to_what_was_asked(entry: registry.Entry) -> None:
    count = parameters(entry, match_params=200_000)
    assert 0.75 * 200_000 <= count <= 200_000


def test_the_width_is_the_largest_that_fits() -> None:
    entry = registry.find("backbone", "gru")
    exact = 3 * 50 * (8 + 50 + 2)
    for wanted, width in ((exact - 1, 49), (exact, 50), (exact + 1, 50)):
        assert backbone_maker(entry, {"match_params": wanted})(8, (8, 8)).output_size == width
    with pytest.raises(UsageError, match="at its least hidden 1: more than 5"):
        backbone_maker(entry, {"match_params": 5})(8, (8, 8))


def test_a_size_sets_depth_and_leaves_the_generator_alone() -> None:
    entry = registry.find("backbone", "transformer")
    torch.manual_seed(0)
    maker = backbone_maker(entry, {"size": "tiny", "layers": 2})
    network = maker(8, (8, 8))
    torch.manual_seed(0)
    plain = entry.build(8, dim=network.output_size, layers=2)
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), plain.parameters(), strict=True))


def test_a_resolved_configuration_says_it_and_can_be_read_back(tmp_path) -> None:
    resolved = config.compose(["backbone.size=tiny"], flags={"backbone": "transformer", "strategy": "naive"})
    assert "dim" not in resolved["backbone"]
    assert resolved["backbone"]["layers"] == SIZES["tiny"][0]
    (tmp_path / "config.yaml").write_text(config.dump(resolved))
    assert config.load(tmp_path / "config.yaml") == resolved
    learner = build(resolved, Ranks()).learner
    assert sum(p.numel() for p in learner.backbone.parameters()) <= SIZES["tiny"][1]
    deeper = config.compose(["backbone.size=tiny", "backbone.layers=3"], flags={"backbone": "transformer"})
    assert deeper["backbone"]["layers"] == 3


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["backbone.size=tiny", "backbone.hidden=3"], "backbone.hidden and backbone.size exclude each other"),
        (["backbone.match_params=0"], "at least 1 is needed"),
        (["backbone.size=huge"], "tiny"),
    ],
)
def test_what_makes_no_sense_is_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        config.compose(overrides, flags={"backbone": "gru"})


@pytest.mark.parametrize("entry", registry.entries("backbone").values(), ids=lambda entry: entry.name)
def test_no_backbone_has_an_option_of_its_own_by_these_names(entry: registry.Entry) -> None:
    assert not {"size", "match_params"} & set(entry.options)
