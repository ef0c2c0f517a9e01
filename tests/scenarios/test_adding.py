"""The adding problem against its definition."""

from __future__ import annotations

import functools

import pytest
import torch

import clplat
from clplat import optim
from clplat.backbones.rnn.gru import GRU
from clplat.errors import UsageError
from clplat.scenarios.adding import Adding
from clplat.settings import TrainerSettings
from tests.scenarios.streams import build


@pytest.mark.parametrize("stream", ["same", "length", "marker"])
@pytest.mark.parametrize("form", ["unit", "original"])
def test_the_answer_is_made_of_the_two_marked_numbers(stream: str, form: str) -> None:
    scenario = Adding(1, stream=stream, form=form, length=36, samples=200, test_samples=50)
    for e, experience in enumerate(scenario.train_stream):
        steps = 12 * (e + 1) if stream == "length" else 36
        marker = 1 + (e if stream == "marker" else 0)
        for x, (y,) in zip(experience.dataset.x.tolist(), experience.dataset.y.tolist(), strict=True):
            assert not any(any(step) for step in x[: 36 - steps])
            x = x[36 - steps :]
            assert all(step[i] == 0 for step in x for i in range(1, len(step)) if i != marker)
            marked = [t for t, step in enumerate(x) if step[marker] == 1]
            assert len(marked) == 2
            if form == "unit":
                assert marked[0] < steps // 2 <= marked[1]
                assert all(0 <= step[0] < 1 for step in x)
                assert y == pytest.approx(x[marked[0]][0] + x[marked[1]][0])
            else:
                assert marked[0] < 10
                assert marked[1] < max(10, steps // 2)
                assert all(-1 <= step[0] <= 1 for step in x)
                ends = {t for t, step in enumerate(x) if step[marker] == -1}
                assert ends == {0, steps - 1} - set(marked)
                assert y == pytest.approx(0.5 + sum(x[t][0] for t in marked if t) / 4)


def test_always_saying_the_mean_has_the_error_that_is_told() -> None:
    for form, error, wrong in (("unit", 1 / 6, 0.05), ("original", 1 / 24, 0.12)):  # a number at step 0 counts as zero
        y = Adding(0, form=form, experiences=1, samples=20000).train_stream[0].dataset.y
        assert float(y.var()) == pytest.approx(error, rel=wrong)


@pytest.mark.slow
def test_a_network_learns_it_and_a_new_marker_is_not_known_before() -> None:
    result = clplat.fit(
        "naive",
        Adding(0, stream="marker", experiences=2, length=10, samples=2000, test_samples=300),
        lambda D: GRU(D, hidden=32),
        optimizer=functools.partial(optim.adam, lr=1e-2),
        trainer=TrainerSettings(max_epochs=6, progress="none", accelerator="cpu"),
    )
    assert result["matrix"][0][0] < 0.02
    assert result["matrix"][0][1] > 0.1
    assert result["matrix"][1][1] < 0.02


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"experiences": 0, "samples": 0}, ["experiences=0", "samples=0"]),
        ({"length": 5}, ["length=5", "first experience has 1"]),
        ({"length": 3, "form": "original", "stream": "same"}, ["length=3", "4 steps"]),
    ],
)
def test_nonsense_is_refused(options: dict[str, object], words: list[str]) -> None:
    with pytest.raises(UsageError) as error:
        build("adding", **options)
    assert all(word in str(error.value) for word in words)


def test_the_spec_says_that_less_is_better() -> None:
    spec = build("adding").spec
    assert (spec.target, spec.metric, spec.direction) == ("value", "mse", "min")
    assert build("adding").train_stream[0].dataset.y.dtype == torch.float32
