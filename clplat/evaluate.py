"""One evaluation pass over the test experiences, exact on any number of ranks.

Whole batches go to ranks in turn, so every batch is the same on one rank and on N, bit for bit; its sums are put in a
table that is added over ranks (all other entries being zero) and then summed in order.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from clplat import faults
from clplat.errors import UsageError, suggestion
from clplat.learner import Learner
from clplat.scenario import Experience


def chosen(rule: str, seen: int, total: int) -> list[int]:
    """Which experiences to evaluate after ``seen`` of ``total`` have been trained.

    Args:
        rule: ``all``; ``seen+next``; ``last-k``: the k seen last; ``auto``: all up to 50 experiences, else seen+next.
    """
    if rule == "auto":
        rule = "all" if total <= 50 else "seen+next"
    if rule == "all":
        return list(range(total))
    if rule == "seen+next":
        return list(range(min(seen + 1, total)))
    if rule.startswith("last-") and rule[5:].isdigit() and int(rule[5:]) > 0:
        return list(range(max(0, seen - int(rule[5:])), seen))
    raise UsageError(f"eval.experiences={rule}: not a rule.{suggestion(rule, ['auto', 'all', 'seen+next', 'last-k'])}")


def evaluate(
    learner: Learner, stream: Sequence[Experience], which: Sequence[int], batch_size: int
) -> dict[int, dict[str, float]]:
    """Accuracy and mean loss on each of the chosen experiences.

    Args:
        stream: the test stream.
        which: positions in it.
        batch_size: samples in a batch; no batch holds samples of two experiences.
    """
    pieces = [(j, start) for j in which for start in range(0, len(stream[j].dataset), batch_size)]
    ranks = learner.ranks
    table = torch.zeros(len(pieces), 2, dtype=torch.float64, device=ranks.device)
    dtype = next(learner.parameters()).dtype
    with learner.evaluating():
        for number, (j, start) in enumerate(pieces):
            if number % 16 == 0:
                learner.poll()
            if number % ranks.world != ranks.rank:
                continue
            faults.point("evaluate")
            x, y, task = stream[j].dataset.rows(slice(start, start + batch_size))
            x = x.to(ranks.device, dtype if x.is_floating_point() else None)
            y = y.to(ranks.device)
            logits = learner(x, task.to(ranks.device)).float() if dtype != torch.float64 else learner(x, task)
            table[number, 0] = (logits.argmax(-1) == y).sum()
            table[number, 1] = learner.base_loss(logits, y).double().sum()
    rows = ranks.all_reduce(table).cpu()
    found: dict[int, dict[str, float]] = {}
    for j in which:
        mine = [number for number, (k, _) in enumerate(pieces) if k == j]
        n = len(stream[j].dataset)
        correct, loss = (float(rows[mine, column].sum()) for column in (0, 1))
        found[j] = {"accuracy": correct / n, "loss": loss / n}
    return found
