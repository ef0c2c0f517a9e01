"""Data sets of Hugging Face's library, as far as it is installed here."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clplat import config, registry
from clplat.errors import MissingError, UsageError
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


@pytest.mark.skipif(THERE, reason="the library datasets is installed")
def test_without_the_library_it_says_what_to_install() -> None:
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
def test_what_the_library_refuses_is_told(tmp_path: Path) -> None:
    with pytest.raises((MissingError, UsageError), match="huggingface:"):
        build(f"huggingface:{tmp_path}", experiences=2)
