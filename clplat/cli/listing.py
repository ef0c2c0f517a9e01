"""``clplat list``: what can be chosen by name."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from clplat import fits, registry
from clplat.cli import flags, output
from clplat.errors import UsageError, suggestion

KINDS = {("strategies" if group == "strategy" else f"{group}s"): group for group in registry.GROUPS}
EPILOG = flags.examples(
    "clplat list",
    "clplat list strategies",
    "clplat list strategies --for split-digits --backbone mlp",
    "clplat list backbones --for lorenz96",
    "clplat list scenarios --for resnet18",
    "clplat list backbones --json",
)


def listing(
    kind: Annotated[
        str | None, typer.Argument(metavar="KIND", help=f"One of {', '.join(KINDS)}; all if left out.")
    ] = None,
    fit_for: Annotated[
        str | None,
        typer.Option(
            "--for",
            metavar="NAME",
            help="Which strategies or backbones fit a scenario; which scenarios a backbone.",
        ),
    ] = None,
    backbone: flags.Backbone = None,
    as_json: flags.Json = False,
    config_dir: flags.ConfigDir = None,
) -> None:
    """List what can be chosen by name."""
    for folder in config_dir or ():
        registry.add_config_dir(folder)
    if kind is not None and kind not in KINDS and kind not in KINDS.values():
        raise UsageError(f"there is nothing called '{kind}' to list.{suggestion(kind, KINDS)}")
    if fit_for is not None or backbone is not None:
        _fitting(KINDS.get(kind or "", kind), fit_for, backbone, as_json)
        return
    groups = list(KINDS.values()) if kind is None else [KINDS.get(kind, kind)]
    entries = [entry for group in groups for entry in registry.entries(group).values()]
    summaries = {(entry.group, entry.name): summary(entry) for entry in entries}
    if as_json:
        rows = [
            {
                "group": entry.group,
                "name": entry.name,
                "summary": summaries[entry.group, entry.name],
                "target": entry.target,
                "info": entry.info,
            }
            for entry in entries
        ]
        print(json.dumps(rows, indent=2))
    elif kind is None:
        rows_all = [(entry.group, entry.name, summaries[entry.group, entry.name]) for entry in entries]
        output.table(("kind", "name", ""), rows_all)
    else:
        told = [key for key in ("family", "needs") if any(entry.info.get(key) for entry in entries)]
        output.table(
            ("name", *told, ""),
            [
                (entry.name, *(_words(entry.info.get(key)) for key in told), summaries[entry.group, entry.name])
                for entry in entries
            ],
        )


def _words(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else "" if value is None else str(value)


def _fitting(group: str | None, fit_for: str | None, backbone: str | None, as_json: bool) -> None:
    if group == "strategy":
        rows = fits.verdicts(fit_for, backbone)
    elif group == "backbone" and fit_for is not None and backbone is None:
        rows = fits.backbones(fit_for)
    elif group == "scenario" and (fit_for is None) != (backbone is None):
        rows = fits.scenarios(str(fit_for or backbone))
    else:
        raise UsageError(
            "--for and --backbone ask what fits: clplat list strategies --for SCENARIO [--backbone NAME], "
            "clplat list backbones --for SCENARIO, or clplat list scenarios --for BACKBONE"
        )
    if as_json:
        print(json.dumps([{"name": v.name, "fits": v.fits, "remark": v.remark} for v in rows], indent=2))
    else:
        words = {True: "yes", False: "no", None: "?"}
        output.table(("name", "fits", ""), [(v.name, words[v.fits], v.remark) for v in rows])


def summary(entry: registry.Entry) -> str:
    """One line on an entry: what its file says, and only else what the source of its target says, which takes longer.

    A file says it in ``summary`` of ``_info_`` or in a comment on its first line.
    """
    if entry.path is not None and not isinstance(entry.info.get("summary"), str):
        with open(entry.path, encoding="utf-8") as file:
            first = file.readline().strip()
        if first.startswith("#"):
            return first.lstrip("#").strip()
    return registry.summary(entry)
