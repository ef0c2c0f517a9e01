"""Answers to what the page asks, as plain values that become JSON."""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from clplat import yamlfile
from clplat.dashboard import overlay
from clplat.dashboard.index import Index
from clplat.errors import UsageError
from clplat.metrics.evidence import NotMeasuredError
from clplat.report.compare import differing
from clplat.report.query import COLUMNS, lookup, query
from clplat.report.runs import text
from clplat.report.views import VIEWS

MOST_RUNS = 50  # in a figure
MOST_EACH = 8  # runs that a view draws one by one
MOST_ROWS = 2000
TAIL = 1 << 16  # bytes of a log
LOGS = ("log.txt", "output.log", "job.log", "traceback.txt")
OWN = {"overlay": "Mean over the experiences seen, runs or groups", "training": "Loss terms over steps, runs or groups"}

Answer = dict[str, Any]


def about(index: Index) -> Answer:
    """What the page can show: the views, and the names of the columns."""
    drawn = [{"key": key, "title": title, "each": False} for key, title in OWN.items()]
    drawn += [{"key": view.key, "title": view.title, "each": view.each} for view in VIEWS]
    return {"views": drawn, "columns": list(COLUMNS)}


def table(
    index: Index, where: Sequence[str] = (), sort: str | None = None, columns: Sequence[str] = (), since: int = 0
) -> Answer:
    """The runs that meet the conditions, in order; cells only of those that have changed since a version.

    Raises:
        UsageError: a condition is none, or no run has such a key.
    """
    with index.lock:
        index.refresh()
        keys, runs = list(columns) or list(COLUMNS), index.runs()
        found = query(runs, where, sort)
        rows = {
            run.label: {
                "cells": [lookup(run, key) for key in keys],
                "status": run.status,
                "state": run.state,
                "problems": run.problems,
            }
            for run in found[:MOST_ROWS]
            if index.changed(run.label) > since
        }
        answer = {
            "version": index.version,
            "columns": keys,
            "order": [run.label for run in found[:MOST_ROWS]],
            "found": len(found),
            "total": len(runs),
            "rows": rows,
        }
        if not since:
            varying = [text(key) for key in differing([run.config for run in runs]) if key != "seed"]
            answer["keys"] = list(dict.fromkeys([key.removesuffix(".name") for key in varying]))
        return answer


def view(
    index: Index, key: str, labels: Sequence[str], by: str | None = None, term: str | None = None, since: int = 0
) -> Answer:
    """Figures of a view, each with the run it is of, or the reason why there is none; none of both where no run has
    changed since a version.

    Raises:
        KeyError: there is no such view, or no such run.
        UsageError: too many runs.
    """
    if len(labels) > MOST_RUNS:
        raise UsageError(f"{len(labels)} runs are too many for a figure: pick at most {MOST_RUNS}")
    with index.lock:
        index.refresh()
        version = max((index.changed(label) for label in labels), default=0)
        if since and version <= since:
            return {"version": index.version, "figures": None}
        runs = index.whole(labels)
        if not runs:
            return {"version": index.version, "figures": [_drawn(None, "no run is picked or shown")]}
        if key == "overlay":
            return {"version": index.version, "figures": [_drawn(None, _made(lambda: overlay.average(runs, by)))]}
        if key == "training":
            names = overlay.terms(runs)
            chosen = term if term in names or not names else names[0]
            made = _made(lambda: overlay.term(runs, chosen or "loss", by))
            return {"version": index.version, "figures": [_drawn(None, made)], "terms": names, "term": chosen}
        one = {view.key: view for view in VIEWS}[key]
        if not one.each:
            return {"version": index.version, "figures": [_drawn(None, one.figure(runs))]}
        shown = [_drawn(run.label, one.figure([run])) for run in runs[:MOST_EACH]]
        left = len(runs) - len(shown)
        return {"version": index.version, "figures": shown, "left": left}


def _made(draw: Callable[[], Answer]) -> Answer | str:
    try:
        return draw()
    except (NotMeasuredError, UsageError) as reason:
        return text(reason)


def _drawn(label: str | None, figure: Mapping[str, Any] | str) -> Answer:
    return {"run": label, "reason": figure} if isinstance(figure, str) else {"run": label, "figure": figure}


def details(index: Index, label: str) -> Answer:
    """A run in words: its configuration, its state, what is missing and why.

    Raises:
        KeyError: there is no such run.
    """
    with index.lock:
        index.refresh()
        (run,) = index.whole([label])
        return {
            "run": run.label,
            "state": run.state,
            "config": yamlfile.dump(run.config),
            "summary": run.summary,
            "reasons": run.reasons,
            "problems": run.problems,
        }


def log(index: Index, label: str, name: str | None = None, since: int | None = None) -> Answer:
    """The end of what a run has printed, or what was added since a position.

    Raises:
        KeyError: there is no such run, or no such log.
    """
    with index.lock:
        index.refresh()
        path = index.path(label)
    there = [known for known in LOGS if (path / known).is_file()]
    if name is None:
        name = there[0] if there else LOGS[0]
    if name not in LOGS:
        raise KeyError(name)
    content, begin, end = _tail(path / name, since)
    return {"run": label, "name": name, "names": there, "text": content, "begin": begin, "end": end}


def _tail(path: Path, since: int | None) -> tuple[str, int, int]:
    """The whole lines of a file from a position, or of its end where that is far back, and where they begin and end.
    Nothing of a file that is a link or a pipe."""
    with contextlib.suppress(OSError):
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with open(handle, "rb") as file:
            found = os.fstat(handle)
            if not stat.S_ISREG(found.st_mode):
                return "", 0, 0
            begin = max(0, found.st_size - TAIL)
            if since is not None and begin <= since <= found.st_size:
                begin = since
            file.seek(begin)
            content = file.read(TAIL)
        whole = content[: content.rfind(b"\n") + 1] or (content if len(content) == TAIL else b"")
        lines = whole.decode("utf-8", "replace").replace("\r\n", "\n").replace("\r", "\n")  # bars draw over themselves
        plain = re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", "\ufffd", lines)
        return plain, begin, begin + len(whole)
    return "", 0, 0
