"""``clplat sweep``: many runs from one command, and what came of them."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from clplat.cli import flags, output
from clplat.errors import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_OK, UsageError
from clplat.sweep.asked import Asked
from clplat.sweep.grid import Planned

EPILOG = flags.examples(
    "clplat sweep --strategy naive,ewc,er --seed 0,1,2 strategy.ewc.importance=10,100,1000",
    "clplat sweep --strategy ewc --random 20 'strategy.importance=log(1,1e4)' 'optimizer.lr=1e-3,3e-3'",
    "clplat sweep --strategy ewc,si --select first-2 scenario.validation=0.1 strategy.ewc.importance=1,10,100",
    "clplat sweep --preset power-law --launcher slurm --cluster slurm",
    "clplat compare runs/sweep --by strategy",
)


def sweep(
    ctx: typer.Context,
    overrides: flags.Overrides = None,
    strategy: flags.Strategy = None,
    backbone: flags.Backbone = None,
    scenario: flags.Scenario = None,
    optimizer: flags.Optimizer = None,
    trainer: flags.Trainer = None,
    logger: flags.Logger = None,
    cluster: flags.Cluster = None,
    preset: flags.Preset = None,
    config: flags.Config = None,
    config_dir: flags.ConfigDir = None,
    seed: flags.Seed = None,
    devices: flags.Devices = None,
    name: Annotated[str, typer.Option("--name", metavar="NAME", help="The sweep's folder under run.root.")] = "sweep",
    jobs: Annotated[
        int | None, typer.Option("--jobs", metavar="N", help="Runs at a time; else as many as there is room for.")
    ] = None,
    launcher: Annotated[
        Literal["local", "slurm"], typer.Option("--launcher", help="Run here, or submit one SLURM array.")
    ] = "local",
    draws: Annotated[
        int | None, typer.Option("--random", metavar="N", help="Draw N combinations of the options, not all of them.")
    ] = None,
    draw_seed: Annotated[int, typer.Option("--random-seed", metavar="N", help="What the draws are made from.")] = 0,
    select: Annotated[
        str | None,
        typer.Option("--select", metavar="first-K", help="Choose the options on the first K experiences, then run."),
    ] = None,
    proposals: Annotated[
        int | None, typer.Option("--optuna", metavar="N", help="With --select: Optuna proposes N combinations.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the runs and stop; write nothing.")] = False,
    as_json: flags.Json = False,
    traceback: flags.Traceback = False,
) -> int:
    """Run every combination of values that are given with commas.

    --strategy, --backbone, --scenario, --optimizer and --seed take a,b,c, and so does every SECTION.KEY=VALUE; a preset
    may hold such values under `sweep:`. Called again, it keeps what is done, goes on with what was stopped and tries
    again what failed. Runs lie in one folder, under run.root.
    """
    from clplat import registry
    from clplat.sweep import preset as presets

    for folder in config_dir or ():
        registry.add_config_dir(folder)
    named = {
        "strategy": strategy,
        "backbone": backbone,
        "scenario": scenario,
        "optimizer": optimizer,
        "trainer": trainer,
        "logger": logger,
        "cluster": cluster or ("slurm" if launcher == "slurm" else None),
        "seed": seed,
        "devices": devices,
    }
    named, words = presets.apply(preset, config or (), named, overrides or ())
    if jobs is not None and launcher == "slurm":
        words = [*words, f"cluster.max_parallel={jobs}"]
    asked = Asked(named, words, preset, config or [], draws, draw_seed, name)
    if jobs is not None and jobs < 1:
        raise UsageError(f"--jobs {jobs}: at least 1 is needed")
    if not name or Path(name).name != name or name == "..":
        raise UsageError(f"--name {name!r}: the name of one folder, which is made in run.root")
    _check_proposals(proposals, draws, select, dry_run)
    if select is not None:
        return _select(asked, select, launcher, jobs, dry_run, as_json, ctx.obj, proposals)
    runs = asked.runs()
    if dry_run:
        return _print(runs, as_json)
    if launcher == "slurm":
        return _submit(runs, ctx.obj, as_json)
    return _run(runs, jobs, ctx.obj, as_json)


def _print(runs: Sequence[Planned], as_json: bool) -> int:
    if as_json:
        print(json.dumps([{"run": str(run.path), **run.chosen} for run in runs], indent=2))
    else:
        output.table(("run", "directory"), [(run.label, str(run.path)) for run in runs])
        print(f"{len(runs)} runs")
    return EXIT_OK


def _make(runs: Sequence[Planned], argv: Sequence[str]) -> None:
    from clplat.tracking import directory

    for run in runs:
        if not directory.is_run(run.path):
            directory.create(run.config, argv)


def _check_proposals(proposals: int | None, draws: int | None, select: str | None, dry_run: bool) -> None:
    if proposals is None:
        return
    problems = [f"--optuna {proposals}: at least 1 is needed"] if proposals < 1 else []
    if select is None:
        problems.append("--optuna needs --select first-K: it judges by validation samples of the first K experiences")
    if draws is not None:
        problems.append("only one of --random and --optuna can be given")
    if dry_run:
        problems.append("--dry-run knows no runs with --optuna: each proposal follows from the results before it")
    if problems:
        raise UsageError(*problems)


def _run(
    runs: Sequence[Planned], jobs: int | None, argv: Sequence[str], as_json: bool = False, *, last: bool = True
) -> int:
    """Run what is not done yet, here, and tell what came of it, and if it is the last to run also what to do next."""
    from clplat.sweep import pool
    from clplat.sweep.show import live
    from clplat.sweep.state import Progress, is_done
    from clplat.tracking import directory

    _make(runs, argv)
    jobs = jobs or pool.default_jobs(max(run.config["trainer"].get("devices", 1) for run in runs))
    progress = Progress(runs, jobs)
    todo = [run for run in runs if progress.state(run) == "waiting"]
    print(f"{len(runs)} runs, {len(todo)} to do, {jobs} at a time, in {runs[0].path.parent}", file=sys.stderr)
    with live(progress) as show:
        interrupted = pool.run_all(
            [run.path for run in todo], jobs, started=show.started, ended=show.ended, idle=show.refresh
        )
    failed = [run for run in runs if run.path in progress.failed]
    for run in failed:
        _tell_failed(run, f"exit code {progress.failed[run.path]}")
    left = [run for run in runs if not is_done(run.path) and run not in failed]
    if as_json:
        print(json.dumps([_plain(run, progress) for run in runs], indent=2, allow_nan=False))
    elif last and not interrupted:
        folder = directory.shown(runs[0].path.parent)
        print(f"next: clplat compare {folder}   clplat report {folder}   clplat runs {folder} --sort ACC")
    if interrupted:
        print(f"stopped with {len(left)} runs to go; the same command goes on", file=sys.stderr)
        return EXIT_INTERRUPTED
    return EXIT_FAILED if failed else EXIT_OK


def _tell_failed(run: Planned, how: str) -> None:
    from clplat.sweep.state import last_lines

    print(f"failed: {run.label} ({how}), {run.path}", file=sys.stderr)
    for line in last_lines(run.path):
        print(f"    {line}", file=sys.stderr)


def _plain(run: Planned, progress: Any) -> dict[str, Any]:
    from clplat.report.runs import load

    data = load(run.path)
    return {
        "run": str(run.path),
        **run.chosen,
        "state": progress.state(run),
        "summary": data.summary,
        "seconds": data.seconds,
    }


def _propose(
    asked: Asked, how: Sequence[str], proposals: int, jobs: int | None, argv: Sequence[str]
) -> tuple[int, list[Planned]]:
    """Run what Optuna proposes, one batch after the other; returns the worst exit code, and all candidates."""
    from clplat.sweep import pool
    from clplat.sweep.grid import spaces
    from clplat.sweep.optuna import Search

    def plan(values: Mapping[str, str], flags: Mapping[str, str]) -> Planned:
        (run,) = asked.chosen(values, flags, *how)
        return run

    searches = [
        Search(flags, axes, plan, proposals, asked.draw_seed) for flags, axes in spaces(asked.named, asked.overrides)
    ]
    worst = EXIT_OK
    for search in searches:
        batch = jobs or pool.default_jobs(search.devices)
        while proposed := search.proposals(batch):
            code = _run([run for _, run in proposed], batch, argv, last=False)
            if code == EXIT_INTERRUPTED:
                return code, []
            worst = max(worst, code)
            for trial, run in proposed:
                search.tell(trial, run)
    return worst, [run for search in searches for run in search.candidates()]


def _submit(runs: Sequence[Planned], argv: Sequence[str], as_json: bool) -> int:
    """Submit what is neither done nor under way as one array; what failed is named, and submitted again."""
    from clplat.cluster import jobs as records
    from clplat.cluster import submission
    from clplat.sweep.scheduled import standings

    place = submission.place_of(runs[0].config)
    place.ready()
    found = standings(runs)
    for run in runs:
        if found[run.path].state == "failed":
            _tell_failed(run, found[run.path].how)
    states = {path: standing.state for path, standing in found.items()}
    todo = [run for run in runs if states[run.path] in ("failed", "waiting")]
    counts = [f"{list(states.values()).count(state)} {state}" for state in ("done", "under way")]
    print(f"{len(runs)} runs, {len(todo)} to submit, {', '.join(counts)}", file=sys.stderr)
    if todo:
        batch, number = submission.submit(place, [run.config for run in todo], argv, overwrite=False, go_on=True)
        states |= {run.path: "submitted" for run in todo}
    if as_json:
        rows = [(run, records.read(run.path)) for run in runs]
        plain = [
            {"run": str(run.path), **run.chosen, "state": states[run.path], "job": job.id if job else None}
            for run, job in rows
        ]
        print(json.dumps(plain, indent=2, allow_nan=False))
    elif todo:
        print(submission.announcement(batch, number))
    else:
        print("nothing to submit")
    return EXIT_OK


def _select(
    asked: Asked,
    how: str,
    launcher: str,
    jobs: int | None,
    dry_run: bool,
    as_json: bool,
    argv: Sequence[str],
    proposals: int | None,
) -> int:
    """Search on the first experiences, then run what was best."""
    from clplat.sweep import select
    from clplat.tracking.directory import write_atomic

    k = select.first(how)
    if launcher != "local":
        raise UsageError("--select runs its search here: use --launcher local, then submit what it chose")
    searching = dataclasses.replace(asked, name=f"{asked.name}/select")
    one_seed = (asked.named["seed"] or "0").split(",")[0]
    if proposals is None:
        candidates = searching.runs(*select.searching(k), seed=one_seed)
        if dry_run:
            return _print(candidates, as_json)
        code = _run(candidates, jobs, argv, last=False)
    else:
        searching = dataclasses.replace(searching, named={**asked.named, "seed": one_seed})
        code, candidates = _propose(searching, select.searching(k), proposals, jobs, argv)
    if code == EXIT_INTERRUPTED:
        return code
    choices = select.choose(candidates)
    folder = candidates[0].path.parent.parent
    write_atomic(select.record(folder), json.dumps(select.plain(choices), indent=2) + "\n")
    final: list[Planned] = []
    for choice in choices:
        what = " ".join(f"{key}={value}" for key, value in choice.values.items()) or "nothing to choose"
        print(f"chosen for {choice.flags['strategy']}: {what}", file=sys.stderr)
        final += asked.chosen(choice.values, choice.flags)
    return max(code, _run(final, jobs, argv, as_json))
