"""``clplat dashboard`` through the front door."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from urllib.parse import urlsplit

import pytest

from clplat import registry, signals
from clplat.cli import main
from tests.report.conftest import make  # noqa: F401 - a fixture

# Says at its end whether torch was imported.
CODE = """
import atexit, sys
atexit.register(lambda: print("torch" in sys.modules))
from clplat.cli import main
sys.exit(main(sys.argv[1:]))
"""


def started(*words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", CODE, "dashboard", "--port", "0", *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0"])
def test_it_serves_until_it_is_interrupted(make, tmp_path, host):  # noqa: F811
    make("runs/a")
    with started(str(tmp_path / "runs"), "--host", host) as process:
        assert process.stdout is not None
        address = urlsplit(process.stdout.readline().strip())
        assert address.hostname == host
        assert bool(address.query) == (host == "0.0.0.0")
        asked = urllib.request.Request(f"http://localhost:{address.port}/api/runs")
        asked.add_header("Authorization", f"Bearer {address.query.removeprefix('token=')}")
        with urllib.request.urlopen(asked) as answer:
            assert json.load(answer)["order"] == ["a"]
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
    assert (process.returncode, out.split(), err) == (0, ["False"], "")


def test_a_token_from_the_environment_is_asked_for(make, tmp_path, monkeypatch):  # noqa: F811
    make("runs/a")
    monkeypatch.setitem(os.environ, "CLPLAT_TOKEN", "t0ken-t0ken-t0ken")
    with started(str(tmp_path / "runs")) as process:
        assert process.stdout is not None
        assert process.stdout.readline().strip().endswith("/?token=t0ken-t0ken-t0ken")
        process.terminate()


def test_what_cannot_be(make, capsys, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr(signals, "install", lambda: None)
    monkeypatch.setattr(registry, "_added", [])
    monkeypatch.chdir(tmp_path)
    assert main(["dashboard"]) == 2
    assert "runs: there is no such folder" in capsys.readouterr().err
    make("runs/a")
    assert main(["dashboard", "--token", "short"]) == 2
    assert "at least 16 plain characters" in capsys.readouterr().err
    assert main(["dashboard", "--port", "70000"]) == 2
    assert "--port 70000" in capsys.readouterr().err
    assert main(["dashboard", "--host", "192.0.2.1", "--port", "0"]) == 2
    assert "--host 192.0.2.1" in capsys.readouterr().err
