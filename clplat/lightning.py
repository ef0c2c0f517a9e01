"""The Lightning Trainer of one phase: plain, quiet, and with no wrapper round the model."""

from __future__ import annotations

import logging
import warnings
from datetime import timedelta
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.plugins.environments import LightningEnvironment
from pytorch_lightning.strategies import DDPStrategy

from clplat.ranks import Ranks
from clplat.settings import TrainerSettings


class UnwrappedDDP(DDPStrategy):
    """Ranks that were started from outside and sum their gradients themselves, by one flat message a step.

    ``DistributedDataParallel`` would synchronise inside ``backward``, once for each, and fail or go silent where a
    strategy runs a second backward, leaves a parameter unused or generates its weights.
    """

    def configure_ddp(self) -> None:
        pass


def trainer(settings: TrainerSettings, ranks: Ranks) -> pl.Trainer:
    """A Trainer that runs one epoch: one phase of one experience."""
    _quiet()
    cuda = ranks.device.type == "cuda"
    options: dict[str, Any] = {"devices": [ranks.device.index or 0] if cuda else 1}
    if ranks.world > 1:
        backend = "nccl" if cuda else "gloo"
        environment = LightningEnvironment()
        strategy = UnwrappedDDP(
            cluster_environment=environment, process_group_backend=backend, timeout=timedelta(minutes=10)
        )
        options = {"devices": ranks.world, "strategy": strategy}
    return pl.Trainer(
        accelerator="cuda" if cuda else "cpu",
        max_epochs=1,
        precision="bf16-mixed" if settings.precision == "bf16-mixed" else "32-true",  # 64 is the learner's own dtype
        deterministic=settings.deterministic or None,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        **options,
    )


def _quiet() -> None:
    """Silence what Lightning says about every Trainer; here there is one for each phase."""
    for name in ("pytorch_lightning.utilities.rank_zero", "pytorch_lightning.accelerators.cuda", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*The number of training batches.*")
    warnings.filterwarnings("ignore", message=".*`Trainer.fit` stopped.*")
    warnings.filterwarnings("ignore", message=".*GPU available but not used.*")
    warnings.filterwarnings("ignore", message=".*isinstance\\(treespec, LeafSpec\\).*")
