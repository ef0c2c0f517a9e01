"""Long sequences in parallel lanes, with the backbone's state carried from batch to batch.

With ``trainer.carry_state`` the samples of an experience are taken as windows of sequences that go on from sample to
sample. They are cut into B = ``batch_size`` lanes of neighbouring samples, batch n holds the n-th sample of each lane,
and the state after a batch is that before the next. It is detached there: gradients reach back to the window's first
step, which is truncated backpropagation through time (Williams & Peng 1990, An efficient gradient-based algorithm).
An epoch begins with the initial state.
"""

from __future__ import annotations

import torch
from torch import Tensor

from clplat.backbones.base import Backbone, State, map_state
from clplat.batch import Batch, part
from clplat.errors import UsageError
from clplat.ranks import Ranks


def order(n: int, lanes: int) -> Tensor:
    """Samples 0 .. n - 1 in the order in which batches of ``lanes`` take them; the first lanes are one longer where n
    is no multiple, so that only the last batch is smaller."""
    whole, more = divmod(n, lanes)
    lengths = torch.full((lanes,), whole) + (torch.arange(lanes) < more)
    starts = lengths.cumsum(0) - lengths
    batches = [starts[lengths > step] + step for step in range(whole + (more > 0))]
    return torch.cat(batches) if batches else torch.arange(0)


def first(n: int, state: State) -> State:
    """The state of the first n lanes."""
    return map_state(lambda tensor: tensor[:n], state)


class Lanes:
    """The state of this rank's lanes within an epoch.

    A lane stays with its rank, also in a smaller last batch.

    Args:
        lanes: of all ranks.
        ranks: the processes of the run.
    """

    def __init__(self, lanes: int, ranks: Ranks) -> None:
        self.lanes, self.ranks = lanes, ranks
        self.own = part(lanes, ranks.rank, ranks.world)
        self.state: State = None

    def local(self, n: int) -> slice:
        """The rows of a global batch of n that are this rank's."""
        return slice(min(self.own.start, n), min(self.own.stop, n))

    def before(self, backbone: Backbone, batch: Batch) -> State:
        """The state in which a batch begins: the lanes' own, and for rows of other sources the initial one."""
        if self.state is None:
            return None
        own, others = len(batch["stream"].x), len(batch) - len(batch["stream"].x)
        state = first(own, self.state)
        if not others:
            return state
        # A state that has grown, such as keys and values, is as it was at first where all of it is zero.
        fresh = map_state(
            lambda then, now: then if then.shape[1:] == now.shape[1:] else now.new_zeros(others, *now.shape[1:]),
            backbone.init_state(others),
            state,
        )
        return map_state(lambda a, b: torch.cat([a, b.to(a)]), state, fresh)

    def after(self, batch: Batch, state: State) -> None:
        """Keep what a batch left behind.

        Raises:
            UsageError: the strategy calls the backbone in a way that leaves no state.
        """
        if state is None:
            raise UsageError(
                "this strategy, or this backbone, leaves no state that could be carried: use trainer.carry_state=false"
            )
        own = len(batch["stream"].x)
        self.state = map_state(Tensor.detach, first(own, state))

    def whole(self) -> State:
        """The state of all lanes, on every rank; for a checkpoint."""
        return map_state(self._gathered, self.state)

    def _gathered(self, tensor: Tensor) -> Tensor:
        if self.ranks.world == 1:
            return tensor
        table = tensor.new_zeros((self.lanes, *tensor.shape[1:]), dtype=_summable(tensor.dtype))
        table[self.own.start : self.own.start + len(tensor)] = tensor.to(table.dtype)
        return self.ranks.all_reduce(table).to(tensor.dtype)

    def load(self, state: State) -> None:
        """Take this rank's lanes of :meth:`whole`."""
        self.state = map_state(lambda tensor: tensor[self.own].to(self.ranks.device), state)


def _summable(dtype: torch.dtype) -> torch.dtype:
    return torch.uint8 if dtype == torch.bool else dtype
