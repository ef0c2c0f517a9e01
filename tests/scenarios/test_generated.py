"""Generated streams: facts to learn by heart, and permuted copies, checked against what their papers define."""

from __future__ import annotations

import pytest
import torch

from clplat.errors import UsageError
from clplat.scenarios.copying import Copy, PatternXor, PermutedCopy
from clplat.scenarios.generated import BLANK
from clplat.scenarios.mqar import MQARMemorize
from tests.scenarios.streams import build


def facts(scenario: MQARMemorize, stream: str, e: int) -> set[tuple[int, int]]:
    """All (token, label) at labelled steps."""
    data = getattr(scenario, f"{stream}_stream")[e].dataset
    asked = data.y >= 0
    return set(zip(data.x[asked].tolist(), data.y[asked].tolist(), strict=True))


def test_every_fact_holds_everywhere_and_belongs_to_one_experience() -> None:
    scenario = MQARMemorize(3)
    keys: list[int] = []
    for e in range(5):
        expected = {(int(key), int(value)) for key, value in scenario.maps[e]}
        assert facts(scenario, "train", e) == facts(scenario, "test", e) == expected
        assert len(expected) == 32
        keys += [key for key, _ in expected]
    assert sorted(keys) == list(range(1, 161))  # none in two experiences, none forgotten


def test_values_do_not_show_and_cannot_be_guessed() -> None:
    scenario = MQARMemorize(0)
    for e, experience in enumerate(scenario.train_stream):
        x, y = experience.dataset.x, experience.dataset.y
        assert set(x.unique().tolist()) == {BLANK, *scenario.maps[e][:, 0].tolist()}
        assert ((y >= 0).sum(1) == 8).all()
        assert ((y >= 0) == (x != BLANK)).all()
        counts = torch.bincount(y[y >= 0])
        assert counts.max() / counts.sum() < 1.05 / 32  # the most frequent answer is right at chance
    # Where a key stands, or what else is asked, says nothing of it: positions are as likely as one another.
    share = (torch.cat([e.dataset.y for e in scenario.train_stream]) >= 0).float().mean(0)
    assert (share - 8 / 32).abs().max() < 0.03


def test_few_values_are_given_evenly() -> None:
    scenario = MQARMemorize(0, experiences=2, pairs=10, vocabulary=1 + 20 + 4)
    for pairs in scenario.maps:
        assert sorted(torch.bincount(pairs[:, 1] - 21).tolist()) == [2, 2, 3, 3]


def test_pairs_in_context_are_answered_from_the_sequence_alone() -> None:
    scenario = MQARMemorize(0, context=3, length=24, samples=200)
    first_value = 1 + 5 * 32 + 6
    for e, experience in enumerate(scenario.train_stream):
        own = dict(scenario.maps[e].tolist())
        for x, y in zip(experience.dataset.x.tolist(), experience.dataset.y.tolist(), strict=True):
            shown = dict(zip(x[0:6:2], x[1:6:2], strict=True))
            assert len(shown) == 3
            assert all(161 <= key < first_value <= value < 256 for key, value in shown.items())
            assert y[:6] == [-100] * 6
            asked = {key: label for key, label in zip(x[6:], y[6:], strict=True) if label >= 0}
            assert {key: asked[key] for key in shown} == shown
            assert all(own[key] == label for key, label in asked.items() if key not in shown)
            assert sum(label >= 0 for label in y) == 11
    maps = [dict(zip(x[0:6:2], x[1:6:2], strict=True)) for x in scenario.train_stream[0].dataset.x.tolist()]
    assert len({value for shown in maps for key, value in shown.items() if key == 161}) > 20  # anew each time


def test_a_table_learns_the_facts_from_train_and_knows_them_in_test() -> None:
    scenario = MQARMemorize(0)
    table = torch.zeros(256, dtype=torch.long)
    for experience in scenario.train_stream:
        x, y = experience.dataset.x, experience.dataset.y
        table[x[y >= 0]] = y[y >= 0]
    for experience in scenario.test_stream:
        x, y = experience.dataset.x, experience.dataset.y
        assert (table[x] == y)[y >= 0].all()


@pytest.mark.parametrize("setting", ["task", "domain"])
@pytest.mark.parametrize("padding", [0, 4])
def test_the_target_is_the_permuted_pattern(setting: str, padding: int) -> None:
    scenario = PermutedCopy(1, setting=setting, padding=padding, samples=50, test_samples=20)  # type: ignore[arg-type]
    orders = {tuple(order.tolist()) for order in scenario.permutations}
    assert len(orders) == 5
    assert all(sorted(order) == list(range(5)) for order in orders)
    for stream in (scenario.train_stream, scenario.test_stream):
        for e, experience in enumerate(stream):
            x, y = experience.dataset.x, experience.dataset.y
            stop = 5 + padding
            for t in range(5):
                source = int(scenario.permutations[e][t])
                assert torch.equal(y[:, stop + 1 + t], x[:, source, :7].long())
            assert (y[:, : stop + 1] == -100).all()
            assert (x[:, 5:, :7] == 0).all()
            signal = x[:, :, 7:]
            which = e if setting == "domain" else 0
            assert (signal[:, stop, which] == 1).all()
            assert signal.sum() == len(x)  # and no other signal anywhere
            assert abs(x[:, :5, :7].mean() - 0.5) < 0.06


def test_one_network_can_solve_all_of_permuted_copy_in_both_settings() -> None:
    """No sample, with its task label, demands two answers."""
    for setting in ("task", "domain"):
        scenario = build("permuted-copy", setting=setting, length=3, bits=2, samples=300, experiences=4)
        answers: dict[bytes, bytes] = {}
        for experience in scenario.train_stream:
            for x, y in zip(experience.dataset.x, experience.dataset.y, strict=True):
                key = x.numpy().tobytes() + bytes([experience.task_label])
                assert answers.setdefault(key, y.numpy().tobytes()) == y.numpy().tobytes()


@pytest.mark.parametrize("setting", ["task", "domain"])
def test_copy_asks_each_pattern_whole_right_behind_its_signal(setting: str) -> None:
    scenario = Copy(1, setting=setting, samples=120, test_samples=40)
    for e, experience in enumerate(scenario.train_stream):
        assert experience.task_label == (e if setting == "task" else 0)
        found = set()
        for x, y in zip(experience.dataset.x.tolist(), experience.dataset.y.tolist(), strict=True):
            stop = next(t for t, step in enumerate(x) if step[7] == 1)
            found.add(stop)
            assert sum(step[7] for step in x) == 1
            assert y == [[-100] * 7] * (stop + 1) + [[int(bit) for bit in x[t][:7]] for t in range(stop)] + [
                [-100] * 7
            ] * (len(x) - 2 * stop - 1)
            assert not any(any(step[:7]) for step in x[stop:])
        assert found == {3 + 3 * e, 4 + 3 * e, 5 + 3 * e}
        assert abs(experience.dataset.y[experience.dataset.y >= 0].float().mean() - 0.5) < 0.05


@pytest.mark.parametrize("xor", [1, 2, 5])
def test_pattern_xor_asks_the_exclusive_or_of_reordered_copies(xor: int) -> None:
    scenario = PatternXor(2, xor=xor, samples=60, test_samples=20, padding=3)
    for e, experience in enumerate(scenario.train_stream):
        orders = scenario.orders[e].tolist()
        assert len(orders) == xor
        for x, y in zip(experience.dataset.x.tolist(), experience.dataset.y.tolist(), strict=True):
            for t in range(5):
                for bit in range(7):
                    expected = int(x[t][bit])
                    for order in orders:
                        expected ^= int(x[order[t]][bit])
                    assert y[9 + t][bit] == expected
        asked = experience.dataset.y[:, 9:].float()
        assert (asked.mean(0) - 0.5).abs().max() < 0.35  # none is always the same
    wanted = {e.dataset.y.numpy().tobytes() for e in PatternXor(2, xor=xor, samples=60).train_stream}
    assert len(wanted) == 5


def test_published_copy_tasks_have_the_published_length() -> None:
    assert build("permuted-copy").spec.shape == (11, 8)
    assert build("padded-copy").spec.shape == (25 + 1 + 5, 8)
    assert build("copy", experiences=2, length=5, step=7, spread=2).spec.shape == (2 * 14 + 1, 8)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("copy", {"length": 2, "spread": 2, "step": -1}, ["length=2", "spread=2", "step=-1"]),
        ("pattern-xor", {"xor": 0, "bits": 0}, ["xor=0", "bits=0"]),
        ("pattern-xor", {"length": 2, "experiences": 2}, ["experiences=2", "1 different tasks"]),
        ("mqar-memorize", {"vocabulary": 100}, ["vocabulary=100", "163"]),
        ("mqar-memorize", {"length": 7}, ["length=7", "8 positions"]),
        ("mqar-memorize", {"context": 9}, ["length=32", "35 positions"]),
        ("mqar-memorize", {"samples": 3, "test_samples": 2}, ["samples=3", "test_samples=2", "4 sequences"]),
        ("mqar-memorize", {"pairs": 0, "queries": 0}, ["pairs=0", "queries=0"]),
        ("mqar-memorize", {"context": -1}, ["context=-1"]),
        ("permuted-copy", {"experiences": 0, "bits": 0, "padding": -1}, ["experiences=0", "bits=0", "padding=-1"]),
        ("permuted-copy", {"length": 3, "experiences": 7}, ["experiences=7", "6 different orders"]),
    ],
)
def test_nonsense_is_refused_with_what_is_possible(name: str, options: dict[str, object], words: list[str]) -> None:
    with pytest.raises(UsageError) as error:
        build(name, **options)
    assert all(word in str(error.value) for word in words)
