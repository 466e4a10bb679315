"""`glitchrun rm`: removes a run, also in MLflow."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from glitchrun.errors import RunLocked, TrackingUnavailable, UsageError, require
from glitchrun.ledger import ROOT, RunRecord, find_runs, hold, is_held
from glitchrun.ledger.garbage import folder_size, remove_folder, used_only_by
from glitchrun.ledger.step_store import attempt_folder
from glitchrun.report.formatting import counted, size
from glitchrun.runner.lookup import find_run
from glitchrun.terminal import say, visible

if TYPE_CHECKING:
    from glitchrun.tracking.existing_run import ExistingRun


@click.command("rm")
@click.argument("run")
@click.option("--yes", is_flag=True, help="Remove it without confirmation.")
@click.option("--local", is_flag=True, help="Keep the run in MLflow.")
def command(run: str, yes: bool, local: bool) -> None:
    """Removes one attempt of RUN, the newest without #N, and deletes it in MLflow.

    Exits with 4, and removes nothing, if MLflow cannot be reached; --local removes only the folder.
    What its steps measured stays in the store until `glitchrun gc`.
    """
    root = ROOT.resolve()
    record = find_run(run, root)
    folder = record.folder.resolve()
    if not folder.is_relative_to(root / "runs"):
        raise UsageError(f"{folder} is not below {root}/runs; remove it yourself")
    if is_held(folder.parent):
        raise RunLocked(f"a process is executing this run ({folder.parent}); stop it first")
    found = None if local else _in_mlflow(record, root)
    for line in _lines(record, folder, root):
        say(line)
    say(f"  MLflow: {_mlflow(found, local)}")
    if not yes and not click.confirm("Remove it?", err=True):
        raise UsageError("nothing was removed; --yes removes without confirmation")
    with hold(folder.parent):
        parent_deleted = found is not None and _delete(found, record)
        remove_folder(folder)
    also = ", and the parent of its matrix in MLflow, which has no other cells" * parent_deleted
    say(f"removed{also}")


def _in_mlflow(record: RunRecord, root: Path) -> ExistingRun | None:
    require("mlflow", "filelock")
    from glitchrun.tracking.existing_run import find

    try:
        return find(record, root)
    except TrackingUnavailable as error:
        raise TrackingUnavailable(
            f"{error}. Nothing was removed; --local removes the run's folder only"
        ) from error


def _delete(found: ExistingRun, record: RunRecord) -> bool:
    from glitchrun.tracking.existing_run import delete

    return delete(found, record)


def _lines(record: RunRecord, folder: Path, root: Path) -> list[str]:
    identity = record.identity
    name = f"{identity.experiment} · {identity.name}  {identity.key[:12]}#{identity.attempt}"
    own = used_only_by(record, find_runs(root))
    lines = [visible(name), f"  {folder}: {size(folder_size(folder))}"]
    if own:
        held = sum(folder_size(attempt_folder(root, *step)) for step in own)
        steps = f"{counted(len(own), 'step')} that only this run uses: {size(held)}"
        lines.append(f"  {steps}, until `glitchrun gc`")
        lines += [f"    {key[:12]}#{attempt}" for key, attempt in own]
    return lines


def _mlflow(found: ExistingRun | None, local: bool) -> str:
    if local:
        return "the run stays there (--local)"
    if found is None:
        return "has no such run"
    return f"run {found.run_id}{', deleted there already' if found.is_deleted else ''}"
