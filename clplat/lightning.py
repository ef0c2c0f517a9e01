"""The Lightning Trainer of one phase: plain, quiet, and with no wrapper round the model."""

from __future__ import annotations

import functools
import logging
import os
import warnings
from datetime import timedelta
from typing import Any

import lightning_fabric.utilities.registry as registered
import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.environments import LightningEnvironment
from pytorch_lightning.strategies import DDPStrategy

from clplat.errors import UsageError
from clplat.ranks import Ranks
from clplat.settings import TrainerSettings

# Lightning has torch ask NVML for GPUs, so that asking leaves a process free to fork. Every step of an optimiser asks,
# and without NVML a library is searched for each time (66 us); where there is no GPU, CUDA's own answer (1 us) is safe.
if not torch.cuda.is_available():
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "0"

# Each Trainer asks all installed packages for callbacks, which takes 9 of the 10 ms of making one; here is one a phase.
if hasattr(registered, "entry_points"):
    registered.entry_points = functools.cache(registered.entry_points)  # type: ignore[assignment]


class UnwrappedDDP(DDPStrategy):
    """Ranks that were started from outside and sum their gradients themselves, by one flat message a step.

    ``DistributedDataParallel`` would synchronise inside ``backward``, once for each, and fail or go silent where a
    strategy runs a second backward, leaves a parameter unused or generates its weights.
    """

    def configure_ddp(self) -> None:
        pass

    def _configure_launcher(self) -> None:
        pass  # the ranks run already; Lightning's launcher would set torch's threads, whatever trainer.threads says


def trainer(settings: TrainerSettings, ranks: Ranks) -> pl.Trainer:
    """A Trainer that runs one epoch: one phase of one experience.

    Raises:
        UsageError: the ranks that were started are not those of ``num_nodes`` and ``devices``.
    """
    _quiet()
    cuda = ranks.device.type == "cuda"
    # Always given, also to one rank: in a job of SLURM Lightning would else choose its own environment and handlers.
    environment = LightningEnvironment()
    options: dict[str, Any] = {"devices": [ranks.device.index or 0] if cuda else 1, "plugins": [environment]}
    if ranks.world > 1:
        if settings.num_nodes > 1 and settings.num_nodes * settings.devices != ranks.world:
            raise UsageError(
                f"{ranks.world} ranks were started, but trainer.num_nodes={settings.num_nodes} times "
                f"trainer.devices={settings.devices} are {settings.num_nodes * settings.devices}"
            )
        backend = "nccl" if cuda else "gloo"
        strategy = UnwrappedDDP(
            cluster_environment=environment, process_group_backend=backend, timeout=timedelta(minutes=10)
        )
        nodes = settings.num_nodes
        options = {"devices": ranks.world // nodes, "num_nodes": nodes, "strategy": strategy}
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
        # No folder: in a job of SLURM Lightning loads any hpc_ckpt_*.ckpt that it finds there into every fit.
        default_root_dir=os.devnull,
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
    warnings.filterwarnings("ignore", message="The `srun` command is available.*")
    warnings.filterwarnings("ignore", message=".*isinstance\\(treespec, LeafSpec\\).*")
