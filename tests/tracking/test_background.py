"""Mirrors that hang, are slow, or fail: training neither waits for them nor fails by them."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from clplat.tracking import background
from clplat.tracking.background import Background, MirrorFailedError
from clplat.tracking.mirrors import wandb as weights_and_biases
from clplat.tracking.mirrors.wandb import WandbMirror
from clplat.tracking.null import NullMirror
from clplat.tracking.record import Record, lines
from tests.tracking.conftest import CONFIG, LINES, RESULTS
from tests.tracking.wandb_file import offline_runs


class Hanging(NullMirror):
    """Waits for ever in one of its methods."""

    def __init__(self, where: str) -> None:
        self.where, self.let_go = where, threading.Event()

    def start(self, *args: Any) -> None:
        self.wait("start")

    def log(self, *args: Any) -> None:
        self.wait("log")

    def finish(self, *args: Any) -> None:
        self.wait("finish")

    def wait(self, here: str) -> None:
        if here == self.where:
            self.let_go.wait()


@pytest.fixture(params=["start", "log", "finish"])
def hanging(request: pytest.FixtureRequest) -> Iterator[Hanging]:
    mirror = Hanging(request.param)
    yield mirror
    mirror.let_go.set()


def test_a_run_does_not_wait_for_a_mirror_that_hangs(tmp_path, capsys, monkeypatch, hanging):
    monkeypatch.setattr(background, "LEFT_DONE", 0.2)
    kept = Record(tmp_path, [hanging])
    begun = time.monotonic()
    kept.begin({}, 0.0, CONFIG)
    for line in LINES:
        kept.log(**line)
    assert time.monotonic() - begun < 0.2
    kept.close(RESULTS)
    assert lines(tmp_path, "metrics.jsonl") == LINES
    assert capsys.readouterr().err == (
        "warning: Hanging failed and is switched off: it did not take the end of the run within 0 s\n"
    )


def test_a_mirror_that_is_too_far_behind_is_dropped_and_memory_stays_bounded(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(background, "WAITING", 3)
    mirror = Hanging("start")
    kept = Record(tmp_path, [mirror])
    kept.begin({}, 0.0, CONFIG)
    for line in LINES * 2:
        kept.log(**line)
    kept.close(RESULTS)
    mirror.let_go.set()
    assert lines(tmp_path, "metrics.jsonl") == LINES * 2
    assert capsys.readouterr().err == "warning: Hanging failed and is switched off: it is 3 lines behind\n"


def test_a_slow_mirror_gets_everything_in_order():
    class Slow(NullMirror):
        def __init__(self) -> None:
            self.got: list[Any] = []

        def start(self, *args: Any) -> None:
            time.sleep(0.1)
            self.got.append(args[2])

        def log(self, *args: Any) -> None:
            self.got += args

        def finish(self, *args: Any) -> None:
            time.sleep(0.1)
            self.got += args

    mirror = Slow()
    told = Background(mirror)
    told.start(None, CONFIG, LINES[:2])  # type: ignore[arg-type]
    for line in LINES[2:]:
        told.log(line)
    told.finish(RESULTS)
    assert mirror.got == [LINES[:2], *LINES[2:], RESULTS]


def test_what_a_mirror_raises_comes_with_the_next_call():
    class Raising(NullMirror):
        def log(self, *args: Any) -> None:
            raise SystemExit("gives up")

    told = Background(Raising())
    told.start(None, CONFIG, [])  # type: ignore[arg-type]
    told.log(LINES[0])
    with pytest.raises(MirrorFailedError, match="SystemExit: gives up"):
        told.finish(RESULTS)


def test_a_wandb_server_that_never_answers_delays_nothing(tmp_path, nobody, monkeypatch, capfd):
    """The whole W&B library against a port that takes connections and says nothing."""
    monkeypatch.setattr(weights_and_biases, "START_TIMEOUT", 2.0)
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
        kept = Record(tmp_path, [WandbMirror()])
        begun = time.monotonic()
        kept.begin({}, 0.0, CONFIG)
        for line in LINES:
            kept.log(**line)
        assert time.monotonic() - begun < 1.0
        (tmp_path / "results.json").write_text("{}", encoding="utf-8")
        kept.close(RESULTS)
    import wandb

    wandb.teardown()
    (run,) = offline_runs(tmp_path)
    assert run.series("eval/ACC", "experience") == [(0, 0.9), (1, 0.7)]
    assert capfd.readouterr().err.startswith("W&B cannot be reached, going on offline: ")
