"""What is built from the repository holds everything, works elsewhere, and puts nothing else into site-packages."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LINKED = ("strategies", "scenarios", "conf")

pytestmark = pytest.mark.slow


def run(*command, cwd, **env):
    """Standard output of a command, which must end well."""
    done = subprocess.run(command, cwd=cwd, env=os.environ | env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command} gave {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A copy of what is, or would be, in the repository."""
    target = tmp_path_factory.mktemp("source") / "clplat"
    if shutil.which("git") and (ROOT / ".git").exists():
        names = run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=ROOT).split("\0")
        for name in filter(None, names):
            if (ROOT / name).is_file() or (ROOT / name).is_symlink():  # not one that is deleted but still tracked
                (target / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, target / name, follow_symlinks=False)
    else:
        unwanted = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist", "runs", "wandb")
        shutil.copytree(ROOT, target, symlinks=True, ignore=unwanted)
    return target


def build(source, kind, out):
    code = f"import sys; from setuptools import build_meta; print(build_meta.build_{kind}(sys.argv[1]))"
    return out / run(sys.executable, "-c", code, str(out), cwd=source).split()[-1]


@pytest.fixture(scope="module")
def wheel(source, tmp_path_factory):
    return build(source, "wheel", tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def expected(source):
    """The files that the package consists of, as they are named in it."""
    folders = {"clplat": source / "clplat", **{f"clplat/{name}": source / name for name in LINKED}}
    found = set()
    for name, folder in folders.items():
        for path in folder.rglob("*"):
            below = path.relative_to(folder)
            if path.suffix in (".py", ".yaml", ".typed", ".html", ".js", ".css") and not (
                name == "clplat" and below.parts[0] in LINKED
            ):
                found.add(f"{name}/{below.as_posix()}")
    return found


def test_the_folders_are_relative_symlinks():
    for name in LINKED:
        assert os.readlink(ROOT / "clplat" / name) == os.path.join("..", name)
    if not shutil.which("git") or not (ROOT / ".git").exists():
        pytest.skip("this is no git checkout, or git is missing: not checked that git has symlinks")
    modes = run("git", "ls-files", "--stage", *(f"clplat/{name}" for name in LINKED), cwd=ROOT).splitlines()
    assert [line.split()[0] for line in modes] == ["120000"] * 3


def test_the_wheel_holds_everything_and_nothing_else(wheel, expected):
    assert {
        "clplat/py.typed",
        "clplat/conf/strategy/ewc.yaml",
        "clplat/conf/default.yaml",
        "clplat/strategies/ewc.py",
        "clplat/scenarios/digits.py",
        "clplat/cli/__init__.py",
    } <= expected
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
    top = {name.split("/")[0] for name in names}
    information = {name for name in top if name.endswith(".dist-info")}
    assert top - information == {"clplat"}
    assert expected == {name for name in names if name.startswith("clplat/")}
    assert any(name.endswith("/licenses/LICENSE") for name in names)


def test_the_source_distribution_makes_the_same_wheel(source, wheel, tmp_path):
    sdist = build(source, "sdist", tmp_path)
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    again = build(tmp_path / sdist.name.removesuffix(".tar.gz"), "wheel", tmp_path)
    with zipfile.ZipFile(wheel) as one, zipfile.ZipFile(again) as two:
        assert sorted(one.namelist()) == sorted(two.namelist())


def test_the_wheel_works_elsewhere(wheel, tmp_path):
    target, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    if importlib.util.find_spec("pip"):
        install = [sys.executable, "-m", "pip", "install"]
    elif uv := shutil.which("uv"):
        install = [uv, "pip", "install"]
    else:
        pytest.skip("neither pip nor uv is here to install a wheel")
    run(*install, "--quiet", "--no-deps", "--no-index", "--target", str(target), str(wheel), cwd=elsewhere)

    def python(*words):
        return run(sys.executable, *words, cwd=elsewhere, PYTHONPATH=str(target))

    code = (
        "import clplat, clplat.strategies as s, clplat.scenarios as t; print(clplat.__file__, s.__file__, t.__file__)"
    )
    for path in map(Path, python("-c", code).split()):
        assert path.resolve().is_relative_to(target.resolve()), "another installation is imported"
    listed = json.loads(python("-m", "clplat", "list", "strategies", "--json"))
    assert {entry["name"] for entry in listed} >= {path.stem for path in (ROOT / "conf" / "strategy").glob("*.yaml")}
    printed = python("-m", "clplat", "fit", "--print-config", "--strategy", "ewc+er")
    assert "ewc+er" in printed
