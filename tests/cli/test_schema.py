"""``clplat config schema``: what it allows is what ``clplat`` takes. A small validator stands in for a large one."""

import json
import re
from pathlib import Path

import pytest
import yaml

from clplat import config, registry, signals
from clplat.cli import main, schema
from clplat.errors import UsageError

TYPES = {
    "object": dict, "array": list, "string": str, "boolean": bool, "null": type(None), "integer": int,
    "number": (int, float),
}  # fmt: skip


def is_type(value, name):
    return isinstance(value, TYPES[name]) and (name == "boolean" or not isinstance(value, bool))


def fits(value, rule, root):
    """Whether a value is valid, by the keywords that our schema has; any other keyword is an error of the test."""
    return rule if isinstance(rule, bool) else all(_checks(value, rule, root))


def _checks(value, rule, root):
    """What a rule asks, one thing after the other."""
    known = {"$ref", "$schema", "$defs", "title", "description", "default", "type", "enum", "const", "pattern"}
    known |= {"anyOf", "oneOf", "properties", "required", "additionalProperties", "unevaluatedProperties"}
    known |= {"items", "prefixItems", "minItems"}
    assert set(rule) <= known, set(rule) - known
    target = root["$defs"][rule["$ref"].removeprefix("#/$defs/")] if "$ref" in rule else {}
    types = rule.get("type", [])
    yield not types or any(is_type(value, name) for name in ([types] if isinstance(types, str) else types))
    yield "enum" not in rule or any(value == v and type(value) is type(v) for v in rule["enum"])
    yield "const" not in rule or value == rule["const"]
    yield not isinstance(value, str) or re.search(rule.get("pattern", ""), value) is not None
    if isinstance(value, dict):
        named = rule.get("properties", {})
        evaluated = {**target.get("properties", {}), **named}
        yield not (value.keys() - evaluated.keys()) or rule.get("unevaluatedProperties", True)
        yield all(key in value for key in rule.get("required", []))
        yield all(fits(value[key], part, root) for key, part in named.items() if key in value)
        others = rule.get("additionalProperties", True)
        yield all(fits(value[key], others, root) for key in value.keys() - named.keys())
    if isinstance(value, list):
        first = rule.get("prefixItems", [])
        yield all(fits(item, part, root) for item, part in zip(value, first, strict=False))
        yield all(fits(item, rule.get("items", True), root) for item in value[len(first) :])
        yield len(value) >= rule.get("minItems", 0)
    yield "$ref" not in rule or fits(value, target, root)
    yield "anyOf" not in rule or any(fits(value, part, root) for part in rule["anyOf"])
    yield "oneOf" not in rule or sum(fits(value, part, root) for part in rule["oneOf"]) == 1


@pytest.fixture(scope="module")
def made():
    return schema.schema()


def composes(tmp_path, content):
    (tmp_path / "c.yaml").write_text(json.dumps(content))
    try:
        config.compose(files=[tmp_path / "c.yaml"])
    except UsageError:
        return False
    return True


def test_it_is_printed(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(signals, "install", lambda: None)
    assert main(["config", "schema"]) == 0
    printed = capsys.readouterr().out
    assert json.loads(printed)["$schema"].endswith("/2020-12/schema")
    assert main(["config", "schema", "--output", str(tmp_path / "s.json")]) == 0
    assert (tmp_path / "s.json").read_text() == printed
    assert main(["config", "schema", "--output", str(tmp_path / "no" / "s.json")]) == 1
    assert "cannot be written" in capsys.readouterr().err


def test_every_entry_is_in_it_with_its_options(made):
    for group in config.GROUPS:
        for name, entry in registry.entries(group).items():
            properties = made["$defs"][f"{group}.{name}"]["properties"]
            assert list(properties) == list(entry.settable)
            for option in entry.settable.values():
                assert properties[option.name].get("description", "") == option.doc
                assert ("default" in properties[option.name]) is not option.required
    assert made["$defs"]["trainer.cpu"]["properties"]["accelerator"]["default"] == "cpu"
    assert made["$defs"]["trainer.cpu"]["properties"]["precision"]["enum"] == ["32", "64", "bf16-mixed", 32, 64]


def test_whole_configurations_fit(made):
    flags = [{"strategy": name} for name in (*registry.names("strategy"), "ewc+er")]
    for chosen in (*flags, *({"backbone": name} for name in registry.names("backbone"))):
        composed = config.compose(flags=chosen)
        assert fits(yaml.safe_load(config.dump(composed).replace("1.0e-08", "0.1")), made, made), chosen


def test_presets_fit(made):
    for entry in registry.entries("preset").values():
        assert fits(entry.overrides, made, made), entry.name


@pytest.mark.parametrize(
    "content",
    [
        {"strategy": "ewc"},
        {"strategy": "ewc+er", "seed": 3},
        {"strategy": {"name": "ewc+er", "ewc": {"importance": 3}, "er": {"memory": 2}}},
        {"strategy": {"importance": 3}, "_info_": "mine"},
        {"trainer": {"name": "cpu", "precision": 32, "threads": None}},
        {"run": {"dir": 7}},
        {"optimizer": {"name": "adam", "betas": [0.5, 0.6]}},
        # wrong:
        {"strategy": "ewcc"},
        {"strategy": {"name": "ewc", "importanc": 3}},
        {"strategy": {"name": "ewc+er", "ewc": {"importanc": 3}}},
        {"sed": 3},
        {"seed": "x"},
        {"seed": None},
        {"trainer": {"name": "cpu", "precision": "31"}},
        {"trainer": {"name": "cpu", "threads": "two"}},
        {"optimizer": "adam+sgd"},
        {"optimizer": {"name": "adam", "betas": [0.5]}},
        {"optimizer": {"name": "adam", "betas": [0.5, 0.6, 0.7]}},
        {"run": {"dirr": "x"}},
        {"trainer": 3},
    ],
)
def test_it_agrees_with_what_is_composed(made, tmp_path, content):
    given = dict(content)
    if given.get("strategy") == {"importance": 3}:
        (tmp_path / "first.yaml").write_text("strategy: ewc\n")
        config.compose(files=[tmp_path / "first.yaml"], overrides=["strategy.importance=3"])
        assert fits(content, made, made)
        return
    assert fits(content, made, made) is composes(tmp_path, content)


def test_a_class_of_ones_own_may_have_any_options(made):
    assert fits({"strategy": "my_pkg.mod:Class", "scenario": {"name": "a:b", "x": 1}}, made, made)


def test_it_knows_added_folders(capsys, monkeypatch):
    monkeypatch.setattr(signals, "install", lambda: None)
    monkeypatch.setattr(registry, "_added", [])
    plugin = Path(__file__).parent.parent / "plugin"
    monkeypatch.syspath_prepend(str(plugin))
    assert main(["config", "schema", "--config-dir", str(plugin / "conf")]) == 0
    assert "strategy.toy-penalty" in json.loads(capsys.readouterr().out)["$defs"]
