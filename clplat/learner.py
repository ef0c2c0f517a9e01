"""The learner: encoder, backbone, readout and head, trained as a strategy says.

It is a LightningModule. Lightning drives the epoch, precision and devices; one call of ``training_step`` runs a range
of optimiser steps ("dispatch"), because Lightning's bookkeeping per call costs as much as a small network's whole step.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from clplat import faults, gradients, optimizer_state, randomness, sharding, signals
from clplat.backbones.base import Backbone, State
from clplat.backbones.encoder import Encoder
from clplat.backbones.readout import read
from clplat.batch import Batch
from clplat.errors import ClplatError, RunFailedError
from clplat.metrics import measures
from clplat.ranks import Ranks
from clplat.scenario import PER_STEP, Experience, Target, TensorData
from clplat.settings import TrainerSettings
from clplat.strategy import Strategy

if TYPE_CHECKING:
    from clplat.steps import Steps


class Preempted(ClplatError):  # noqa: N818 - not an error of anybody's
    """A signal asked the run to stop; all ranks raise this at the same place, with the same exit code."""

    def __init__(self, exit_code: int) -> None:
        super().__init__("stopped by a signal")
        self.exit_code = exit_code


@dataclass
class Output:
    """What the network makes of a batch: logits (N, C), or (N, T, V) for tokens; the features (N, F) or (N, T, F) that
    the head saw; the backbone's state."""

    logits: Tensor
    features: Tensor
    state: State = None


@dataclass
class StepReport:
    """What one optimiser step did, for records: the global values are made only when somebody asks.

    Args:
        step: its number over the whole run, from 1.
        terms: this rank's share of each loss term.
        grad_norm: the 2-norm of the gradient over all ranks before it was clipped; None where it was not taken (steps
            that are not written down, without clipping) or where nothing had a gradient.
    """

    step: int
    terms: dict[str, Tensor]
    grad_norm: Tensor | None = None


class Learner(pl.LightningModule):
    """Encoder, backbone, readout, head and strategy.

    Args:
        backbone: the network with sequence memory.
        head: from features to logits, called with (features, task).
        strategy: how it learns.
        encoder: makes a sequence of vectors of a sample.
        readout: its name, see ``backbones.readout``.
        target: what is predicted; for tokens and bits the head sees every step and the readout is not used.
        settings: how an experience is trained.
        make_optimizer: builds the optimiser from parameter groups.
        seed: of the whole run; all randomness is derived from it.
        ranks: the processes of the run.
    """

    def __init__(
        self,
        backbone: Backbone,
        head: nn.Module,
        strategy: Strategy,
        *,
        encoder: Encoder,
        readout: str,
        target: Target = "class",
        settings: TrainerSettings,
        make_optimizer: Callable[[list[dict[str, Any]]], torch.optim.Optimizer],
        seed: int = 0,
        ranks: Ranks | None = None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.backbone, self.head, self.strategy = backbone, head, strategy
        self.encoder, self.readout, self.target, self.settings = encoder, readout, target, settings
        self.make_optimizer, self.seed = make_optimizer, seed
        self.ranks = ranks or Ranks()
        self.step = 0  # optimiser steps over the whole run
        self.experience: Experience | None = None
        self.data: TensorData | None = None  # what is being trained on, on this rank's device
        self.steps: Steps | None = None  # the phase that is running
        self.restore_optimizer: dict[str, Any] | None = None
        self.restore_fitting = False  # it comes from another experience: take what fits
        # What the loop hangs in: after each optimiser step, and when a signal asks for a checkpoint between two.
        self.on_step: Callable[[StepReport], None] = lambda report: None
        self.save: Callable[[], None] = lambda: None
        self.note: Callable[[str], None] = lambda message: None  # a line for the run's log

    @property
    def sharded(self) -> bool:
        """Whether the backbone's weights are cut among the ranks, which then have to call it equally often."""
        return self.settings.sharding == "fsdp" and self.ranks.world > 1

    # --- the network

    def train(self, mode: bool = True) -> Learner:
        """Training or evaluation mode; also of a backbone whose weights a strategy makes, which is no submodule."""
        super().train(mode)
        self.backbone.train(mode)
        return self

    def forward(self, x: Tensor, task: Tensor) -> Tensor:
        """Logits (N, C) for samples (N, ...) of the given tasks, in evaluation form."""
        return self.output(x, task, predict=True).logits

    def answer(self, x: Tensor, task: Tensor) -> Tensor:
        """What evaluation judges: logits, which a strategy may make by other means than the head's."""
        return self.respond(x, task).logits

    def respond(self, x: Tensor, task: Tensor, state: State = None) -> Output:
        """The output in evaluation form, from a state of the backbone's, with the logits that are judged."""
        output = self.output(x, task, state, predict=True)
        return replace(output, logits=self.strategy.classify(self, output, task))

    def output(self, x: Tensor, task: Tensor, state: State = None, *, predict: bool = False) -> Output:
        """Run the network through the strategy's ``forward`` (or ``predict``), from a state of the backbone's."""
        call = self.strategy.predict if predict else self.strategy.forward
        y_BTD, state = call(self, self.encoder(x), task, state)
        features = self.features(y_BTD)
        return Output(self.head(features, task), features, state)

    def features(self, y_BTD: Tensor) -> Tensor:
        """What the head sees of the backbone's output: (N, F), or (N, T, F) where every step is asked."""
        return y_BTD if self.target in PER_STEP else read(self.readout, y_BTD)

    def base_loss(self, logits: Tensor, y: Tensor) -> Tensor:
        """The task's own loss for each row, (N,); see :func:`clplat.metrics.measures.base_loss`."""
        return measures.base_loss(self.target, logits, y)

    def network(self) -> dict[str, nn.Parameter]:
        """Encoder, backbone and head parameters by name: what a weight regulariser protects. Of the strategy's own
        only those that stand in for the backbone's."""
        instead = {id(p) for p in self.strategy.stand_ins()}
        return {n: p for n, p in self.named_parameters() if not n.startswith("strategy.") or id(p) in instead}

    # --- what strategies use

    def generator(self, purpose: str, *numbers: int) -> torch.Generator:
        """A generator that depends on the run's seed, the purpose and the numbers, and on nothing else."""
        return randomness.generator(self.seed, purpose, *numbers)

    def output_with(self, weights: Mapping[str, Tensor], x: Tensor, task: Tensor) -> Output:
        """What the network would make of samples with other weights, in evaluation form: a teacher, a look-ahead.

        Args:
            weights: by the names of :meth:`network`; what is missing is as it is.
        """
        replaced = {f"learner.{name}": tensor for name, tensor in weights.items()}
        training = self.training
        self.eval()
        try:
            with contextlib.ExitStack() as stack:
                if torch.is_grad_enabled() and any(isinstance(m, nn.RNNBase) for m in self.backbone.modules()):
                    # cuDNN's recurrent layers have no backward in evaluation mode
                    stack.enter_context(torch.backends.cudnn.flags(enabled=False))
                output: Output = torch.func.functional_call(_Predict(self), replaced, (x, task))
        finally:
            self.train(training)
        return output

    def auxiliary_gradients(
        self,
        batch: Batch,
        parameters: Sequence[nn.Parameter],
        value: Callable[[Output], Tensor] | None = None,
        *,
        predict: bool = False,
    ) -> list[Tensor]:
        """Gradients of the mean base loss on a batch, summed over ranks; zeros where a parameter is not reached.

        ``.grad`` is not touched.

        Args:
            value: what to take in place of the base loss, one number for each local row.
            predict: in evaluation form, without dropout; else with the batch's own noise.
        """
        with torch.enable_grad(), randomness.noise(randomness.Noise(self.seed, batch.rows, batch.step, -1)):
            output = self.output_with({}, batch.x, batch.task) if predict else self.output(batch.x, batch.task)
            rows = self.strategy.base_loss(self, batch, output) if value is None else value(output)
            loss = batch.reduce(rows)
        found = torch.autograd.grad(loss, parameters, allow_unused=True)
        gradients = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]
        self.ranks.all_reduce_many(gradients)
        return gradients

    def learning_rates(self) -> dict[nn.Parameter, float]:
        """The current learning rate of each parameter that the running phase's optimiser moves."""
        return {p: float(group["lr"]) for group in self._optimizer().param_groups for p in group["params"]}

    def group_rates(self) -> list[float]:
        """The current learning rate of each of the optimiser's parameter groups; one where all have the same."""
        rates = [float(group["lr"]) for group in self._optimizer().param_groups]
        return rates[:1] if len(set(rates)) == 1 else rates

    def batches(self, data: TensorData, size: int = 256) -> Iterator[slice]:
        """Cut a data set into batches and yield those that are this rank's, for a sum over all of the data.

        Whole batches go to the ranks in turn, so that a batch is the same on one rank and on N. Looks out for signals
        in between, on all ranks alike.
        """
        for number, start in enumerate(range(0, len(data), size)):
            self.poll()
            if number % self.ranks.world == self.ranks.rank:
                yield slice(start, min(start + size, len(data)))

    def features_of(self, data: TensorData) -> Tensor:
        """The features (N, ...) of all samples of a data set in evaluation form, on every rank."""
        dtype = next(self.parameters()).dtype
        data = data.to(self.ranks.device, dtype)
        with self.evaluating():
            one = self.output(*data.rows(slice(0, 1))[::2], predict=True).features  # a rank may have no batch
            found = one.new_zeros((len(data), *one.shape[1:]), dtype=dtype)
            for rows in self.batches(data):
                x, _, task = data.rows(rows)
                found[rows] = self.output(x, task, predict=True).features.to(dtype)
        return self.ranks.all_reduce(found)

    def poll(self) -> None:
        """Stop here if a signal came: call it in long loops, on all ranks alike. Raises :class:`Preempted`."""
        faults.point("poll")
        if code := self._asked_to_stop():
            raise Preempted(code)

    def _asked_to_stop(self) -> int:
        """The exit code to stop with if a signal came to any rank, else 0."""
        return self.ranks.largest(0 if signals.requested() is None else signals.exit_code())

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """Eval mode, no gradients, the run's precision."""
        training = self.training
        self.eval()
        try:
            with torch.no_grad(), self.autocast():
                yield
        finally:
            self.train(training)

    @contextlib.contextmanager
    def deployed(self) -> Iterator[None]:
        """Inside, the network has the weights that the strategy answers with."""
        network, chosen = self.network(), self.strategy.deploy(self)
        own = {name: network[name].data for name in chosen}
        try:
            for name, weight in chosen.items():
                network[name].data = weight.detach().to(network[name])
            yield
        finally:
            for name, weight in own.items():
                network[name].data = weight

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """The context in which the network computes outside Lightning's own steps."""
        if self.settings.precision == "bf16-mixed":
            return torch.autocast(self.ranks.device.type, torch.bfloat16)
        return contextlib.nullcontext()

    # --- training

    def learning_groups(self) -> list[dict[str, Any]]:
        """Optimiser groups: the phase's own, or the network's and the strategy's that are trainable."""
        assert self.steps is not None
        phase = self.steps.phase
        if phase.parameters is not None:
            return [{"params": list(phase.parameters), **({} if phase.lr is None else {"lr": phase.lr})}]
        own = list(self.strategy.param_groups(self))
        taken = {id(p) for group in own for p in group["params"]}  # stand-ins are in both
        groups = [{"params": [p for p in self.network().values() if id(p) not in taken]}, *own]
        if self.settings.sharding == "fsdp":  # optimisers take pieces and whole tensors in groups of their own
            groups = optimizer_state.apart(groups, self.backbone.parameters())
        chosen = self.strategy.trainable(self)
        if chosen is not None:
            kept = {id(p) for p in chosen}
            groups = [{**group, "params": [p for p in group["params"] if id(p) in kept]} for group in groups]
        return [group for group in groups if group["params"]]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.make_optimizer(self.learning_groups())

    def on_fit_start(self) -> None:
        """Optimisers exist now: put back what a checkpoint, or the experience before, kept of them."""
        optimizer = self._optimizer()
        if self.restore_optimizer is not None:
            state = self.restore_optimizer
            state = optimizer_state.fitting(optimizer, state) if self.restore_fitting else state
            optimizer.load_state_dict(sharding.cut_optimizer(state, optimizer) if self.sharded else state)
            self.restore_optimizer, self.restore_fitting = None, False
        for group in optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])  # what factors apply to; kept with the optimiser's state

    def on_train_start(self) -> None:
        signals.install()  # Lightning has put its own SIGTERM handler in place, which would end the epoch

    def _optimizer(self) -> torch.optim.Optimizer:
        optimizer = self.optimizers(use_pl_optimizer=False)
        assert isinstance(optimizer, torch.optim.Optimizer)
        return optimizer

    def learning_rate(self) -> float:
        """The learning rate of the network in the phase that is running, without any factor."""
        return float(self._optimizer().param_groups[0]["initial_lr"])

    def optimizer_state(self) -> dict[str, Any]:
        """State of the optimiser of the phase that is running."""
        return self._optimizer().state_dict()

    def forget_moments(self, parameters: Iterable[Tensor], entries: Tensor | None = None) -> None:
        """Forget what the optimiser remembers of parameters whose values have jumped: old momentum and running means
        would carry the old values' gradients on. Between two optimiser steps only (``edit_gradients``, ``after_step``).

        Args:
            parameters: those that the optimiser does not know are passed over.
            entries: which entries of each, broadcast over it; None makes the parameters as new to the optimiser, its
                count of steps included, which is one for the whole parameter and stays when entries are named.
        """
        optimizer_state.forget(self._optimizer(), parameters, entries)

    def training_step(self, positions: tuple[int, int], batch_idx: int) -> None:
        """Run the optimiser steps of a range of positions in the phase's step stream."""
        assert self.steps is not None
        optimizer = self._optimizer()
        learning = [p for group in optimizer.param_groups for p in group["params"]]
        losses: list[Tensor] = []
        for position in range(*positions):
            losses.append(self._one_step(optimizer, learning, position))
            if self.steps.over or (self.ranks.world == 1 and signals.requested() is not None):
                break  # of a signal several ranks agree at the end of the range instead
        finite = torch.stack(losses).isfinite()
        if self.ranks.any(not bool(finite.all())):
            bad = int(finite.int().argmin()) if not bool(finite.all()) else 0
            raise self.not_finite(self.step - len(losses) + bad + 1)
        if code := self._asked_to_stop():
            self.save()
            raise Preempted(code)

    def not_finite(self, step: int) -> RunFailedError:
        """The error for a loss that is infinite or not a number."""
        assert self.steps is not None
        return RunFailedError(
            f"the loss is not finite at step {step} (experience {self.steps.experience.current_experience}, phase "
            f"{self.steps.phase.name}); a smaller optimizer.lr or trainer.clip may help. The last checkpoint is kept"
        )

    def _one_step(self, optimizer: torch.optim.Optimizer, learning: list[nn.Parameter], position: int) -> Tensor:
        """One optimiser step; returns this rank's share of the loss, without gradient."""
        assert self.steps is not None
        faults.point("step")
        seed = randomness.derive(self.seed, "step", self.step)
        torch.default_generator.manual_seed(seed)  # for randomness that is not ours; never drawn per rank by us
        if self.ranks.device.type == "cuda":
            torch.cuda.manual_seed(seed)
        own_loss, lanes = self.steps.phase.loss, self.steps.lanes
        terms: dict[str, Tensor] = {}
        batches = self.steps.batches(position, self.step, self.ranks)
        for batch in batches:
            if own_loss is None:
                batch = self.strategy.rehearse(self, batch)
            with randomness.noise(randomness.Noise(self.seed, batch.rows, self.step, batch.micro)):
                if own_loss is None:
                    before = None if lanes is None else lanes.before(self.backbone, batch)
                    output = self.output(batch.x, batch.task, before)
                    if lanes is not None:
                        lanes.after(batch, output.state)
                    found = {"loss": self.strategy.base_loss(self, batch, output)}
                    found.update(self.strategy.loss(self, batch, output))
                else:
                    found = {"loss": own_loss(self, batch)}
            shares = {
                name: (batch.reduce(value) if value.ndim else value / self.ranks.world) / len(batches)
                for name, value in found.items()
            }
            total = torch.stack(list(shares.values())).sum() if len(shares) > 1 else shares["loss"]
            self.manual_backward(total)
            for name, share in shares.items():
                terms[name] = terms[name] + share.detach() if name in terms else share.detach()
            if own_loss is None:
                self.strategy.observe(self, batch, Output(output.logits.detach(), output.features.detach()))
                if self.steps.criterion is not None:
                    logits = batch.of("stream", output.logits.detach())
                    parts = measures.parts_of_outputs(self.target, logits, batch["stream"].y)
                    self.steps.criterion.take(self.ranks.all_reduce(parts), batch.micro)
        self.ranks.sum_gradients(learning)
        if own_loss is None:
            self.strategy.edit_gradients(self)
            factor = self.strategy.lr_factor(self)
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * factor
        clip, length = self.settings.clip, None
        if clip is not None:
            length = gradients.clip(learning, clip)
        elif self.settings.logs(self.step + 1):
            length = gradients.norm(learning)
        optimizer.step()
        self.zero_grad(set_to_none=True)  # all of them: also those that do not learn now
        self.step += 1
        if own_loss is None:
            self.strategy.after_step(self, batch)
        self.steps.position = position + 1
        self.on_step(StepReport(self.step, terms, length))
        return torch.stack(list(terms.values())).sum()


class _Predict(nn.Module):
    """The learner's prediction as a module's forward, which is what ``functional_call`` can call."""

    def __init__(self, learner: Learner) -> None:
        super().__init__()
        self.learner = learner

    def forward(self, x: Tensor, task: Tensor) -> Output:
        return self.learner.output(x, task, predict=True)
