"""Streams of paths through graphs that are given as lists of edges."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from torch import Generator, Tensor

from clplat.errors import UsageError
from clplat.metrics.measures import IGNORED
from clplat.scenario import Scenario, Spec, TensorData
from clplat.scenarios.generated import BLANK, at_least, chosen, in_blocks, share, streams
from clplat.scenarios.symbols import asked_where


class StarGraph(Scenario):
    """Paths in star graphs: from the centre to the end of one arm (Bachmann and Nagarajan 2024, The pitfalls of
    next-token prediction, arXiv 2403.06963).

    A graph has a source and ``degree`` arms of ``path`` - 1 further nodes each; labels are drawn without repetition
    from N. A sequence lists all edges, away from the source, in random order, then asks for the path from the source
    to the end of one arm::

        a b | c d | ... | s e /  source goal =  source n1 ... goal

    so E = degree * (path - 1) edges take 3 E tokens, the question 3, and T = 3 E + 2 + path, the last node being asked
    but not shown. Tokens: 0 is blank; 1 to the number of labels are nodes; then ``|``, ``/``, ``=``, and one that
    stands for a node that is kept back. Asked are the nodes of the path, each at the token before it.

    With its inputs given (teacher forcing) every node behind n1 is told by the edge that begins with the node before;
    only n1 needs planning, and its signal is lost, so that exact paths stay at 1 / degree, which is chance. Two changes
    make it easy: ``reverse``, the path from the goal back to the source; and ``teacherless``, where all tokens of the
    path that would be shown are replaced by the token that stands for one kept back.

    Success is ``sequence_accuracy``: all nodes right given the right ones before, which is the same as right when the
    network goes on from its own answers, since it is only ever wrong after a first error. Slices: ``choice`` asks for
    the first node after the source (with ``reverse``: after the goal) alone, ``rest`` for those behind it.

    As a stream (domain-incremental) the experiences are

    - labels: over N labels of their own each;
    - degree: of ever more arms, up to ``degree`` in the last, from two on if there are enough;
    - path: of ever longer arms, up to ``path`` in the last;
    - same: alike, with fresh graphs.

    Smaller graphs have blanks in front. The form is that of the authors' code without the comma between the nodes of an
    edge. There: degree 2, path 5, N = 50, 200,000 graphs for training, 20,000 for the test.

    Args:
        experiences: how many.
        stream: how they differ.
        degree: arms.
        path: nodes on the path, source and goal included.
        nodes: N, labels that nodes of a graph are drawn from.
        reverse: ask for the path from its end.
        teacherless: keep the path back in the inputs.
        samples: training graphs in an experience.
        test_samples: test graphs in an experience.
    """

    def __init__(
        self,
        seed: int,
        *,
        experiences: int = 3,
        stream: Literal["labels", "degree", "path", "same"] = "labels",
        degree: int = 2,
        path: int = 4,
        nodes: int = 20,
        reverse: bool = False,
        teacherless: bool = False,
        samples: int = 2048,
        test_samples: int = 256,
    ) -> None:
        problems = at_least(1, experiences=experiences, degree=degree, samples=samples, test_samples=test_samples)
        problems += at_least(2, path=path)
        if not problems and nodes < 1 + degree * (path - 1):
            problems.append(
                f"scenario.nodes={nodes}: {degree} arms of {path - 1} nodes and a source need {1 + degree * (path - 1)}"
            )
        if problems:
            raise UsageError(*problems)
        labels = nodes * (experiences if stream == "labels" else 1)
        length = 3 * degree * (path - 1) + 2 + path

        def make(e: int, part: str, n: int, source: Generator) -> TensorData:
            arms = max(min(2, degree), share(degree, e, experiences)) if stream == "degree" else degree
            steps = max(2, share(path, e, experiences)) if stream == "path" else path
            first = 1 + (nodes * e if stream == "labels" else 0)

            def block(n: int) -> tuple[Tensor, Tensor]:
                edges_NE2, path_NP = star_graphs(n, arms, steps, nodes, source)
                return sequences(first + edges_NE2, first + path_NP, labels, length, reverse, teacherless)

            return TensorData(*in_blocks(n, nodes + length, block))

        train, test = streams(seed, "star-graph", experiences, samples, test_samples, make)
        spec = Spec((length,), labels + 1, "domain", encoder="tokens", target="token", vocabulary=labels + 5)
        slices = {
            "choice": asked_where(test, lambda x, y: (y != IGNORED).cumsum(1) == 2),
            "rest": asked_where(test, lambda x, y: (y != IGNORED).cumsum(1) > 2),
        }
        super().__init__(replace(spec, metric="sequence_accuracy"), train, test, slices=slices)


def star_graphs(n: int, degree: int, path: int, nodes: int, source: Generator) -> tuple[Tensor, Tensor]:
    """Edges (n, E, 2) in random order, and the path (n, path) from the source to the goal, as labels from 0 on."""
    labels_NL = chosen(n, nodes, 1 + degree * (path - 1), source)
    arms_NAP = torch.cat(
        [labels_NL[:, :1, None].expand(-1, degree, 1), labels_NL[:, 1:].reshape(n, degree, path - 1)], 2
    )
    edges_NE2 = torch.stack([arms_NAP[..., :-1], arms_NAP[..., 1:]], -1).flatten(1, 2)
    order_NE = chosen(n, edges_NE2.shape[1], edges_NE2.shape[1], source)
    return edges_NE2.gather(1, order_NE[..., None].expand(-1, -1, 2)), arms_NAP[:, 0]


def sequences(
    edges_NE2: Tensor, path_NP: Tensor, labels: int, length: int, reverse: bool, teacherless: bool
) -> tuple[Tensor, Tensor]:
    """x and y (n, length); see :class:`StarGraph`."""
    n, E, _ = edges_NE2.shape
    between, end, question, kept_back = range(labels + 1, labels + 5)
    marks_NE = torch.full((n, E), between)
    marks_NE[:, -1] = end
    asked_NP = path_NP.flip(1) if reverse else path_NP
    shown_NP = torch.full_like(asked_NP[:, :-1], kept_back) if teacherless else asked_NP[:, :-1]
    pieces = [torch.cat([edges_NE2, marks_NE[..., None]], 2).flatten(1), path_NP[:, [0, -1]]]
    used_NT = torch.cat([*pieces, torch.full((n, 1), question), shown_NP], 1)
    x_NT = torch.full((n, length), BLANK)
    x_NT[:, length - used_NT.shape[1] :] = used_NT
    y_NT = torch.full((n, length), IGNORED)
    y_NT[:, length - asked_NP.shape[1] :] = asked_NP
    return x_NT, y_NT
