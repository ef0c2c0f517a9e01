"""The vision transformer, and those that are taken from torchvision."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision.models import VisionTransformer, _api, get_model_builder

from clplat.backbones.attention import pretrained
from clplat.backbones.attention.vit import ViT
from clplat.errors import MissingError, UsageError
from tests.cases import built, run


def _tiny(weights: Any = None, **_: Any) -> VisionTransformer:
    return VisionTransformer(image_size=16, patch_size=8, num_layers=2, num_heads=2, hidden_dim=8, mlp_dim=12)


@pytest.fixture(scope="module", autouse=True)
def tiny() -> Iterator[None]:
    """A model of torchvision's own class, by a name that torchvision knows."""
    _api.register_model("clplat_tiny_vit")(_tiny)
    assert get_model_builder("clplat_tiny_vit") is _tiny
    yield
    _api.BUILTIN_MODELS.pop("clplat_tiny_vit")


@pytest.fixture
def saved(tmp_path: Path) -> tuple[VisionTransformer, Path]:
    """A tiny model with no weight as it begins, and the file that torchvision's users save."""
    torch.manual_seed(3)
    network = _tiny().eval()
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.1 * torch.randn_like(p))
    torch.save(network.state_dict(), tmp_path / "tiny.pth")
    return network, tmp_path / "tiny.pth"


def test_a_model_of_torchvision_does_here_what_it_does_there(saved: tuple[VisionTransformer, Path]) -> None:
    theirs, path = saved
    ours = ViT(3 * 256, (3, 16, 16), model="torchvision:clplat_tiny_vit", weights=str(path)).eval()
    theirs.heads = torch.nn.Identity()
    x = torch.rand(5, 3, 16, 16)
    torch.testing.assert_close(ours(x.reshape(5, 1, -1))[0][:, 0], theirs(x), rtol=1e-5, atol=1e-5)
    scaled = ViT(768, (3, 16, 16), model="torchvision:clplat_tiny_vit", weights=str(path), normalize="imagenet").eval()
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    torch.testing.assert_close(scaled(x.reshape(5, 1, -1))[0][:, 0], theirs((x - mean) / std), rtol=1e-5, atol=1e-5)


def test_gray_images_of_another_size_are_brought_to_the_models(saved: tuple[VisionTransformer, Path]) -> None:
    theirs, path = saved
    ours = ViT(64, (1, 8, 8), model="torchvision:clplat_tiny_vit", weights=str(path)).eval()
    x = torch.rand(2, 1, 8, 8)
    large = torch.nn.functional.interpolate(x, (16, 16), mode="bilinear", align_corners=False)
    theirs.heads = torch.nn.Identity()
    expected = theirs(large.expand(-1, 3, -1, -1))
    torch.testing.assert_close(ours(x.reshape(2, 1, -1))[0][:, 0], expected, rtol=1e-5, atol=1e-5)


def test_weights_that_compute_something_else_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    real = pretrained.LIBRARIES["torchvision"]

    def other(*arguments: Any) -> Any:
        source, network = real(*arguments)
        return source, lambda image: network(image) + 0.01

    monkeypatch.setitem(pretrained.LIBRARIES, "torchvision", other)
    with pytest.raises(UsageError, match=r"no plain vision transformer.*outputs differ by 0.01"):
        ViT(64, (1, 8, 8), model="torchvision:clplat_tiny_vit", weights="none")


@pytest.mark.parametrize("strategy", ["ncm", "l2p", "dualprompt", "coda-prompt", "multi-lane"])
def test_strategies_build_on_it_and_it_stands_still(strategy: str, saved: tuple[VisionTransformer, Path]) -> None:
    _, path = saved
    model = ["backbone=vit", "backbone.model=torchvision:clplat_tiny_vit", f"backbone.weights={path}"]
    own = {"l2p": ["strategy.diversify=false"], "coda-prompt": ["strategy.components=1"]}.get(strategy, [])
    stream = ["strategy.pretrained=backbone", "scenario=split-digits", "scenario.experiences=3", "eval.every=0"]
    one = built(strategy, *model, *stream, *own, "trainer.max_epochs=1", "learner.readout=last")
    begin = {name: p.detach().clone() for name, p in one.learner.backbone.named_parameters()}
    assert run(one)["summary"]["ACC"] > 0
    assert all(torch.equal(p, begin[name]) for name, p in one.learner.backbone.named_parameters())


def test_in_a_network_that_sees_both_ways_the_head_sees_the_mean_over_the_prompts() -> None:
    one = built("l2p", "backbone=vit", "backbone.dim=8", "backbone.heads=2", "trainer.precision=64")
    run(one)
    learner, strategy = one.learner, one.learner.strategy
    x = one.scenario.test_stream[0].dataset.x[:1].double()
    with learner.evaluating():
        x_BTD = learner.encoder(x)
        index = strategy.choose(
            torch.nn.functional.cosine_similarity(strategy.query(learner, x_BTD), strategy.keys, dim=1)[None]
        )[0]
        tokens = torch.cat([strategy.prompts[j] for j in index])
        h = torch.cat([tokens[None], learner.backbone.enter(x_BTD)], 1)
        for layer in learner.backbone.layers:
            h = layer(h)
        y = learner.backbone.norm(h[:, : len(tokens)]).mean(1)
        expected = learner.head(y, torch.zeros(1, dtype=torch.long))
        torch.testing.assert_close(learner(x, torch.zeros(1, dtype=torch.long)), expected, rtol=1e-9, atol=1e-11)


def test_what_cannot_be_had_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MissingError, match=r"weights .* cannot be had here"):
        ViT(64, (1, 8, 8), model="torchvision:clplat_tiny_vit", weights=str(tmp_path / "nowhere.pth"))
    with pytest.raises(UsageError, match="torchvision has no such vision transformer"):
        ViT(64, (1, 8, 8), model="torchvision:vit_nowhere", weights="none")
    with pytest.raises(UsageError, match="ResNet is none"):
        ViT(64, (1, 8, 8), model="torchvision:resnet18", weights="none")
    with pytest.raises(UsageError, match="not of the form library:name"):
        ViT(64, (1, 8, 8), model="vit_b_16")

    def absent(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(pretrained.importlib, "import_module", absent)
    for library in pretrained.LIBRARIES:
        with pytest.raises(MissingError, match=f"needs {library}: install it") as caught:
            ViT(64, (1, 8, 8), model=f"{library}:vit")
        assert caught.value.exit_code == 3
