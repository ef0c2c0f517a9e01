"""Which runs a sweep consists of."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clplat.config import compose
from clplat.errors import UsageError
from clplat.sweep import preset, select
from clplat.sweep.grid import Planned, expand, split


def runs(*overrides: str, draws: int | None = None, **named: str) -> list[Planned]:
    return expand(named, overrides, draws=draws)


def test_every_combination_once_and_options_only_where_they_belong() -> None:
    found = runs("strategy.ewc.importance=10,100", "optimizer.lr=0.1,0.2", strategy="naive,ewc,ewc+er", seed="3,4")
    assert len(found) == (1 + 2 + 2) * 2 * 2
    assert len({run.path for run in found}) == len(found)
    assert {run.config["seed"] for run in found} == {3, 4}
    assert found[0].chosen == {"strategy": "naive", "seed": "3", "optimizer.lr": "0.1"}
    both = [run.config["strategy"]["ewc"]["importance"] for run in found if "+" in run.config["strategy"]["name"]]
    assert sorted(both) == [10, 10, 10, 10, 100, 100, 100, 100]


def test_what_is_one_value_is_no_axis() -> None:
    (one,) = runs("scenario.experiences=3", strategy="ewc")
    assert one.chosen == {}
    assert one.config["scenario"]["experiences"] == 3


def test_directories_are_those_of_what_is_computed() -> None:
    first, second = (runs(*extra, strategy="ewc")[0].path for extra in ((), ("trainer.threads=2", "run.root=there")))
    assert second == Path("there", *first.parts[1:])
    assert first.parts[:-1] == ("runs", "sweep")
    assert first != runs("strategy.importance=7", strategy="ewc")[0].path
    assert first != runs("run.stop_after=1", strategy="ewc")[0].path


@pytest.mark.parametrize(
    ("overrides", "named", "messages"),
    [
        (["optimizer.lr=1,1"], {}, ["optimizer.lr: 1 is there twice"]),
        (["optimizer.lr=1,,2"], {}, ["a value is missing"]),
        (["optimizer.lr=log(1,2)"], {}, ["needs --random"]),
        (["strategy.er.memory=1,2"], {"strategy": "naive,ewc,er", "seed": "0,0"}, ["seed: 0 is there twice"]),
        (["optimizer.lr=x,y", "trainer.batch_size=0.5,3"], {}, ["optimizer.lr", "trainer.batch_size"]),
        (["strategy.importance=1,2"], {"strategy": "naive,ewc"}, ["'naive' has no options"]),
        (["run.dir=x", "run.root=a,b", "cluster.x=1,2"], {}, ["run.dir names", "run.root=a,b: ", "cluster.x=1,2: "]),
    ],
)
def test_mistakes_are_told_at_once(overrides: list[str], named: dict[str, str], messages: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        runs(*overrides, **named)
    assert all(message in str(caught.value) for message in messages)


def test_draws_are_of_the_ranges_and_the_same_again() -> None:
    overrides = ("optimizer.lr=log(1e-4,1e-1)", "trainer.max_epochs=int(1,9)", "backbone.dropout=0,uniform(0.1,0.5)")
    one, two = (runs(*overrides, draws=20, strategy="naive", seed="0,1") for _ in range(2))
    assert [run.path for run in one] == [run.path for run in two]
    assert len(one) == 40
    rates = [run.config["optimizer"]["lr"] for run in one]
    assert min(rates) < 1e-3 < 1e-2 < max(rates)
    assert all(1e-4 <= rate <= 1e-1 for rate in rates)
    assert all(1 <= run.config["trainer"]["max_epochs"] <= 9 for run in one)
    assert {0.0} < {run.config["backbone"]["dropout"] for run in one}
    other = expand({"strategy": "naive"}, overrides, draws=20, draw_seed=1)
    assert [run.config["optimizer"]["lr"] for run in other] != rates[:20]


def test_each_seed_gets_the_same_draws() -> None:
    found = runs("optimizer.lr=log(1e-4,1e-1)", draws=5, seed="0,1")
    by_seed = [[run.config["optimizer"]["lr"] for run in found if run.config["seed"] == seed] for seed in (0, 1)]
    assert by_seed[0] == by_seed[1]


def test_of_few_values_there_are_few_draws() -> None:
    assert len(runs("optimizer.lr=0.1,0.2", draws=10)) == 2


@given(st.lists(st.text(alphabet="abc()[]'= .", min_size=1).filter(lambda s: s.strip() == s), min_size=1))
def test_what_is_split_can_be_put_together(parts: list[str]) -> None:
    def whole(text: str) -> bool:
        return all(text.count(a) == text.count(b) for a, b in ("()", "[]")) and "'" not in text

    parts = [part for part in parts if whole(part)] or ["x"]
    assert split(",".join(parts)) == parts or any(")" in part or "]" in part for part in parts)


def test_brackets_and_quotes_hold_commas_together() -> None:
    assert split("[1,2],[3]") == ["[1,2]", "[3]"]
    assert split("'a,b',c") == ["'a,b'", "c"]
    assert split("log(1,2), 3") == ["log(1,2)", "3"]


def test_a_file_may_hold_the_lists(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("strategy: ewc\nsweep:\n  seed: [1, 2]\n  strategy.importance: [1, 10]\n  optimizer.lr: 0.1\n")
    named, words = preset.apply(None, [path], {"seed": None}, ["optimizer.lr=0.5"])
    assert named == {"seed": "1,2"}
    assert words == ["strategy.importance=1,10", "optimizer.lr=0.5"]
    found = expand(named, words, files=[path])
    assert len(found) == 4
    assert {run.config["optimizer"]["lr"] for run in found} == {0.5}
    with pytest.raises(UsageError, match="use clplat sweep"):
        compose(files=[path])


def test_first_k() -> None:
    assert select.first("first-12") == 12
    for wrong in ("first-0", "first", "2", "last-2", "first-x"):
        with pytest.raises(UsageError, match="first-K"):
            select.first(wrong)
