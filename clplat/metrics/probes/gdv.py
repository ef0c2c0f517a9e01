"""How well hidden vectors cluster by a label, layer by layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from clplat.backbones.readout import read
from clplat.errors import UsageError
from clplat.metrics.measures import IGNORED
from clplat.metrics.probes.base import Figure, Probe, Result
from clplat.metrics.probes.sampling import batches, draw, layer_outputs
from clplat.report import plots
from clplat.scenario import PER_STEP

if TYPE_CHECKING:
    from clplat.learner import Learner
    from clplat.scenario import Scenario, TensorData


def gdv(x_ND: Tensor, label_N: Tensor) -> float:
    """Generalised discrimination value (Schilling et al. 2021, Neural Networks 139): 0 for no clusters, -1 for
    perfect ones.

    With each dimension scaled to ``s = (x - mean) / (2 std)`` (population std)::

        1/sqrt(D) [mean over classes of the mean distance within - mean over pairs of classes of that between]

    Dimensions that do not vary are left out, and so are classes of a single sample, which have no distance within.
    NaN where fewer than two classes are left.
    """
    x_ND = x_ND.double()
    deviation_D = x_ND.std(0, correction=0)
    varies = deviation_D > 1e-12 * x_ND.abs().amax(0).clamp(min=1e-300)
    classes = [c for c in label_N.unique() if int((label_N == c).sum()) > 1]
    if len(classes) < 2 or not bool(varies.any()):
        return float("nan")
    s_ND = 0.5 * (x_ND - x_ND.mean(0))[:, varies] / deviation_D[varies]
    parts = [s_ND[label_N == c] for c in classes]
    within = torch.stack([torch.pdist(part).mean() for part in parts]).mean()
    pairs = [(a, b) for a in range(len(parts)) for b in range(a + 1, len(parts))]
    between = torch.stack([_distances(parts[a], parts[b]).mean() for a, b in pairs]).mean()
    return float((within - between) / s_ND.shape[1] ** 0.5)


def scaling(x_ND: Tensor, dimensions: int = 2) -> Tensor:
    """Classical multidimensional scaling of euclidean distances (Torgerson 1952), (N, dimensions): the projection on
    the first principal axes, each turned so that its largest value is positive."""
    centred = x_ND.double() - x_ND.double().mean(0)
    u, s, _ = torch.linalg.svd(centred, full_matrices=False)
    found = torch.zeros(len(x_ND), dimensions, dtype=torch.float64, device=x_ND.device)
    k = min(dimensions, len(s))
    found[:, :k] = u[:, :k] * s[:k]
    largest = found.gather(0, found.abs().argmax(0)[None])
    return found * torch.where(largest < 0, -1.0, 1.0)


def hidden_vectors(learner: Learner, data: TensorData) -> tuple[list[Tensor], Tensor]:
    """Each layer's vectors (N, D) and their labels (N,): the encoded input, between the layers, and what the head sees.

    Where tokens are asked each asked step has a vector and its answer for a label; else each sample has one, made as
    the readout makes it (of bits and series the mean over steps), and a label of 0 where its target is no class.
    """
    backbone, parts, labels = learner.backbone, [], []
    for x, y, _ in batches(data):
        hidden = layer_outputs(backbone, learner.encoder(x))
        if learner.target == "token":
            asked = y != IGNORED
            parts.append([h[asked] for h in hidden])
            labels.append(y[asked])
        else:
            readout = "mean" if learner.target in PER_STEP else learner.readout
            parts.append([read(readout, h) for h in hidden])
            labels.append(y if learner.target == "class" else torch.zeros_like(y.flatten(1)[:, 0], dtype=torch.long))
    return [torch.cat(layer).double() for layer in zip(*parts, strict=True)], torch.cat(labels)


class GDV(Probe):
    """Generalised discrimination value of each layer (Surendra et al. 2023, next-word prediction; Schilling et al.
    2021, the formula), on test samples, with a map of the last layer in two dimensions.

    A layer's vector of a sample is what the readout makes of its steps; where every step is asked, each asked step has
    a vector, and its label is the answer. The first layer is the encoded input, the last what the head sees. Taken at
    each experience's end, the value on an old experience's classes says whether its representation is forgotten,
    whatever became of the head. That the paper of 2023 reports exactly this value is not verified.

    Args:
        labels: class, the target; or experience, which of the test stream the sample is from.
        samples: of each experience.
    """

    def __init__(self, *, labels: Literal["class", "experience"] = "class", samples: int = 200) -> None:
        if samples < 2:
            raise UsageError(f"gdv: samples={samples}: two at least are needed")
        self.labels, self.samples = labels, samples

    def unfit(self, learner: Learner, scenario: Scenario) -> str | None:
        if self.labels == "class" and scenario.spec.target not in ("class", "token"):
            return "needs classes or tokens as targets: choose another scenario, or labels=experience"
        if self.labels == "experience" and len(scenario.test_stream) < 2:
            return "with labels=experience needs two experiences at least: choose a longer stream"
        return None

    def measure(self, learner: Learner, scenario: Scenario) -> Result:
        vectors, labels, groups = [], [], []
        for j, experience in enumerate(scenario.test_stream):
            data = draw(learner, experience.dataset, self.samples, "probe/gdv", j)
            layers, y_N = hidden_vectors(learner, data)
            vectors.append(layers)
            labels.append(y_N)
            groups.append(torch.full_like(y_N, j))
        experience_N = torch.cat(groups)
        label_N = experience_N if self.labels == "experience" else torch.cat(labels)
        layers = [torch.cat(parts) for parts in zip(*vectors, strict=True)]
        order = torch.randperm(len(label_N), generator=learner.generator("probe/gdv/shuffle"))
        values = [gdv(x_ND, label_N) for x_ND in layers]
        found: Result = {
            "first": values[0],
            "last": values[-1],
            "shuffled": gdv(layers[-1], label_N[order.to(label_N.device)]),
            "layers": values,
        }
        if self.labels == "class":
            found["experiences"] = [
                [gdv(x_ND[experience_N == j], label_N[experience_N == j]) for x_ND in layers]
                for j in range(len(scenario.test_stream))
            ]
        return found | {"map": scaling(layers[-1]), "labels": label_N}

    def figure(self, result: Result) -> Figure:
        clouds = {}
        for label in sorted(set(result["labels"])):
            place = [point for point, own in zip(result["map"], result["labels"], strict=True) if own == label]
            clouds[str(label)] = ([x for x, _ in place], [y for _, y in place])
        value = "not defined" if result["last"] is None else f"{result['last']:.3f}"
        return plots.points(f"The last layer by {self.labels}: GDV {value}", "first axis", "second axis", clouds)


def _distances(a_ND: Tensor, b_MD: Tensor) -> Tensor:
    return torch.cdist(a_ND, b_MD, compute_mode="donot_use_mm_for_euclid_dist")
