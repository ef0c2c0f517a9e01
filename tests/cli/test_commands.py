"""The command line through its front door."""

import json
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest
import yaml

from clplat import config, registry, signals
from clplat.cli import main
from clplat.errors import MissingError
from clplat.tracking import directory

PLUGIN = Path(__file__).parent.parent / "plugin"
TOY = ["--config-dir", str(PLUGIN / "conf"), "--strategy", "toy-penalty", "--backbone", "toy-net"]
TOY += ["--scenario", "toy-digits"]


@pytest.fixture(autouse=True)
def surroundings(tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "_added", [])
    monkeypatch.setattr(signals, "install", lambda: None)  # pytest keeps its own handlers
    monkeypatch.syspath_prepend(str(PLUGIN))
    monkeypatch.chdir(tmp_path)
    for key in ("CLPLAT_DEBUG", "WORLD_SIZE", "RANK"):
        monkeypatch.delenv(key, raising=False)


@pytest.fixture
def worker(monkeypatch):
    """A stand-in for the engine; records the directories that it is given."""
    seen = []
    fake = types.SimpleNamespace(run=lambda run_dir: seen.append(run_dir) or fake.code, code=0, seen=seen)
    monkeypatch.setitem(sys.modules, "clplat.worker", fake)
    return fake


def errors(capsys, *argv, code=2):
    assert main(list(argv)) == code
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert lines
    assert all(line.startswith("error: ") for line in lines), captured.err
    return [line.removeprefix("error: ") for line in lines]


# --- looking things up -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["-h"],
        *(
            [command, "-h"]
            for command in (
                "fit",
                "submit",
                "jobs",
                "logs",
                "cancel",
                "resume",
                "eval",
                "probe",
                "report",
                "list",
                "show",
            )
        ),
        *(["config", command, "-h"] for command in ("print", "validate", "diff", "schema")),
    ],
)
def test_help_shows_usage_and_an_example(capsys, argv):
    assert main(argv) == 0
    out = capsys.readouterr().out
    assert out.startswith("Usage: clplat")
    assert "\n    clplat " in out.partition("Examples:")[2]


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == "clplat 0.1.0\n"


def test_list(capsys):
    assert main(["list", "strategies", *TOY[:2]]) == 0
    out = capsys.readouterr().out
    assert "toy-penalty" in out
    assert "Pulls weights back (Nobody 2000)." in out
    assert "regularization" in out
    assert "\x1b" not in out
    assert main(["list"]) == 0
    assert {"permuted-digits", "adam", "cpu", "transformer"} <= set(capsys.readouterr().out.split())
    assert main(["list", "optimizers", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows] == sorted(registry.names("optimizer"))
    assert {"group", "name", "summary", "target", "info"} == set(rows[0])


def test_show(capsys):
    assert main(["show", "toy-penalty", *TOY[:2]]) == 0
    out = capsys.readouterr().out
    assert "paper: Nobody 2000" in out
    assert "importance  float                        50.0          weight of the penalty, which may be large.\n" in out
    assert "fisher      exact | sampled | empirical  exact         which one.\n" in out
    assert out.endswith("Example: clplat fit --strategy toy-penalty strategy.importance=50.0\n")
    assert main(["show", "run"]) == 0
    assert "run.root=runs" in capsys.readouterr().out
    assert main(["show", "toy-quick"]) == 0
    assert "max_epochs: 1" in capsys.readouterr().out


def test_show_json(capsys):
    assert main(["show", "toy-penalty", "--json", *TOY[:2]]) == 0
    shown = json.loads(capsys.readouterr().out)
    options = {option["name"]: option for option in shown["options"]}
    assert options["fisher"] == {
        "name": "fisher",
        "type": "exact | sampled | empirical",
        "default": "exact",
        "choices": ["exact", "sampled", "empirical"],
        "required": False,
        "doc": "which one.",
    }
    assert main(["show", "toy_plugin:Narrow", "--group", "strategy", "--json"]) == 0
    assert [option["name"] for option in json.loads(capsys.readouterr().out)["options"]] == ["size", "extra"]


@pytest.mark.slow
def test_the_example_of_every_entry_is_a_valid_command(capsys):
    import shlex

    for group in ("optimizer", "trainer", "backbone", "scenario", "cluster"):
        for name in registry.names(group):
            assert main(["show", name, "--group", group]) == 0
            example = shlex.split(capsys.readouterr().out.splitlines()[-1].removeprefix("Example: clplat "))
            assert main([*example, "--print-config", *TOY[:4]]) == 0, example
            capsys.readouterr()


def test_print_config_is_the_configuration(capsys):
    argv = [*TOY, "optimizer.lr=3e-4", "--seed", "4", "trainer.max_epochs=2", "--devices", "3"]
    assert main(["fit", "--print-config", *argv]) == 0
    first = capsys.readouterr().out
    assert main(["config", "print", *argv]) == 0
    assert capsys.readouterr().out == first
    printed = yaml.safe_load(first)
    assert (printed["optimizer"]["lr"], printed["seed"], printed["trainer"]["devices"]) == (3e-4, 4, 3)
    assert not list(Path().iterdir())
    Path("printed.yaml").write_text(first)
    assert main(["config", "print", "--config", "printed.yaml"]) == 0
    assert capsys.readouterr().out == first


def test_validate(capsys):
    Path("good.yaml").write_text(
        "optimizer: {lr: 1e-2}\nstrategy: toy-memory\nbackbone: toy-net\nscenario: toy-digits\n"
    )
    assert main(["config", "validate", "good.yaml", "seed=3", *TOY[:2]]) == 0
    assert capsys.readouterr().out == "good.yaml: ok\n"
    assert main(["config", "validate", "seed=3"]) == 0
    assert capsys.readouterr().out == "configuration: ok\n"
    Path("bad.yaml").write_text("seed: x\noptimizer:\n  lrr: 1e-2\nsed: 3\n")
    Path("none.yaml").write_text("\ntrainer:\n  devices: 0\n")
    lines = errors(capsys, "config", "validate", "good.yaml", "bad.yaml", "none.yaml", "gone.yaml")
    assert [line.partition(": ")[0] for line in lines] == [
        "bad.yaml:4", "bad.yaml:3", "bad.yaml:1", "none.yaml:3", "gone.yaml",
    ]  # fmt: skip
    assert lines[1].startswith("bad.yaml:3: optimizer.lrr: 'adam' has no option 'lrr'. Did you mean 'lr'?")
    assert lines[3] == "none.yaml:3: trainer.devices=0: at least one rank is needed"


def test_each_file_is_validated_by_itself(capsys):
    Path("sgd.yaml").write_text("optimizer: sgd\n")
    Path("more.yaml").write_text("optimizer: {momentum: 0.5}\n")
    assert "'adam' has no option 'momentum'" in errors(capsys, "config", "validate", "sgd.yaml", "more.yaml")[0]
    assert main(["config", "validate", "more.yaml", "--config", "sgd.yaml"]) == 0


def test_diff(capsys, worker):
    for name, extra in (("a", ["--seed", "1"]), ("b", ["optimizer.lr=0.5"])):
        assert main(["fit", *TOY, f"run.dir={name}", *extra]) == 0
    capsys.readouterr()
    assert main(["config", "diff", "a", "b"]) == 0
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ["key", "a", "b"], ["optimizer.lr", "0.001", "0.5"], ["run.dir", "a", "b"], ["seed", "1", "0"],
    ]  # fmt: skip
    assert main(["config", "diff", "a", "a/config.yaml"]) == 0
    assert capsys.readouterr().out == "no differences\n"
    Path("sgd.yaml").write_text("optimizer: sgd\n")
    assert main(["config", "diff", "a", "sgd.yaml", "--json"]) == 0
    rows = {row["key"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["optimizer.name"] == {"key": "optimizer.name", "a": "adam", "b": "sgd"}
    assert rows["optimizer.betas"] == {"key": "optimizer.betas", "a": [0.9, 0.999]}
    assert "config.yaml: No such file" in errors(capsys, "config", "diff", "a", ".")[0]


# --- mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["fitt"], "Did you mean 'fit'?"),
        (["fit", "--sed", "3"], "Did you mean '--seed'?"),
        (["fit", "--lr=3"], "section.key=value"),
        (["fit", "--strategy"], "--strategy"),
        (["config", "prnt"], "Did you mean 'print'?"),
        (["show"], "NAME"),
        (["show", "adma"], "Did you mean 'adam'?"),
        (["show", "a:b"], "--group"),
        (["show", "adam", "--group", "optimiser"], "Did you mean 'optimizer'?"),
        (["list", "stratgies"], "Did you mean 'strategies'?"),
        (["resume"], "RUN"),
        (["eval", "nowhere"], "nowhere is not a run directory."),
        (["report"], "RUN"),
        (["report", "nowhere"], "nowhere: there is no such folder"),
        (["report", "."], ".: is no run directory and holds none"),
        (["resume", "nowhere"], "nowhere is not a run directory."),
        (["fit", *TOY, "optimizer.lrr=3"], "Did you mean 'lr'?"),
        (["fit", *TOY, "--seed", "x"], "--seed: seed: expected a whole number, got 'x'"),
        (["fit", *TOY, "--config", "nowhere.yaml"], "nowhere.yaml: No such file"),
        (["fit", "--config-dir", "nowhere"], "--config-dir nowhere: not a folder"),
        (["fit", "--preset", "nothing"], "unknown preset 'nothing'"),
        (["fit", *TOY, "--devices", "0"], "at least one rank"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(capsys, argv, message):
    (line,) = errors(capsys, *argv)
    assert message in line
    assert not list(Path().iterdir())


def test_every_mistake_has_its_line(capsys):
    assert len(errors(capsys, "fit", *TOY, "optimizer.lrr=3", "foo", "seed=x")) == 3


def test_tracebacks_are_for_those_who_ask(capsys, worker, monkeypatch):
    def boom(run_dir):
        raise TypeError("first\nsecond")

    worker.run = boom
    assert errors(capsys, "fit", *TOY, code=1) == ["TypeError: first (run with --traceback; this is a bug)"]
    assert main(["fit", *TOY, "--traceback"]) == 1
    assert "in boom" in capsys.readouterr().err
    monkeypatch.setenv("CLPLAT_DEBUG", "1")
    assert main(["show", "adma"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_errors_of_ours_keep_their_exit_code(capsys, worker):
    def missing(run_dir):
        raise MissingError("put the data there")

    worker.run = missing
    assert errors(capsys, "fit", *TOY, code=3) == ["put the data there"]


def test_an_interrupt_is_130(worker):
    def interrupted(run_dir):
        raise KeyboardInterrupt

    worker.run = interrupted
    assert main(["fit", *TOY]) == 130


# --- runs ------------------------------------------------------------------------------------------------------------


def test_fit_makes_a_run_directory(worker):
    argv = ["fit", *TOY, "strategy.label=two words", "--seed", "5"]
    assert main(argv) == 0
    (run_dir,) = worker.seen
    assert run_dir == Path("runs/toy-penalty-toy-net-toy-digits-s5")
    assert config.load(run_dir / "config.yaml")["strategy"]["label"] == "two words"
    assert (run_dir / "command.txt").read_text().startswith("clplat fit --config-dir ")
    assert "'strategy.label=two words'" in (run_dir / "command.txt").read_text()
    assert directory.read_status(run_dir) == {"status": "created"}
    worker.code = 75
    assert main(argv) == 75
    assert worker.seen[1].name == "toy-penalty-toy-net-toy-digits-s5-2"
    assert sorted(p.name for p in run_dir.iterdir()) == ["command.txt", "config.yaml", "status.json"]


def test_names_of_own_classes_and_combinations_are_safe_as_folders(worker):
    argv = ["fit", *TOY, "--strategy", "toy_plugin:Narrow+toy-memory", "run.root=deep/er"]
    assert main(argv) == 0
    assert worker.seen[0] == Path("deep/er/toy_plugin_Narrow+toy-memory-toy-net-toy-digits-s0")


def test_a_directory_of_ones_own(capsys, worker):
    argv = ["fit", *TOY, "run.dir=mine"]
    Path("mine").mkdir()  # empty: fine
    assert main(argv) == 0
    (line,) = errors(capsys, *argv)
    assert "clplat resume mine" in line
    assert "--overwrite" in line
    for name in ("results.json", "metrics.jsonl", "notes.txt"):
        Path("mine", name).write_text("{}")
    Path("mine/checkpoints/0").mkdir(parents=True)
    assert main([*argv, "--overwrite", "--seed", "9"]) == 0
    assert sorted(p.name for p in Path("mine").iterdir()) == ["command.txt", "config.yaml", "notes.txt", "status.json"]
    assert config.load("mine/config.yaml")["seed"] == 9


def test_foreign_folders_and_files_are_never_touched(capsys, worker):
    Path("foreign").mkdir()
    Path("foreign/config.yaml").write_text("mine: 1")
    Path("outside").mkdir()
    Path("outside/precious").write_text("data")
    for extra in ([], ["--overwrite"]):
        (line,) = errors(capsys, "fit", *TOY, "run.dir=foreign", *extra)
        assert "not a run directory" in line
    assert Path("foreign/config.yaml").read_text() == "mine: 1"
    assert main(["fit", *TOY, "run.dir=own"]) == 0
    Path("own/checkpoints").symlink_to(Path("outside").resolve())
    assert main(["fit", *TOY, "run.dir=own", "--overwrite"]) == 0
    assert Path("outside/precious").read_text() == "data"
    Path("file").write_text("")
    for place in (
        "run.dir=file",
        "run.dir=file/below",
        "run.root=file",
        "run.dir=/proc/nothing",
        r'run.dir="a\0b"',
        f"run.dir={'x' * 300}",
    ):
        (line,) = errors(capsys, "fit", *TOY, place)
        assert "Traceback" not in line
    assert len(worker.seen) == 2


def test_two_processes_never_share_a_directory():
    code = (
        "import sys; from clplat import config, registry\n"
        "from clplat.tracking import directory\n"
        f"registry.add_config_dir({str(PLUGIN / 'conf')!r})\n"
        "c = config.compose(['strategy=toy-memory', 'backbone=toy-net', 'scenario=toy-digits'])\n"
        "print([str(directory.create(c, [])) for _ in range(20)])"
    )
    env = {**os.environ, "PYTHONPATH": str(PLUGIN)}
    both = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=env) for _ in "ab"]
    made = [name for process in both for name in eval(process.communicate()[0])]
    assert len(made) == len(set(made)) == 40


def test_resume(capsys, worker):
    assert main(["fit", *TOY]) == 0
    (run_dir,) = worker.seen
    worker.code = 130
    assert main(["resume", str(run_dir)]) == 130
    assert worker.seen == [run_dir, run_dir]
    (run_dir / "results.json").write_text('{"status": "done"}')
    assert main(["resume", str(run_dir)]) == 0
    assert "done already" in capsys.readouterr().out
    assert len(worker.seen) == 2
    (line,) = errors(capsys, "resume", "toy-penalty-toy-net-toy-digit-s0")
    assert f"Did you mean {run_dir}?" in line
    (run_dir / "results.json").write_text("{")
    assert "results.json" in errors(capsys, "resume", str(run_dir), code=1)[0]
    (run_dir / "config.yaml").write_text("strategy: {name: [}")
    assert "config.yaml" in errors(capsys, "resume", str(run_dir))[0]


def test_ranks_started_from_outside_share_one_directory(capsys, worker, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "run.dir=DIR" in errors(capsys, "fit", *TOY)[0]
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        assert main(["fit", *TOY, "run.dir=shared"]) == 0
    assert worker.seen == [Path("shared"), Path("shared")]


def test_status_is_read_with_care(tmp_path):
    assert directory.read_status(tmp_path) == {"status": "unknown"}
    for text in ("", "[]", "{", "3", '{"state": 1}'):
        (tmp_path / "status.json").write_text(text)
        assert directory.read_status(tmp_path) == {"status": "unknown"}
    directory.write_status(tmp_path, "running", step=3)
    assert directory.read_status(tmp_path) == {"status": "running", "step": 3}
    assert [path.name for path in tmp_path.iterdir()] == ["status.json"]


def test_several_nodes_are_refused_before_a_directory_is_made(capsys, tmp_path):
    (line,) = errors(capsys, "fit", "trainer.num_nodes=2", "trainer.accelerator=cpu")
    assert "trainer.num_nodes=2 needs 1 ranks on each node" in line
    assert list(tmp_path.iterdir()) == []
