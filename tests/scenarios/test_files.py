"""The user's own files as streams, told from small files in the real formats."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from clplat import fit, registry
from clplat.backbones.mlp import MLP
from clplat.cli import main
from clplat.errors import MissingError, UsageError
from clplat.scenario import LazyData, Scenario, TensorData
from clplat.settings import TrainerSettings
from tests.scenarios.streams import build

EACH = 20


def write_csv(path: Path, columns: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = zip(*columns.values(), strict=True)
    path.write_text("\n".join([",".join(columns), *(",".join(map(str, row)) for row in rows)]) + "\n", encoding="utf-8")
    return path


def numbers(n: int, seed: int, shift: float = 0.0) -> dict[str, list[float]]:
    values = np.random.default_rng(seed).normal(size=(2, n)) * 3 + 5 + shift
    return {"a": values[0].tolist(), "b": values[1].tolist()}


@pytest.fixture
def days(tmp_path: Path) -> Path:
    """Three experiences with the same classes, b shifted."""
    for e, name in enumerate(("day1", "day2", "day10")):
        write_csv(
            tmp_path / "days" / f"{name}.csv",
            {**numbers(2 * EACH, e, e), "label": ["dog", "cat"] * EACH},
        )
    return tmp_path / "days"


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    """One table of four classes and 80 rows, in an order in time that is not that of the file."""
    n = 4 * EACH
    order = np.random.default_rng(9).permutation(n)
    columns = {
        "when": order.tolist(),
        **numbers(n, 4),
        "y": (np.arange(n) % 4).tolist(),
        "site": ["s2", "s10"] * (n // 2),
    }
    return write_csv(tmp_path / "pool.csv", columns)


def own(root: Path, seed: int = 0, **options: Any) -> Scenario:
    return build("files", seed, root=str(root), **options)


def streams(scenario: Scenario) -> dict[str, list[TensorData]]:
    found = {"train": scenario.train_stream, "test": scenario.test_stream, "valid": scenario.valid_stream}
    return {name: [e.dataset for e in s] for name, s in found.items() if s}


def rows(data: TensorData) -> set[tuple[float, ...]]:
    return {tuple(row) for row in data.x.flatten(1).tolist()}


# --- classification


def test_each_file_is_an_experience_and_no_row_is_lost_or_twice(days: Path) -> None:
    made = own(days, standardise=False, validation=0.1)
    assert made.names == ["day1", "day2", "day10"]
    assert made.class_names == ["cat", "dog"]
    assert (made.spec.setting, made.spec.shape, made.spec.classes) == ("domain", (2,), 2)
    for e in range(3):
        parts = {name: data[e] for name, data in streams(made).items()}
        assert {name: len(data) for name, data in parts.items()} == {"train": 28, "test": 8, "valid": 4}
        told = {
            (np.float32(a), np.float32(b)): label
            for a, b, label in zip(*numbers(2 * EACH, e, e).values(), ["dog", "cat"] * EACH, strict=True)
        }
        for data in parts.values():
            assert torch.bincount(data.y).tolist() == [len(data) // 2] * 2
            for x, y in zip(data.x.tolist(), data.y.tolist(), strict=True):
                assert told.pop((np.float32(x[0]), np.float32(x[1]))) == made.class_names[y]
        assert not told


def test_numbers_are_scaled_by_the_first_training_part_alone(days: Path) -> None:
    raw, made = own(days, standardise=False), own(days)
    first = streams(raw)["train"][0].x.double()
    mean, deviation = first.mean(0), first.std(0, correction=0)
    for name, data in streams(made).items():
        for scaled, unscaled in zip(data, streams(raw)[name], strict=True):
            assert torch.allclose(scaled.x, ((unscaled.x.double() - mean) / deviation).float(), atol=1e-5)
    assert abs(streams(made)["train"][2].x.mean()) > 0.3  # later experiences stay where they are


def test_the_split_is_the_seeds(days: Path) -> None:
    one, same, other = own(days, 1), own(days, 1), own(days, 2)
    assert torch.equal(streams(one)["test"][0].x, streams(same)["test"][0].x)
    assert rows(streams(one)["test"][0]) != rows(streams(other)["test"][0])


def test_equal_rows_stay_on_one_side(tmp_path: Path) -> None:
    values = (np.arange(60) // 3).tolist()  # each three times
    for e in "ab":
        write_csv(tmp_path / "d" / f"{e}.csv", {"v": values, "label": (np.arange(60) // 3 % 2).tolist()})
    made = own(tmp_path / "d", test=0.3, validation=0.2, standardise=False)
    for e in range(2):
        found = [rows(data[e]) for data in streams(made).values()]
        assert sum(map(len, found)) == 20 == len(set.union(*found))
        assert sum(len(data[e]) for data in streams(made).values()) == 60


@pytest.mark.parametrize("setting", ["class", "task", "domain", "data"])
def test_a_pool_is_cut_by_classes_or_at_random(pool: Path, setting: str) -> None:
    made = own(pool, experiences=2, setting=setting, inputs=["a", "b"])
    sizes = [e.classes_in_this_experience for e in made.train_stream]
    assert (
        sizes
        == {
            "class": [(0, 1), (2, 3)],
            "task": [(0, 1)] * 2,
            "domain": [(0, 1)] * 2,
            "data": [(0, 1, 2, 3)] * 2,
        }[setting]
    )
    assert made.tasks == (2 if setting == "task" else 1)
    assert sum(len(d) for data in streams(made).values() for d in data) == 4 * EACH


def test_a_column_says_the_experience(pool: Path) -> None:
    made = own(pool, task="site", inputs=["a", "b"])
    assert made.names == ["s2", "s10"]
    assert [e.classes_in_this_experience for e in made.train_stream] == [(0, 2), (1, 3)]
    assert made.spec.setting == "class"
    made = own(pool, task="site", inputs=["a"], setting="task")
    assert [e.classes_in_this_experience for e in made.train_stream] == [(0, 1)] * 2
    assert made.spec.classes_per_task == (2, 2)


def test_time_cuts_periods_and_the_test_is_what_comes_last(pool: Path) -> None:
    made = own(pool, time="when", inputs=["when", "a"], experiences=4, standardise=False, test=0.25)
    for e in range(4):
        train, test = (streams(made)[name][e].x[:, 0].tolist() for name in ("train", "test"))
        assert train == list(range(20 * e, 20 * e + 15))
        assert test == list(range(20 * e + 15, 20 * e + 20))


def test_parts_that_are_apart_stay_apart(tmp_path: Path) -> None:
    for part, n in (("train", 30), ("test", 7)):
        for e in "ab":
            write_csv(tmp_path / part / f"{e}.csv", {**numbers(n, n), "label": (["u", "v", "w"] * n)[:n]})
    made = own(tmp_path)
    assert [[len(d) for d in data] for data in streams(made).values()] == [[30, 30], [7, 7]]


def test_arrays_with_dimensions_are_sequences(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(40, 6, 3)) * [1, 10, 100]
    for e in "ab":
        np.savez(tmp_path / f"{e}.npz", x=x, y=np.arange(40) % 2)
    made = own(tmp_path)
    assert (made.spec.shape, made.spec.encoder) == ((6, 3), "rows")
    assert torch.allclose(streams(made)["train"][0].x.std((0, 1), correction=0), torch.ones(3), atol=1e-4)


# --- numbers


def test_regression_predicts_columns(days: Path) -> None:
    made = own(days, kind="regression", inputs=["a"], target="b")
    assert (made.spec.target, made.spec.classes, made.spec.metric, made.spec.setting) == ("value", 1, "nrmse", "domain")
    first = streams(made)["train"][0]
    assert first.y.shape == (32, 1)
    assert torch.allclose(first.y.mean(), torch.zeros(()), atol=1e-5)
    labelled = own(days, kind="regression", inputs=["a"], target="b", setting="task")
    assert [e.task_label for e in labelled.test_stream] == [0, 1, 2]


@pytest.mark.parametrize(("window", "horizon", "stride"), [(4, 1, 1), (5, 3, 2), (3, 2, 4)])
def test_forecasts_are_what_follows_and_cross_no_border(tmp_path: Path, window: int, horizon: int, stride: int) -> None:
    series = {}
    for e, files in (("north", ("x", "y")), ("south", ("x",))):
        for number, file in enumerate(files):
            values = np.random.default_rng(number).normal(size=(50 + 10 * number, 2))
            times = [f"2024-01-{1 + i // 24:02d}T{i % 24:02d}:00" for i in range(len(values))]
            shuffled = np.random.default_rng(1).permutation(len(values))
            columns = {"t": [times[i] for i in shuffled], "p": values[shuffled, 0], "q": values[shuffled, 1]}
            write_csv(tmp_path / e / f"{file}.csv", columns)
            series[e, file] = values
    made = own(
        tmp_path,
        kind="forecasting",
        time="t",
        target="q",
        window=window,
        horizon=horizon,
        stride=stride,
        test=0.3,
        validation=0.2,
        standardise=False,
    )
    assert made.spec.shape == (window, 2)
    assert made.spec.classes == horizon
    for e, name in enumerate(("north", "south")):
        for part, data in streams(made).items():
            expected_x, expected_y = [], []
            for (experience, _), values in series.items():
                if experience != name:
                    continue
                n = len(values)
                first = n - round(0.3 * n) - round(0.2 * n)
                begin, end = {
                    "train": (0, first),
                    "valid": (first, n - round(0.3 * n)),
                    "test": (n - round(0.3 * n), n),
                }[part]
                start = begin
                while start + window + horizon <= end:
                    expected_x.append(values[start : start + window])
                    expected_y.append(values[start + window : start + window + horizon, 1])
                    start += stride
            assert torch.allclose(data[e].x, torch.tensor(np.array(expected_x)).float())
            assert torch.allclose(data[e].y, torch.tensor(np.array(expected_y)).float())


def test_forecasts_take_all_columns_where_no_target_is_named(tmp_path: Path) -> None:
    write_csv(tmp_path / "s.csv", numbers(100, 0))
    made = own(tmp_path / "s.csv", kind="forecasting", experiences=2, window=6, horizon=2)
    assert (made.spec.shape, made.spec.classes) == ((6, 2), 4)
    assert [len(d) for d in streams(made)["train"]] == [40 - 7] * 2
    scaled = streams(made)["train"][0]
    assert torch.equal(scaled.y[0].reshape(2, 2), scaled.x[2, 4:])


# --- texts and images


def test_texts_are_language(tmp_path: Path) -> None:
    for name in ("b1", "b2"):
        (tmp_path / name).mkdir()
        for i in range(2):
            (tmp_path / name / f"{i}.md").write_bytes(b"\xef\xbb\xbf" + f"{name} {i}\r\n".encode() * 30)
    made = own(tmp_path, length=8, test=0.25)
    train, test = (bytes(streams(made)[p][1].x.flatten().tolist()).decode() for p in ("train", "test"))
    assert train.startswith("b2 0\n")
    assert "\r" not in train + test
    assert "\0b2 1" in train  # a document ends
    assert (made.spec.target, made.spec.contiguous, made.spec.metric) == ("token", True, "bits")
    code = tmp_path / "code"
    for name in "ab":
        code.mkdir(exist_ok=True)
        (code / f"{name}.py").write_text("x = 1\n" * 50, encoding="utf-8")
    assert own(code, pattern="*.py", level="word", length=4).spec.classes == 6  # end, other, and x = 1 \n


def test_rows_of_a_table_may_be_texts(tmp_path: Path) -> None:
    n = 60
    path = write_csv(tmp_path / "t.csv", {"say": [f"word {i}" for i in range(n)], "who": ["me", "you"] * (n // 2)})
    made = own(path, kind="language", inputs=["say"], task="who", length=8)
    train = bytes(streams(made)["train"][0].x.flatten().tolist()).decode()
    assert train.startswith("word 0\0word 2\0word 4\0")


def picture(path: Path, size: tuple[int, int], seed: int) -> np.ndarray:
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return pixels


def test_images_lie_in_folders_of_experiences_and_classes(tmp_path: Path) -> None:
    told = {}
    for e in range(2):
        for c, label in enumerate(("cat", "dog")):
            for i in range(5):
                pixels = picture(tmp_path / f"e{e}" / label / f"{i}.png", (6, 4), 100 * e + 10 * c + i)
                told[pixels.tobytes()] = (e, c)
    held, lazy = own(tmp_path), own(tmp_path, max_bytes=10)
    assert held.spec.shape == (3, 6, 4)
    for name, data in streams(held).items():
        for e, (a, b) in enumerate(zip(data, streams(lazy)[name], strict=True)):
            assert type(a) is TensorData
            assert type(b) is LazyData
            assert len(a) == (8 if name == "train" else 2)
            for s, t in zip(a.rows(slice(None)), b.rows(slice(None)), strict=True):
                assert torch.equal(s, t)
            for x, y in zip(a.x, a.y.tolist(), strict=True):
                raw = (x.permute(1, 2, 0) * 255).round().to(torch.uint8).contiguous().numpy().tobytes()
                assert told.pop(raw) == (e, y)
    assert not told
    small = own(tmp_path, size=[3, 5], channels=1, setting="task")
    assert small.spec.shape == (1, 3, 5)
    assert own(tmp_path / "e0", experiences=2).spec.classes == 2


def test_one_class_in_each_experience_is_class_incremental(tmp_path: Path) -> None:
    for e, label in enumerate(("cat", "dog")):
        for i in range(5):
            picture(tmp_path / f"e{e}" / label / f"{i}.jpg", (4, 4), 10 * e + i)
    made = own(tmp_path)
    assert made.spec.setting == "class"
    assert [e.classes_in_this_experience for e in made.test_stream] == [(0,), (1,)]


def test_images_may_be_named_in_a_table(tmp_path: Path) -> None:
    files = [f"pictures/{i}.png" for i in range(20)]
    for i, file in enumerate(files):
        picture(tmp_path / file, (4, 4), i)
    columns = {"file": files, "kind": ["u", "v"] * 10, "week": [1] * 10 + [2] * 10, "note": [""] * 20}
    path = write_csv(tmp_path / "list.csv", columns)
    made = own(path, images="file", target="kind", task="week")
    assert (made.spec.shape, len(made.train_stream)) == ((3, 4, 4), 2)
    (tmp_path / files[3]).unlink()
    with pytest.raises(MissingError, match=r"list.csv:5: 'file' names .*3.png, and no such file"):
        own(path, images="file", target="kind", task="week")


def test_images_that_are_wrong_are_named(tmp_path: Path) -> None:
    for label in "ab":
        for i in range(4):
            picture(tmp_path / label / f"{i}.png", (4, 4), i)
    picture(tmp_path / "b" / "2.png", (5, 4), 1)
    with pytest.raises(UsageError, match=r"b/2.png: 5x4 pixels .*has 4x4; scenario.size=\[4,4\]"):
        own(tmp_path, experiences=2)
    Image.fromarray(np.full((4, 4), 40000, dtype=np.uint16)).save(tmp_path / "b" / "2.png")
    with pytest.raises(UsageError, match=r"b/2.png: more than 8 bits a value"):
        own(tmp_path, experiences=2)
    for content in (b"", b"no image"):
        (tmp_path / "b" / "2.png").write_bytes(content)
        with pytest.raises(UsageError, match=r"b/2.png: no image can be read"):
            own(tmp_path, experiences=2)


# --- the manifest


def test_a_manifest_says_what_the_command_does_not(days: Path) -> None:
    (days / "manifest.yaml").write_text("inputs: [a]\nclasses: [dog, cat]\ntest: 0.5\n", encoding="utf-8")
    made = own(days)
    assert made.spec.shape == (1,)
    assert made.class_names == ["dog", "cat"]
    assert len(streams(made)["test"][0]) == EACH
    assert len(streams(own(days, test=0.25))["test"][0]) == EACH // 2
    (days / "manifest.yaml").write_text("input: [a]\nroot: x\ntest: many\n", encoding="utf-8")
    with pytest.raises(UsageError) as error:
        own(days)
    assert [message.split("manifest.yaml:")[1][:30].rstrip() for message in error.value.messages] == [
        "1: there is no option 'input'.",
        "2: there is no option 'root'.",
        "3: test: expected a number, go",
    ]
    assert "Did you mean 'inputs'" in str(error.value)


# --- mistakes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "labl"}, r"day1.csv: scenario.target=labl: no such column. Did you mean 'label'"),
        ({"inputs": ["a", "c"]}, "scenario.inputs=c: no such column"),
        ({"inputs": ["a", "label"]}, "'label' is what is to be predicted"),
        ({"target": "a"}, r"day1.csv:\d+: 'a' is .*set scenario.kind=regression"),
        ({"target": "b", "kind": "regression"}, "'label' is 'dog', which is not a number"),
        ({"target": ["a", "b"]}, "one column with labels"),
        ({"task": "site"}, "scenario.task=site: no such column"),
        ({"time": "label"}, "day1.csv:2: 'label' is 'dog', neither a number nor a date"),
        ({"classes": ["cat"]}, "day1.csv:2: 'label' is 'dog', which is not in scenario.classes"),
        ({"classes": ["cat", "dog", "cow"]}, "no training sample is of the class 'cow'"),
        ({"classes": ["cat", "cat"]}, "scenario.classes: something is there twice"),
        ({"inputs": []}, "scenario.inputs: at least one is needed"),
        ({"setting": "data"}, "give scenario.experiences=N"),
        ({"experiences": 0}, "scenario.experiences=0"),
        ({"experiences": 3}, "2 classes make 1 to 2"),
        ({"experiences": 2, "task": "b"}, "either cut the data anew, or by a column"),
        ({"test": 1.0}, "shares between 0 and 1"),
        ({"test": 0.01}, "experience 'day1' has 40 samples, of which none is left for test"),
        ({"kind": "regression", "setting": "class"}, "regression has no classes"),
        ({"experiences": 2, "setting": "data", "time": "a"}, "deals rows out at random"),
        ({"inputs": ["label"], "target": "a", "kind": "regression"}, r"is not a number; scenario.inputs=\[...\] says"),
        ({"kind": "language"}, "one column with texts is needed"),
        ({"kind": "language", "inputs": ["label"], "setting": "task"}, "language is domain-incremental"),
        ({"kind": "forecasting", "inputs": ["a"], "window": 40}, "train part has at most 32 steps"),
        ({"window": 0, "stride": 0}, "scenario.window=0"),
        ({"size": [3]}, "a height and a width"),
        ({"delimiter": ";"}, r"is scenario.delimiter=','\?"),
        ({"delimiter": "ab"}, "one character"),
        ({"encoding": "utf-9"}, "no such encoding"),
        ({"images": "label"}, "'label' names .*dog, and no such file"),
    ],
)
def test_mistakes_are_told(days: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises((UsageError, MissingError), match=message):
        own(days, **options)


def test_data_that_cannot_be_a_stream_is_refused(tmp_path: Path) -> None:
    one = write_csv(tmp_path / "one.csv", {**numbers(10, 0), "label": ["a", "b"] * 5})
    with pytest.raises(UsageError, match="the data has no experiences of its own"):
        own(one)
    with pytest.raises(UsageError, match="name the column that is to be predicted"):
        own(write_csv(tmp_path / "two.csv", numbers(10, 0)), experiences=2)
    with pytest.raises(UsageError, match="'label' is 'a' for all training samples"):
        own(write_csv(tmp_path / "same.csv", {**numbers(10, 0), "label": ["a"] * 10}), experiences=1)
    with pytest.raises(UsageError, match="a column has no name"):
        own(write_csv(tmp_path / "index.csv", {"": range(10), **numbers(10, 0), "y": [0, 1] * 5}), experiences=2)
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("some text", encoding="utf-8")
    with pytest.raises(UsageError, match="only texts here"):
        own(tmp_path / "text", kind="regression")
    (tmp_path / "text" / "b.txt").write_bytes(b"")
    with pytest.raises(UsageError, match=r"b.txt: the file is empty"):
        own(tmp_path / "text")
    for place in (tmp_path / "nothing", tmp_path / "empty"):
        with pytest.raises(MissingError) as error:
            own(place)
        assert error.value.exit_code == 3
        (tmp_path / "empty").mkdir(exist_ok=True)


def test_a_class_that_only_the_test_has_is_refused(tmp_path: Path) -> None:
    for part, labels in (("train", ["u", "v"]), ("test", ["u", "w"])):
        write_csv(tmp_path / part / "a.csv", {**numbers(10, 0), "label": labels * 5})
    with pytest.raises(UsageError, match=r"test/a.csv:3: 'label' is 'w', which no training sample has"):
        own(tmp_path)
    write_csv(tmp_path / "test" / "a.csv", {**numbers(10, 0), "label": ["u"] * 10})
    for part, labels in (("train", ["u", "w"]), ("test", ["u", "v"])):
        write_csv(tmp_path / part / "b.csv", {**numbers(10, 0), "label": labels * 5})
    with pytest.raises(UsageError, match="experience 'b': the class 'v' is in test, but never in train of that"):
        own(tmp_path, setting="task")


def test_two_steps_at_one_time_are_refused(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "s.csv", {"t": [0, 1, 2, 2, 3, 4], "v": range(6)})
    with pytest.raises(UsageError, match=r"s.csv:5: 't' is the same as in .*s.csv:4; several series in a table"):
        own(path, kind="forecasting", time="t", experiences=1, window=1, test=0.4)


# --- through the public door


def test_a_network_learns_and_forgets_from_files(tmp_path: Path) -> None:
    """Two experiences whose labels are the sign of another column: the second is learnt at the first one's cost."""
    for e, column in enumerate("ab"):
        values = np.random.default_rng(e).normal(size=(2, 400))
        labels = np.where(values[e] > 0, "up", "down")
        write_csv(tmp_path / f"{column}.csv", {"a": values[0], "b": values[1], "label": labels})
    settings = TrainerSettings(max_epochs=20, batch_size=16, progress="none", accelerator="cpu")
    R = fit("naive", own(tmp_path), lambda D: MLP(D, hidden=16), trainer=settings)["matrix"]
    assert R[0][0] > 0.9
    assert R[1][1] > 0.85
    assert R[1][0] < 0.75


def test_the_command_line_takes_a_folder(days: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "--scenario", "files"]) == 2
    assert "scenario.root must be given" in capsys.readouterr().err
    assert main(["fit", "--scenario", "files", f"scenario.root={tmp_path / 'no'}"]) == 3
    command = ["fit", "--scenario", "files", f"scenario.root={days}", "--backbone", "mlp", "trainer.max_epochs=1"]
    assert main([*command, "trainer.accelerator=cpu", "trainer.progress=none", f"run.dir={tmp_path / 'run'}"]) == 0
    assert (tmp_path / "run" / "results.json").is_file()
    assert registry.find("scenario", "files").options["root"].required
