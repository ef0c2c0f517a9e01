"""Streams of facts that are asked through relations: recall and a step of reasoning on either side of it."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Generator, Tensor

from clplat.errors import UsageError
from clplat.metrics.measures import IGNORED
from clplat.scenario import Scenario, Spec, TensorData
from clplat.scenarios.generated import at_least, chosen, streams

RELATIONS = ("equal", "class", "similar")
TASKS = (("equal", "equal"), ("class", "equal"), ("equal", "class"), ("class", "class"))


class GAR(Scenario):
    """Generalised associative recall: facts in context, a query related to one's key, an answer related to its value
    (Ni et al. 2025, Benchmarking and understanding compositional relational reasoning of LLMs, AAAI, arXiv 2412.12841).

    "David likes London. Barbara likes Vancouver. So the girl wants to go to a city of" - Canada: here with tokens of
    whole numbers in place of words, for networks that are trained from scratch. There are ``classes`` classes of keys
    and as many of values, with ``members`` members each. A row is::

        k1 v1 k2 v2 ... kn vn  so(r1, r2)  query        -> answer

    with n = ``facts``; the answer is the label at the query, and -100 stands everywhere else. The query is related to
    one key K by r1 and the answer to its value V by r2, each of

    - equal: the thing itself;
    - class: its class (child and parent in the paper: Barbara - girl, Vancouver - Canada);
    - similar: its partner, one of its own class (near-synonyms in the paper).

    There is a so-token for each pair of relations. In a row all keys are of different classes, and all values, so that
    every query has exactly one answer. With ``shots`` further rows with their answers
    come before, of the same relations. Classes and partners are in no row, and get into the weights by training.

    ``judge`` asks whether a proposed answer (a further token; right in half of all rows, otherwise that of another
    fact) is right: yes or no, at the proposal. With ``negate`` the row says "does not want to" in half of the cases,
    by another so-token, and yes and no change places.

    As a stream (domain-incremental) the experiences are

    - relations: (r1, r2) = equal/equal, class/equal, equal/class, class/class, and again;
    - similar: equal/equal, similar/equal, equal/similar, similar/similar;
    - same: class/class throughout, with fresh rows.

    Success is accuracy. Who finds the values in context but not the right one has 1 / ``facts``; ``judge`` is guessed
    in half of all cases. No fact (key and value) of the test occurs in training: member i of a class of keys goes with
    member j of a class of values only where i + j is a multiple of ``members`` in the test, and only where it is not in
    training; so every thing occurs in both, with others.

    The authors' sets of words and sentences are not here, and neither are their single facts without a context. In
    their sampling rows are rejected until positions of answers are balanced; here positions are uniform from the start.

    Args:
        experiences: how many.
        stream: how they differ.
        form: say the answer, or judge one.
        negate: half of the rows are negated, of judge.
        classes: of keys, and of values.
        members: of a class; an even number.
        facts: in a row.
        shots: rows with answers before the one that asks.
        reverse: facts say the value first.
        samples: training rows in an experience.
        test_samples: test rows in an experience.
    """

    def __init__(
        self,
        seed: int,
        *,
        experiences: int = 4,
        stream: Literal["relations", "similar", "same"] = "relations",
        form: Literal["answer", "judge"] = "answer",
        negate: bool = False,
        classes: int = 4,
        members: int = 6,
        facts: int = 3,
        shots: int = 0,
        reverse: bool = False,
        samples: int = 2048,
        test_samples: int = 512,
    ) -> None:
        problems = at_least(1, experiences=experiences, samples=samples, test_samples=test_samples)
        problems += [*at_least(2, facts=facts, members=members), *at_least(0, shots=shots)]
        if members % 2:
            problems.append(f"scenario.members={members}: an even number is needed, since things have partners")
        if classes < facts:
            problems.append(f"scenario.classes={classes}: {facts} facts of different classes need {facts}")
        if negate and form != "judge":
            problems.append("scenario.negate=true: only proposed answers can be denied; use scenario.form=judge")
        if problems:
            raise UsageError(*problems)
        tokens = self.tokens = Tokens(classes, members)

        def row(n: int, r1: str, r2: str, held_out: bool, source: Generator) -> tuple[Tensor, Tensor]:
            key_NF, value_NF = _facts(n, facts, classes, members, held_out, source)
            shown_NF2 = torch.stack([tokens.keys + key_NF, tokens.values + value_NF], 2)
            asked_N1 = torch.randint(facts, (n, 1), generator=source)
            query_N1 = tokens.related(tokens.keys, key_NF, r1).gather(1, asked_N1)
            answers_NF = tokens.related(tokens.values, value_NF, r2)
            so_N1 = torch.full_like(asked_N1, tokens.so + RELATIONS.index(r1) * len(RELATIONS) + RELATIONS.index(r2))
            shown_NS = (shown_NF2.flip(2) if reverse else shown_NF2).flatten(1)
            if form == "answer":
                return torch.cat([shown_NS, so_N1, query_N1], 1), answers_NF.gather(1, asked_N1)[:, 0]
            true_N1 = torch.rand((n, 1), generator=source) < 0.5
            denied_N1 = (torch.rand((n, 1), generator=source) < 0.5) & negate
            other_N1 = (asked_N1 + torch.randint(1, facts, (n, 1), generator=source)) % facts
            proposed_N1 = answers_NF.gather(1, torch.where(true_N1, asked_N1, other_N1))
            so_N1 = so_N1 + denied_N1 * len(RELATIONS) ** 2
            x_NT = torch.cat([shown_NS, so_N1, query_N1, proposed_N1], 1)
            return x_NT, tokens.verdict + (true_N1 != denied_N1)[:, 0].long()

        def make(e: int, part: str, n: int, source: Generator) -> TensorData:
            r1, r2 = TASKS[e % len(TASKS)] if stream != "same" else TASKS[-1]
            if stream == "similar":
                r1, r2 = (r.replace("class", "similar") for r in (r1, r2))
            rows = [row(n, r1, r2, part == "test", source) for _ in range(shots + 1)]
            shown = [torch.cat([row_NT, answer_N[:, None]], 1) for row_NT, answer_N in rows[:-1]]
            x_NT = torch.cat([*shown, rows[-1][0]], 1)
            y_NT = torch.full_like(x_NT, IGNORED)
            y_NT[:, -1] = rows[-1][1]
            return TensorData(x_NT, y_NT)

        length = (2 * facts + (3 if form == "judge" else 2)) * (shots + 1) + shots
        spec = Spec((length,), tokens.size, "domain", encoder="tokens", target="token", vocabulary=tokens.size)
        super().__init__(spec, *streams(seed, "gar", experiences, samples, test_samples, make))


class Tokens:
    """Which token is what: blank, keys, classes of keys, values, classes of values, so-tokens, no and yes.

    Args:
        classes, members: of keys, and of values.
    """

    def __init__(self, classes: int, members: int) -> None:
        self.members, things = members, classes * members
        self.keys = 1
        self.values = self.keys + things + classes
        self.so = self.values + things + classes
        self.verdict = self.so + 2 * len(RELATIONS) ** 2
        self.size = self.verdict + 2
        self.things = things

    def related(self, first: int, things: Tensor, relation: str) -> Tensor:
        """The tokens of what is related to ``things``, whose own tokens begin at ``first``."""
        if relation == "class":
            return first + self.things + things // self.members
        return first + (things ^ 1 if relation == "similar" else things)


def _facts(n: int, facts: int, classes: int, members: int, held_out: bool, source: Generator) -> tuple[Tensor, Tensor]:
    """Keys and values (n, facts) as numbers class * members + member; see :class:`GAR` for what is held out."""
    member_NF = torch.randint(members, (n, facts), generator=source)
    sum_NF = torch.randint(1, members, (n, facts), generator=source)
    other_NF = ((0 if held_out else sum_NF) - member_NF) % members
    keys_NF = chosen(n, classes, facts, source) * members + member_NF
    return keys_NF, chosen(n, classes, facts, source) * members + other_NF
