"""Avalanche's classic benchmarks as they are: ``--scenario avalanche:SplitCIFAR100``.

Avalanche (Lomonaco et al. 2021) is imported only when such a scenario is built. It loads the data, or downloads them
where it can, and splits them; :mod:`clplat.bridge` makes our streams of the result.
"""

from __future__ import annotations

import contextlib
import inspect
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from clplat.bridge import from_avalanche, import_avalanche
from clplat.errors import MissingError, UsageError
from clplat.scenario import Scenario

Name = Literal[
    "CLEAR",
    "CLStream51",
    "CORe50",
    "EndlessCLSim",
    "OpenLORIS",
    "PermutedMNIST",
    "RotatedMNIST",
    "SplitCIFAR10",
    "SplitCIFAR100",
    "SplitCIFAR110",
    "SplitCUB200",
    "SplitFMNIST",
    "SplitImageNet",
    "SplitInaturalist",
    "SplitMNIST",
    "SplitOmniglot",
    "SplitTinyImageNet",
]

# Experiences where Avalanche leaves the number open: those that papers use most.
_EXPERIENCES = {
    "PermutedMNIST": 10,
    "RotatedMNIST": 10,
    "SplitCIFAR10": 5,
    "SplitCIFAR100": 10,
    "SplitCIFAR110": 11,
    "SplitFMNIST": 5,
    "SplitMNIST": 5,
    "SplitOmniglot": 4,
}
# Folder below Avalanche's own place for data, and the files that are looked for there.
_MNIST = "{train,t10k}-{images-idx3,labels-idx1}-ubyte, with or without .gz, in"
_FILES = {
    "CLEAR": ("clear10", "the archives of CLEAR"),
    "CLStream51": ("stream51", "Stream-51.zip"),
    "CORe50": ("core50", "core50_128x128.zip (or core50_32x32.zip), batches_filelists.zip, paths.pkl, labels.pkl, ..."),
    "EndlessCLSim": ("endless-cl-sim", "the archives of the Endless CL simulator"),
    "OpenLORIS": ("openloris", "the archives of OpenLORIS"),
    "PermutedMNIST": ("mnist", f"{_MNIST} MNIST/raw"),
    "RotatedMNIST": ("mnist", f"{_MNIST} MNIST/raw"),
    "SplitCIFAR10": ("cifar10", "cifar-10-python.tar.gz, or its folder cifar-10-batches-py"),
    "SplitCIFAR100": ("cifar100", "cifar-100-python.tar.gz, or its folder cifar-100-python"),
    "SplitCIFAR110": ("cifar10", "cifar-10-python.tar.gz and cifar-100-python.tar.gz"),
    "SplitCUB200": ("CUB_200_2011", "CUB_200_2011.tgz, or its folder CUB_200_2011"),
    "SplitFMNIST": ("fashionmnist", f"{_MNIST} FashionMNIST/raw"),
    "SplitImageNet": ("", "ILSVRC2012_devkit_t12.tar.gz, ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar"),
    "SplitInaturalist": ("inatuarlist2018", "train_val2018.tar.gz and its annotations"),
    "SplitMNIST": ("mnist", f"{_MNIST} MNIST/raw"),
    "SplitOmniglot": ("omniglot", "omniglot-py/images_background.zip and omniglot-py/images_evaluation.zip"),
    "SplitTinyImageNet": ("tinyimagenet", "tiny-imagenet-200.zip"),
}
_SEEDS = 2**32  # Avalanche gives seeds to numpy, which knows no larger ones


class ClassicBenchmark(Scenario):
    """A classic benchmark of Avalanche (Lomonaco et al. 2021), with Avalanche's own splits for a seed.

    The run's seed is the benchmark's: class orders, permutations and angles are those that Avalanche makes of it.
    Samples are what the benchmark's transforms for evaluation give, also for training; see
    :func:`clplat.bridge.from_avalanche`, also for what the settings make of the labels.

    Args:
        benchmark: which, by Avalanche's name; written as a part of the scenario's name, avalanche:SplitMNIST.
        experiences: how many; null for the benchmark's own number, or the usual one.
        setting: class-, task- or domain-incremental; auto is what the benchmark's task labels and classes say.
        root: folder of the data; null for Avalanche's own place.
        max_bytes: streams that need no more memory are held as tensors; the samples of larger ones are loaded at use.
        options: further arguments of Avalanche's function, e.g. scenario.options.mini=true for CORe50.
    """

    def __init__(
        self,
        seed: int,
        *,
        benchmark: Name = "SplitMNIST",
        experiences: int | None = None,
        setting: Literal["auto", "class", "task", "domain"] = "auto",
        root: str | None = None,
        max_bytes: int = 4294967296,
        options: dict[str, bool | int | float | str] = {},  # noqa: B006 - options are read from this line
    ) -> None:
        if benchmark not in _FILES:
            raise UsageError(f"there is no benchmark '{benchmark}'. Valid: {', '.join(_FILES)}.")
        if experiences is not None and experiences < 1:
            raise UsageError(f"scenario.experiences={experiences}: at least one is needed")
        if benchmark == "SplitImageNet" and root is None:
            raise UsageError(f"scenario.root must be given: the folder of {_FILES[benchmark][1]}")
        made = _make(benchmark, seed % _SEEDS, experiences, root, dict(options))
        built = from_avalanche(made, setting=None if setting == "auto" else setting, max_bytes=max_bytes)
        super().__init__(built.spec, built.train_stream, built.test_stream, built.valid_stream)


def _make(name: str, seed: int, experiences: int | None, root: str | None, options: dict[str, Any]) -> Any:
    """Call Avalanche's function. Other ranks on this machine wait, so that one alone downloads and unpacks."""
    with contextlib.redirect_stdout(sys.stderr):  # what it says is no answer of ours
        import_avalanche()
        from avalanche.benchmarks import classic

        function = getattr(classic, name)
        arguments = _arguments(name, inspect.signature(function).parameters, seed, experiences, root, options)
        from pytorch_lightning.utilities.seed import isolate_rng

        with _alone(name), isolate_rng(include_cuda=False):
            try:
                return function(**arguments)
            except (ValueError, TypeError, AssertionError) as error:
                raise UsageError(f"Avalanche's {name} refuses: {error}") from error
            except (OSError, RuntimeError, EOFError, ImportError) as error:
                raise MissingError(_missing(name, root, error)) from error


def _arguments(
    name: str, parameters: Any, seed: int, experiences: int | None, root: str | None, options: dict[str, Any]
) -> dict[str, Any]:
    """What Avalanche's function is given.

    Raises:
        UsageError: it does not take something that was asked for.
    """
    given: dict[str, Any] = {}
    experiences = _EXPERIENCES.get(name) if experiences is None else experiences
    if experiences is not None:
        if "n_experiences" not in parameters:
            raise UsageError(f"scenario.experiences: {name} has a fixed number of experiences")
        given["n_experiences"] = experiences
    if "seed" in parameters:
        given["seed"] = seed
    if root is not None:
        folder = str(Path(root).expanduser())
        given |= {parameter: folder for parameter in parameters if parameter.startswith("dataset_root")}
    taken = [key for key in options if key in given or key not in parameters or key.endswith("_transform")]
    if taken:
        free = [p for p in parameters if p not in given and "root" not in p and not p.endswith("_transform")]
        raise UsageError(*(f"scenario.options.{key}: {name} takes {', '.join(free)} here" for key in taken))
    return {**given, **options}


def _missing(name: str, root: str | None, error: Exception) -> str:
    from avalanche.benchmarks.datasets import default_dataset_location

    folder, files = _FILES[name]
    place = Path(root).expanduser() if root is not None else Path(default_dataset_location(folder))
    said = " ".join(str(error).split())[:300]
    return (
        f"the data of avalanche:{name} could not be loaded from {place}, nor downloaded ({type(error).__name__}: "
        f"{said}). Put there: {files}; or name the folder where that is by scenario.root=DIR"
    )


@contextlib.contextmanager
def _alone(name: str) -> Iterator[None]:
    """Hold a lock that the processes of this user on this machine share."""
    import fcntl
    import os

    path = Path(tempfile.gettempdir()) / f"clplat-{os.getuid()}-{name}.lock"
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
