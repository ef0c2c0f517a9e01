"""Avalanche's benchmarks become our streams and ours become benchmarks. Small files in the real formats are read by the
real code; nothing is downloaded. Importing Avalanche takes 10 s, so all tests that do so are here."""

from __future__ import annotations

import gzip
import pickle
import struct
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch

from clplat import registry
from clplat.bridge import from_avalanche
from clplat.errors import EXIT_MISSING, MissingError, UsageError
from clplat.scenario import LazyData, Scenario, TensorData
from clplat.scenarios.avalanche import _EXPERIENCES, _FILES, ClassicBenchmark, Name, _arguments
from tests.scenarios.streams import build, two_steps

slow = pytest.mark.slow  # because of the import
EACH = 6  # samples of a class, train and test alike


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise urllib.error.URLError("no network here")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)


def images(n: int, shape: tuple[int, ...], seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, *shape), dtype=np.uint8)


def labels(classes: int) -> np.ndarray:
    return np.random.default_rng(0).permutation(np.arange(classes * EACH) % classes).astype(np.uint8)


def write_idx(folder: Path) -> None:
    """MNIST's files: magic number, sizes, bytes, all big-endian (LeCun et al.)."""
    folder.mkdir(parents=True)
    y = labels(10)
    for number, name in enumerate(("train", "t10k")):
        x = images(len(y), (28, 28), number)
        (folder / f"{name}-images-idx3-ubyte").write_bytes(struct.pack(">IIII", 0x803, *x.shape) + x.tobytes())
        (folder / f"{name}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 0x801, len(y)) + y.tobytes())


def write_cifar(folder: Path, classes: int) -> None:
    """CIFAR's pickled dictionaries: rows of 3072 bytes, red plane first; five training batches for CIFAR-10."""
    folder.mkdir(parents=True)
    y = labels(classes)
    key = "labels" if classes == 10 else "fine_labels"
    train = [f"data_batch_{i}" for i in range(1, 6)] if classes == 10 else ["train"]
    test = ["test_batch"] if classes == 10 else ["test"]
    for seed, names in enumerate((train, test)):
        x = images(len(y), (3072,), seed)
        for name, rows in zip(names, np.array_split(np.arange(len(y)), len(names)), strict=True):
            content = {"data": x[rows], key: y[rows].tolist(), "filenames": [f"{i}.png" for i in rows]}
            (folder / name).write_bytes(pickle.dumps(content))
    meta, names_key = ("batches.meta", "label_names") if classes == 10 else ("meta", "fine_label_names")
    (folder / meta).write_bytes(pickle.dumps({names_key: [f"c{i}" for i in range(classes)]}))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    write_idx(root / "MNIST" / "raw")
    write_idx(root / "FashionMNIST" / "raw")
    write_cifar(root / "cifar-10-batches-py", 10)
    write_cifar(root / "cifar-100-python", 100)
    return root


@pytest.fixture
def made_up_cifar(monkeypatch: pytest.MonkeyPatch) -> None:
    """torchvision knows CIFAR's checksums; here a file that is there counts as whole. All reading stays real."""
    from torchvision.datasets import cifar

    monkeypatch.setattr(cifar, "check_integrity", lambda path, md5=None: Path(path).is_file())


def parts(scenario: Scenario) -> list[Any]:
    return [*scenario.train_stream, *scenario.test_stream]


# --- without importing Avalanche


def test_unknown_benchmarks_are_refused_at_once_with_a_suggestion() -> None:
    code = """
import sys
from clplat import config, registry
from clplat.errors import UsageError
for attempt in (lambda: registry.find("scenario", "avalanche:SplitCIFR100"),
                lambda: config.compose(["scenario=avalanche:SplitCIFR100"])):
    try:
        attempt()
    except UsageError as error:
        assert "Did you mean 'avalanche:SplitCIFAR100'?" in str(error), error
    else:
        raise AssertionError
given = ["scenario=avalanche:SplitCIFAR100", "scenario.experiences=20", "scenario.options.shuffle=false"]
composed = config.compose(given)
section = composed["scenario"]
assert section["name"] == "avalanche:SplitCIFAR100" and section["benchmark"] == "SplitCIFAR100", section
assert section["experiences"] == 20 and section["options"] == {"shuffle": False}, section
section = config.compose(["scenario=avalanche", "scenario.benchmark=CORe50"])["scenario"]
assert section["benchmark"] == "CORe50", section
assert not {"avalanche", "torch"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_tables_are_about_the_same_benchmarks() -> None:
    assert set(get_args(Name)) == set(_FILES)
    assert set(_EXPERIENCES) <= set(_FILES)
    assert registry.find("scenario", "avalanche:CORe50").load() is ClassicBenchmark


def test_arguments_are_those_that_the_function_takes() -> None:
    parameters = dict.fromkeys(["n_experiences", "seed", "shuffle", "train_transform", "dataset_root"])
    given = _arguments("SplitMNIST", parameters, 3, None, "there", {"shuffle": False})
    assert given == {"n_experiences": 5, "seed": 3, "dataset_root": "there", "shuffle": False}
    for options in ({"seed": 4}, {"train_transform": 1}, {"mini": True}):
        with pytest.raises(UsageError, match=r"scenario\.options\.\w+: SplitMNIST takes shuffle here"):
            _arguments("SplitMNIST", parameters, 3, None, None, options)
    with pytest.raises(UsageError, match="fixed number"):
        _arguments("CORe50", {"run": None}, 0, 3, None, {})
    with pytest.raises(UsageError, match=r"scenario\.root must be given"):
        build("avalanche:SplitImageNet")
    with pytest.raises(UsageError, match="experiences=0"):
        build("avalanche:SplitMNIST", experiences=0)


# --- with it


@slow
def test_every_classic_benchmark_that_gives_data_streams_is_known() -> None:
    import inspect

    from avalanche.benchmarks import classic

    functions = {name for name, value in vars(classic).items() if inspect.isroutine(value) or inspect.isclass(value)}
    # Streams of trained networks, a metric, and a helper: no benchmarks of data.
    others = {"ExMLCIFAR10", "ExMLCoRE50", "ExMLMNIST", "CLEARMetric", "check_experts_accuracy"}
    assert {name for name in functions if not name.startswith("_")} - others == set(get_args(Name))
    for name in get_args(Name):
        parameters = inspect.signature(getattr(classic, name)).parameters
        assert ("n_experiences" in parameters) or name not in _EXPERIENCES
        needed = [p.name for p in parameters.values() if p.default is p.empty and p.name != "dataset_root"]
        assert needed in ([], ["n_experiences"])
        assert needed == [] or name in _EXPERIENCES


@slow
def test_any_rank_can_import_it() -> None:
    code = """
import torch.distributed
torch.distributed.is_initialized, torch.distributed.get_rank = lambda: True, lambda: 1
from clplat.bridge import import_avalanche
import_avalanche()
assert torch.distributed.is_initialized()
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@slow
@pytest.mark.parametrize("folder", ["MNIST", "FashionMNIST"])
def test_split_mnist_is_read_from_idx_files(folder: str, data: Path) -> None:
    name = {"MNIST": "SplitMNIST", "FashionMNIST": "SplitFMNIST"}[folder]
    state = torch.get_rng_state()
    scenario = build(f"avalanche:{name}", 4, root=str(data))
    assert torch.equal(torch.get_rng_state(), state)
    assert (scenario.spec.setting, scenario.spec.classes, scenario.spec.shape) == ("class", 10, (1, 28, 28))
    seen = [c for e in scenario.train_stream for c in e.classes_in_this_experience]
    assert sorted(seen) == list(range(10))
    assert seen != list(range(10))  # the order is Avalanche's, by the seed
    assert seen == [c for e in scenario.test_stream for c in e.classes_in_this_experience]
    y = labels(10)
    mean, std = {"MNIST": (0.1307, 0.3081), "FashionMNIST": (0.2860, 0.3530)}[folder]
    for stream, seed in ((scenario.train_stream, 0), (scenario.test_stream, 1)):
        x = images(60, (28, 28), seed)
        for experience in stream:
            rows = np.concatenate([np.flatnonzero(y == c) for c in experience.classes_in_this_experience])
            expected = {(x[i].astype(np.float32) / 255).sum().round(2): int(y[i]) for i in rows}
            ours = experience.dataset.x * std + mean
            assert {
                float(np.float32(s).round(2)): c
                for s, c in zip(ours.sum((1, 2, 3)).tolist(), experience.dataset.y.tolist(), strict=True)
            } == pytest.approx({float(k): v for k, v in expected.items()})
    again, other = (build(f"avalanche:{name}", seed, root=str(data)) for seed in (4, 5))
    assert all(torch.equal(a.dataset.x, b.dataset.x) for a, b in zip(parts(scenario), parts(again), strict=True))
    assert seen != [c for e in other.train_stream for c in e.classes_in_this_experience]


@slow
@pytest.mark.parametrize("encoder", ["rows", "pixels", "patches"])
def test_its_images_are_read_in_each_way(encoder: str, data: Path) -> None:
    scenario = ClassicBenchmark(0, benchmark="SplitMNIST", experiences=2, root=str(data))
    assert 0 <= two_steps(scenario, encoder)["matrix"][1][0] <= 1


@slow
def test_settings_of_a_split(data: Path) -> None:
    task = build("avalanche:SplitMNIST", 1, root=str(data), setting="task")
    own = build("avalanche:SplitMNIST", 1, root=str(data), options={"return_task_id": True})
    domain = build("avalanche:SplitMNIST", 1, root=str(data), setting="domain")
    for scenario in (task, own):
        assert (scenario.spec.setting, scenario.spec.classes_per_task, scenario.tasks) == ("task", (2,) * 5, 5)
        assert [e.task_label for e in scenario.test_stream] == [0, 1, 2, 3, 4]
    assert (domain.spec.setting, domain.spec.classes, domain.tasks) == ("domain", 2, 1)
    for a, b, c in zip(parts(task), parts(own), parts(domain), strict=True):
        assert a.classes_in_this_experience == (0, 1)
        assert torch.equal(a.dataset.x, b.dataset.x)
        assert torch.equal(a.dataset.y, b.dataset.y)
        assert torch.equal(a.dataset.y, c.dataset.y)


@slow
@pytest.mark.parametrize("name", ["PermutedMNIST", "RotatedMNIST"])
def test_the_same_classes_in_all_experiences_are_domain_incremental(name: str, data: Path) -> None:
    scenario = build(f"avalanche:{name}", 1, root=str(data), experiences=3)
    assert (scenario.spec.setting, scenario.spec.classes, scenario.tasks) == ("domain", 10, 1)
    assert all(e.classes_in_this_experience == tuple(range(10)) for e in parts(scenario))
    first, second = (e.dataset.x for e in scenario.train_stream[:2])
    assert not torch.equal(first, second)
    if name == "PermutedMNIST":
        assert torch.allclose(first.flatten(1).sort(1).values, second.flatten(1).sort(1).values)


@slow
@pytest.mark.parametrize("classes", [10, 100])
def test_split_cifar_is_read_from_its_batches(classes: int, data: Path, made_up_cifar: None) -> None:
    scenario = build(f"avalanche:SplitCIFAR{classes}", 0, root=str(data))
    assert (scenario.spec.classes, scenario.spec.shape) == (classes, (3, 32, 32))
    assert len(scenario.train_stream) == _EXPERIENCES[f"SplitCIFAR{classes}"]
    assert sorted(c for e in scenario.train_stream for c in e.classes_in_this_experience) == list(range(classes))
    assert sum(len(e.dataset) for e in scenario.train_stream) == classes * EACH
    # No random crop or flip, which Avalanche's transforms for training make: the same samples each time.
    again = build(f"avalanche:SplitCIFAR{classes}", 0, root=str(data))
    assert torch.equal(scenario.train_stream[0].dataset.x, again.train_stream[0].dataset.x)


@slow
def test_what_does_not_fit_is_loaded_at_use(data: Path) -> None:
    held = build("avalanche:SplitMNIST", 2, root=str(data))
    lazy = build("avalanche:SplitMNIST", 2, root=str(data), max_bytes=1000)
    for a, b in zip(parts(held), parts(lazy), strict=True):
        assert type(a.dataset) is TensorData
        assert type(b.dataset) is LazyData
        assert a.classes_in_this_experience == b.classes_in_this_experience
        for s, t in zip(a.dataset.rows(slice(None)), b.dataset.rows(slice(None)), strict=True):
            assert torch.equal(s, t)


@slow
def test_data_that_are_not_there_are_missing(tmp_path: Path) -> None:
    with pytest.raises(MissingError) as error:
        build("avalanche:SplitMNIST", root=str(tmp_path))
    assert error.value.exit_code == EXIT_MISSING
    for word in (str(tmp_path), "nor downloaded", "MNIST/raw", "scenario.root=DIR"):
        assert word in str(error.value)
    # Half a file is no data either.
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    with gzip.open(raw / "train-images-idx3-ubyte.gz", "wb") as file:
        file.write(b"no images")
    with pytest.raises(MissingError, match="nor downloaded"):
        build("avalanche:SplitMNIST", root=str(tmp_path))


@slow
def test_uneven_splits_lose_no_class(data: Path) -> None:
    with pytest.raises(UsageError, match="cannot be divided"):
        build("avalanche:SplitMNIST", root=str(data), experiences=3)

    from avalanche.benchmarks import class_incremental_benchmark
    from avalanche.benchmarks.utils import as_classification_dataset

    def split(**options: Any) -> Any:
        y = torch.arange(40) % 10
        own = torch.utils.data.TensorDataset(torch.randn(40, 3), y)
        own.targets = y.tolist()  # type: ignore[attr-defined]
        both = {name: as_classification_dataset(own) for name in ("train", "test")}
        return class_incremental_benchmark(both, class_order=list(range(10)), **options)

    with pytest.raises(UsageError, match=r"the classes \[9\] of the data are in no experience"):
        from_avalanche(split(num_experiences=3))
    assert from_avalanche(split(num_experiences=3), leave_out=[9]).spec.classes == 9
    whole = from_avalanche(split(num_classes_per_exp=[4, 3, 3]))
    assert [len(e.classes_in_this_experience) for e in whole.train_stream] == [4, 3, 3]
    task = from_avalanche(split(num_classes_per_exp=[4, 3, 3]), setting="task")
    assert task.spec.classes_per_task == (4, 3, 3)
    assert [e.classes_in_this_experience for e in task.test_stream] == [(0, 1, 2, 3), (0, 1, 2), (0, 1, 2)]


@slow
@pytest.mark.parametrize(
    ("name", "options"),
    [("split-digits", {"setting": "task"}), ("split-digits", {}), ("permuted-copy", {}), ("mqar-memorize", {})],
)
def test_there_and_back(name: str, options: dict[str, object]) -> None:
    scenario = build(name, experiences=2, **options)
    known = None if scenario.spec.target == "class" else scenario.spec
    back = from_avalanche(scenario.to_avalanche(), spec=known)
    assert (back.spec.shape, back.spec.setting) == (scenario.spec.shape, scenario.spec.setting)
    assert (back.spec.classes, back.spec.classes_per_task) == (scenario.spec.classes, scenario.spec.classes_per_task)
    for a, b in zip(parts(scenario), parts(back), strict=True):
        assert (a.task_label, a.origin_stream) == (b.task_label, b.origin_stream)
        assert a.classes_in_this_experience == b.classes_in_this_experience
        for s, t in zip(a.dataset.rows(slice(None)), b.dataset.rows(slice(None)), strict=True):
            assert s.dtype == t.dtype
            assert torch.equal(s, t)


@slow
def test_one_test_set_for_all_experiences_stays_one() -> None:
    """As CORe50 has it: classes come one after another, the test is always on all of them."""
    from avalanche.benchmarks import benchmark_from_datasets
    from avalanche.benchmarks.utils import as_classification_dataset

    def part(classes: list[int]) -> Any:
        y = torch.tensor(classes).repeat(3)
        own = torch.utils.data.TensorDataset(torch.randint(0, 256, (len(y), 2, 4, 4), dtype=torch.uint8), y)
        own.targets = y.tolist()  # type: ignore[attr-defined]
        return as_classification_dataset(own)

    benchmark = benchmark_from_datasets(train=[part([0, 1]), part([2, 3])], test=[part([0, 1, 2, 3])])
    scenario = from_avalanche(benchmark)
    assert (scenario.spec.setting, scenario.spec.classes, len(scenario.test_stream)) == ("class", 4, 1)
    x = scenario.test_stream[0].dataset.x
    assert x.dtype == torch.float32
    assert x.max() <= 1
    with pytest.raises(UsageError, match="needs a test experience for each of the 2 training experiences"):
        from_avalanche(benchmark, setting="task")
    with pytest.raises(UsageError, match="no test stream"):
        from_avalanche(benchmark_from_datasets(train=[part([0, 1])]))
    # What is loaded at use can go to Avalanche as well.
    lazy = from_avalanche(benchmark, max_bytes=0).to_avalanche()
    assert torch.equal(torch.stack([row[0] for row in lazy.test_stream[0].dataset]), x)


@slow
def test_avalanches_own_strategies_train_on_our_scenarios() -> None:
    from avalanche.models import SimpleMLP
    from avalanche.training.supervised import Naive, Replay

    benchmark = build("split-digits", experiences=2, setting="task").to_avalanche()
    assert [e.task_label for e in benchmark.train_stream] == [0, 1]
    assert [sorted(e.classes_in_this_experience) for e in benchmark.test_stream] == [[0, 1, 2, 3, 4]] * 2
    for kind, more in ((Naive, {}), (Replay, {"mem_size": 20})):
        model = SimpleMLP(num_classes=5, input_size=64, hidden_size=8)
        before = [p.clone() for p in model.parameters()]
        optimizer, criterion = torch.optim.SGD(model.parameters(), 0.1), torch.nn.CrossEntropyLoss()
        strategy = kind(model=model, optimizer=optimizer, criterion=criterion, train_mb_size=64, evaluator=None, **more)
        for experience in benchmark.train_stream:
            strategy.train(experience)
        strategy.eval(benchmark.test_stream)
        assert any(not torch.equal(p, q) for p, q in zip(before, model.parameters(), strict=True))
