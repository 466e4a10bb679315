"""`glitchrun diff`: the changes of a spec since a run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from glitchrun.errors import ModelUnavailable, UsageError
from glitchrun.ledger import ROOT, RunRecord, current_attempt, read_run
from glitchrun.plan.build import PlannedRun, build
from glitchrun.runner.lookup import find_run, readable_runs
from glitchrun.runner.resolved import Resolver
from glitchrun.spec.digest import changed_paths
from glitchrun.spec.experiment_loading import load_experiment
from glitchrun.spec.types import Cell, Experiment
from glitchrun.terminal import emit_json, say

_MEANING = {
    "results": "changes results: apply starts a new run",
    "numerics": "changes rounding or speed, not results: apply keeps the run",
    "cosmetic": "changes neither: apply keeps the run",
}

_CONTENTS = {
    "model": "contents of the model",
    "resolved": "template, probes or token files",
}
"""Digests of what a spec only names: it may change under the same name. Changes of the spec or of
the model explain that it resolves to something else."""


@click.command("diff")
@click.argument("spec", type=click.Path(path_type=Path))
@click.argument("run", required=False)
@click.option("--set", "sets", multiple=True, metavar="K=V", help="Override a value of the spec.")
@click.option(
    "-o", "--output", type=click.Choice(["text", "json"]), default="text", show_default=True
)
def command(spec: Path, run: str | None, sets: tuple[str, ...], output: str) -> None:
    """Compares SPEC with RUN.

    Without RUN, compares each cell of SPEC with the run that `apply` would skip or resume for it,
    or else with the newest run of its name.
    """
    experiment = load_experiment(spec, sets, require_env=True)
    planned = _planned(experiment)
    found = []
    for cell in experiment.cells:
        own = planned.get(cell.name)
        record = _run_to_compare(cell, run, own.key if own and run is None else None)
        digests = {**own.digests, "model": own.fingerprint} if own else {}
        found.append(_difference(cell, record, digests))
    if output == "json":
        emit_json({"cells": found})
    else:
        say("\n".join(line for cell in found for line in _lines(cell)))


def _planned(experiment: Experiment) -> dict[str, PlannedRun]:
    """What `apply` would do by cell name; empty if the model is not available."""
    try:
        plan = build(
            experiment,
            lambda key: None,
            fetch=False,
            resolve=Resolver(),
        )
    except ModelUnavailable:
        return {}
    return {run.cell.name: run for run in plan.runs}


def _run_to_compare(cell: Cell, run: str | None, key: str | None) -> RunRecord | None:
    if run is not None:
        return find_run(run, ROOT)
    name = cell.spec.experiment
    attempt = current_attempt(ROOT, name, key) if key else None
    if attempt:  # the run that `apply` would skip or resume
        return read_run(attempt)
    mine = [
        record
        for record in readable_runs(ROOT)
        if record.identity.experiment == name and record.identity.name == cell.name
    ]
    return mine[-1] if mine else None


def _difference(cell: Cell, record: RunRecord | None, digests: Mapping[str, str]) -> dict[str, Any]:
    if record is None:
        return {"cell": cell.name, "run": None, "changes": []}
    changes = [
        {"path": path, "kind": kind, "old": old, "new": new}
        for path, kind, old, new in changed_paths(record.spec, cell.spec.document)
    ]
    for name, path in _CONTENTS.items():
        old, new = record.identity.digests.get(name), digests.get(name)
        explained = any(change["kind"] == "results" for change in changes)
        if old and new and old != new and not (name == "resolved" and explained):
            changes.append({"path": path, "kind": "results", "old": old, "new": new})
    run = f"{record.identity.key}#{record.identity.attempt}"
    return {"cell": cell.name, "run": run, "changes": changes}


def _lines(cell: dict[str, Any]) -> list[str]:
    if cell["run"] is None:
        return [f"{cell['cell']}: no run yet; apply starts one"]
    if not cell["changes"]:
        return [f"{cell['cell']}: same as {cell['run']}"]
    lines = [f"{cell['cell']}: against {cell['run']}"]
    for kind, meaning in _MEANING.items():
        changes = [change for change in cell["changes"] if change["kind"] == kind]
        if changes:
            lines.append(f"  {kind} ({meaning})")
            lines += [f"    {c['path']}: {_show(c['old'])} → {_show(c['new'])}" for c in changes]
    unknown = [change["kind"] for change in cell["changes"] if change["kind"] not in _MEANING]
    if unknown:
        raise UsageError(f"changes of unknown kind: {unknown}")
    return lines


def _show(value: Any) -> str:
    return "(absent)" if value is None else json.dumps(value, ensure_ascii=False)
