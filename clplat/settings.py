"""The sections of a configuration that are not chosen by name: plain dataclasses, no torch.

The command line reads names, types, defaults, choices and the ``Args:`` text from here without importing anything
heavy; the engine receives instances.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from clplat.errors import UsageError, suggestion

# What an option of a probe or a metric may be.
Value = bool | int | float | str | list[bool | int | float | str] | dict[str, float] | None


@dataclass(frozen=True, kw_only=True)
class TrainerSettings:
    """How an experience is trained.

    Args:
        max_epochs: passes over each experience's data.
        until: end the training of an experience before that, when the accuracy on its training batches (of values: the
            mean squared error) has reached this, of bits each output that is asked; null never does.
        until_window: optimiser steps over which that is averaged.
        batch_size: samples in one global batch, summed over all ranks.
        accumulate: global batches whose gradients make one optimiser step.
        clip: largest 2-norm of the whole gradient; null leaves it alone.
        precision: number format; 64 is for exact comparisons, bf16-mixed for GPUs.
        accelerator: where to compute; auto takes a GPU when there is one.
        devices: number of ranks (processes) on each node, one device each.
        num_nodes: number of nodes (machines).
        sharding: none: every rank holds all weights; fsdp: the backbone's are cut among the ranks (strategies that
            support it).
        carry_state: the samples of an experience are windows of long sequences, one after another: cut them into
            batch_size lanes and carry the backbone's state from batch to batch (truncated backpropagation through
            time).
        threads: CPU threads of each rank; null leaves torch's own choice (divided among the ranks of one machine).
        deterministic: refuse operations that are not deterministic.
        checkpoint_every: optimiser steps between checkpoints inside an experience; 0 saves at its ends only.
        keep_last: how many checkpoints to keep.
        keep_boundaries: keep the checkpoint at the end of each experience as well, for `fit --from RUN --start-from K`.
        log_every: optimiser steps between records of training: loss terms, learning rate, gradient norm, use of the
            machine.
        dispatch: optimiser steps that run in one call from Lightning; larger costs less overhead.
        progress: what is shown; auto shows bars on a terminal and plain lines elsewhere, none only the summary at the
            end, quiet nothing but errors, json nothing but one JSON object with the results, or with how a signal
            stopped the run.
    """

    max_epochs: int = 5
    until: float | None = None
    until_window: int = 10
    batch_size: int = 32
    accumulate: int = 1
    clip: float | None = None
    precision: Literal["32", "64", "bf16-mixed"] = "32"
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    devices: int = 1
    sharding: Literal["none", "fsdp"] = "none"
    num_nodes: int = 1
    carry_state: bool = False
    threads: int | None = None
    deterministic: bool = False
    checkpoint_every: int = 200
    keep_last: int = 2
    keep_boundaries: bool = False
    log_every: int = 20
    dispatch: int = 16
    progress: Literal["auto", "bars", "lines", "none", "quiet", "json"] = "auto"

    def logs(self, step: int) -> bool:
        """Whether an optimiser step is one that is written down."""
        return step % self.log_every == 0


@dataclass(frozen=True, kw_only=True)
class LearnerSettings:
    """How samples reach the backbone and how its output becomes a prediction.

    Args:
        encoder: how a sample becomes a sequence of vectors; auto asks the backbone, then the scenario.
        embedding: size of a token's vector, where inputs are tokens.
        head: one head for all tasks, one for each, one that grows with the classes, or one tied to the embeddings, by
            which answer c is token c; auto takes per-task when the scenario gives task labels, else shared.
        readout: which steps of the output the head sees; auto asks the backbone.
    """

    encoder: Literal["auto", "rows", "pixels", "patches", "vectors", "image", "tokens"] = "auto"
    embedding: int = 64
    head: Literal["auto", "shared", "per-task", "growing", "tied"] = "auto"
    readout: Literal["auto", "last", "mean", "flatten"] = "auto"


@dataclass(frozen=True, kw_only=True)
class EvalSettings:
    """What is evaluated after each experience.

    Args:
        experiences: all; seen+next (those up to the next one); or the last k seen, as last-k. auto means all up to 50
            experiences and seen+next beyond.
        batch_size: samples in one evaluation batch.
        every: optimiser steps between evaluations of the experiences so far inside training; 0 for none. Needed for
            min-ACC, WC-ACC, average anytime accuracy and the stability gap, which see the dips between the ends of
            experiences.
        store: what is kept of each evaluation at the end of an experience, for metrics that are asked for later
            (`clplat metrics`): predictions, a row for each test sample; counts, how often each combination of label
            and prediction occurred; none. auto keeps predictions of up to ten million samples over the whole run,
            about 100 MB, and counts beyond.
        stream: test, or valid: the validation samples in their place, for choosing options without the test samples.
        probes: names of probes that are taken at each experience's end.
        metrics: names of metrics that are computed at each experience's end as well, of those that need the network
            (cka, head_drift, ...), without any checkpoint being kept; see `clplat list metrics`.
        options: of these probes and metrics, by name: eval.options.gdv.samples=50.
    """

    experiences: str = "auto"
    batch_size: int = 256
    every: int = 0
    stream: Literal["test", "valid"] = "test"
    store: Literal["auto", "predictions", "counts", "none"] = "auto"
    probes: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ()
    options: dict[str, dict[str, Value]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        asked = (*self.probes, *self.metrics)
        problems = [
            f"eval.options.{name}: '{name}' is neither in eval.probes nor in eval.metrics.{suggestion(name, asked)}"
            for name in self.options
            if name not in asked
        ]
        problems += [f"eval: '{name}' is asked for twice" for name in dict.fromkeys(asked) if asked.count(name) > 1]
        if problems:
            raise UsageError(*problems)


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """Where the run's record lies, and when it stops.

    Args:
        root: folder in which a run directory with a readable name is made.
        dir: the run directory itself; goes before root.
        stop_after: stop when this many experiences have been learned; null goes to the end.
        signal: besides SIGTERM and Ctrl-C, the signal that asks the run to save itself and stop.
    """

    root: str = "runs"
    dir: str | None = None
    stop_after: int | None = None
    signal: Literal["USR1", "USR2"] = "USR1"

    def __post_init__(self) -> None:
        if self.stop_after is not None and self.stop_after < 1:
            raise UsageError(f"run.stop_after={self.stop_after}: at least 1 is needed, or null to go to the end")
