"""Small networks, random inputs and comparisons for the contract suite."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from clplat import registry
from clplat.backbones.base import Backbone, State, state_tensors

B, T, D = 3, 9, 5

# Options by which any entry is made small. One that an entry does not have is left out.
SMALL = {
    "hidden": 8,
    "width": 4,
    "dim": 8,
    "heads": 2,
    "layers": 2,
    "chunk": 4,
    "dropout": 0.0,
    "groups": 1,
    "segment": 3,
    "prefix": 4,
    "features": 3,
    "rings": 2,
    "memory": 4,
    "context": 2,
    "state": 4,
    "slots": 2,
    "key_size": 4,
    "retrieve": 1,
    "tokens": 2,
    "reads": 2,
    "iterations": 3,
    "window": 3,
    "rank": 4,
    "period": 4,
}

# What padding and resets a test runs with: (random resets?, random padding?).
FLAGS = {"plain": (False, False), "reset": (True, False), "mask": (False, True), "reset+mask": (True, True)}
NONE_AND_BOTH = ("plain", "reset+mask")  # where one of the two alone would show nothing more

LSTM_SIZE, FLASH_SIZE = (
    f"(4*hidden*(layers*({reads} + 2) + input_size + (layers - 1)*hidden))" for reads in ("hidden", "hidden//heads")
)

PARARNN_SIZE = (
    "(input_size + 1)*dim + layers*(3*dim*(dim + 1) + (conv + 1)*dim + 3*dim*(dim//heads + 2)"
    " + int(ratio*dim)*(2*dim + 1) + 6*dim) + 2*dim"
)

# Forms of an entry that are held to the contract beside its defaults: the name -> options and what they declare.
VARIANTS: dict[str, list[tuple[dict[str, Any], dict[str, Any]]]] = {
    "delta-net": [({"conv": 3}, {})],
    "gated-delta-net": [({"negative": True, "expand": 2.0, "conv": 0}, {})],
    "gateloop": [({"key_size": 2}, {})],
    "mom": [
        (
            {"update": "delta", "shared": False, "conv": 0},
            {
                "params": "(input_size + 1)*dim + layers*(dim*memories + memories*(dim + 1)*(2*dim + heads)"
                " + 3*dim*(dim + 1) + dim//heads + int(ratio*dim)*(2*dim + 1) + 5*dim) + 2*dim"
            },
        )
    ],
    "hybrid": [
        (
            {"pattern": ["transformer", "delta-net"]},
            {
                "params": "(input_size + 1)*dim + layers*(4*dim*(dim + 1) + int(ratio*dim)*(2*dim + 1) + 5*dim)"
                " + layers//2*(heads*(dim + 1) + dim//heads) + 2*dim"
            },
        ),
    ],
    "linear-transformer": [
        (
            {"conv": 3, "norm": "rms", "mlp": "swiglu"},
            {
                "params": "(input_size + 1)*dim + dim"
                " + layers*(4*dim*(dim + 1) + (conv + 1)*3*dim + int(ratio*dim)*(3*dim + 2) + 3*dim)",
                "gives": ["prompts"],
            },
        ),
        (
            {"mlp": "none"},
            {"params": "(input_size + 1)*dim + layers*(4*dim*(dim + 1) + 2*dim) + 2*dim", "gives": ["prompts"]},
        ),
        (
            {"ngrams": 2},
            {
                "params": "(input_size + 1)*dim + ((1 + ngrams)*dim + 1)*dim"
                " + layers*(4*dim*(dim + 1) + int(ratio*dim)*(2*dim + 1) + 5*dim) + 2*dim"
            },
        ),
    ],
    "min-gru": [({"positive": False}, {})],
    "rmc": [
        (
            {"gate": "memory", "blocks": 2},
            {
                "params": "(input_size + 1)*hidden + blocks*(3*hidden*(hidden + 1) + 10*hidden)"
                " + (2*hidden + 4)*(hidden + 1)"
            },
        ),
    ],
    "pararnn": [
        ({"cell": "lstm"}, {"params": f"{PARARNN_SIZE} + 2*layers*dim"}),
        ({"cell": "lem"}, {"params": f"{PARARNN_SIZE} + layers*dim*(dim//heads + 2)"}),
    ],
    "resnet18": [({"norm": "group"}, {"batch_norm": False})],
    "lstm": [
        ({"variant": "vanilla"}, {"params": f"{LSTM_SIZE} + 3*hidden*layers"}),
        ({"variant": "cifg"}, {"params": f"{LSTM_SIZE}*3//4 + 2*hidden*layers"}),
        ({"variant": "fgr"}, {"params": f"{LSTM_SIZE} + 3*hidden*layers + 9*hidden**2*layers"}),
    ],
    "flashrnn": [
        ({"cell": "gru"}, {"params": f"{FLASH_SIZE}*3//4"}),
        ({"cell": "elman"}, {"params": f"{FLASH_SIZE}//4"}),
        ({"cell": "slstm"}, {}),
    ],
    "gtrxl": [({"stop_gradient": False}, {"stops_gradient": False})],
    "transformer": [
        ({"window": 4}, {"gives": ["hidden-layers", "prompts"]}),
        (
            {"keys_at_once": 2, "conv": 3},
            {
                "params": "(input_size + 1)*dim"
                " + layers*(4*dim*(dim + 1) + (conv + 1)*dim + int(ratio*dim)*(2*dim + 1) + 5*dim) + 2*dim",
                "gives": ["hidden-layers"],
            },
        ),
    ],
}


def all_entries() -> dict[str, registry.Entry]:
    """conf/backbone, with the variants."""
    found = dict(registry.entries("backbone"))
    for name, variants in VARIANTS.items():
        for options, info in variants:
            label = ",".join(str(v) if not isinstance(v, list) else "+".join(v) for v in options.values())
            entry = found[name]
            found[f"{name}[{label}]"] = replace(
                entry, overrides={**entry.overrides, **options}, info={**entry.info, **info}
            )
    return found


ENTRIES = all_entries()
CORE = ("delta-net", "gru", "lstm", "mlp", "resnet18", "titans-lmm", "transformer")  # tried wherever tests are run


def each_name() -> list[Any]:
    """For ``parametrize``: the names in conf/, of which most are tried only where slow tests are."""
    return [pytest.param(name, marks=() if name in CORE else pytest.mark.slow) for name in registry.names("backbone")]


def each_entry() -> list[Any]:
    """For ``parametrize``: all of them, of which most are tried only where slow tests are."""
    return [
        pytest.param(entry, id=label, marks=() if label in CORE else pytest.mark.slow)
        for label, entry in ENTRIES.items()
    ]


TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}


def options(entry: registry.Entry, **more: Any) -> dict[str, Any]:
    """The entry's defaults, made small."""
    return {**entry.defaults, **{name: value for name, value in SMALL.items() if name in entry.defaults}, **more}


def build(entry: registry.Entry, *, dtype: torch.dtype = torch.float64, seed: int = 0, **more: Any) -> Backbone:
    """A small network in which no parameter is 0 or 1 by construction, so that a missing one shows.

    With batch norm the samples of a batch influence each other in training. An entry that declares it is held to the
    contract in evaluation, with statistics as they are after some training.
    """
    torch.manual_seed(seed)
    network = entry.build(D, **options(entry, **more)).to(dtype)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
        for norm in batch_norms(network):
            norm.running_mean.normal_(std=0.1)
            norm.running_var.uniform_(0.5, 2)
    return network.eval() if entry.info.get("batch_norm") else network


def batch_norms(network: nn.Module) -> list[Any]:
    return [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]


def inputs(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape or (B, T, D), generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def flags(kind: str, batch: int = B, steps: int = T, seed: int = 2) -> dict[str, Tensor]:
    """Random ``reset_BT`` and ``mask_BT`` as keyword arguments, by their name in FLAGS."""
    source = torch.Generator().manual_seed(seed)
    with_reset, with_mask = FLAGS[kind]
    reset_BT = torch.rand((batch, steps), generator=source) < 0.25
    mask_BT = torch.rand((batch, steps), generator=source) < 0.7
    return ({"reset_BT": reset_BT} if with_reset else {}) | ({"mask_BT": mask_BT} if with_mask else {})


def at(arguments: dict[str, Tensor], index: Any) -> dict[str, Tensor]:
    return {name: tensor[index] for name, tensor in arguments.items()}


def floats(state: State) -> list[Tensor]:
    """The tensors of a state through which gradients pass."""
    return [tensor for tensor in state_tensors(state) if tensor.is_floating_point()]


def assert_close(a: Tensor, b: Tensor, tolerance: float) -> None:
    """Equal up to ``tolerance`` relative to the largest value (at least 1)."""
    assert a.shape == b.shape
    assert a.dtype == b.dtype
    if a.numel():
        assert torch.isfinite(b).all()
        difference = (a.double() - b.double()).abs().max().item()
        assert difference <= tolerance * max(1.0, b.double().abs().max().item())


def assert_states_close(a: State, b: State, tolerance: float) -> None:
    assert len(state_tensors(a)) == len(state_tensors(b))
    for x, y in zip(state_tensors(a), state_tensors(b), strict=True):
        assert_close(x, y, tolerance)
