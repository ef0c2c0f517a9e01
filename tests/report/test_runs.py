"""What is read from run directories, whole and damaged."""

import json

import pytest

from clplat.errors import UsageError
from clplat.report import compare, tables
from clplat.report.runs import follow, load, load_runs
from tests.report.conftest import CONFIG, LINES, RESULTS, SUMMARY


def test_a_run_that_is_done(make):
    run = load(make("one"))
    assert (run.status, run.state, run.label, run.seed) == ("done", "done", "one", "0")
    assert [run.name(group) for group in tables.GROUPS] == ["ewc", "mlp", "permuted-digits"]
    assert (run.matrix, run.baseline) == (RESULTS["matrix"], RESULTS["baseline"])
    assert run.average_seen == pytest.approx([line["average_seen"] for line in LINES if "average_seen" in line])
    assert (run.summary, run.seconds, run.steps) == (SUMMARY, 1.5, 8)
    assert run.problems == []


@pytest.mark.parametrize("status", ["running", "failed", "preempted"])
def test_a_run_that_is_not_done_shows_what_it_has(make, status):
    path = make("one", status=status, lines=LINES[:3], time=1000.0)
    with open(path / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.write('{"event": "evaluate", "exper')  # being written
    run = load(path, now=1001.0)
    assert run.problems == []
    assert run.matrix == [[0.9, None]]
    assert run.baseline == [0.1, 0.125]
    assert run.summary["ACC"] == 0.9
    assert (run.seconds, run.steps) == (0.75, 4)
    assert run.state == f"{status} (1 evaluated)"


def test_a_run_that_went_silent(make):
    path = make("one", status="running", lines=[], time=1000.0)
    assert load(path, now=1000.0 + 7200).state == "running, silent for 2.0 h"
    assert load(path, now=1000.0 + 60).state == "running"


def test_a_run_that_has_hardly_begun(make):
    path = make("one", status="created", lines=[])
    (path / "metrics.jsonl").unlink()
    (path / "timings.jsonl").unlink()
    run = load(path)
    assert (run.matrix, run.baseline, run.seconds, run.problems) == ([], None, None, [])
    assert tables.matrix(run) == (["after"], [])


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"\xff\xfe", b'{"matrix": 3}', b'{"matrix": [[1], 2]}', b'{"matrix": {}}', b"[" * 100_000],
)
def test_damaged_results_are_named_and_the_lines_are_used(make, content):
    path = make("one")
    (path / "results.json").write_bytes(content)
    run = load(path)
    assert run.matrix == RESULTS["matrix"]
    if content != b"[]":
        (problem,) = run.problems
        assert "results.json" in problem


def test_damaged_lines_are_named_and_left_out(make):
    path = make("one", status="failed")
    lines = (path / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    bad = [b"{\n", b"3\n", b'{"event": "evaluate", "experience": 99, "accuracy": [1]}\n', b"\xff\n"]
    bad += [b'{"event": "evaluate", "experience": "0", "accuracy": [1]}\n', b'{"event": "evaluate"}\n']
    (path / "metrics.jsonl").write_bytes(b"".join([lines[0], *bad, *lines[1:]]))
    run = load(path)
    assert run.matrix == RESULTS["matrix"]
    (problem,) = run.problems
    assert "metrics.jsonl:2 and 5 more: not a line of the record" in problem


def test_numbers_that_are_none_are_not_numbers(make):
    path = make("one", lines=[{**LINES[0], "accuracy": ["x", True]}, {**LINES[2], "summary": {"ACC": 1e400}}])
    (path / "results.json").unlink()
    run = load(path)
    assert run.baseline == [None, None]
    assert run.summary == {"ACC": None}


@pytest.mark.parametrize("content", ["", "[]", "strategy: {name: [", "strategy: 3", "strategy: {name: {a: 1}}"])
def test_damaged_configurations_leave_a_question_mark(make, content):
    path = make("one")
    (path / "config.yaml").write_text(content, encoding="utf-8")
    run = load(path)
    assert run.name("strategy") == "?"
    assert len(run.problems) == (content in ("[]", "strategy: {name: ["))
    assert tables.summary([run])[1][0][1] == "?"


def test_runs_are_found_in_folders_once(make, tmp_path):
    for name in ("b/x", "b/y", "a", "a/checkpoints/inner"):
        make(name)
    runs = load_runs([tmp_path, tmp_path / "a", tmp_path / "b" / ".." / "b"])
    assert [run.label for run in runs] == ["a", "b/x", "b/y"]
    assert [run.label for run in load_runs([tmp_path / "b" / "x"])] == ["x"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError) as caught:
        load_runs([tmp_path / "empty", tmp_path / "a", tmp_path / "nowhere"])
    assert len(caught.value.messages) == 2
    assert "is no run directory and holds none" in caught.value.messages[0]


def test_names_are_one_line_that_can_be_printed(make):
    path = make("a\x1b[2Jb\nc", strategy={"name": "e\nwc\udc80"})
    run = load(path)
    assert run.label == "a\ufffd[2Jb\ufffdc"
    assert run.name("strategy") == "?" or "\n" not in run.name("strategy")
    json.dumps(tables.as_json([run], compare.groups([run]))).encode()


# --- comparing -------------------------------------------------------------------------------------------------------


def with_acc(path, acc):
    results = {**RESULTS, "summary": {**SUMMARY, "ACC": acc, "FWT": None}}
    (path / "results.json").write_text(json.dumps(results), encoding="utf-8")


def test_differing_keys():
    other = {**CONFIG, "optimizer": {"name": "adam", "lr": 0.01, "eps": None}}
    assert compare.differing([CONFIG, other]) == ["optimizer.lr", "optimizer.eps"]
    assert compare.differing([CONFIG, CONFIG]) == []


def test_runs_that_differ_in_the_seed_alone_are_a_group(make, tmp_path):
    for seed, acc in enumerate((0.5, 0.6, 0.7)):
        with_acc(make(f"s{seed}", seed=seed, run={"dir": str(seed)}), acc)
    make("again", seed=2)
    make("running", status="running", seed=3)
    make("strong", seed=0, strategy={"name": "ewc", "importance": 5})
    runs = load_runs([tmp_path])
    found = {len(group.runs): group for group in compare.groups(runs)}
    assert set(found) == {3, 1}
    assert found[3].repeated == ["s2"]  # the first with that seed counts
    assert found[3].where == ["strategy.importance=100.0"]
    assert found[1].where == ["strategy.importance=5"]
    mean, std, n = found[3].mean_std("ACC")
    assert (mean, std, n) == (pytest.approx(0.6), pytest.approx(0.1), 3)
    assert found[3].mean_std("FWT") == (0.05, None, 1)
    assert found[3].mean_std("nothing") is None
    head, rows = tables.seeds(list(found.values()))
    assert head[:6] == ["strategy", "backbone", "scenario", "where", "n", "ACC"]
    assert rows[0][4:6] == ["3", "0.6000 ± 0.1000"]
    assert rows[0][8] == "0.0500 (1)"
    assert tables.seeds([found[1]]) is None


def test_tables(make):
    run = load(make("one"))
    head, (row,) = tables.summary([run])
    assert dict(zip(head, row, strict=True)) == {
        "run": "one", "strategy": "ewc", "backbone": "mlp", "scenario": "permuted-digits", "seed": "0",
        "ACC": "0.7000", "forgetting": "0.3000", "BWT": "-0.3000", "FWT": "0.0500", "learning acc.": "0.8500",
        "seconds": "1.5", "status": "done",
    }  # fmt: skip
    assert tables.matrix(run) == (
        ["after", "1", "2"],
        [["start", "0.100", "0.125"], ["1", "0.900", ""], ["2", "0.600", "0.800"]],
    )


@pytest.mark.parametrize("asked", [True, False])
@pytest.mark.parametrize("cut", range(1, 400, 37))
def test_what_is_followed_is_what_is_loaded(make, asked, cut):
    """Wherever a file ends for now, in the middle of a line as well, and whether steps were asked for before or not."""
    path = make("run", status="running", time=1000.0)
    record = path / "metrics.jsonl"
    steps = [{**LINES[1], "step": 9}, {**LINES[1], "step": 10, "terms": {"loss": 1.0, "pull": 2.0}}]
    whole = record.read_bytes() + b'no line\n{"event": "train", "oops\n{"event": "train", "step": {}}\n'
    whole += b"".join(json.dumps(line).encode() + b"\n" for line in steps)
    record.write_bytes(whole[:cut])
    run = load(path, 1000.0)
    assert not asked or len(run.training) == int(cut > 218)
    record.write_bytes(whole[: cut + 150])
    assert follow(run, 1000.0)
    record.write_bytes(whole)
    (path / "timings.jsonl").write_text('{"at_seconds": 3.0}\n')
    assert follow(run, 1000.0)
    again = load(path, 1000.0)
    assert again.problems == [f"{record}:5 and 1 more: not a line of the record; left out"]
    assert repr(run.training) == repr(again.training)  # NaN is not equal to itself
    assert run == again
    assert (run.steps, run.seconds, list(run.training.step)) == (10, 3.0, [2, 9, 10])
    assert run.problems == [f"{record}:5 and 2 more: not a line of the record; left out"]
    assert follow(run, 2000.0)
    assert run.silent == 1000.0


def test_a_record_that_was_cut_is_to_be_loaded_again(make):
    path = make("run", status="running")
    run = load(path)
    lines = (path / "metrics.jsonl").read_text().splitlines(keepends=True)
    (path / "metrics.jsonl").write_text("".join(lines[:2]) + "x" * 2000 + "\n")
    assert not follow(run)
    (path / "metrics.jsonl").unlink()
    assert not follow(run)
    assert not follow(load(make("done")))
    fresh = load(make("fresh", status="running", lines=[]))
    assert follow(fresh)
