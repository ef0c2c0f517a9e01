"""``clplat sweep --launcher slurm`` with stand-ins for SLURM's commands."""

import json
import os
import signal
import sys
from pathlib import Path

import pytest

from clplat.tracking import code, directory

WORDS = ["sweep", "--launcher", "slurm", "--strategy", "naive", "--seed", "0,1", "optimizer.lr=0.1,0.2"]


def rows(clplat, *words):
    """Where each run stands after the command, in the order of the runs."""
    exit_code, out, err = clplat(*WORDS, *words, "--json")
    assert exit_code == 0, err
    return json.loads(out), err


def start(run, job):
    """A start of a job, as the batch script notes it."""
    with open(run / "job.history", "a") as file:
        file.write(f"start {job} 0 n1 1\n")


def test_one_array_in_the_sweeps_folder_with_as_many_at_a_time(fakes, clplat):
    exit_code, out, err = clplat(*WORDS, "--jobs", "3")
    assert (exit_code, err) == (0, "4 runs, 4 to submit, 0 done, 0 under way\n")
    folder = Path("runs/sweep/array-naive-transformer-permuted-digits-1").absolute()
    assert out.splitlines() == [
        f"job 77, an array of 4 runs: {folder}", "look at it with: clplat jobs runs/sweep",
    ]  # fmt: skip
    assert "#SBATCH --array=0-3%3\n" in (folder / "job.sbatch").read_text()
    runs = [Path(line) for line in (folder / "runs.txt").read_text().splitlines()]
    assert all(directory.is_run(run) and run.parent == folder.parent for run in runs)
    assert fakes.calls("sbatch") == [["--parsable", str(folder / "job.sbatch")]]


def test_what_is_done_or_under_way_is_not_submitted_again(fakes, clplat):
    first, _ = rows(clplat)
    assert [(row["state"], row["job"]) for row in first] == [("submitted", f"77_{i}") for i in range(4)]
    assert (first[1]["seed"], first[1]["optimizer.lr"]) == ("0", "0.2")
    fakes.answer(sbatch="78\n")
    fakes.answer(squeue="77_0|COMPLETED|None\n77_1|RUNNING|None\n77_2|PENDING|Priority\n77_3|CANCELLED|None\n")
    directory.write_status(Path(first[0]["run"]), "done")
    directory.write_status(Path(first[3]["run"]), "cancelled")
    again, err = rows(clplat)
    assert err == "4 runs, 1 to submit, 1 done, 2 under way\n"
    assert [row["state"] for row in again] == ["done", "under way", "under way", "submitted"]
    assert again[3]["job"] == "78"
    for row in first[1:]:
        directory.write_status(Path(row["run"]), "done")
    assert clplat(*WORDS) == (0, "nothing to submit\n", "4 runs, 0 to submit, 4 done, 0 under way\n")
    assert len(fakes.calls("sbatch")) == 2


def test_a_job_that_still_waits_is_not_taken_for_an_earlier_one_of_its_run(fakes, clplat):
    first, _ = rows(clplat)
    for row in first:
        start(Path(row["run"]), row["job"])
        directory.write_status(Path(row["run"]), "cancelled")
    fakes.answer(sbatch="78\n", squeue="".join(f"77_{i}|CANCELLED|None\n" for i in range(4)))
    assert {row["state"] for row in rows(clplat)[0]} == {"submitted"}
    fakes.answer(squeue="".join(f"77_{i}|CANCELLED|None\n78_{i}|PENDING|None\n" for i in range(4)))
    again, _ = rows(clplat)
    assert [(row["state"], row["job"]) for row in again] == [("under way", f"78_{i}") for i in range(4)]
    assert len(fakes.calls("sbatch")) == 2
    start(Path(first[0]["run"]), "99")  # somebody submitted its script by hand
    jobs = json.loads(clplat("jobs", first[0]["run"], "--json")[1])
    assert (jobs[0]["job"], jobs[0]["requeues"]) == ("99", 0)


def test_runs_that_failed_are_named_with_their_last_lines(fakes, clplat):
    first, _ = rows(clplat)
    runs = [Path(row["run"]) for row in first]
    for number in (0, 1):
        log = Path(f"runs/sweep/array-naive-transformer-permuted-digits-1/{number}.log")
        log.write_text("".join(f"line {line} of {number}\n" for line in range(9)))
        start(runs[number], f"77_{number}")
    directory.write_status(runs[0], "failed")
    (runs[0] / "output.log").write_text("from an earlier try here\n")
    os.utime(runs[0] / "output.log", (1, 1))
    fakes.answer(sbatch="78\n")
    fakes.answer(squeue="77_1|OUT_OF_MEMORY|None\n77_2|CANCELLED|None\n77_3|PENDING|None\n")
    exit_code, _, err = clplat(*WORDS)
    assert exit_code == 0
    assert err.splitlines() == [
        f"failed: seed=0 optimizer.lr=0.1 (status failed), {first[0]['run']}",
        *(f"    line {line} of 0" for line in range(4, 9)),
        f"failed: seed=0 optimizer.lr=0.2 (OUT_OF_MEMORY), {first[1]['run']}",
        *(f"    line {line} of 1" for line in range(4, 9)),
        "4 runs, 3 to submit, 0 done, 1 under way",
    ]


def test_an_array_has_one_of_what_the_scheduler_is_asked_for(fakes, clplat):
    exit_code, _, err = clplat(*WORDS, "cluster.time=10,20", "trainer.devices=1,2")
    assert exit_code == 2
    assert [line.split(": ")[1] for line in err.splitlines()] == ["cluster.time=10,20", "trainer.devices=1,2"]
    assert not fakes.calls("sbatch")
    assert not Path("runs").exists()


def test_ctrl_c_before_the_scheduler_is_asked_leaves_nothing(fakes, clplat, monkeypatch):
    written = code.write

    def write(*what):
        os.kill(os.getpid(), signal.SIGINT)
        written(*what)

    monkeypatch.setattr(code, "write", write)
    assert clplat(*WORDS)[0] == 130
    assert not fakes.calls("sbatch")
    assert not Path("runs").exists()


@pytest.mark.parametrize("accepted", [True, False])
def test_ctrl_c_while_the_scheduler_answers(fakes, clplat, accepted):
    """A job that was taken is noted, or nobody would find it; one that was not leaves nothing."""
    (fakes.home / "bin" / "sbatch").write_text(
        f"#!{sys.executable}\nimport os\nos.kill(os.getppid(), {int(signal.SIGINT)})\n"
        + ("print(77)" if accepted else "os.kill(os.getpid(), 2)")
    )
    exit_code, out, _ = clplat(*WORDS)
    if accepted:
        assert (exit_code, out.split(",")[0]) == (0, "job 77")
        assert {json.loads(path.read_text())["job"] for path in Path("runs/sweep").glob("*/job.json")} == {
            "77_0", "77_1", "77_2", "77_3",
        }  # fmt: skip
    else:
        assert (exit_code, out) == (130, "")
        assert not Path("runs").exists()
