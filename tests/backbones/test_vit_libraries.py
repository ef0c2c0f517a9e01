"""Vision transformers of timm and transformers: built by each library, saved in its own format, and taken."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from clplat.backbones.attention.vit import ViT
from clplat.errors import MissingError, UsageError
from tests.cases import built, run

pytestmark = [
    pytest.mark.slow,  # to import them takes seconds
    pytest.mark.filterwarnings("ignore:Overwriting clplat_tiny"),  # which each test registers with timm anew
]


def _shaken(network: torch.nn.Module) -> Any:
    """No weight as it begins, so that one that is left out shows."""
    torch.manual_seed(3)
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return network.eval()


def _timm(folder: Path, **options: Any) -> tuple[str, str, Callable[[torch.Tensor], torch.Tensor]]:
    """A model of timm's own class, by a name that timm knows, and what timm's users save of it."""
    timm = pytest.importorskip("timm", reason="timm is not installed")
    safetensors = pytest.importorskip("safetensors.torch", reason="safetensors is not installed")
    sizes = {"img_size": 16, "patch_size": 8, "embed_dim": 8, "depth": 2, "num_heads": 2, "mlp_ratio": 1.5}

    def clplat_tiny(pretrained: bool = False, **_: Any) -> Any:
        return timm.models.vision_transformer.VisionTransformer(**sizes, **options)

    clplat_tiny.__module__ = "timm.models.vision_transformer"
    timm.models.register_model(clplat_tiny)
    theirs = _shaken(timm.create_model("clplat_tiny"))
    safetensors.save_file(theirs.state_dict(), folder / "tiny.safetensors")
    return "timm:clplat_tiny", str(folder / "tiny.safetensors"), lambda x: theirs.forward_features(x)[:, 0]


def _transformers(folder: Path, **options: Any) -> tuple[str, str, Callable[[torch.Tensor], torch.Tensor]]:
    """A model of transformers, as it saves it."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    sizes = {"image_size": 16, "patch_size": 8, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.ViTConfig(**sizes, intermediate_size=12, **options)
    theirs = _shaken(transformers.ViTModel(config, add_pooling_layer=False))
    theirs.save_pretrained(folder)
    return f"transformers:{folder}", "default", lambda x: theirs(x).last_hidden_state[:, 0]


@pytest.mark.parametrize("options", [{}, {"qkv_bias": False}])
@pytest.mark.parametrize("library", [_timm, _transformers])
def test_a_model_of_another_library_does_here_what_it_does_there(
    library: Any, options: dict[str, Any], tmp_path: Path
) -> None:
    model, weights, theirs = library(tmp_path, **options)
    ours = ViT(768, (3, 16, 16), model=model, weights=weights).eval()
    x = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(ours(x.reshape(2, 1, -1))[0][:, 0], theirs(x), rtol=1e-5, atol=1e-5)
    other = ViT(768, (3, 16, 16), model=model, weights="none").eval()
    with torch.no_grad():
        assert not torch.allclose(other(x.reshape(2, 1, -1))[0][:, 0], theirs(x), atol=0.1)


@pytest.mark.parametrize("library", [_timm, _transformers])
def test_a_strategy_builds_on_a_model_of_another_library(library: Any, tmp_path: Path) -> None:
    model, weights, _ = library(tmp_path)
    options = ["backbone=vit", f"backbone.model={model}", f"backbone.weights={weights}", "learner.readout=last"]
    one = built("ncm", *options, "strategy.pretrained=backbone", "scenario=split-digits", "eval.every=0")
    begin = {name: p.detach().clone() for name, p in one.learner.backbone.named_parameters()}
    assert run(one)["steps"] == 0
    assert all(torch.equal(p, begin[name]) for name, p in one.learner.backbone.named_parameters())


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"class_token": False, "global_pool": "avg"}, "no such vision transformer"),
        ({"reg_tokens": 1}, "no plain vision transformer"),
        ({"init_values": 0.1}, "no plain vision transformer"),
        ({"qk_norm": True}, "no plain vision transformer"),
    ],
)
def test_a_model_of_timm_that_is_more_than_that_is_refused(
    options: dict[str, Any], problem: str, tmp_path: Path
) -> None:
    model, weights, _ = _timm(tmp_path, **options)
    with pytest.raises(UsageError, match=problem):
        ViT(768, (3, 16, 16), model=model, weights=weights)


def test_a_file_of_timm_for_another_model_is_refused(tmp_path: Path) -> None:
    model, _, _ = _timm(tmp_path)
    torch.save({"head.weight": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(UsageError, match="Missing key"):
        ViT(768, (3, 16, 16), model=model, weights=str(tmp_path / "other.pth"))
    with pytest.raises(MissingError, match="cannot be had here"):
        ViT(768, (3, 16, 16), model=model, weights=str(tmp_path / "nowhere.pth"))


def test_weights_that_transformers_would_leave_random_are_missed(tmp_path: Path) -> None:
    model, weights, _ = _transformers(tmp_path)
    safetensors = pytest.importorskip("safetensors.torch", reason="safetensors is not installed")
    file = tmp_path / "model.safetensors"
    held = safetensors.load_file(file)
    lost = held.pop("layernorm.weight")
    safetensors.save_file(held, file, metadata={"format": "pt"})
    assert lost.std() > 0.01
    with pytest.raises(UsageError, match=r"holds no layernorm\.weight"):
        ViT(768, (3, 16, 16), model=model, weights=weights)


def test_what_transformers_does_not_have_is_named(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    bert = transformers.BertConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, vocab_size=9
    )
    transformers.BertModel(bert).save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="transformers has no such vision transformer"):
        ViT(768, (3, 16, 16), model=f"transformers:{tmp_path}")
    with pytest.raises((MissingError, UsageError), match="nowhere"):  # version 4 takes a path for a wrong name
        ViT(768, (3, 16, 16), model=f"transformers:{tmp_path / 'nowhere'}")
