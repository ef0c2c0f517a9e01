"""The residual network against torchvision's, and what batch norm does to a batch."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torchvision.models.resnet import BasicBlock, ResNet

from clplat.backbones.conv.resnet import ResNet18
from clplat.backbones.encoder import Encoder
from clplat.errors import UsageError

from .helpers import assert_close, inputs

IMAGE = (3, 8, 8)


@pytest.mark.parametrize("training", [True, False])
def test_equals_torchvision_with_a_small_stem(training: bool) -> None:
    torch.manual_seed(0)
    ours, theirs = ResNet18(192, IMAGE, width=64).double(), ResNet(BasicBlock, [2, 2, 2, 2]).double()
    theirs.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False).double()
    theirs.maxpool, theirs.fc = nn.Identity(), nn.Identity()
    weights = list(theirs.state_dict().values())
    ours.load_state_dict(dict(zip(ours.state_dict(), weights, strict=True)))
    x = inputs(4, *IMAGE)
    y, state = ours.train(training)(Encoder("image", IMAGE)(x))
    assert state == {}
    assert_close(y[:, 0], theirs.train(training)(x), 1e-10)
    for own, other in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True):
        assert_close(own, other, 1e-10)  # the running statistics too


def test_the_reduced_one_has_the_published_size() -> None:
    """Colour images of 32 x 32 and a head for 100 classes: the 1.1 million parameters that papers state."""
    network = ResNet18(3 * 32 * 32, (3, 32, 32))
    count = sum(p.numel() for p in network.parameters())
    assert count == 2724 * 20**2 + (9 * 3 + 150) * 20
    assert count + 100 * (network.output_size + 1) == 1_109_240


@pytest.mark.parametrize("shape", [(28, 28), (1, 28, 28)])
def test_gray_images_with_and_without_their_channel(shape: tuple[int, ...]) -> None:
    network = ResNet18(784, shape, width=2)
    assert network(inputs(2, 1, 784, dtype=torch.float32))[0].shape == (2, 1, 16)


@pytest.mark.parametrize(
    ("input_size", "shape", "message"),
    [(24, IMAGE, "encoder image"), (5, (5,), "needs images"), (192, (1, 3, 8, 8), "needs images")],
)
def test_what_is_no_image_is_refused(input_size: int, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ResNet18(input_size, shape)


def test_samples_influence_each_other_in_training_with_batch_norm_alone() -> None:
    x = inputs(4, 1, 192, dtype=torch.float32)
    changed = torch.cat([x[:1], 3 * x[1:]])
    for norm in ("batch", "group"):
        network = ResNet18(192, IMAGE, width=4, norm=norm)
        influenced = not torch.allclose(network(x)[0][0], network(changed)[0][0], atol=1e-5)
        assert influenced == (norm == "batch")
        network.eval()
        assert_close(network(x)[0][0], network(changed)[0][0], 1e-5)


def test_padding_takes_no_part_in_the_statistics() -> None:
    mask_BT = torch.tensor([[1, 0, 1], [0, 0, 1]]).bool()
    x = inputs(2, 3, 192).masked_fill(~mask_BT[..., None], torch.nan)
    networks = []
    for _ in range(2):
        torch.manual_seed(0)
        networks.append(ResNet18(192, IMAGE, width=4).double())
    y, _ = networks[0](x, mask_BT=mask_BT)
    alone, _ = networks[1](x[mask_BT][:, None])
    assert_close(y[mask_BT], alone[:, 0], 1e-12)
    assert (y[~mask_BT] == 0).all()
    for masked, plain in zip(networks[0].buffers(), networks[1].buffers(), strict=True):
        assert_close(masked, plain, 1e-12)


@pytest.mark.parametrize("batch", [0, 1])
def test_a_batch_too_small_for_statistics_is_no_error(batch: int) -> None:
    network = ResNet18(192, IMAGE, width=4)  # 8 x 8 becomes 1 x 1: one value per channel
    y, _ = network(inputs(batch, 1, 192, dtype=torch.float32))
    y.sum().backward()
    assert torch.isfinite(y).all()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in network.parameters())
    assert all(torch.isfinite(buffer).all() for buffer in network.buffers())


@pytest.mark.parametrize(("width", "groups"), [(20, 4), (64, 4), (6, 2), (7, 1)])
def test_groups_divide_the_width(width: int, groups: int) -> None:
    norms = [m for m in ResNet18(192, IMAGE, width=width, norm="group").modules() if isinstance(m, nn.GroupNorm)]
    assert len(norms) == 20
    assert {norm.num_groups for norm in norms} == {groups}
