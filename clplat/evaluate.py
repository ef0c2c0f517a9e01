"""One evaluation pass over the test experiences, exact on any number of ranks.

Whole batches go to ranks in turn, so every batch is the same on one rank and on N, bit for bit; its sums are put in a
table that is added over ranks (all other entries being zero) and then summed in order. Where states are carried
(:mod:`clplat.lanes`) all batches of an experience go to one rank, in the order of the lanes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from clplat import faults, lanes, sharding
from clplat.backbones.base import State
from clplat.errors import UsageError, suggestion
from clplat.learner import Learner
from clplat.metrics import measures
from clplat.metrics.answers import Collected
from clplat.scenario import Experience, Scenario, TensorData


def chosen(rule: str, seen: int, total: int, tested: Sequence[int] | None = None) -> list[int]:
    """Which test experiences to evaluate after ``seen`` experiences have been trained, in increasing order.

    Args:
        rule: ``all``; ``seen+next``; ``last-k``: the k seen last; ``auto``: all up to 50 experiences, else seen+next.
        total: test experiences.
        tested: the test experience that belongs to each training experience; None: the one at the same position.
    """
    tested = range(total) if tested is None else tested
    if rule == "auto":
        rule = "all" if total <= 50 else "seen+next"
    if rule == "all":
        return list(range(total))
    if rule == "seen+next":
        return sorted(set(tested[: seen + 1]))
    if rule.startswith("last-") and rule[5:].isdigit() and int(rule[5:]) > 0:
        latest = dict.fromkeys(reversed(tested[:seen]))
        return sorted(list(latest)[: int(rule[5:])])
    raise UsageError(f"eval.experiences={rule}: not a rule.{suggestion(rule, ['auto', 'all', 'seen+next', 'last-k'])}")


def evaluate(
    learner: Learner,
    stream: Sequence[Experience],
    which: Sequence[int],
    batch_size: int,
    answers: Collected | None = None,
) -> dict[int, dict[str, float]]:
    """The mean loss and the measures of the target on each of the chosen experiences.

    Args:
        stream: the test stream.
        which: positions in it.
        batch_size: samples in a batch; no batch holds samples of two experiences.
        answers: collects what was answered to each sample.
    """
    pieces = [(j, start) for j in which for start in range(0, len(stream[j].dataset), batch_size)]
    ranks, target, carry = learner.ranks, learner.target, learner.settings.carry_state
    orders = {j: lanes.order(len(stream[j].dataset), batch_size) for j in which} if carry else {}
    state: State = None
    table = torch.zeros(len(pieces), len(measures.SUM_NAMES[target]), dtype=torch.float64, device=ranks.device)
    dtype = next(learner.parameters()).dtype
    # Gathered, since ranks may have unequal numbers of batches.
    with learner.evaluating(), learner.deployed(), sharding.gathered(learner.backbone):
        for number, (j, start) in enumerate(pieces):
            if number % 16 == 0:
                learner.poll()
            if (j if carry else number) % ranks.world != ranks.rank:
                continue
            faults.point("evaluate")
            rows: slice | Tensor = slice(start, min(start + batch_size, len(stream[j].dataset)))
            if carry:
                rows = orders[j][rows]
                state = None if start == 0 else lanes.first(len(rows), state)
            x, y, task = TensorData(*stream[j].dataset.rows(rows)).to(ranks.device, dtype).rows(slice(None))
            output = learner.respond(x, task, state)
            state, logits = output.state if carry else None, output.logits
            logits = logits if dtype == torch.float64 else logits.float()
            table[number] = measures.sums(target, logits, y)
            if answers is not None:
                answers.add(j, rows, logits, y)
    sums = ranks.all_reduce(table).cpu()
    found: dict[int, dict[str, float]] = {}
    for j in which:
        found[j] = measures.values(target, sums[[number for number, (k, _) in enumerate(pieces) if k == j]].sum(0))
    return found


def slices(
    learner: Learner, scenario: Scenario, which: Sequence[int], batch_size: int
) -> dict[str, list[float | None]]:
    """The primary metric on each slice of a scenario, a row for each; None where nothing was asked or measured."""
    rows: dict[str, list[float | None]] = {}
    for name, stream in scenario.slices.items():
        rows[name] = row(evaluate(learner, stream, which, batch_size), scenario.spec.metric, len(stream))
    return rows


def row(found: Mapping[int, Mapping[str, float]], metric: str, experiences: int) -> list[float | None]:
    """A measure on each of so many experiences, of what :func:`evaluate` gave. A value that is not finite is none, as
    it is in the record, from which a run that goes on reads it back."""
    values = [found[j][metric] if j in found else math.nan for j in range(experiences)]
    return [value if math.isfinite(value) else None for value in values]
