"""Digits as pen paths: what is drawn is the thinned image, and thinning keeps its shape."""

from __future__ import annotations

import functools
import itertools

import numpy as np
import pytest
from scipy import ndimage

import clplat
from clplat import optim
from clplat.backbones.rnn.gru import GRU
from clplat.errors import UsageError
from clplat.scenarios.digits import images_and_labels, split_digits
from clplat.scenarios.strokes import StrokeDigits, _paths, pen_path, skeletons
from clplat.settings import TrainerSettings
from tests.scenarios.streams import build

TOUCHING = np.ones((3, 3))  # corners hold together too


@pytest.fixture(scope="module")
def lines() -> np.ndarray:
    return skeletons(images_and_labels()[0]).numpy()


def ink() -> np.ndarray:
    """The pixels that are thinned, by scipy's bilinear enlargement instead of torch's."""
    images = images_and_labels()[0][:, 0].double().numpy()
    at = (np.arange(16) + 0.5) / 2 - 0.5
    grid = np.meshgrid(at.clip(0, 7), at.clip(0, 7), indexing="ij")
    large = np.stack([ndimage.map_coordinates(image, grid, order=1, mode="nearest") for image in images])
    return large > 0.5 * large.max((1, 2), keepdims=True)


def pieces(image: np.ndarray) -> int:
    return ndimage.label(image, structure=TOUCHING)[1]


def holes(image: np.ndarray) -> int:
    return ndimage.label(np.pad(~image, 1, constant_values=True))[1] - 1


def test_thinning_keeps_pieces_and_holes_and_leaves_lines(lines: np.ndarray) -> None:
    before = ink()
    assert not (lines & ~before).any()
    for image, thin in zip(before[::5], lines[::5], strict=True):
        assert pieces(image) == pieces(thin)
        assert holes(image) == holes(thin)
    blocks = lines[:, 1:, 1:] & lines[:, :-1, 1:] & lines[:, 1:, :-1] & lines[:, :-1, :-1]
    assert blocks.any((1, 2)).mean() < 0.05  # where lines cross there may be one
    assert lines.sum() < 0.6 * before.sum()
    # Thinner it cannot get: to take any pixel but an end would open a line or a hole.
    for thin in lines[::100]:
        for row, column in np.argwhere(thin):
            around = thin[max(0, row - 1) : row + 2, max(0, column - 1) : column + 2].sum() - 1
            less = thin.copy()
            less[row, column] = False
            assert around <= 1 or (pieces(less), holes(less)) != (pieces(thin), holes(thin))


def test_the_pen_draws_every_pixel_once(lines: np.ndarray) -> None:
    x, lengths, _ = _paths()
    for image, steps, length in zip(lines, x.tolist(), lengths.tolist(), strict=True):
        blank, drawn = steps[: len(steps) - length], steps[len(steps) - length :]
        assert all(step == [0, 0, 0, 0] for step in blank)
        row = column = 0
        seen, down = set(), False
        for dx, dy, end_of_stroke, end_of_digit in drawn:
            if down:  # within a stroke the pen goes from neighbour to neighbour
                assert max(abs(4 * dx), abs(4 * dy)) == 1
            row, column = row + round(4 * dy), column + round(4 * dx)
            assert (row, column) not in seen
            seen.add((row, column))
            down = not end_of_stroke
            assert end_of_digit == (len(seen) == length)
        assert not down
        assert seen == {(int(a), int(b)) for a, b in np.argwhere(image)}


def test_the_pen_begins_at_an_end_goes_straight_on_and_jumps_to_what_is_near() -> None:
    cross = [(row, 2) for row in range(5)] + [(2, 0), (2, 1), (2, 3), (2, 4)]
    steps = pen_path(cross)
    assert steps[:5] == [[2, 0, 0, 0], [0, 1, 0, 0], [0, 1, 0, 0], [0, 1, 0, 0], [0, 1, 1, 0]]  # through the middle
    assert steps[5:] == [[-1, -2, 0, 0], [-1, 0, 1, 0], [3, 0, 0, 0], [1, 0, 1, 1]]
    ring = [(0, 0), (0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1), (2, 2)]
    assert [step[2] for step in pen_path(ring)] == [0] * 7 + [1]  # in one go, begun anywhere
    assert pen_path([(5, 5), (0, 0), (1, 1), (2, 2), (9, 9)])[3][:2] == [3, 3]


def test_no_path_is_in_both_streams_and_only_doubles_are_left_out() -> None:
    scenario = StrokeDigits(3)
    paths = [
        {row.numpy().tobytes() for e in stream for row in e.dataset.x}
        for stream in (scenario.train_stream, scenario.test_stream)
    ]
    assert not paths[0] & paths[1]
    x, _, new = _paths()
    assert len({row.numpy().tobytes() for row in x}) == int(new.sum()) == sum(map(len, paths))


def test_classes_are_split_as_in_split_digits() -> None:
    scenario, plain = StrokeDigits(1, experiences=4, order="random"), build("split-digits", 1, experiences=4)
    sizes = [len(e.classes_in_this_experience) for e in plain.train_stream]
    assert [len(e.classes_in_this_experience) for e in scenario.train_stream] == sizes
    task = StrokeDigits(1, experiences=4, setting="task", order="random")
    assert task.spec.classes_per_task == (3, 3, 2, 2)
    assert [e.task_label for e in task.train_stream] == [0, 1, 2, 3]


@pytest.mark.parametrize("setting", ["task", "domain"])
def test_rows_of_digits_are_of_two_classes_and_their_half_is_the_answer(setting: str) -> None:
    m = 3
    scenario = StrokeDigits(2, digits=m, setting=setting, samples=80, test_samples=24, experiences=3)  # type: ignore[arg-type]
    x_one, lengths, new = _paths()
    _, labels = images_and_labels()
    rows = split_digits(2, 0.2, 0.0)
    known = {
        name: {x_one[i, -int(lengths[i]) :].numpy().tobytes(): int(labels[i]) for i in rows[name].tolist() if new[i]}
        for name in ("train", "test")
    }
    for name, stream in (("train", scenario.train_stream), ("test", scenario.test_stream)):
        for e, experience in enumerate(stream):
            halves: dict[tuple[int, ...], int] = {}
            counts: dict[tuple[int, ...], int] = {}
            for steps, y in zip(experience.dataset.x, experience.dataset.y.tolist(), strict=True):
                assert steps.shape == (m * x_one.shape[1], 4)
                begin = int((steps.abs().sum(1) > 0).nonzero()[0])
                assert steps[:begin].abs().sum() == 0
                ends = [begin, *((steps[:, 3] == 1).nonzero()[:, 0] + 1).tolist()]
                assert len(ends) == m + 1
                assert ends[-1] == len(steps)
                digits = tuple(
                    known[name][steps[a:b].contiguous().numpy().tobytes()] for a, b in itertools.pairwise(ends)
                )
                assert set(digits) <= {2 * e, 2 * e + 1}
                assert halves.setdefault(digits, y) == y  # no row belongs to both halves
                counts[digits] = counts.get(digits, 0) + 1
            assert len(halves) == 2**m
            assert sum(halves.values()) == 2 ** (m - 1)
            assert max(counts.values()) - min(counts.values()) <= 1
            assert experience.task_label == (e if setting == "task" else 0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"digits": 0, "samples": 0}, ["digits=0", "samples"]),
        ({"digits": 2}, ["digits=2", "scenario.setting=task"]),
        ({"digits": 2, "setting": "task", "experiences": 6}, ["experiences=6", "1 to 5"]),
        ({"experiences": 11}, ["experiences=11", "1 to 10"]),
        ({"test": 0.0}, ["test=0.0"]),
    ],
)
def test_nonsense_is_refused(options: dict[str, object], words: list[str]) -> None:
    with pytest.raises(UsageError) as error:
        build("stroke-digits", **options)
    assert all(word in str(error.value) for word in words)


@pytest.mark.slow
def test_pen_paths_tell_the_digits_apart() -> None:
    results = clplat.fit(
        "naive", StrokeDigits(0, experiences=1), lambda D: GRU(D, hidden=32),
        optimizer=functools.partial(optim.adam, lr=1e-2),
        trainer=TrainerSettings(max_epochs=10, progress="none", accelerator="cpu"),
    )  # fmt: skip
    assert results["matrix"][0][0] > 0.7  # chance is 0.1
