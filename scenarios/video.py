"""Short films of digits that move in straight lines and bounce off the walls."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from clplat.arrange import class_order
from clplat.errors import UsageError
from clplat.randomness import generator
from clplat.scenario import Scenario, Spec, TensorData, class_groups, stream
from clplat.scenarios.digits import images_and_labels, split_digits

SIZE = 8  # side of a digit


class MovingDigits(Scenario):
    """Predict the next frame of digits that move and bounce.

    After moving MNIST (Srivastava, Mansimov and Salakhutdinov 2015, Unsupervised learning of video representations
    using LSTMs, section 4.1, and their code): a digit starts at a random place and moves in a random direction at
    constant speed; walls reflect it; digits on top of each other show the larger value at each pixel. Here the digits
    are scikit-learn's 8x8 ones in a frame of ``frame`` x ``frame``, those of the test stream being other images. A
    sample is ``length`` frames, flattened, (T, frame^2) with values from 0 to 1; the target at each step is the next
    frame.

    Differs from the published generator on purpose: there a digit that would pass a wall is put onto it and loses the
    rest of its step; here it is reflected, so that the speed is constant and the place at any time has a closed form,
    the fold of ``start + t * velocity`` between 0 and ``frame - 8``. Places are cut down to whole pixels, as there.

    What changes from experience to experience (the paper tries other numbers of digits and longer films on a trained
    network):

    - classes: which digits are seen, a group of the ten classes each;
    - speed: evenly from ``speed`` to ``last_speed``;
    - number: 1 digit, 2 digits, and so on.

    Success is ``nrmse``, 1 for the mean of all pixels; to repeat the last frame comes to about 0.8 at a speed of 1, and
    to more than 1 from 2 on. The first frame shows no motion, so the second cannot be known; 0 is out of reach.

    Args:
        experiences: how many.
        change: what differs between experiences.
        setting: task- or domain-incremental.
        number: digits in a film, where that does not change.
        frame: side of a frame in pixels.
        length: T, frames of a sample; one more is made for the last target.
        speed: pixels a frame, of the first experience where it changes.
        last_speed: pixels a frame in the last experience, where it changes.
        order: natural keeps the classes 0 to 9; random shuffles them by the seed.
        samples: training samples in an experience.
        test_samples: test samples in an experience.
        test: share of the images of each class that is kept for testing.
    """

    settings = ("task", "domain")

    def __init__(
        self,
        seed: int,
        *,
        experiences: int = 5,
        change: Literal["classes", "speed", "number"] = "classes",
        setting: Literal["task", "domain"] = "domain",
        number: int = 1,
        frame: int = 14,
        length: int = 12,
        speed: float = 1.0,
        last_speed: float = 3.0,
        order: Literal["natural", "random"] = "natural",
        samples: int = 256,
        test_samples: int = 64,
        test: float = 0.2,
    ) -> None:
        least = {"experiences": experiences, "number": number, "length": length, "samples": samples}
        least["test_samples"] = test_samples
        problems = [f"scenario.{name}={value}: at least 1 is needed" for name, value in least.items() if value < 1]
        if frame <= SIZE:
            problems.append(f"scenario.frame={frame}: a digit of {SIZE} pixels needs a larger frame to move in")
        if change == "classes" and experiences > 10:
            problems.append(f"scenario.experiences={experiences}: ten classes make 1 to 10 experiences")
        if min(speed, last_speed) <= 0:
            problems.append(f"scenario.speed={speed} and scenario.last_speed={last_speed}: must be positive")
        if problems:
            raise UsageError(*problems)
        images, labels = images_and_labels()
        rows = split_digits(seed, test, 0.0)
        groups = [list(range(10))] * experiences
        if change == "classes":
            groups = class_groups(class_order(10, seed, "moving-digits", order), experiences)
        speeds = torch.linspace(speed, last_speed, experiences).tolist() if change == "speed" else [speed] * experiences
        numbers = range(1, experiences + 1) if change == "number" else [number] * experiences
        parts: dict[str, list[TensorData]] = {"train": [], "test": []}
        for e, (group, pace, several) in enumerate(zip(groups, speeds, numbers, strict=True)):
            for name, n in (("train", samples), ("test", test_samples)):
                source = generator(seed, f"moving-digits/{name}", e)
                shown = images[rows[name][torch.isin(labels[rows[name]], torch.tensor(group))], 0]
                which_NK = torch.randint(len(shown), (n, several), generator=source)
                place_NKT2 = places(n, several, length + 1, frame - SIZE, pace, source)
                film_NTHW = drawn(shown[which_NK], place_NKT2, frame).flatten(2)
                parts[name].append(TensorData(film_NTHW[:, :-1], film_NTHW[:, 1:], e if setting == "task" else 0))
        spec = Spec((length, frame**2), frame**2, setting, target="series", metric="nrmse", direction="min")
        super().__init__(spec, stream("train", parts["train"]), stream("test", parts["test"]))


def places(n: int, several: int, steps: int, room: int, speed: float, source: torch.Generator) -> Tensor:
    """Rows and columns (n, several, steps, 2), from 0 to ``room``, of the upper left corners of moving digits."""
    start = room * torch.rand(n, several, 1, 2, generator=source, dtype=torch.float64)
    angle = 2 * math.pi * torch.rand(n, several, 1, 1, generator=source, dtype=torch.float64)
    velocity = speed * torch.cat([angle.sin(), angle.cos()], -1)
    straight = start + velocity * torch.arange(steps, dtype=torch.float64)[:, None]
    # A wall folds the line back: there and back again is 2 * room.
    around = straight.remainder(2 * room)
    return torch.minimum(around, 2 * room - around)


def drawn(digit_NKHW: Tensor, place_NKT2: Tensor, frame: int) -> Tensor:
    """Films (N, T, frame, frame) of digits at places, cut down to whole pixels; the larger value shows."""
    N, K, T, _ = place_NKT2.shape
    film = torch.zeros(N, T, frame, frame)
    offsets = torch.arange(SIZE)
    for k in range(K):
        corner_NT2 = place_NKT2[:, k].long()
        rows = (corner_NT2[..., 0, None] + offsets)[..., :, None]
        columns = (corner_NT2[..., 1, None] + offsets)[..., None, :]
        one = torch.zeros_like(film)
        index = torch.arange(N)[:, None, None, None], torch.arange(T)[:, None, None], rows, columns
        one[index] = digit_NKHW[:, k, None].expand(N, T, SIZE, SIZE)
        film = torch.maximum(film, one)
    return film
