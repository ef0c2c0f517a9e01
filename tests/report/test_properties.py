"""Whatever a run directory holds, cut off anywhere, being written, damaged, empty or huge, reading and drawing end."""

from __future__ import annotations

import json
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from clplat.report import compare
from clplat.report.page import page
from clplat.report.runs import RunData, load, load_runs
from clplat.report.tidy import as_csv
from clplat.report.views import VIEWS
from tests.report.conftest import CONFIG, HISTORY, REPORT, RESULTS, TIMINGS, WATCHED, Maker

LINES = "".join(json.dumps(line) + "\n" for line in WATCHED).encode()


def write(folder: Path, files: dict[str, bytes]) -> RunData:
    whole = {"config.yaml": json.dumps(CONFIG).encode(), "status.json": b'{"status": "running"}', **files}
    for name, content in whole.items():
        (folder / name).write_bytes(content)
    return load(folder)


def drawn(run: RunData) -> dict[str, Any]:
    return {view.key: view.figure([run]) for view in VIEWS}


@settings(max_examples=60)
@given(st.integers(0, len(LINES)))
def test_a_record_that_is_cut_off_anywhere(cut: int) -> None:
    """As a reader sees it while it is written: the whole lines count, the last is no problem."""
    with tempfile.TemporaryDirectory() as folder:
        run = write(Path(folder), {"metrics.jsonl": LINES[:cut]})
        assert run.problems == []
        whole = LINES[:cut].count(b"\n")
        ended = [line["experience"] for line in WATCHED[:whole] if line["event"] == "evaluate"]
        assert len(run.matrix) == max(ended, default=-1) + 1
        assert len(run.training) == sum(line["event"] == "train" for line in WATCHED[:whole])
        assert len(run.looks) == sum(line["event"] == "look" for line in WATCHED[:whole])
        assert not [said for said in drawn(run).values() if "cannot be drawn" in said]


# What might stand anywhere in JSON, and what stands there of old.
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just(10**400),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@st.composite
def spoilt(draw: Any, line: dict[str, Any]) -> dict[str, Any]:
    """A line of which some values are anything."""
    keys = draw(st.sets(st.sampled_from(sorted(line)), max_size=2))
    return {key: draw(anything) if key in keys and key != "event" else value for key, value in line.items()}


FULL = {**RESULTS, "stored_bytes": 100, "state_size": 8, "strategy": REPORT, "importance": {"a": 3.0}}
SPOILT = {
    "metrics.jsonl": st.tuples(*map(spoilt, WATCHED)),
    "timings.jsonl": st.tuples(*map(spoilt, TIMINGS)),
    "history.jsonl": st.tuples(*map(spoilt, HISTORY)),
}


@settings(max_examples=60)
@given(st.fixed_dictionaries(SPOILT), spoilt(FULL), spoilt(REPORT), st.booleans())
def test_values_of_any_kind(files: dict, results: dict, report: dict, done: bool) -> None:
    """A view draws or says why not, and never fails over what it finds."""
    content = {name: "".join(json.dumps(line) + "\n" for line in lines).encode() for name, lines in files.items()}
    if done:
        results = {**results, "strategy": report if "strategy" in results else None}
        content["results.json"] = json.dumps(results).encode()
    with tempfile.TemporaryDirectory() as folder:
        run = write(Path(folder), content)
        for key, said in drawn(run).items():
            assert not (isinstance(said, str) and "cannot be drawn" in said), (key, said)
        as_csv([run])
        assert page([run], compare.groups([run]), beside=True).endswith(
            "</html>\n"
        )  # allow_nan=False: no figure holds a NaN


def test_a_record_is_read_while_it_is_written(make: Maker) -> None:
    path = make("one", status="running", lines=[])
    n = 3000
    done = threading.Event()

    def grow() -> None:
        with open(path / "metrics.jsonl", "ab", buffering=0) as file:
            for step in range(1, n + 1):
                line = json.dumps({"event": "train", "experience": 0, "step": step, "terms": {"loss": 1 / step}})
                file.write(line[:20].encode())  # in two pieces, as a full buffer would
                file.write(line[20:].encode() + b"\n")
        done.set()

    writer = threading.Thread(target=grow)
    writer.start()
    lengths = []
    while not done.is_set():
        run = load(path)
        assert run.problems == []
        assert list(run.training.step) == list(range(1, len(run.training) + 1))
        lengths.append(len(run.training))
    writer.join()
    assert lengths == sorted(lengths)
    assert len(load(path).training) == n


def test_a_huge_run_makes_a_small_page(make: Maker, tmp_path: Path) -> None:
    experiences, steps = 50, 1000
    lines: list[dict[str, Any]] = [{"event": "evaluate", "experience": -1, "step": 0, "accuracy": [0.1] * experiences}]
    for i in range(experiences):
        for step in range(i * steps + 1, (i + 1) * steps + 1):
            lines.append({"event": "train", "experience": i, "step": step, "terms": {"loss": 1.0, "penalty": 0.5}})
        row = [0.9 if j <= i else 0.1 for j in range(experiences)]
        lines.append({"event": "evaluate", "experience": i, "step": (i + 1) * steps, "accuracy": row})
    make("one", status="running", lines=lines)
    begun = time.process_time()
    runs = load_runs([tmp_path])
    figures = {key: figure for key, figure in drawn(runs[0]).items() if isinstance(figure, dict)}
    assert len(runs[0].training) == experiences * steps
    assert {"matrix", "curves", "losses", "penalties"} <= set(figures)
    assert len(json.dumps(figures)) < 500_000
    assert time.process_time() - begun < 5  # a tenth of it
