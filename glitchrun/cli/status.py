"""`glitchrun status`: lists runs with their progress."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import click

from glitchrun.ledger import ROOT, RunRecord, is_held
from glitchrun.ledger.files import now
from glitchrun.ledger.garbage import folder_size, used_steps
from glitchrun.ledger.record import status_word
from glitchrun.ledger.step_store import attempt_folder
from glitchrun.report.formatting import age, moment, size
from glitchrun.report.outcome import ROLES, check_rows, gates_outcome, outcome
from glitchrun.runner.lookup import readable_runs, report_damage
from glitchrun.spec.experiment_loading import load_experiment
from glitchrun.terminal import emit_json, fitted, say, styled, visible


@click.command("status")
@click.argument("spec", required=False, type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", type=click.Choice(["text", "json"]), default="text", show_default=True
)
def command(spec: Path | None, output: str) -> None:
    """Lists runs with their progress, age, size and tags; with SPEC, only those of its experiment.

    The first size is that of the run's own folder, the second that of the steps that it uses, which
    runs may share.
    """
    runs = readable_runs(ROOT)
    if spec is not None:
        first = load_experiment(spec).cells[0].spec
        name = first.experiment
        runs = [run for run in runs if run.identity.experiment == name]
    report_damage(runs)
    sizes = cache(folder_size)  # runs share steps
    rows = [_row(run, sizes) for run in runs]
    if output == "json":
        emit_json({"runs": rows})
    elif not rows:
        say(f"no runs under {ROOT}/")
    else:
        for run, row in zip(runs, rows, strict=True):
            say(fitted(_line(row, outcome(run).tone), indent=12))
        if any(row["status"] in ("KILLED", "STALE") for row in rows):
            say("glitchrun apply resumes INTERRUPTED and STALE runs", err=True)


def _row(run: RunRecord, sizes: Callable[[Path], int] = folder_size) -> dict[str, Any]:
    root = run.folder.parents[3]
    steps = [attempt_folder(root, *step) for step in used_steps(run)]
    return {
        "experiment": run.identity.experiment,
        "name": run.identity.name,
        "key": run.identity.key,
        "attempt": run.identity.attempt,
        "status": _status(run),
        "started": datetime.fromtimestamp(run.started_at / 1000, UTC).isoformat(timespec="seconds"),
        "started_at": run.started_at,
        "age": max(0, now() - run.started_at) // 1000,
        "steps": [_progress(run, step.id) for step in run.steps],
        "gates": gates_outcome(run) or None,
        "failed_checks": sum(row["outcome"] == "fail" for _, row in check_rows(run)),
        "delivered": run.delivered,
        "tags": run.tags,
        "bytes": sizes(run.folder),
        "step_bytes": sum(map(sizes, steps)),
        "folder": str(run.folder),
        "damage": run.damage,
        "repairs": list(run.repairs),
    }


def _status(run: RunRecord) -> str:
    """STALE: RUNNING in the ledger, but no process executes it; `apply` resumes it."""
    if run.status == "RUNNING" and not is_held(run.folder.parent):
        return "STALE"
    return run.status


def _progress(run: RunRecord, step_id: str) -> dict[str, Any]:
    step = next(step for step in run.steps if step.id == step_id)
    stage, done, total = step.progress or ("", 0, None)
    return {
        "id": step.id,
        "finished": step.finished,
        "stage": stage,
        "done": done,
        "total": total,
    }


def _line(row: dict[str, Any], tone: str = "pass") -> str:
    """A run's line, its status and its gates in the colour of the outcome."""
    steps = "  ".join(
        f"{step['id']} {'done' if step['finished'] else _count(step)}" for step in row["steps"]
    )
    undelivered = "" if row["delivered"] else "  (not in MLflow)"
    repaired = "  (its ledger was damaged and repaired)" if row["repairs"] else ""
    shared = f" + {size(row['step_bytes'])}" if row["step_bytes"] else ""
    tags = "".join(f"  {name}={text}" for name, text in row["tags"].items())
    head = f"{status_word(row['status']):<12}{_verdict(row):<20}"
    rest = (
        f"{moment(row['started_at'])}, {age(row['age'])} ago  "
        f"{' · '.join(dict.fromkeys((row['experiment'], row['name'])))}  "
        f"{row['key'][:8]}#{row['attempt']}  {steps}  {size(row['bytes'])}{shared}"
        f"{undelivered}{repaired}{tags}"
    )
    return styled(visible(head), ROLES[tone]) + visible(rest)


def _verdict(row: dict[str, Any]) -> str:
    """The outcome of gates and checks in a word or two; empty without either."""
    if row["failed_checks"] and row["gates"] != "fail":
        return "checks fail"
    return f"gates {row['gates']}" if row["gates"] else ""


def _count(step: dict[str, Any]) -> str:
    if step["total"] is None:
        return f"{step['stage']} {step['done']:,}".strip()
    return f"{step['stage']} {step['done']:,}/{step['total']:,}".strip()
