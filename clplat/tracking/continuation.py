"""Going on with a run: the same one with other settings, the one that a command began before, or a fork of one.

No torch: all of it is decided by names, manifests and configurations before a process is started.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from clplat import changes, checkpoint
from clplat import config as configuration
from clplat.errors import UsageError
from clplat.tracking.directory import create, is_run, run_name, write_atomic, write_history

# A run that goes on with other settings takes them from config.next.yaml until it has found that they leave its past
# as it is; only then does that file become config.yaml.


def configuration_file(run_dir: Path) -> Path:
    """Where the configuration is that a process starting now has to take."""
    proposed = run_dir / "config.next.yaml"
    return proposed if proposed.exists() else run_dir / "config.yaml"


def propose(run_dir: Path, config: Mapping[str, Any]) -> None:
    """Let the run go on with this configuration, if it turns out that it may."""
    text = configuration.dump(config)
    if (run_dir / "config.yaml").read_text(encoding="utf-8") == text:
        (run_dir / "config.next.yaml").unlink(missing_ok=True)
    else:
        write_atomic(run_dir / "config.next.yaml", text)


def settle(run_dir: Path, accepted: bool) -> None:
    """The proposed configuration, if there is one, becomes the run's own, or goes. What was done may then be longer."""
    proposed = run_dir / "config.next.yaml"
    if proposed.exists() and accepted:
        for name in ("results.json", "metrics.json"):
            (run_dir / name).unlink(missing_ok=True)
        os.replace(proposed, run_dir / "config.yaml")
    proposed.unlink(missing_ok=True)


def wait_for(run_dir: Path, config: Mapping[str, Any], seconds: float = 60) -> None:
    """Wait until rank 0 has made a run directory, or proposed to go on, with the same configuration.

    Raises:
        UsageError: it has not.
    """
    text, deadline = configuration.dump(config), time.monotonic() + seconds
    while not is_run(run_dir) or configuration_file(run_dir).read_text(encoding="utf-8") != text:
        if time.monotonic() > deadline:
            raise UsageError(f"{run_dir}: rank 0 did not prepare it, or was given another configuration")
        time.sleep(0.1)


def find(config: Mapping[str, Any]) -> Path | None:
    """The run that a configuration would go on with: ``run.dir``, or under ``run.root`` the newest of the same name
    whose configuration differs in nothing that matters. None where there is none."""
    if config["run"]["dir"]:
        run_dir = Path(config["run"]["dir"]).expanduser()
        return run_dir if is_run(run_dir) else None
    root, name = Path(config["run"]["root"]).expanduser(), run_name(config)
    number, found = 1, None
    while is_run(run_dir := root / (name if number == 1 else f"{name}-{number}")):
        number += 1
        with contextlib.suppress(UsageError):
            if not changes.changes(_past(configuration.load(run_dir / "config.yaml")), _past(config)):
                found = run_dir
    return found


def _past(config: Mapping[str, Any]) -> dict[str, Any]:
    """What must be the same for one command to be the continuation of another."""
    return {key: value for key, value in changes.flatten(config).items() if not changes.is_free(key)}


def fork(source: Path, experiences: int | None, config: Mapping[str, Any], argv: Sequence[str]) -> Path:
    """Make a run that starts where another stood after so many experiences, with settings of its own.

    Args:
        source: a run directory.
        experiences: how many it had learned; None takes the most for which there is a checkpoint.
        config: the new run's configuration.

    Raises:
        UsageError: there is no such checkpoint, or the new run directory cannot be made.
    """
    ends = {
        number: path
        for number, path in checkpoint.boundaries(source / "checkpoints").items()
        if checkpoint.check(path) is None
    }
    experiences = max(ends, default=0) if experiences is None else experiences
    if experiences not in ends:
        known = f"there are some after {', '.join(map(str, sorted(ends)))} experiences" if ends else "there is none"
        raise UsageError(
            f"{source} has no checkpoint at the end of {experiences} experiences: {known}. A run with "
            "trainer.keep_boundaries=true keeps them all"
        )
    manifest = checkpoint.read_manifest(ends[experiences])
    run_dir = create(config, argv)
    for name, length in manifest["lengths"].items():
        with open(source / name, "rb") as file:
            (run_dir / name).write_bytes(file.read(length))
    from clplat.metrics import store  # brings numpy, which most commands do without

    if (source / store.FOLDER).is_dir():
        shutil.copytree(source / store.FOLDER, run_dir / store.FOLDER)
        store.cut(run_dir, experiences - 1)  # the last evaluation comes after the checkpoint
    target = run_dir / "checkpoints" / ends[experiences].name
    shutil.copytree(ends[experiences], target)
    origin = {"run": str(source.resolve()), "experiences": experiences, "config": manifest["config"]}
    write_atomic(target / "manifest.json", json.dumps({**manifest, "config": dict(config), "origin": origin}))
    write_history(run_dir, "fork", source=str(source.resolve()), experiences=experiences)
    return run_dir
