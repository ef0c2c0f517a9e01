"""Runs on a real SLURM on this machine: two nodes, a partition that preempts another.

All jobs are submitted at once, since each process pays for the imports; the tests look at what became of them.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.harness import results

ROOT = Path(__file__).resolve().parents[2]
SLURM_LOCAL = ROOT / "scripts" / "slurm_local"
NEEDED = ("munged", "slurmctld", "slurmd", "sbatch")
PATIENCE = 600  # seconds for anything to happen; a machine that is busy with other things takes its time

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        any(shutil.which(name) is None for name in NEEDED), reason="SLURM is not here: apt-get install slurm-wlm munge"
    ),
]

SMALL = ["--cluster", "slurm", "--strategy", "er", "--backbone", "mlp", "backbone.hidden=12", "backbone.dropout=0.2"]
SMALL += ["scenario.experiences=2", "scenario.test=0.8", "strategy.memory=20", "trainer.accelerator=cpu"]
SMALL += ["trainer.threads=1", "trainer.max_epochs=1", "trainer.log_every=50", "cluster.time=10"]
LONG = ["trainer.max_epochs=100", "trainer.batch_size=16", "trainer.checkpoint_every=500"]  # some seconds of training
ONE_NODE = ["cluster.sbatch.exclusive=true", "cluster.sbatch.nodelist=n1"]


def run(*words: str | Path, cwd: Path | None = None) -> str:
    """Standard output of a command, which must end well."""
    done = subprocess.run([str(word) for word in words], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def until(what: str, happened: Callable[[], Any], patience: float = PATIENCE) -> Any:
    deadline = time.monotonic() + patience
    while not (found := happened()):
        assert time.monotonic() < deadline, f"did not happen: {what}\n{run('squeue', '--states=all')}"
        time.sleep(0.2)
    return found


def processes(folder: str) -> dict[int, str]:
    """The command lines, by process, of what names a folder."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:  # it has just ended
            continue
        if folder in words:
            found[int(path.parent.name)] = words
    return found


@pytest.fixture(scope="module")
def slurm() -> Iterator[None]:
    """The real thing, as ``scripts/slurm_local`` starts it."""
    home = tempfile.mkdtemp(prefix="slurm-")  # short, since a socket lies in it
    before = dict(os.environ)
    os.environ |= {"SLURM_HOME": home}
    try:
        started = subprocess.run([SLURM_LOCAL, "up", "--nodes", "2"], capture_output=True, text=True, check=False)
        if started.returncode == 3:
            pytest.skip(f"SLURM does not start here: {started.stderr.strip().splitlines()[-1]}")
        assert started.returncode == 0, started.stderr
        os.environ["SLURM_CONF"] = started.stdout.strip().removeprefix("export SLURM_CONF=")
        os.environ["PYTHONPATH"] = str(ROOT)
        yield
    finally:
        subprocess.run([SLURM_LOCAL, "down"], check=False)
        os.environ.clear()
        os.environ.update(before)
        left = processes(home)
        shutil.rmtree(home, ignore_errors=True)
        assert not left


class Place:
    """A folder to submit from."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def clplat(self, *words: str) -> str:
        return run(sys.executable, "-m", "clplat", *words, cwd=self.folder)

    def submit(self, name: str, *words: str) -> str:
        """Submit one run to ``name`` and return the job's id."""
        self.clplat("submit", *SMALL, f"run.dir={name}", *words)
        return json.loads((self.folder / name / "job.json").read_text())["job"]

    def row(self, name: str) -> dict[str, Any]:
        (found,) = json.loads(self.clplat("jobs", name, "--json"))
        return found

    def ended(self, name: str) -> dict[str, Any]:
        return until(f"{name} ends", lambda: (row := self.row(name)) and not row["active"] and row)

    def trains(self, name: str) -> bool:
        """Whether a run is in the middle of training."""
        metrics = self.folder / name / "metrics.jsonl"
        return metrics.exists() and metrics.read_text().count("\n") > 3

    @contextmanager
    def held(self, *names: str) -> Iterator[None]:
        """Hold runs in the middle of training, which on a quick machine might end before what is to interrupt them."""
        pids: dict[str, int] = {}

        def all_held() -> bool:
            for name in set(names) - set(pids):
                if self.trains(name):
                    found = processes(f"clplat.cluster.task {self.folder / name} ")
                    (pids[name],) = (pid for pid, words in found.items() if not words.startswith("srun"))
                    os.kill(pids[name], signal.SIGSTOP)
            return len(pids) == len(names)

        try:
            until(f"{names} train", all_held)
            yield
        finally:
            for pid in pids.values():
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

    def history(self, name: str) -> list[str]:
        path = self.folder / name / "job.history"
        return [line.split()[0] for line in path.read_text().splitlines()] if path.exists() else []


def squeue(job: str, what: str) -> str:
    return run("squeue", "--array", "--noheader", "--states=all", f"--jobs={job}", f"--format={what}").strip()


@pytest.fixture(scope="module")
def place(slurm: None, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """Everything submitted, and every interruption done."""
    place = Place(tmp_path_factory.mktemp("a 'place'"))
    (place.folder / "hpc_ckpt_1.ckpt").write_text("Lightning would load this")
    out_of_time = place.submit("late", *LONG, "cluster.time=2", "cluster.signal_before=45")
    place.submit("preempted", *LONG, *ONE_NODE)
    cancelled = place.submit("cancelled", *LONG, "trainer.max_epochs=100000")
    with place.held("preempted", "late"):  # SLURM lets them go on as it sends its signal
        run("sbatch", "--partition=high", "--nodelist=n1", "--exclusive", "--output=/dev/null", "--wrap=true")
        until("both are requeued", lambda: all("requeue" in place.history(name) for name in ("preempted", "late")))
    until("late waits", lambda: squeue(out_of_time, "%T") == "PENDING")
    run("scontrol", "update", f"jobid={out_of_time}", "TimeLimit=10")
    until("cancelled trains", lambda: place.trains("cancelled"))
    run("scontrol", "requeue", cancelled)  # as SLURM does by itself where a node fails or preemption gives no notice
    whole = place.submit("whole", *LONG)
    place.clplat("submit", *SMALL, "--seed", "1,2", "cluster.max_parallel=1", "run.root=several")
    place.submit("two-ranks", "trainer.devices=2")
    place.submit("two-nodes", "trainer.num_nodes=2", f"cluster.dependency=afterok:{whole}")
    place.submit("never", f"cluster.dependency=afternotok:{whole}")
    place.submit("impossible", "learner.head=per-task")
    until("cancelled starts again", lambda: place.history("cancelled").count("start") == 2)
    place.clplat("cancel", "cancelled")
    return place


def record(run_dir: Path) -> list[str]:
    return (run_dir / "metrics.jsonl").read_text().splitlines()


@pytest.mark.parametrize("name", ["preempted", "late"])
def test_an_interrupted_run_ends_as_if_nothing_had_been(place, name):
    assert place.ended("whole")["state"] == "COMPLETED"
    row = place.ended(name)
    assert (row["state"], row["status"], row["requeues"]) == ("COMPLETED", "done", 1)
    assert place.history(name) == ["start", "requeue", "start"]
    if name == "preempted":  # a time limit's signal may come before Python has started, and then there is no word of it
        assert "go on with" in (place.folder / name / "job.log").read_text()
    assert results(place.folder / name) == results(place.folder / "whole")
    assert record(place.folder / name) == record(place.folder / "whole")


def test_the_preempted_run_was_in_training(place):
    place.ended("preempted")
    log = (place.folder / "preempted" / "log.txt").read_text()
    assert "stopped by a signal" in log


def test_what_slurm_requeues_by_itself_is_requeued_once_and_a_cancelled_run_not_at_all(place):
    """Both send TERM to the ranks, which save; the script then leaves it at that."""
    row = place.ended("cancelled")
    assert (row["state"], row["status"], row["requeues"]) == ("CANCELLED", "cancelled", 1)
    place.ended("two-nodes")  # later than a requeued job would have started again
    assert place.history("cancelled") == ["start", "start"]
    assert squeue(row["job"], "%T") == "CANCELLED"


def test_an_array_runs_as_many_at_once_as_it_may(place):
    rows = [place.ended(f"several/er-mlp-permuted-digits-s{seed}") for seed in (1, 2)]
    assert [row["state"] for row in rows] == ["COMPLETED", "COMPLETED"]
    first, second = (row["job"] for row in rows)
    assert (first.partition("_")[0], first[-2:], second[-2:]) == (second.partition("_")[0], "_0", "_1")
    assert squeue(first, "%e") <= squeue(second, "%S")  # one ends before the other starts
    assert len({results(Path(place.folder / row["run"]))["weights_sha256"] for row in rows}) == 2
    assert place.clplat("logs", rows[1]["run"]) == Path(rows[1]["log"]).read_text()


def test_a_job_waits_for_another(place):
    place.ended("two-nodes")
    whole, after = (place.row(name)["job"] for name in ("whole", "two-nodes"))
    assert squeue(whole, "%e") <= squeue(after, "%S")
    assert place.ended("never")["state"] == "CANCELLED"  # what it waited for cannot happen any more


def test_two_tasks_on_one_node_and_on_two(place):
    assert place.ended("two-ranks")["state"] == place.ended("two-nodes")["state"] == "COMPLETED"
    for name in ("two-ranks", "two-nodes"):
        environment = json.loads((place.folder / name / "environment.json").read_text())
        assert environment["world_size"] == 2
    assert squeue(place.row("two-nodes")["job"], "%N") == "n[1-2]"
    assert squeue(place.row("two-ranks")["job"], "%N") in ("n1", "n2")
    assert results(place.folder / "two-ranks") == results(place.folder / "two-nodes")


def test_a_failure_keeps_its_exit_code(place):
    row = place.ended("impossible")
    assert (row["state"], row["status"]) == ("FAILED", "failed")
    assert place.history("impossible") == ["start"]
    assert "ExitCode=2:0" in run("scontrol", "show", "job", row["job"])
    assert "task labels" in place.clplat("logs", "impossible", "-f")


def test_what_slurm_refuses_leaves_nothing(place):
    words = [sys.executable, "-m", "clplat", "submit", *SMALL, "run.root=refused", "cluster.partition=nowhere"]
    done = subprocess.run(words, cwd=place.folder, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "Invalid partition name specified" in done.stderr
    assert "There are: high, main." in done.stderr
    assert not (place.folder / "refused").exists()


def test_a_sweep_is_an_array_that_goes_on_where_it_was_interrupted(slurm, tmp_path):
    """Of three runs one after the other the first ends, the second is cancelled, and the third cannot be built."""
    place = Place(tmp_path)
    words = ["sweep", "--launcher", "slurm", *SMALL, "strategy.memory=20,30,-1", "--json"]

    def sweep(*more: str) -> tuple[list[dict[str, Any]], str]:
        command = [sys.executable, "-m", "clplat", *words, *more]
        done = subprocess.run(command, cwd=place.folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout), done.stderr

    rows, _ = sweep("--jobs", "1")
    first, second, third = (row["run"] for row in rows)
    job = rows[0]["job"].partition("_")[0]
    assert [row["job"] for row in rows] == [f"{job}_{index}" for index in range(3)]
    until("the second waits for the first", lambda: "JobArrayTaskLimit" in squeue(f"{job}_1", "%r"))
    assert sweep()[1] == "3 runs, 0 to submit, 0 done, 3 under way\n"
    assert place.ended(first)["status"] == "done"
    place.clplat("cancel", second, third)
    kept = (tmp_path / first / "results.json").stat().st_mtime_ns

    rows, said = sweep()
    assert said.splitlines()[-1] == "3 runs, 2 to submit, 1 done, 0 under way"
    assert [row["state"] for row in rows] == ["done", "submitted", "submitted"]
    assert (tmp_path / first / "results.json").stat().st_mtime_ns == kept
    assert place.ended(second)["status"] == "done"
    assert place.ended(third)["state"] == "FAILED"
    compared = json.loads(place.clplat("compare", "runs/sweep", "--by", "strategy.memory", "--json"))
    assert sorted(row["strategy.memory"] for row in compared["rows"]) == ["20", "30"]
    assert len(compared["left_out"]) == 1

    _, said = sweep()
    lines = said.splitlines()
    assert lines[0] == f"failed: strategy.memory=-1 (FAILED), {third}"
    assert "    error: a memory of -1 samples cannot hold any" in lines[1:-1], said
    assert lines[-1] == "3 runs, 1 to submit, 2 done, 0 under way"
    place.clplat("cancel", third)
