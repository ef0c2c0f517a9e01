"""Data sets of Hugging Face's library, as far as it is installed here."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from clplat import config, registry
from clplat.errors import MissingError, UsageError
from clplat.scenario import LazyData
from clplat.scenarios.huggingface import HuggingFace
from tests.scenarios.streams import build

THERE = importlib.util.find_spec("datasets") is not None
needs_it = pytest.mark.skipif(not THERE, reason="the library datasets is not installed")


def test_any_name_can_be_written() -> None:
    entry = registry.find("scenario", "huggingface:org/name")
    assert entry.load() is HuggingFace
    assert not entry.options["dataset"].required
    section = config.compose(["scenario=huggingface:org/name", "scenario.experiences=3"])["scenario"]
    assert (section["dataset"], section["experiences"], section["kind"]) == ("org/name", 3, "auto")
    with pytest.raises(UsageError, match="'dataset' must be given"):
        build("huggingface")


def test_without_the_library_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingError, match=r"pip install 'clplat\[huggingface\]'") as error:
        build("huggingface:mnist", experiences=2)
    assert error.value.exit_code == 3


@pytest.fixture
def saved(tmp_path: Path) -> str:
    """Two splits in the library's own format: numbers, a label with names, a column of texts, an image."""
    import datasets
    from PIL import Image

    features = datasets.Features(
        {
            "v": datasets.Sequence(datasets.Value("float32"), length=3),
            "label": datasets.ClassLabel(names=["cat", "dog", "cow", "hen"]),
            "text": datasets.Value("string"),
            "image": datasets.Image(),
        }
    )

    def rows(n: int, seed: int) -> dict[str, list[Any]]:
        source = np.random.default_rng(seed)
        pictures = [Image.fromarray(source.integers(0, 256, (4, 4, 3), dtype=np.uint8)) for _ in range(n)]
        return {
            "v": source.normal(size=(n, 3)).tolist(),
            "label": [i % 4 for i in range(n)],
            "text": [f"row {i} of {seed}" for i in range(n)],
            "image": pictures,
        }

    splits = {
        name: datasets.Dataset.from_dict(rows(n, n), features=features) for name, n in (("train", 40), ("test", 16))
    }
    datasets.DatasetDict(splits).save_to_disk(str(tmp_path / "saved"))
    return str(tmp_path / "saved")


@needs_it
def test_its_own_format_is_read(saved: str) -> None:
    made = build(f"huggingface:{saved}", inputs=["v"], target="label", experiences=2, standardise=False)
    assert made.class_names == ["cat", "cow", "dog", "hen"]
    assert (made.spec.shape, made.spec.setting) == ((3,), "class")
    assert [len(e.dataset) for e in (*made.train_stream, *made.test_stream)] == [20, 20, 8, 8]
    pictures = build(f"huggingface:{saved}", inputs=["image"], target="label", experiences=2)
    assert pictures.spec.shape == (3, 4, 4)
    texts = build(f"huggingface:{saved}", kind="language", experiences=2, length=8)
    assert bytes(texts.train_stream[0].dataset.x.flatten().tolist()).decode().startswith("row 0 of 40\0row 1")


@needs_it
def test_its_images_and_labels_are_the_rows_own(saved: str) -> None:
    import datasets

    rows = datasets.load_from_disk(saved)
    options = {"inputs": ["image"], "target": "label", "experiences": 1, "setting": "data"}
    held, lazy = (build(f"huggingface:{saved}", **options, max_bytes=n) for n in (2**20, 1))
    told = {np.asarray(row["image"]).tobytes(): row["label"] for part in rows.values() for row in part}
    names = rows["train"].features["label"].names
    for experience, other in zip(held.test_stream, lazy.test_stream, strict=True):
        assert type(other.dataset) is LazyData
        assert torch.equal(experience.dataset.x, other.dataset.x)
        for x, y in zip(experience.dataset.x, experience.dataset.y.tolist(), strict=True):
            raw = (x.permute(1, 2, 0) * 255).round().to(torch.uint8).contiguous().numpy().tobytes()
            assert names[told[raw]] == held.class_names[y]


@needs_it
def test_splits_are_parts(tmp_path: Path) -> None:
    import datasets

    def rows(n: int) -> Any:
        return datasets.Dataset.from_dict({"a": list(range(n)), "y": [i % 2 for i in range(n)]})

    datasets.DatasetDict({"train": rows(20), "validation": rows(6), "test": rows(8), "extra": rows(3)}).save_to_disk(
        str(tmp_path / "four")
    )
    made = build(f"huggingface:{tmp_path / 'four'}", experiences=2)
    assert [len(s[0].dataset) for s in (made.train_stream, made.valid_stream, made.test_stream)] == [10, 3, 4]
    rows(20).save_to_disk(str(tmp_path / "one"))
    made = build(f"huggingface:{tmp_path / 'one'}", experiences=2)
    assert [len(s[0].dataset) for s in (made.train_stream, made.test_stream)] == [8, 2]
    datasets.DatasetDict({"a": rows(3), "b": rows(3)}).save_to_disk(str(tmp_path / "none"))
    with pytest.raises(UsageError, match="has no split called train, but a, b"):
        build(f"huggingface:{tmp_path / 'none'}", experiences=2)
    with pytest.raises(UsageError, match="the data has no experiences of its own"):
        build(f"huggingface:{tmp_path / 'one'}")


@needs_it
def test_what_the_library_refuses_is_told(tmp_path: Path) -> None:
    with pytest.raises((MissingError, UsageError), match="huggingface:"):
        build(f"huggingface:{tmp_path}", experiences=2)
