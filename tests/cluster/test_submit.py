"""``clplat submit`` with stand-ins for SLURM's commands."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from clplat.tracking import directory

SLURM = ["--cluster", "slurm"]


def lines(text):
    return [line.removeprefix("error: ") for line in text.splitlines()]


def test_one_run_is_a_plain_job(fakes, clplat):
    code, out, err = clplat("submit", *SLURM, "--strategy", "er", "--seed", "4", "cluster.time=30")
    assert (code, err) == (0, "")
    run = Path("runs/er-transformer-permuted-digits-s4").absolute()
    assert out.splitlines() == [f"job 77: {run}", f"look at it with: clplat jobs {run.relative_to(Path.cwd())}"]
    assert fakes.calls("sbatch") == [["--parsable", str(run / "job.sbatch")]]
    assert directory.read_status(run)["status"] == "created"
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert (config["seed"], config["cluster"]["name"], config["cluster"]["time"]) == (4, "slurm", "30")
    job = json.loads((run / "job.json").read_text())
    assert job.pop("submitted") > 1e9
    said = {"script": f"{run}/job.sbatch", "log": f"{run}/job.log", "starts_before": 0}
    assert job == {"cluster": "slurm", "job": "77", **said}
    script = (run / "job.sbatch").read_text()
    assert f"\nrun={run}\n" in script
    assert f"#SBATCH --chdir={Path.cwd()}\n" in script
    assert "#SBATCH --time=30\n" in script
    assert json.loads((run / "code.json").read_text())["commit"] is None


def test_several_runs_are_an_array(fakes, clplat):
    argv = [*SLURM, "--strategy", "naive,ewc+er", "--seed", "0, 2", "run.root=my runs", "cluster.max_parallel=3"]
    code, out, err = clplat("submit", *argv)
    assert (code, err) == (0, "")
    root = Path("my runs").absolute()
    folder = root / "array-naive_ewc+er-transformer-permuted-digits-1"
    assert out.splitlines()[0] == f"job 77, an array of 4 runs: {folder}"
    assert out.splitlines()[1] == "look at it with: clplat jobs 'my runs'"
    runs = [Path(line) for line in (folder / "runs.txt").read_text().splitlines()]
    assert [run.name.removesuffix("-transformer-permuted-digits-s0") for run in runs[::2]] == ["naive", "ewc+er"]
    for number, run in enumerate(runs):
        config = yaml.safe_load((run / "config.yaml").read_text())
        assert (config["strategy"]["name"], config["seed"]) == (("naive", "ewc+er")[number // 2], (0, 2)[number % 2])
        job = json.loads((run / "job.json").read_text())
        assert (job["job"], job["log"]) == (f"77_{number}", f"{folder}/{number}.log")
        assert not (run / "job.sbatch").exists()
    script = (folder / "job.sbatch").read_text()
    assert "#SBATCH --array=0-3%3\n" in script
    assert len(fakes.calls("sbatch")) == 1
    clplat("submit", *argv)
    assert (root / "array-naive_ewc+er-transformer-permuted-digits-2" / "runs.txt").exists()
    assert (root / "naive-transformer-permuted-digits-s0-2").is_dir()


def test_a_dry_run_prints_what_would_be_submitted_and_makes_nothing(fakes, clplat):
    argv = ["submit", *SLURM, "--seed", "1,2", "cluster.partition=gpu"]
    code, planned, _ = clplat(*argv, "--dry-run")
    assert code == 0
    assert not list(Path().iterdir())
    assert not fakes.calls("sbatch")
    clplat(*argv)
    (script,) = Path("runs").glob("array-*/job.sbatch")
    assert planned == script.read_text()
    assert clplat(*argv, "--dry-run")[1] == planned.replace("digits-1/", "digits-2/").replace(
        "digits-1\n", "digits-2\n"
    )


def test_the_run_directory_can_be_chosen(fakes, clplat):
    assert clplat("submit", *SLURM, "run.dir=it's here")[0] == 0
    assert directory.is_run(Path("it's here"))
    code, _, err = clplat("submit", *SLURM, "run.dir=one", "--seed", "0,1")
    assert (code, err) == (2, "error: run.dir names one directory, and these are 2 runs: set run.root instead\n")
    assert clplat("submit", *SLURM, "run.dir=it's here")[0] == 2  # there is a run in it


def test_nodes_ranks_and_signal_come_from_the_run(fakes, clplat):
    out = clplat("submit", *SLURM, "--dry-run", "--devices", "4", "trainer.num_nodes=2")[1]
    assert "#SBATCH --nodes=2\n#SBATCH --ntasks-per-node=4\n" in out


def test_configurations_are_printed_one_after_another(fakes, clplat):
    out = clplat("submit", *SLURM, "--print-config", "--seed", "3,4")[1]
    assert [config["seed"] for config in yaml.safe_load_all(out)] == [3, 4]
    assert not list(Path().iterdir())


@pytest.mark.parametrize("argv", [[], ["--cluster", "local"]])
def test_this_machine_takes_no_jobs(fakes, clplat, argv):
    code, _, err = clplat("submit", *argv)
    assert code == 2
    assert "clplat fit" in err
    assert "--cluster slurm" in err
    assert not list(Path().iterdir())


def test_mistakes_of_all_runs_are_told_at_once(fakes, clplat):
    code, _, err = clplat(
        "submit", *SLURM, "--strategy", "nave,er,ewcc", "cluster.time=soon", "cluster.tim=1", "optimizer.lrr=1"
    )
    assert code == 2
    found = lines(err)
    assert len(found) == len(set(found)) == 4
    for word in ("Did you mean 'naive'?", "Did you mean 'ewc'?", "Did you mean 'time'?", "Did you mean 'lr'?"):
        assert any(word in line for line in found), word
    code, _, err = clplat("submit", *SLURM, "cluster.time=soon")
    assert lines(err) == ["cluster.time=soon: not a time of SLURM's: minutes, h:m:s, days-hours, days-h:m:s"]
    assert not list(Path().iterdir())


def test_a_value_that_is_listed_twice(fakes, clplat):
    assert lines(clplat("submit", *SLURM, "--seed", "1,2,1")[2]) == ["--seed 1,2,1: 1 is there twice"]


def test_without_sbatch(fakes, clplat):
    fakes.remove("sbatch")
    code, _, err = clplat("submit", *SLURM)
    assert code == 3
    assert "sbatch is not on the PATH" in err
    assert not list(Path().iterdir())
    assert clplat("submit", *SLURM, "--dry-run")[0] == 0


REFUSALS = [
    # what sbatch 22.05 says, exit code, what is added
    (
        "sbatch: error: invalid partition specified: x\n"
        "sbatch: error: Batch job submission failed: Invalid partition name specified",
        2,
        "set cluster.partition=NAME. There are: gpu, main.",
    ),
    (
        "sbatch: error: Batch job submission failed: Invalid account or account/partition combination specified",
        2,
        "set cluster.account=NAME.",
    ),
    ("sbatch: error: Batch job submission failed: Invalid qos specification", 2, "set cluster.qos=NAME."),
    (
        "sbatch: error: Batch job submission failed: Requested time limit is invalid (missing or exceeds some limit)",
        2,
        "set cluster.time to what the partition allows",
    ),
    (
        "sbatch: error: Batch job submission failed: Requested node configuration is not available",
        2,
        "ask for less (trainer.num_nodes",
    ),
    ("sbatch: error: Batch job submission failed: Job dependency problem", 2, "cluster.dependency=None: name a job"),
    ("sbatch: error: Batch job submission failed: Invalid job array specification", 2, "submit fewer runs at once"),
    ("sbatch: unrecognized option '--foo=3'", 2, "change that option of the cluster"),
    ("sbatch: error: Unable to contact slurm controller (connect failure)", 1, "sbatch did not take the job"),
    ("", 1, "sbatch did not take the job"),
]


@pytest.mark.parametrize(("said", "code", "added"), REFUSALS)
@pytest.mark.parametrize("several", [[], ["--seed", "0,1"]])
def test_what_sbatch_refuses_leaves_nothing(fakes, clplat, said, code, added, several):
    fakes.answer(1, said, sbatch="")
    fakes.answer(sinfo="main\ngpu\nmain\n")
    got, out, err = clplat("submit", *SLURM, *several, "run.root=deep/down")
    assert (got, out) == (code, "")
    assert lines(err)[:-1] == (said.splitlines() or ["sbatch ended with exit code 1 and no word"])
    assert lines(err)[-1].startswith(added)
    assert not list(Path().iterdir())


def test_what_was_there_before_stays(fakes, clplat):
    Path("runs").mkdir()
    Path("empty").mkdir()
    fakes.answer(1, "no", sbatch="")
    assert clplat("submit", *SLURM)[0] == clplat("submit", *SLURM, "run.dir=empty")[0] == 1
    assert sorted(map(str, Path().rglob("*"))) == ["empty", "runs"]
    fakes.answer(sbatch="77\n")
    clplat("submit", *SLURM, "run.dir=empty")
    Path("empty/mine.txt").write_text("")
    fakes.answer(1, "no", sbatch="")
    assert clplat("submit", *SLURM, "run.dir=empty", "--overwrite")[0] == 1
    assert sorted(map(str, Path("empty").iterdir())) == ["empty/mine.txt"]


def test_a_job_that_goes_on_is_not_overwritten(fakes, clplat):
    assert clplat("submit", *SLURM, "run.dir=here")[0] == 0
    fakes.answer(squeue="77|PENDING|Priority\n")
    code, _, err = clplat("submit", *SLURM, "run.dir=here", "--overwrite")
    assert code == 2
    assert "its job 77 is PENDING (Priority); first `clplat cancel` it" in err
    assert len(fakes.calls("sbatch")) == 1
    Path("here/job.history").write_text("start 77 0 n1 1\nrequeue 77 2\n")
    fakes.answer(squeue="77|COMPLETED|None\n", sbatch="78\n")
    assert clplat("submit", *SLURM, "run.dir=here", "--overwrite")[0] == 0
    assert json.loads(Path("here/job.json").read_text())["job"] == "78"
    assert not Path("here/job.history").exists()


def test_a_job_does_not_inherit_the_one_that_it_is_submitted_from(fakes, clplat, monkeypatch):
    for name in ("SLURM_JOB_ID", "SLURM_NTASKS", "SLURM_MEM_PER_NODE", "WORLD_SIZE", "MASTER_PORT"):
        monkeypatch.setenv(name, "1")
    for name in ("SLURM_CONF", "SLURM_CLUSTERS", "SBATCH_ACCOUNT", "MINE"):
        monkeypatch.setenv(name, "kept")
    monkeypatch.delenv("WORLD_SIZE")
    assert clplat("submit", *SLURM)[0] == 0
    seen = fakes.environment("sbatch")
    assert {name for name, value in seen.items() if value == "kept"} == {
        "SLURM_CONF", "SLURM_CLUSTERS", "SBATCH_ACCOUNT", "MINE",
    }  # fmt: skip
    assert not {"SLURM_JOB_ID", "SLURM_NTASKS", "SLURM_MEM_PER_NODE", "MASTER_PORT"} & set(seen)


@pytest.mark.skipif(shutil.which("git", path=os.defpath) is None, reason="git is missing")
def test_the_code_is_remembered(fakes, clplat, monkeypatch):
    (fakes.home / "bin" / "git").symlink_to(shutil.which("git", path=os.defpath))
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@example.org"]
    Path("sub").mkdir()
    Path("code.py").write_text("a = 1\n")
    for command in (["init", "-q"], ["add", "code.py"], ["commit", "-qm", "one"]):
        subprocess.run([*git, *command], check=True)
    commit = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    Path(".git/info/exclude").write_text("out*\n")
    assert clplat("submit", *SLURM, "run.dir=out1")[0] == 0
    assert json.loads(Path("out1/code.json").read_text()) == {"commit": commit, "dirty": False, "untracked": []}
    assert not Path("out1/code.diff").exists()
    Path("code.py").write_text("a = 2\n")
    Path("more.py").write_text("")
    monkeypatch.chdir("sub")
    assert clplat("submit", *SLURM, "run.dir=../out2", "--seed", "1")[0] == 0
    found = json.loads(Path("../out2/code.json").read_text())
    assert found == {"commit": commit, "dirty": True, "untracked": ["more.py"]}
    subprocess.run(["git", "checkout", "-q", "--", "."], cwd="..", check=True)
    subprocess.run(["git", "apply", "out2/code.diff"], cwd="..", check=True)
    assert Path("../code.py").read_text() == "a = 2\n"
