"""What can be done to every scenario: each wrapper against a plain reckoning, and through the configuration."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.stats import chisquare

import clplat
from clplat import registry, wrapping
from clplat.build import build
from clplat.config import compose
from clplat.dryrun import cut
from clplat.errors import UsageError
from clplat.ranks import Ranks
from clplat.scenario import Experience, LazyData, LazyStream, Scenario, Spec, TensorData, stream
from clplat.wrapping import Wrapping, wrap
from tests import harness
from tests.scenarios.streams import build as built

N = 60


def numbered(setting: Any = "class", lazy: bool = False, contiguous: bool = False) -> Scenario:
    """Four experiences of N samples (experience, number) with three classes each, or the same three in each."""

    def part(e: int, n: int, task: int) -> TensorData:
        x = torch.stack([torch.full((n,), float(e)), torch.arange(float(n))], 1)
        y = torch.arange(n) % 3 + (3 * e if setting == "class" else 0)
        return LazyData(lambda i: x[i], y, task) if lazy else TensorData(x, y, task)

    spec = Spec((2,), 12 if setting == "class" else 3, setting, contiguous=contiguous)
    task = [e if setting == "task" else 0 for e in range(4)]
    train, test = ([part(e, n, task[e]) for e in range(4)] for n in (N, 9))
    return Scenario(spec, stream("train", train), stream("test", test))


def rows(data: TensorData) -> list[tuple[int, int]]:
    return [(int(e), int(i)) for e, i in data.x.tolist()]


def wrapped(seed: int = 0, base: Scenario | None = None, **options: Any) -> Scenario:
    return wrap(base or numbered(), Wrapping(**options), seed)


def same(a: Experience, b: Experience) -> bool:
    pairs = zip(a.dataset.rows(slice(None)), b.dataset.rows(slice(None)), strict=True)
    return all(torch.equal(s, t) for s, t in pairs)


EVERY: list[dict[str, Any]] = [
    {"experience_order": "random"},
    {"validation": 0.2},
    {"share": 0.4},
    {"imbalance": 10.0},
    {"imbalance": 5.0, "imbalance_by": "experience"},
    {"label_noise": 0.3},
    {"blur": "neighbours"},
    {"blur": "gaussian"},
    {"returns": "power", "visits": 12},
    {"returns": "zipf", "visits": 9, "return_samples": "split"},
    {"online": 7},
    {"share": 0.5, "label_noise": 0.1, "returns": "uniform", "visits": 8, "online": 4},
]


@pytest.mark.parametrize("options", EVERY, ids=str)
def test_wrappers_are_functions_of_the_seed_and_leave_tests_and_generators_alone(options: dict[str, Any]) -> None:
    before = torch.get_rng_state()
    one, again, other = (wrapped(seed, **options) for seed in (3, 3, 4))
    assert all(map(same, one.train_stream, again.train_stream))
    assert torch.equal(torch.get_rng_state(), before)
    if "imbalance_by" not in options and options.get("experience_order") != "random":
        assert len(one.train_stream) != len(other.train_stream) or not all(
            map(same, one.train_stream, other.train_stream)
        )
    plain = numbered()
    if "experience_order" not in options:
        assert all(map(same, one.test_stream, plain.test_stream))
    assert len(one.tested) == len(one.train_stream)
    for i, experience in enumerate(one.train_stream):
        assert experience.current_experience == i
        assert experience.origin_stream == "train"
        assert experience.classes_in_this_experience == tuple(sorted(set(experience.dataset.y.tolist())))
    lazy = wrapped(3, numbered(lazy=True), **options)
    assert all(map(same, one.train_stream, lazy.train_stream))
    assert isinstance(lazy.train_stream[0].dataset, LazyData)


def test_asking_for_nothing_changes_nothing() -> None:
    base = numbered()
    assert wrap(base, Wrapping(), 0) is base


def test_experiences_are_made_when_they_are_asked_for() -> None:
    made: list[int] = []

    def make(i: int) -> TensorData:
        made.append(i)
        return TensorData(torch.full((3, 2), float(i)), torch.arange(3))

    base = Scenario(Spec((2,), 3, "domain"), LazyStream("train", make, [0] * 5), numbered("domain").test_stream)
    scenario = wrapped(base=base, returns="power", visits=1000, share=0.7)
    assert len(scenario.train_stream) == 1000
    assert not made
    assert scenario.tasks == 1
    last = scenario.train_stream[-1]
    assert last.current_experience == 999
    assert made == [scenario.tested[999]]
    assert [e.current_experience for e in scenario.train_stream[3:5]] == [3, 4]
    with pytest.raises(IndexError):
        scenario.train_stream[1000]


# --- one by one


@pytest.mark.parametrize("setting", ["class", "task"])
def test_another_order_takes_tests_and_task_labels_along(setting: Any) -> None:
    base = numbered(setting)
    backwards = wrapped(base=base, experience_order="reversed")
    drawn = wrapped(1, base, experience_order="random")
    assert [rows(e.dataset)[0][0] for e in backwards.train_stream] == [3, 2, 1, 0]
    for scenario in (backwards, drawn):
        order = [rows(e.dataset)[0][0] for e in scenario.train_stream]
        assert sorted(order) == [0, 1, 2, 3]
        assert scenario.tests == ()
        for e, j in enumerate(order):
            assert same(scenario.train_stream[e], base.train_stream[j])
            assert same(scenario.test_stream[e], base.test_stream[j])
            assert scenario.train_stream[e].task_label == (j if setting == "task" else 0)
    twice = wrapped(0, wrapped(0, base, returns="cyclic", visits=8, introduce="first"), experience_order="reversed")
    assert twice.tested == (3, 2, 1, 0, 3, 2, 1, 0)
    for e, j in enumerate(twice.tested):
        assert rows(twice.train_stream[e].dataset)[0][0] == j


def test_validation_samples_are_taken_from_training_per_class() -> None:
    scenario = wrapped(validation=0.25)
    for e in range(4):
        train, valid = scenario.train_stream[e].dataset, scenario.valid_stream[e].dataset
        assert sorted(rows(train) + rows(valid)) == [(e, i) for i in range(N)]
        assert torch.bincount(valid.y - 3 * e).tolist() == [5, 5, 5]
    assert rows(wrapped(base=numbered(contiguous=True), validation=0.1).valid_stream[2].dataset) == [
        (2, i) for i in range(54, 60)
    ]
    with pytest.raises(UsageError, match="of its own"):
        wrapped(base=built("split-digits", validation=0.1), validation=0.1)


def test_a_share_is_taken_of_each_class() -> None:
    for experience in wrapped(share=0.35).train_stream:
        data = experience.dataset
        assert torch.bincount(data.y - data.y.min()).tolist() == [7, 7, 7]
        assert rows(data) == sorted(rows(data))
    assert [len(e.dataset) for e in wrapped(share=0.001).train_stream] == [3] * 4  # nothing dies out


@pytest.mark.parametrize("setting", ["class", "task", "domain"])
def test_long_tails_fall_geometrically(setting: Any) -> None:
    scenario = wrapped(base=numbered(setting), imbalance=10.0)
    counts = Counter((e.task_label, c) for e in scenario.train_stream for c in e.dataset.y.tolist())
    classes = 3 if setting == "domain" else 12
    each = [20 * 10 ** (-r / (classes - 1)) for r in range(classes)]
    times = 4 if setting == "domain" else 1
    assert sorted(counts.values(), reverse=True) == [times * round(n) for n in each]
    by_experience = wrapped(base=numbered(setting), imbalance=8.0, imbalance_by="experience")
    assert [len(e.dataset) for e in by_experience.train_stream] == [60, 30, 15, 6]  # 3 * round(2.5)


def test_noise_replaces_as_many_labels_as_asked_by_any_other_alike() -> None:
    scenario, plain = wrapped(2, label_noise=0.4), numbered()
    new: Counter[tuple[int, int]] = Counter()
    for e in range(4):
        noisy, clean = scenario.train_stream[e].dataset, plain.train_stream[e].dataset
        assert torch.equal(noisy.x, clean.x)
        assert int((noisy.y != clean.y).sum()) == round(0.4 * N)
        new.update(zip((clean.y % 3).tolist(), (noisy.y % 3).tolist(), strict=True))
    wrong = [new[a, b] for a in range(3) for b in range(3) if a != b]
    assert chisquare(wrong).pvalue > 0.01


@pytest.mark.parametrize("name", ["mqar-memorize", "permuted-copy"])
def test_noise_falls_on_asked_steps_only(name: str) -> None:
    plain = built(name)
    noisy = wrapped(0, plain, label_noise=0.25)
    for a, b in zip(plain.train_stream, noisy.train_stream, strict=True):
        asked = a.dataset.y >= 0
        assert torch.equal(a.dataset.y[~asked], b.dataset.y[~asked])
        assert int((a.dataset.y != b.dataset.y).sum()) == round(0.25 * int(asked.sum()))
        assert set(b.classes_in_this_experience) <= set(a.classes_in_this_experience)


def test_neighbours_change_places() -> None:
    plain, scenario = numbered(), wrapped(blur="neighbours", blur_amount=0.3)
    found = [rows(e.dataset) for e in scenario.train_stream]
    assert [len(part) for part in found] == [N] * 4
    assert sorted(row for part in found for row in part) == sorted(
        r for e in plain.train_stream for r in rows(e.dataset)
    )
    for e, part in enumerate(found):
        origin = Counter(j for j, _ in part)
        assert origin == {j: 9 if abs(j - e) == 1 else N - 9 * sum(0 <= k < 4 for k in (e - 1, e + 1))
                          for j in range(4) if abs(j - e) <= 1}  # fmt: skip
    assert not scenario.spec.boundaries
    assert all(len(set(rows(e.dataset))) == N for e in wrapped(blur="neighbours", blur_amount=1.0).train_stream)
    unmoved = wrapped(blur="neighbours", blur_amount=0.0)
    assert all(map(same, unmoved.train_stream, plain.train_stream))


def test_gaussian_times_blur_as_widely_as_asked() -> None:
    plain = numbered()
    assert all(map(same, wrapped(blur="gaussian", blur_amount=0.0).train_stream, plain.train_stream))
    spread = []
    for amount in (0.3, 1.0, 30.0):
        scenario = wrapped(blur="gaussian", blur_amount=amount)
        found = [rows(e.dataset) for e in scenario.train_stream]
        assert sorted(map(len, found)) == [N] * 4
        assert len({row for part in found for row in part}) == 4 * N
        spread.append(sum(abs(j - e) for e, part in enumerate(found) for j, _ in part) / (4 * N))
    assert 0.1 < spread[0] < spread[1] < spread[2]
    assert abs(spread[2] - 1.25) < 0.15  # no order is left: the mean distance of two of four


@pytest.mark.parametrize("samples", ["all", "split"])
@pytest.mark.parametrize("setting", ["class", "task"])
def test_visits_are_ordinary_experiences(samples: Any, setting: Any) -> None:
    base = numbered(setting)
    scenario = wrapped(5, base, returns="power", visits=25, return_samples=samples)
    shown: dict[int, list[tuple[int, int]]] = {}
    for i, (experience, j) in enumerate(zip(scenario.train_stream, scenario.tested, strict=True)):
        assert experience.current_experience == i
        assert experience.task_label == base.train_stream[j].task_label
        if samples == "all":
            assert same(experience, base.train_stream[j])
        shown.setdefault(j, []).extend(rows(experience.dataset))
    assert sorted(shown) == [0, 1, 2, 3]
    if samples == "split":
        assert all(sorted(found) == [(j, i) for i in range(N)] for j, found in shown.items())
    assert scenario.tasks == base.tasks


def test_a_single_pass_cuts_experiences_up() -> None:
    scenario = wrapped(online=25)
    assert [len(e.dataset) for e in scenario.train_stream] == [25, 25, 10] * 4
    assert scenario.tested == (0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3)
    for e in range(4):
        parts = [rows(scenario.train_stream[3 * e + k].dataset) for k in range(3)]
        assert sorted(parts[0] + parts[1] + parts[2]) == [(e, i) for i in range(N)]
    assert not scenario.spec.boundaries
    assert scenario.single_pass
    in_order = wrapped(base=numbered(contiguous=True), online=25).train_stream
    assert [row for k in range(3) for row in rows(in_order[k].dataset)] == [(0, i) for i in range(N)]


# --- through the configuration


def test_no_entry_takes_the_name_of_a_common_option_but_validation() -> None:
    common = set(registry.find("scenario", "split-digits").settable) - set(
        registry.find("scenario", "split-digits").options
    ) | {"validation"}
    for entry in registry.entries("scenario").values():
        assert set(entry.options) & common <= {"validation"}, entry.name
        assert common <= set(entry.settable)


def test_a_configuration_reaches_entry_and_wrappers() -> None:
    given = ["scenario.validation=0.1", "scenario.label_noise=0.2", "scenario.online=50", "scenario.experiences=3"]
    config = compose(given, flags={"scenario": "permuted-digits", "strategy": "er"})
    one = build(config, Ranks())
    assert len(one.scenario.valid_stream) == 3  # the entry's own
    assert one.scenario.single_pass
    assert any("seen once, but trainer.max_epochs=5" in warning for warning in one.warnings)
    plain = built("permuted-digits", experiences=3, validation=0.1)
    assert len(one.scenario.train_stream) == sum(-(-len(e.dataset) // 50) for e in plain.train_stream)
    with pytest.raises(UsageError, match="needs boundaries"):
        build(compose(given, flags={"scenario": "permuted-digits", "strategy": "ewc"}), Ranks())


def test_a_stream_with_returns_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    overrides = ["scenario.experiences=2", "scenario.returns=power", "scenario.visits=5", "scenario.label_noise=0.1",
                 "scenario.return_samples=split", "backbone=mlp", "backbone.hidden=8", "trainer.max_epochs=1",
                 "strategy=er"]  # fmt: skip
    whole, killed = harness.make(tmp_path / "a", overrides), harness.make(tmp_path / "b", overrides)
    assert harness.run(whole).codes == [0]
    assert harness.run(killed, kill_at=("finish", 4)).codes == [harness.KILLED]
    assert harness.run(killed).codes == [0]
    assert harness.results(whole) == harness.results(killed)
    assert len(harness.results(whole)["matrix"]) == 5
    assert len(harness.results(whole)["matrix"][0]) == 2


def test_a_long_stream_is_tested_on_what_it_teaches() -> None:
    scenario = wrap(built("permuted-digits", experiences=2), Wrapping(returns="cyclic", visits=7, share=0.1), 0)
    results = clplat.fit("naive", scenario, "mlp", trainer=clplat.TrainerSettings(max_epochs=1, progress="none"))
    assert [len(row) for row in results["matrix"]] == [2] * 7
    assert results["tests"] == scenario.tested
    assert results["summary"]["ACC"] == sum(results["matrix"][-1]) / 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"share": 0.0}, "share=0.0"),
        ({"validation": 1.0}, "validation=1.0"),
        ({"imbalance": 0.5}, "imbalance=0.5"),
        ({"label_noise": 1.5}, "label_noise=1.5"),
        ({"blur": "neighbours", "blur_amount": 1.5}, "blur_amount=1.5"),
        ({"blur_amount": -1.0}, "blur_amount=-1"),
        ({"returns": "power"}, "set both or neither"),
        ({"visits": 5}, "set both or neither"),
        ({"return_exponent": -1.0}, "return_exponent"),
        ({"return_offset": -1.0}, "return_offset"),
        ({"return_decay": 0.0}, "return_decay"),
        ({"online": 0}, "online=0"),
        ({"returns": "power", "visits": 3}, "each of the 4"),
        ({"returns": "cyclic", "visits": 1000, "return_samples": "split"}, "60 samples for"),
    ],
)
def test_nonsense_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        wrapped(**options)


def test_what_a_scenario_cannot_do_is_refused() -> None:
    for message, base, options in (
        ("task labels would tell", numbered("task"), {"blur": "neighbours"}),
        ("go on from one another", numbered(contiguous=True), {"blur": "gaussian"}),
        ("choose experience", built("permuted-copy"), {"imbalance": 2.0}),
        ("one label", built("split-digits", experiences=10), {"label_noise": 0.1}),
    ):
        with pytest.raises(UsageError, match=message):
            wrapped(base=base, **options)
    values = Scenario(
        Spec((2,), 1, "domain", target="value"), stream("train", [TensorData(torch.rand(5, 2), torch.rand(5, 1))]), ()
    )
    with pytest.raises(UsageError, match="no labels"):
        wrapped(base=values, label_noise=0.1)


def test_problems_come_all_at_once() -> None:
    with pytest.raises(UsageError) as error:
        wrapping.Wrapping(share=0.0, online=0)
    assert len(error.value.messages) == 2


def test_a_dry_run_keeps_tests_with_what_they_test() -> None:
    scenario = wrapped(0, numbered("task"), returns="power", visits=80)
    small = cut(scenario, 6, 3)
    assert len(small.train_stream) == len(small.tested) < 80
    for i, (experience, j) in enumerate(zip(small.train_stream, small.tested, strict=True)):
        assert len(experience.dataset) == 6
        assert small.test_stream[j].task_label == experience.task_label == scenario.tested[i]
