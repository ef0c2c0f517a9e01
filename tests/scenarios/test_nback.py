"""The n-back task: its blocks, an observer with a queue, and signal detection."""

from __future__ import annotations

from collections import deque

import pytest
import torch
import torch.nn.functional as nnf

from clplat.build import Built
from clplat.build import build as build_run
from clplat.config import compose
from clplat.errors import UsageError
from clplat.loop import Run
from clplat.metrics import detection
from clplat.ranks import Ranks
from clplat.scenario import TensorData
from clplat.scenarios.nback import NBack
from tests.scenarios.streams import build


def told(data: TensorData, n: int) -> torch.Tensor:
    """Logits of an observer who remembers the last n stimuli in a queue, (N, T, 2)."""
    says = []
    for x in data.x.tolist():
        queue: deque[object] = deque(maxlen=n)
        says.append([])
        for stimulus in x:
            says[-1].append(int(len(queue) == n and queue[0] == stimulus))
            queue.append(stimulus)
    return nnf.one_hot(torch.tensor(says), 2).float()


@pytest.mark.parametrize("stimuli", ["letters", "grid"])
@pytest.mark.parametrize("setting", ["domain", "task"])
@pytest.mark.parametrize("lures", [0.0, 0.8])
def test_as_many_match_as_asked_and_an_observer_with_a_queue_is_always_right(
    stimuli: str, setting: str, lures: float
) -> None:
    scenario = NBack(1, stimuli=stimuli, setting=setting, lures=lures, samples=100, test_samples=40)
    for e, experience in enumerate(scenario.train_stream):
        n, data = 1 + e, experience.dataset
        assert ((data.y == 1).sum(1) == 8).all()
        assert ((data.y == 0).sum(1) == 24 - n - 8).all()
        assert (data.y[:, : 1 + n] == -100).all()
        assert (told(data, n).argmax(-1) == data.y)[data.y >= 0].all()
        assert experience.task_label == (e if setting == "task" else 0)
        cue = data.x[:, 0]
        if stimuli == "letters":
            assert cue.tolist() == [10 + (e if setting == "domain" else 0)] * 100
            assert set(data.x[:, 1:].unique().tolist()) == set(range(1, 10))
        else:
            assert (cue.nonzero()[:, 1] == 6 + (e if setting == "domain" else 0)).all()
            assert (data.x[:, 1:, :6].sum(-1) == 2).all()
        counts = detection.counts(told(data, n), data.y)
        assert counts == {"hits": 800, "misses": 0, "false_alarms": 0, "rejections": 100 * (16 - n)}


def test_matches_are_anywhere_and_stimuli_even() -> None:
    data = NBack(0, experiences=1, first=2, samples=4000).train_stream[0].dataset
    assert ((data.y == 1).float().mean(0)[3:] - 8 / 22).abs().max() < 0.04
    counts = torch.bincount(data.x[:, 1:].flatten(), minlength=10)[1:10]
    assert (counts / counts.sum() - 1 / 9).abs().max() < 0.01


def test_lures_are_as_frequent_as_asked() -> None:
    for lures, low, high in ((0.0, 0.15, 0.26), (1.0, 0.8, 1.0)):
        data = NBack(0, experiences=1, first=2, lures=lures, samples=500).train_stream[0].dataset
        found = [
            x[t] in (x[t - 1], x[t - 3])
            for x, y in zip(data.x.tolist(), data.y.tolist(), strict=True)
            for t in range(4, 25)
            if y[t] == 0
        ]
        assert low < sum(found) / len(found) < high


@pytest.mark.parametrize("feedback", [False, True])
def test_noise_comes_with_letters_and_the_answer_is_asked_behind_it(feedback: bool) -> None:
    data = NBack(3, noise=6, feedback=feedback, samples=60).train_stream[1].dataset
    width, first = 7 + feedback, 13 + 2 * feedback
    for x, y in zip(data.x.tolist(), data.y.tolist(), strict=True):
        heard: list[int] = []
        assert x[0] == 11
        before = 0
        for t in range(24):
            trial, asked = x[1 + t * width :][:width], y[1 + t * width :][:width]
            if feedback:
                assert trial.pop(0) == (13 + before if t > 2 else 0)
            symbols = [token for token in trial if token >= first]
            assert len(set(symbols)) == len(symbols) in (3, 4, 5, 6)
            assert set(symbols) <= set(range(first, first + 8))
            (letter,) = [token for token in trial if 1 <= token <= 9]
            assert not any(trial[len(symbols) + 1 :])
            heard.append(letter)
            before = int(t >= 2 and letter == heard[t - 2])
            assert asked == [-100] * (width - 1) + [before if t >= 2 else -100]


def test_noise_on_a_grid_stands_in_other_cells() -> None:
    data = NBack(3, stimuli="grid", noise=3, feedback=True, samples=60).train_stream[1].dataset
    cell = 3 * data.x[:, 1:, :3].argmax(-1) + data.x[:, 1:, 3:6].argmax(-1)
    noise = data.x[:, 1:, 9:18]
    assert set(noise.sum(-1).flatten().tolist()) == {1, 2, 3}
    assert not noise.gather(-1, cell[..., None]).any()
    told = data.x[:, 1:, 18:]
    assert not told[:, :3].any()
    assert torch.equal(told[:, 3:].argmax(-1), data.y[:, 3:-1])
    assert (told[:, 3:].sum(-1) == 1).all()


@pytest.mark.parametrize(("relation", "own"), [("in-line", True), ("other-in-line", False)])
def test_cells_in_a_line_match(relation: str, own: bool) -> None:
    data = NBack(5, stimuli="grid", relation=relation, lures=0.5, samples=200).train_stream[1].dataset
    kinds = set()
    for x, y in zip(data.x[:, 1:, :6].tolist(), data.y[:, 1:].tolist(), strict=True):
        at = [(step[:3].index(1), step[3:].index(1)) for step in x]
        for t in range(2, 24):
            (row, column), (row_, column_) = at[t], at[t - 2]
            matches = (own, True)[row != row_ or column != column_] and (row == row_ or column == column_)
            assert y[t] == int(matches)
            kinds.add((matches, at[t] == at[t - 2]))
        assert sum(y[2:]) == 8
    assert kinds == {(True, False), (False, False), (own, True)}


def test_sensitivity_is_the_difference_of_the_two_quantiles() -> None:
    assert detection.sensitivity(84, 16, 16, 84) == pytest.approx(2 * 0.994458, abs=1e-5)
    assert detection.sensitivity(50, 50, 50, 50) == 0
    assert detection.sensitivity(10, 0, 0, 20) == pytest.approx(1.644854 + 1.959964, abs=1e-5)
    assert detection.sensitivity(0, 10, 20, 0) == pytest.approx(-1.644854 - 1.959964, abs=1e-5)
    with pytest.raises(ValueError, match="both are needed"):
        detection.sensitivity(0, 0, 1, 1)


def test_capacity_is_the_largest_n_up_to_which_all_are_mastered() -> None:
    assert detection.capacity({1: 3.0, 2: 1.5, 3: 0.9, 4: 2.0}) == 2
    assert detection.capacity({1: 0.5, 2: 3.0}) == 0
    assert detection.capacity({1: 0.99, 2: 0.97}, threshold=0.95) == 2


def trained(backbone: str, epochs: int, *overrides: str) -> Built:
    """A small network that has seen one n."""
    one = build_run(
        compose(
            [
                "scenario=n-back",
                "scenario.experiences=1",
                "scenario.alphabet=6",
                "scenario.samples=3000",
                f"backbone={backbone}",
                f"trainer.max_epochs={epochs}",
                "trainer.batch_size=64",
                "trainer.accelerator=cpu",
                "trainer.progress=none",
                *overrides,
            ]
        ),
        Ranks(),
    )
    Run(one.learner, one.scenario, eval_settings=one.eval_settings).execute()
    return one


def counted(one: Built) -> dict[str, int]:
    data = one.scenario.test_stream[0].dataset
    with torch.no_grad(), one.learner.evaluating():
        return detection.counts(one.learner.respond(data.x, data.task).logits, data.y)


@pytest.mark.slow
def test_a_gru_learns_two_back_and_a_network_without_memory_stays_at_the_base_rate() -> None:
    def accuracy(backbone: str, epochs: int, *own: str) -> float:
        found = counted(trained(backbone, epochs, "scenario.first=2", "optimizer.lr=0.01", *own))
        return (found["hits"] + found["rejections"]) / sum(found.values())

    assert accuracy("gru", 8, "backbone.hidden=64") > 0.95
    assert abs(accuracy("mlp", 2) - 14 / 22) < 0.05


@pytest.mark.slow
def test_the_larger_n_the_smaller_the_sensitivity_after_the_same_training() -> None:
    reached = {}
    for n in range(1, 6):
        options = (f"scenario.first={n}", "backbone.hidden=32", "optimizer.lr=0.005")
        reached[n] = detection.sensitivity(**counted(trained("gru", 4, *options)))
    assert all(reached[n + 1] < reached[n] + 0.1 for n in range(1, 5)), reached
    assert detection.capacity(reached, threshold=3.5) in (2, 3)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"experiences": 0, "matches": 0}, ["experiences=0", "matches=0"]),
        ({"trials": 10}, ["trials=10", "need 11"]),
        ({"lures": 1.5, "alphabet": 1}, ["lures=1.5", "alphabet=1"]),
        ({"relation": "in-line", "noise": 9}, ["relation=in-line", "noise=9", "8 are there"]),
        ({"noise": -1}, ["noise=-1"]),
        ({"stimuli": "grid", "alphabet": 8}, ["alphabet=8", "square"]),
    ],
)
def test_nonsense_is_refused(options: dict[str, object], words: list[str]) -> None:
    with pytest.raises(UsageError) as error:
        build("n-back", **options)
    assert all(word in str(error.value) for word in words)
