"""Moving digits, drawn again one film at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from clplat.errors import UsageError
from clplat.scenarios.digits import images_and_labels
from clplat.scenarios.video import MovingDigits, drawn, places
from tests.scenarios.streams import build


def bounced(start: float, velocity: float, steps: int, room: int) -> list[float]:
    """Places of a ball between 0 and ``room``, walked through wall by wall."""
    at, found = start, []
    for _ in range(steps):
        found.append(at)
        at += velocity
        while not 0 <= at <= room:
            at, velocity = (-at if at < 0 else 2 * room - at), -velocity
    return found


@pytest.mark.parametrize(("room", "speed"), [(6, 1.0), (3, 7.5)])
def test_digits_bounce_at_constant_speed(room: int, speed: float) -> None:
    found = places(30, 2, 20, room, speed, torch.Generator().manual_seed(0))
    assert found.min() >= 0
    assert found.max() <= room
    source = torch.Generator().manual_seed(0)
    start = room * torch.rand(30, 2, 1, 2, generator=source, dtype=torch.float64)
    angle = 2 * np.pi * torch.rand(30, 2, 1, 1, generator=source, dtype=torch.float64)
    for n in range(30):
        for k in range(2):
            for axis, part in enumerate((angle.sin(), angle.cos())):
                expected = bounced(float(start[n, k, 0, axis]), speed * float(part[n, k, 0, 0]), 20, room)
                assert found[n, k, :, axis].tolist() == pytest.approx(expected, abs=1e-9)


def test_films_are_drawn_with_the_larger_value_on_top() -> None:
    source = torch.Generator().manual_seed(1)
    digits = torch.rand(5, 3, 8, 8, generator=source)
    place = places(5, 3, 6, 5, 1.3, source)
    film = drawn(digits, place, 13)
    for n in range(5):
        for t in range(6):
            expected = np.zeros((13, 13), dtype=np.float32)
            for k in range(3):
                row, column = (int(value) for value in place[n, k, t])
                for i in range(8):
                    for j in range(8):
                        expected[row + i, column + j] = max(expected[row + i, column + j], float(digits[n, k, i, j]))
            assert np.array_equal(film[n, t].numpy(), expected)


def whole_digits(experience, frame: int) -> set[int]:
    """Labels of the images that stand in the first frames, found by looking them up at every place."""
    images, labels = images_and_labels()
    known = {image.numpy().tobytes(): int(label) for image, label in zip(images[:, 0], labels, strict=True)}
    found = set()
    for first in experience.dataset.x[:, 0].reshape(-1, frame, frame):
        hits = {
            known[key]
            for i in range(frame - 7)
            for j in range(frame - 7)
            if (key := first[i : i + 8, j : j + 8].contiguous().numpy().tobytes()) in known
        }
        assert hits
        found |= hits
    return found


def test_classes_change_and_targets_are_the_next_frames() -> None:
    scenario = MovingDigits(0, samples=40, test_samples=30)
    for e, experience in enumerate(scenario.train_stream):
        x, y = experience.dataset.x, experience.dataset.y
        assert torch.equal(y[:, :-1], x[:, 1:])
        assert whole_digits(experience, 14) == {2 * e, 2 * e + 1}
        assert x.min() >= 0
        assert x.max() <= 1


def test_speed_and_number_change() -> None:
    def moved(e) -> float:
        return float((e.dataset.y - e.dataset.x).abs().mean())

    quick = [moved(e) for e in MovingDigits(0, change="speed", experiences=3).train_stream]
    assert quick[0] < quick[1] < quick[2]
    ink = [float(e.dataset.x.mean()) for e in MovingDigits(0, change="number", experiences=3).train_stream]
    assert ink[0] * 1.5 < ink[1] < ink[2]
    same = [float(e.dataset.x.mean()) for e in MovingDigits(0, change="speed", number=2, experiences=2).train_stream]
    assert abs(same[0] - same[1]) < 0.1 * same[0]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"experiences": 0, "number": 0, "frame": 8}, ["experiences=0", "number=0", "frame=8"]),
        ({"experiences": 11}, ["experiences=11"]),
        ({"speed": 0.0}, ["speed=0.0"]),
        ({"length": 0, "samples": 0}, ["length=0", "samples=0"]),
    ],
)
def test_nonsense_is_refused(options: dict[str, object], words: list[str]) -> None:
    with pytest.raises(UsageError) as error:
        build("moving-digits", **options)
    assert all(word in str(error.value) for word in words)


def test_more_classes_than_experiences_are_shared_out_where_classes_do_not_change() -> None:
    assert len(build("moving-digits", experiences=12, change="speed", samples=4, test_samples=2).train_stream) == 12
