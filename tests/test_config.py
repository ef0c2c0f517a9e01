"""Composition: precedence, combinations, types, messages, round trips."""

import dataclasses
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from clplat import config, registry
from clplat.errors import UsageError
from clplat.settings import RunSettings

PLUGIN = Path(__file__).parent / "plugin"
TOY = ["strategy=toy-penalty", "backbone=toy-net", "scenario=toy-digits"]


@pytest.fixture(autouse=True)
def plugin(monkeypatch):
    monkeypatch.setattr(registry, "_added", [])
    monkeypatch.syspath_prepend(str(PLUGIN))
    registry.add_config_dir(PLUGIN / "conf")


def compose(*overrides, **kwargs):
    return config.compose([*TOY, *overrides], **kwargs)


def problems(*overrides, **kwargs):
    with pytest.raises(UsageError) as error:
        compose(*overrides, **kwargs)
    return error.value.messages


def test_the_shape_of_a_resolved_configuration():
    resolved = compose()
    assert resolved["strategy"] == {
        "name": "toy-penalty",
        "importance": 50.0,
        "fisher": "exact",
        "online": False,
        "decay": None,
        "layers": [0, 1],
        "betas": [0.9, 0.999],
        "weights": {},
        "label": "plain",
    }
    assert resolved["optimizer"]["name"] == "adam"
    assert resolved["optimizer"]["lr"] == 0.001
    assert resolved["optimizer"]["keep_state"] is False
    assert resolved["trainer"]["name"] == "default"
    assert resolved["logger"] == {"name": "none"}
    assert resolved["run"] == dataclasses.asdict(RunSettings())
    assert resolved["seed"] == 0
    assert list(resolved)[: len(config.SECTIONS)] == list(config.SECTIONS)


def test_the_default_configuration():
    resolved = config.compose()
    names = {group: resolved[group]["name"] for group in config.GROUPS}
    assert names == {
        "strategy": "naive",
        "backbone": "transformer",
        "scenario": "permuted-digits",
        "optimizer": "adam",
        "trainer": "default",
        "logger": "none",
        "cluster": "local",
    }


def test_precedence(tmp_path):
    def at(**layers):
        return config.compose(TOY[1:] + layers.pop("overrides", []), **layers)["strategy"]["importance"]

    low, high = tmp_path / "low.yaml", tmp_path / "high.yaml"
    low.write_text("strategy: {name: toy-penalty, importance: 1}")
    high.write_text("strategy: {importance: 2}")
    everything = {"preset": "toy-quick", "files": [low, high], "flags": {"strategy.importance": 3}}
    assert at(**everything, overrides=["strategy.importance=4"]) == 4
    assert at(**everything) == 3
    assert at(preset="toy-quick", files=[low, high]) == 2
    assert at(preset="toy-quick", files=[high, low]) == 1
    assert at(preset="toy-quick") == 7
    assert at(flags={"strategy": "toy-penalty"}) == 50


def test_a_preset_gives_way_to_flags():
    resolved = config.compose(preset="toy-quick", flags={"seed": 3, "devices": 2, "strategy": None})
    assert (resolved["seed"], resolved["trainer"]["devices"], resolved["trainer"]["max_epochs"]) == (3, 2, 1)
    assert resolved["trainer"]["accelerator"] == "cpu"
    # The preset's importance belongs to the strategy that it names and goes with it.
    replaced = config.compose(preset="toy-quick", flags={"strategy": "toy-memory"})
    assert replaced["strategy"] == {"name": "toy-memory", "size": 200, "policy": "reservoir"}
    kept = config.compose(preset="toy-quick", flags={"strategy": "toy-memory+toy-penalty"})
    assert kept["strategy"]["toy-penalty"]["importance"] == 7.0


def test_every_preset_is_valid():
    for name in registry.names("preset"):
        assert config.compose(preset=name)
        assert registry.find("preset", name).summary, f"{name} has no comment on its first line"


def test_combinations():
    resolved = compose(
        "strategy=toy-penalty+toy-memory", "strategy.toy-penalty.importance=3", "strategy.toy-memory.size=9"
    )
    assert resolved["strategy"]["name"] == "toy-penalty+toy-memory"
    named = dict(config.parts(resolved["strategy"]))
    assert list(named) == ["toy-penalty", "toy-memory"]
    assert named["toy-penalty"]["importance"] == 3.0
    assert named["toy-memory"] == {"size": 9, "policy": "reservoir"}
    assert config.parts(compose("strategy.toy-penalty.importance=3")["strategy"])[0][1]["importance"] == 3.0
    own = compose("strategy=toy-memory+toy_plugin:Narrow", "strategy.toy_plugin:Narrow.extra=8")
    assert dict(config.parts(own["strategy"]))["toy_plugin:Narrow"] == {"size": 200, "extra": 8}
    dotted = compose("strategy=toy_plugin.Narrow", "strategy.extra=8")
    assert config.parts(dotted["strategy"]) == [("toy_plugin.Narrow", {"size": 200, "extra": 8})]


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("strategy.importance=1e-3", 1e-3),
        ("strategy.importance=3", 3.0),
        ("strategy.importance=.inf", float("inf")),
        ("strategy.online=true", True),
        ("strategy.decay=null", None),
        ("strategy.decay=0.5", 0.5),
        ("strategy.layers=[1,2]", [1, 2]),
        ("strategy.layers=[]", []),
        ("strategy.betas=[0, 1]", [0.0, 1.0]),
        ("strategy.weights={a: 1, b: 2.5}", {"a": 1.0, "b": 2.5}),
        ("strategy.weights.a=4", {"a": 4.0}),
        ("strategy.fisher=sampled", "sampled"),
        ("strategy.label=007", "007"),
        ("strategy.label=1e-3", "1e-3"),
        ("strategy.label=true", "true"),
        ("strategy.label=a=b", "a=b"),
        ("strategy.label='quoted'", "quoted"),
        ("run.dir=12", "12"),
        ("run.dir=null", None),
        ("trainer.precision=32", "32"),
        ("trainer.max_epochs=1e3", 1000),
        ("trainer.clip=1", 1.0),
        ("seed=-3", -3),
        ("optimizer=sgd", "sgd"),
        ("optimizer.name=sgd", "sgd"),
    ],
)
def test_values(override, expected):
    value = compose(override)
    for key in override.partition("=")[0].split(".")[:2]:
        value = value[key]
    value = value["name"] if override.startswith("optimizer=") else value
    assert value == expected
    assert type(value) is type(expected)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("strategy.importence=3", "Did you mean 'importance'?"),
        ("strategy.importance=many", "strategy.importance=many: expected a number, got 'many'"),
        ("strategy.importance=.nan", "expected a number"),
        ("strategy.importance=[1]", "expected a number"),
        ("strategy.importance=", "expected a number, got 'null'"),
        ("strategy.importance=true", "expected a number"),
        ("strategy.online=yes", "expected true or false"),
        ("strategy.online=1", "expected true or false"),
        ("strategy.layers=3", "expected list[int]"),
        ("strategy.layers=[a]", "expected a whole number"),
        ("strategy.betas=[1]", "expected 2 values, got 1"),
        ("strategy.fisher=exakt", "Did you mean 'exact'?"),
        ("strategy.decay=often", "expected a number | null"),
        ("strategy.label=null", "expected text"),
        ("strategy.importance.deep=3", "one value, not a section"),
        ("strategy.weights.a.b=3", "one value, not a section"),
        ("strategy.weights.a=x", "expected a number"),
        ("strategy.toy-memory.size=3", "no option 'toy-memory'"),
        ("trainer.max_epochs=1.5", "expected a whole number"),
        ("trainer.max_epochs=.inf", "expected a whole number"),
        ("trainer.precision=31", "Valid: 32, 64, bf16-mixed."),
        ("trainer.devices=0", "at least one rank"),
        ("traner.max_epochs=1", "Did you mean 'trainer'?"),
        ("seed=abc", "seed=abc: expected a whole number"),
        ("seed.x=1", "seed=VALUE"),
        ("run=3", "run.KEY=VALUE"),
        ("preset=x", "use --preset"),
        ("optimizer=adm", "Did you mean 'adam'?"),
        ("optimizer=adam+sgd", "one optimizer only"),
        ("optimizer=null", "unknown optimizer"),
        ("strategy=toy-memory+toy-memory", "named twice"),
        ("strategy=toy-memory+", "unknown strategy ''"),
        ("strategy=toy-demanding", "strategy.path must be given"),
        ("foo", "'foo' is not of the form section.key=value"),
        ("adam", "Did you mean --optimizer adam?"),
        ("=3", "'=3' is not of the form"),
        ("a..b=1", "is not of the form"),
        (".a=1", "is not of the form"),
        ("strategy. importance=1", "is not of the form"),
        ("", "is not of the form"),
        ("strategy.layers=[1", "not YAML"),
        ("strategy.layers=" + "[" * 5000, "not YAML"),
        ("strategy.label=!!python/name:os.system", "not YAML"),
        ("seed=" + "9" * 5000, "not YAML"),
    ],
)
def test_mistakes(override, message):
    found = problems(override)
    assert len(found) == 1
    assert message in found[0]
    assert "\n" not in found[0]


def test_in_a_combination_an_option_needs_its_part():
    (found,) = problems("strategy=toy-penalty+toy-memory", "strategy.importance=3")
    assert "write strategy.toy-penalty.importance" in found


def test_all_mistakes_are_told_at_once():
    found = problems("strategy.importence=3", "foo", "optimizer.lr=fast", "seed=x", flags={"backbone": "toynet"})
    # The backbone that the overrides choose goes before the flag's, which therefore is no mistake that matters.
    assert len(found) == 4
    assert len(problems("optimizer=adm", "trainer=defalt", "logger=wandbb", "nonsense.a=1")) == 4


def test_mistakes_in_files_name_file_and_line(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        "seed: 1\nstrategy:\n  name: toy-penalty\n  importence: 3\noptimizer:\n  lr: fast\nfoo: 1\nrun: 3\n"
    )
    found = problems(files=[path])
    assert sorted(m.split(": ")[0] for m in found) == [f"{path}:{line}" for line in (4, 6, 7, 8)]


@pytest.mark.parametrize(
    "text",
    ["[1, 2]", "a: [", "seed: 1\nseed: 2", "strategy: {online: true, online: false}", "1: 2", "\t", "&a {b: *a}",
     "a: &a [x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b]\n"
     "d: &d [*c,*c,*c,*c,*c,*c,*c,*c]\ne: [*d,*d,*d,*d,*d,*d,*d,*d]\nf: [*d,*d,*d,*d,*d,*d,*d,*d]",
     "strategy: &x {name: toy-penalty, layers: [*x]}", "\x00", "strategy: [a]", "strategy: {name: [a]}", "trainer: 3.5",
     "config_dirs: 3", "config_dirs: [nowhere]", "strategy: {name: toy-penalty, toy-penalty: 3}"],
)  # fmt: skip
def test_hostile_files(tmp_path, text):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(UsageError) as error:
        config.compose(files=[path], flags={"backbone": "toy-net", "scenario": "toy-digits"})
    assert str(path) in str(error.value)


def test_unreadable_files(tmp_path):
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00\x01")
    for path in (tmp_path, tmp_path / "nowhere.yaml", tmp_path / "binary.yaml"):
        assert str(path) in problems(files=[path])[0]
    with pytest.raises(UsageError, match="unknown preset"):
        config.compose(preset="nothing")


def test_a_name_alone_in_a_file_chooses(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("strategy: toy-memory\nbackbone: toy-net\nscenario: toy-digits\n")
    assert config.compose(files=[path])["strategy"]["name"] == "toy-memory"
    empty = tmp_path / "empty.yaml"
    empty.write_text("# nothing\n")
    assert compose(files=[empty]) == compose()


def test_round_trip(tmp_path):
    path = tmp_path / "config.yaml"
    for overrides in (
        [],
        ["strategy=toy-penalty+toy-memory", "strategy.toy-penalty.weights={a: 1}", "optimizer.eps=1e-12"],
        ["strategy.label='on'", "run.dir=1e-3", "strategy.importance=.inf", "trainer=cpu", "seed=7"],
        ["strategy=toy_plugin:Narrow"],
    ):
        resolved = compose(*overrides)
        path.write_text(config.dump(resolved))
        assert config.load(path) == resolved
        assert config.dump(config.load(path)) == path.read_text()


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=20), number=st.floats(allow_nan=False))
@example(text="a\x85 b\u2028\u2029", number=0.0)
def test_any_text_and_number_survive_a_round_trip(tmp_path, text, number):
    resolved = compose()
    resolved["strategy"]["label"], resolved["strategy"]["importance"] = text, number
    path = tmp_path / "config.yaml"
    path.write_text(config.dump(resolved), encoding="utf-8")
    assert config.load(path) == resolved
    if text.isprintable():  # other readers of YAML agree on what is text
        assert yaml.safe_load(path.read_text(encoding="utf-8"))["strategy"]["label"] == text


def test_a_stored_configuration_brings_its_config_dirs(tmp_path, monkeypatch):
    path = tmp_path / "config.yaml"
    path.write_text(config.dump(compose()))
    monkeypatch.setattr(registry, "_added", [])
    assert config.load(path)["strategy"]["name"] == "toy-penalty"


def test_load_refuses_an_altered_configuration(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(config.dump(compose()).replace("importance", "importence"))
    with pytest.raises(UsageError, match=f"{path}:3: .*Did you mean 'importance'"):
        config.load(path)


def test_what_a_settings_class_refuses_is_a_message(monkeypatch):
    def refuse(self, **options):
        raise UsageError("run.root: not there")

    monkeypatch.setattr(RunSettings, "__init__", refuse)
    assert problems() == ("run.root: not there",)
