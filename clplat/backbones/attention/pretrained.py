"""Vision transformers of other libraries, as sizes and weights: torchvision, timm, transformers.

Only names of weights are translated; each library builds its own model and loads its own files. The library's own
output for a random image is kept, to be compared with what is made of it.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from clplat.errors import MissingError, UsageError, suggestion

PUBLISHED, RANDOM = "default", "none"


@dataclass
class Source:
    """What a vision transformer is made of.

    Args:
        channels, size, patch: of the images: channels, (H, W), and the side of a patch.
        dim, heads, layers, wide, epsilon: width, attention heads, blocks, width of the MLPs, epsilon of the norms.
        weights: by the names of :class:`clplat.backbones.attention.vit.ViT`; empty leaves them as they are.
        probe: an image (1, C, H, W) and the library's class token for it, (1, dim).
    """

    channels: int
    size: tuple[int, int]
    patch: int
    dim: int
    heads: int
    layers: int
    wide: int
    epsilon: float
    weights: Mapping[str, Tensor] = field(default_factory=dict)
    probe: tuple[Tensor, Tensor] | None = None

    @torch.no_grad()
    def fill(self, network: Any) -> None:
        """Put the weights into a network of these sizes.

        Raises:
            UsageError: it does not do what the library's model does.
        """
        if self.probe is None:
            return
        problem = "their weights are of another kind"
        try:
            network.load_state_dict(self.weights)
            image, expected = self.probe
            own = network.norm(_through(network, image))
            if torch.allclose(own, expected, rtol=1e-3, atol=1e-4):
                return
            problem = f"outputs differ by {float((own - expected).abs().max()):.3g}"
        except RuntimeError as error:
            problem = _reason(error)
        raise UsageError(f"this model is no plain vision transformer, and vit cannot stand in for it: {problem}")


def _through(network: Any, image: Tensor) -> Tensor:
    """The class token (1, dim) of an image that is of the right size and scale."""
    h_1TW = network.patches(image).flatten(2).mT
    h_1TW = torch.cat([network.token.expand(1, 1, -1), h_1TW], 1) + network.positions
    was = network.training
    network.eval()
    for layer in network.layers:
        h_1TW = layer(h_1TW)
    network.train(was)
    return h_1TW[:, 0]


def load(model: str, weights: str) -> Source:
    """A model of another library.

    Args:
        model: library:name.
        weights: default, none, or a file.

    Raises:
        UsageError: there is no such library or model, or it is no vision transformer.
        MissingError: the library is not installed, or the weights cannot be had.
    """
    library, _, name = model.partition(":")
    if library not in LIBRARIES or not name:
        raise UsageError(f"backbone.model={model}: not of the form library:name.{suggestion(library, LIBRARIES)}")
    module = _import(library)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        try:
            source, run = LIBRARIES[library](module, name, weights)
        except (OSError, ConnectionError) as error:
            raise MissingError(
                f"backbone.model={model}: its weights ({weights}) cannot be had here ({_reason(error)}): give "
                "backbone.weights a file that the library saved, or none"
            ) from None
        except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise UsageError(
                f"backbone.model={model}: {library} has no such vision transformer ({_reason(error)})"
            ) from None
        image = torch.randn(1, source.channels, *source.size)
        with torch.no_grad():
            source.probe = (image, run(image).float())
    source.weights = {key: value.detach().float() for key, value in source.weights.items()}
    return source


def _reason(error: Exception) -> str:
    """The beginning of what a library says, in one line."""
    return " ".join(line.strip() for line in str(error).splitlines()[:3]) or type(error).__name__


def _import(library: str) -> ModuleType:
    try:
        return importlib.import_module(library)
    except ImportError:
        raise MissingError(
            f"backbone.model={library}:... needs {library}: install it (pip install {library})"
        ) from None


Run = Callable[[Tensor], Tensor]  # an image to the class token of the library's own model


def _torchvision(module: Any, name: str, weights: str) -> tuple[Source, Run]:
    models = importlib.import_module(f"{module.__name__}.models")
    network: Any = models.get_model(name, weights="DEFAULT" if weights == PUBLISHED else None)
    if not isinstance(network, models.VisionTransformer):
        raise ValueError(f"{type(network).__name__} is none")
    if weights not in (PUBLISHED, RANDOM):
        network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    network.eval()
    found = {
        "token": network.class_token[0, 0],
        "positions": network.encoder.pos_embedding[0],
        **_of("patches", network.conv_proj),
        **_of("norm", network.encoder.ln),
    }
    for i, block in enumerate(network.encoder.layers):
        attention = block.self_attention
        parts = {"attention_norm": block.ln_1, "mlp_norm": block.ln_2, "out": attention.out_proj}
        parts |= {"mlp.0": block.mlp[0], "mlp.2": block.mlp[3]}
        for part, layer in parts.items():
            found |= _of(f"layers.{i}.{part}", layer)
        found[f"layers.{i}.qkv.weight"] = attention.in_proj_weight
        found[f"layers.{i}.qkv.bias"] = attention.in_proj_bias
    first = network.encoder.layers[0]
    side = (network.image_size, network.image_size)
    sizes = (network.patch_size, network.hidden_dim, first.num_heads, len(network.encoder.layers), network.mlp_dim)
    network.heads = nn.Identity()  # what it then returns is the class token
    return Source(network.conv_proj.in_channels, side, *sizes, first.ln_1.eps, found), network


def _timm(module: Any, name: str, weights: str) -> tuple[Source, Run]:
    file = weights if weights not in (PUBLISHED, RANDOM) else ""
    network: Any = module.create_model(name, pretrained=weights == PUBLISHED, checkpoint_path=file).eval()
    found = {
        "token": network.cls_token[0, 0],
        "positions": network.pos_embed[0],
        **_of("patches", network.patch_embed.proj),
        **_of("norm", network.norm),
    }
    for i, block in enumerate(network.blocks):
        parts = {"attention_norm": block.norm1, "mlp_norm": block.norm2, "qkv": block.attn.qkv, "out": block.attn.proj}
        parts |= {"mlp.0": block.mlp.fc1, "mlp.2": block.mlp.fc2}
        for part, layer in parts.items():
            found |= _of(f"layers.{i}.{part}", layer)
    embed, first = network.patch_embed, network.blocks[0]
    sizes = (embed.patch_size[0], network.embed_dim, first.attn.num_heads, len(network.blocks))
    source = Source(embed.proj.in_channels, tuple(embed.img_size), *sizes, first.mlp.fc1.out_features, first.norm1.eps)
    source.weights = found
    return source, lambda image: network.forward_features(image)[:, 0]


def _transformers(module: Any, name: str, weights: str) -> tuple[Source, Run]:
    """Its version 5 calls the parts of its models other names than version 4; files are the same."""
    if weights == RANDOM:
        network: Any = module.ViTModel(module.AutoConfig.from_pretrained(name), add_pooling_layer=False)
    else:
        place = name if weights == PUBLISHED else weights  # a folder that save_pretrained has written
        network, found = module.ViTModel.from_pretrained(place, add_pooling_layer=False, output_loading_info=True)
        if found["missing_keys"]:  # which it would leave random
            raise ValueError(f"{place} holds no {', '.join(sorted(found['missing_keys']))}")
    network.eval()
    config, embeddings = network.config, network.embeddings
    weights_of = {
        "token": embeddings.cls_token[0, 0],
        "positions": embeddings.position_embeddings[0],
        **_of("patches", embeddings.patch_embeddings.projection),
        **_of("norm", network.layernorm),
    }
    for i, block in enumerate(_part(network, "layers", "encoder.layer")):
        parts = {"attention_norm": block.layernorm_before, "mlp_norm": block.layernorm_after}
        parts["out"] = _part(block, "attention.o_proj", "attention.output.dense")
        parts |= {"mlp.0": _part(block, "mlp.fc1", "intermediate.dense")}
        parts |= {"mlp.2": _part(block, "mlp.fc2", "output.dense")}
        for part, layer in parts.items():
            weights_of |= _of(f"layers.{i}.{part}", layer)
        short, long = ("q_proj", "k_proj", "v_proj"), ("query", "key", "value")
        three = [
            _of("", _part(block, f"attention.{a}", f"attention.attention.{b}"))
            for a, b in zip(short, long, strict=True)
        ]
        for kind in ("weight", "bias"):
            weights_of[f"layers.{i}.qkv.{kind}"] = torch.cat([one[f".{kind}"] for one in three])
    side, patch = embeddings.patch_embeddings.image_size, embeddings.patch_embeddings.patch_size[0]
    sizes = (patch, config.hidden_size, config.num_attention_heads, config.num_hidden_layers)
    source = Source(config.num_channels, side, *sizes, config.intermediate_size, config.layer_norm_eps, weights_of)
    return source, lambda image: network(image).last_hidden_state[:, 0]


def _part(network: nn.Module, *names: str) -> Any:
    """The module by the first of the names that there is."""
    named = dict(network.named_modules())
    for name in names:
        if name in named:
            return named[name]
    raise AttributeError(f"{type(network).__name__} has neither {' nor '.join(names)}")


def _of(name: str, layer: Any) -> dict[str, Tensor]:
    """Weights and biases; a bias of zeros where the layer has none."""
    bias = layer.bias if layer.bias is not None else layer.weight.new_zeros(len(layer.weight))
    return {f"{name}.weight": layer.weight, f"{name}.bias": bias}


LIBRARIES: dict[str, Callable[[Any, str, str], tuple[Source, Run]]] = {
    "torchvision": _torchvision,
    "timm": _timm,
    "transformers": _transformers,
}
