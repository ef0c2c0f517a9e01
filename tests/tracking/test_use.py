"""What is asked of the machine."""

from __future__ import annotations

import time

import pytest
import torch

from clplat.ranks import Ranks
from clplat.tracking import use
from clplat.tracking.use import Use


def test_cores_are_processor_seconds_in_a_second(monkeypatch):
    clock, busy = iter([10.0, 14.0, 15.0]), iter([1.0, 3.0, 7.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(time, "process_time", lambda: next(busy))
    asked = Use(Ranks())
    assert asked.taken()["cpu"] == [0.5]
    assert asked.taken()["cpu"] == [4.0]


def test_memory_that_is_taken_is_seen():
    asked = Use(Ranks())
    (before,) = asked.taken()["memory_bytes"]
    held = bytearray(b"x" * 2**26)
    (after,) = asked.taken()["memory_bytes"]
    assert 0.9 * len(held) < after - before < 1.5 * len(held)


def test_what_a_system_cannot_say_is_told_once_and_left_out(monkeypatch, tmp_path):
    monkeypatch.setattr(use, "STATM", tmp_path / "none")
    told: list[str] = []
    asked = Use(Ranks(), told.append)
    assert [sorted(asked.taken()) for _ in range(2)] == [["cpu"], ["cpu"]]
    assert len(told) == 1
    assert "without memory_bytes: FileNotFoundError" in told[0]


@pytest.mark.parametrize("library", [True, False])
def test_a_gpu_is_asked_through_torch(monkeypatch, library):
    """A stand-in for torch's answers: the rank of a GPU, on a machine that may have none."""

    def utilization(device: torch.device) -> int:
        assert device == torch.device("cuda", 1)
        if not library:
            raise ModuleNotFoundError("pynvml does not seem to be installed or it can't be imported.")
        return 87

    monkeypatch.setattr(torch.cuda, "utilization", utilization)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 2**30)
    told: list[str] = []
    found = Use(Ranks(device=torch.device("cuda", 1)), told.append).taken()
    assert found["gpu_memory_bytes"] == [2.0**30]
    assert found.get("gpu") == ([87.0] if library else None)
    assert len(told) == (0 if library else 1)


def test_each_rank_answers_for_itself():
    class Three(Ranks):
        """The first of three, of which the second cannot say how much memory it uses."""

        def each(self, values: list[float]) -> list[list[float]]:
            return [values, [2.0, float("nan")], [3.0, 4.0]]

    found = Use(Three(0, 3)).taken()
    assert found["cpu"][1:] == [2.0, 3.0]
    assert found["memory_bytes"][1:] == [None, 4.0]
