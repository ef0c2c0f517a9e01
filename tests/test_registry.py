"""conf/ is the registry; signatures are read from source."""

import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Literal

import pytest

from clplat import registry
from clplat.errors import MissingError, UsageError

PLUGIN = Path(__file__).parent / "plugin"
HEAVY = "{'torch', 'numpy', 'pytorch_lightning', 'avalanche', 'wandb', 'omegaconf', 'sklearn'}"


@pytest.fixture
def plugin(monkeypatch):
    monkeypatch.setattr(registry, "_added", [])
    monkeypatch.syspath_prepend(str(PLUGIN))
    registry.add_config_dir(PLUGIN / "conf")


@pytest.fixture
def conf(tmp_path, monkeypatch):
    """A function that writes an entry into a config dir of its own."""
    monkeypatch.setattr(registry, "_added", [])
    monkeypatch.syspath_prepend(str(PLUGIN))

    def write(text, group="strategy", name="mine", folder="conf"):
        path = tmp_path / folder / group / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
        registry.add_config_dir(tmp_path / folder)
        return path

    return write


def module(tmp_path, monkeypatch, source, name):
    (tmp_path / f"{name}.py").write_text(textwrap.dedent(source))
    monkeypatch.syspath_prepend(str(tmp_path))
    return f"{name}:Thing"


def test_options_come_from_the_signature_and_the_file(plugin):
    entry = registry.find("strategy", "toy-penalty")
    options = entry.options
    assert list(options) == ["importance", "fisher", "online", "decay", "layers", "betas", "weights", "label"]
    assert entry.defaults == {
        "importance": 50.0,  # the file's, as the float that the signature wants
        "fisher": "exact",
        "online": False,
        "decay": None,
        "layers": [0, 1],
        "betas": (0.9, 0.999),
        "weights": {},
        "label": "plain",
    }
    assert isinstance(entry.defaults["importance"], float)
    assert options["fisher"].type == Literal["exact", "sampled", "empirical"]
    assert options["fisher"].choices == ("exact", "sampled", "empirical")
    assert options["decay"].type == float | None
    assert options["layers"].type == list[int]
    assert options["weights"].type == dict[str, float]
    assert options["importance"].doc == "weight of the penalty, which may be large."
    assert options["fisher"].doc == "which one."
    assert options["label"].doc == ""
    assert entry.summary == "Pulls weights back (Nobody 2000)."
    assert entry.info == {"family": "regularization", "paper": "Nobody 2000", "needs": ["boundaries"]}


def test_inherited_options(plugin):
    memory = registry.find("strategy", "toy-memory").options
    assert {name: option.default for name, option in memory.items()} == {"size": 200, "policy": "reservoir"}
    assert memory["size"].doc == "samples kept here."
    assert memory["policy"].doc == "which go."
    narrow = registry.find("strategy", "toy_plugin:Narrow").options
    assert {name: option.default for name, option in narrow.items()} == {"size": 200, "extra": 3}


def test_functions_and_dataclasses(plugin):
    assert registry.find("scenario", "toy-digits").defaults == {"experiences": 5, "setting": "class"}
    record = registry.find("scenario", "toy_plugin.Record")
    assert record.defaults == {"rate": 0.5, "names": ["a", "b"]}
    assert record.options["rate"].doc == "a rate."


def test_a_required_option_has_no_default(plugin):
    entry = registry.find("strategy", "toy-demanding")
    assert entry.options["path"].required
    assert entry.defaults == {"size": 200}


def test_every_built_in_entry_can_be_read():
    for group in set(registry.GROUPS) - {"preset"}:
        for entry in registry.entries(group).values():
            assert entry.options is not None
            assert entry.summary, f"{entry.target} has no docstring"
            undocumented = [name for name, option in entry.options.items() if not option.doc]
            assert not undocumented, f"{entry.target}: no Args: line for {undocumented}"


def test_build_converts_and_checks(plugin):
    entry = registry.find("scenario", "toy-digits")
    assert entry.build(setting="task") == (5, "task")
    with pytest.raises(UsageError) as error:
        entry.build(settings="task", experiences="many")
    assert len(error.value.messages) == 2
    assert "Did you mean 'setting'?" in error.value.messages[0]
    with pytest.raises(UsageError, match="'path' must be given"):
        registry.find("strategy", "toy-demanding").build()


def test_build_gives_lists_for_tuples_and_never_shares_a_default():
    entry = registry.find("optimizer", "adam")
    import torch

    optimizer = entry.build([torch.nn.Parameter(torch.zeros(1))], betas=[0.5, 0.6])
    assert optimizer.defaults["betas"] == (0.5, 0.6)
    assert optimizer.defaults["lr"] == 1e-3


def test_a_class_must_be_of_its_group(plugin):
    for group, name in (("backbone", "toy-net"), ("strategy", "toy-memory"), ("scenario", "toy_plugin:Record")):
        with pytest.raises(UsageError, match="is not a clplat"):
            registry.find(group, name).load()


def test_built_in_entries_can_be_loaded():
    for group in ("backbone", "scenario", "strategy", "optimizer", "trainer"):
        for entry in registry.entries(group).values():
            assert callable(entry.load())


def test_unknown_names_get_a_suggestion(plugin):
    with pytest.raises(UsageError, match=r"unknown strategy 'toy-penalti'\. Did you mean 'toy-penalty'"):
        registry.find("strategy", "toy-penalti")
    with pytest.raises(UsageError, match=r"unknown strategy 'qqq'\. Valid: .*ewc, .*vcl"):
        registry.find("strategy", "qqq")
    with pytest.raises(UsageError, match="Did you mean 'strategy'"):
        registry.entries("strategies")


@pytest.mark.parametrize("name", ["", "+", "../../etc/passwd", "a b", "Ünï", "a:b:c", ".", "..", "a..B", "null", "os."])
def test_hostile_names_are_usage_errors(name):
    with pytest.raises(UsageError):
        registry.find("strategy", name)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "_target_"),
        ("importance: 3", "_target_"),
        ("_target_: 3", "_target_"),
        ("_target_: Penalty", "package.module.Name"),
        ("_target_: [", "line"),
        ("- a\n- b", "mapping"),
        ("_target_: toy_plugin.Penalty\n_info_: hello", "_info_"),
        ("_target_: toy_plugin.Penalty\nonline: true\nonline: false", "twice"),
        ("_target_: !!python/object/apply:os.system ['true']", "constructor"),
    ],
)
def test_malformed_files_are_named(conf, text, message):
    path = conf(text)
    with pytest.raises(UsageError) as error:
        registry.entries("strategy")
    assert str(path) in str(error.value)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("_target_: toy_plugin.Penalti", "Did you mean 'Penalty'?"),
        ("_target_: no_such_module.Penalty", "no module no_such_module"),
        ("_target_: toy_plugin.Penalty\nimportence: 3", "Did you mean 'importance'?"),
        ("_target_: toy_plugin.Penalty\nimportance: high", "importance: expected a number"),
        ("_target_: toy_plugin.Penalty\nfisher: exakt", "Did you mean 'exact'?"),
        ("_target_: toy_plugin.Untyped", "has no type"),
        ("_target_: toy_plugin.Computed", "neither a literal nor the name of one"),
        ("_target_: toy_plugin.Strange", "Iterable[int]"),
    ],
)
def test_entries_that_do_not_fit_their_source(conf, text, message):
    path = conf(text)
    with pytest.raises(UsageError) as error:
        _ = registry.find("strategy", "mine").options
    assert str(path) in str(error.value)
    assert message in str(error.value)


def test_two_folders_cannot_claim_one_name(conf):
    first = conf("_target_: toy_plugin.Penalty")
    second = conf("_target_: toy_plugin.Memory", folder="other")
    with pytest.raises(UsageError) as error:
        registry.entries("strategy")
    assert str(first) in str(error.value)
    assert str(second) in str(error.value)


def test_a_config_dir_must_look_like_one(tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "_added", [])
    with pytest.raises(UsageError, match="not a folder"):
        registry.add_config_dir(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="named after a group"):
        registry.add_config_dir(tmp_path)


def test_a_missing_package_says_so(tmp_path, monkeypatch):
    name = module(tmp_path, monkeypatch, "import no_such_extra\nclass Thing: pass\n", "needs_extra")
    entry = registry.find("scenario", name)
    assert entry.options == {}
    with pytest.raises(MissingError, match="no_such_extra"):
        entry.load()


def test_reading_does_not_run_the_source(tmp_path, monkeypatch):
    source = "raise RuntimeError('I was run')\nclass Thing:\n    def __init__(self, *, a: int = 1): ...\n"
    assert registry.find("scenario", module(tmp_path, monkeypatch, source, "explosive")).defaults == {"a": 1}


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("class Thing(Thing): ...", {}),
        ("import torch.nn as nn\nclass Thing(nn.Module): ...", {}),
        ("class A:\n def __init__(self, *, a: 'int | None' = None): ...\nclass Thing(A): ...", {"a": None}),
        ("N = 4\nM = N\nclass Thing:\n def __init__(self, *, a: tuple[int, ...] = (M, 2)): ...", {"a": (4, 2)}),
        ("import typing as t\nclass Thing:\n def __init__(self, *, a: t.Optional[int] = -1): ...", {"a": -1}),
        (
            "try:\n import x\nexcept ImportError:\n N = 1\nclass Thing:\n def __init__(self, b, *, a: int = N): ...",
            {"a": 1},
        ),
    ],
)
def test_forms_of_source(tmp_path, monkeypatch, source, expected):
    name = f"source_{abs(hash(source))}"
    if source.startswith("class Thing(Thing)"):
        with pytest.raises(UsageError, match="inherits from itself"):
            _ = registry.find("scenario", module(tmp_path, monkeypatch, source, name)).options
        return
    assert registry.find("scenario", module(tmp_path, monkeypatch, source, name)).defaults == expected


def test_a_class_in_the_current_folder_is_found_by_a_console_script(tmp_path):
    (tmp_path / "own_module.py").write_text(
        "class Own:\n    '''Mine.'''\n    def __init__(self, *, a: int = 5): self.a = a\n"
    )
    code = (
        "import sys; sys.path[:] = [p for p in sys.path if p not in ('', '.')]\n"
        "from clplat import registry\n"
        "entry = registry.find('logger', 'own_module:Own')\n"
        "print(entry.summary, entry.build(a=6).a)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "Mine. 6\n"


def test_nothing_heavy_is_imported():
    code = (
        "import sys; from clplat import registry, config\n"
        "for group in registry.GROUPS:\n"
        "    for entry in registry.entries(group).values():\n"
        "        registry.summary(entry)\n"
        "        entry.target.startswith('clplat.tracking') or entry.options\n"
        f"print(sorted({HEAVY} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
