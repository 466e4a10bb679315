"""`glitchrun rm`: removes a run, also in MLflow."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from glitchrun.errors import GlitchrunError, RunLocked, TrackingUnavailable, UsageError, require
from glitchrun.ledger import ROOT, RunRecord, find_runs, hold, is_held
from glitchrun.ledger.folders import study_cells, study_folder
from glitchrun.ledger.garbage import empty_studies, folder_size, remove_folder, used_only_by
from glitchrun.ledger.step_store import attempt_folder
from glitchrun.report.formatting import counted, size
from glitchrun.runner.lookup import find_run
from glitchrun.terminal import say, visible

if TYPE_CHECKING:
    from glitchrun.tracking.sync import ExistingRun


@click.command("rm")
@click.argument("run")
@click.option("--yes", is_flag=True, help="Remove it without confirmation.")
@click.option("--local", is_flag=True, help="Keep the run in MLflow.")
def command(run: str, yes: bool, local: bool) -> None:
    """Removes one attempt of RUN, the newest without #N, and deletes it in MLflow.

    Exits with 4, and removes nothing, if MLflow cannot be reached; --local removes only the folder.
    What its steps measured stays in the store until `glitchrun gc`. The page of a study is removed
    with the last of its runs.
    """
    root = ROOT.resolve()
    record = find_run(run, root)
    folder = record.folder.resolve()
    if not folder.is_relative_to(root / "runs"):
        raise UsageError(f"{folder} is not below {root}/runs; remove it yourself")
    if is_held(folder.parent):
        raise RunLocked(f"a process is executing this run ({folder.parent}); stop it first")
    found = None if local else _in_mlflow(record, root)
    unreadable: list[GlitchrunError] = []
    runs = find_runs(root, unreadable.append)
    pages = [] if unreadable else _last_pages(record, runs, root)  # it may be of the same study
    for line in (*_lines(record, folder, root, runs), *_study_lines(record, pages, root)):
        say(line)
    say(f"  MLflow: {_mlflow(found, local)}")
    if not yes and not click.confirm("Remove it?", err=True):
        raise UsageError("nothing was removed; --yes removes without confirmation")
    with hold(folder.parent):
        parent_deleted = found is not None and _delete(found, record)
        remove_folder(folder)
    for page in pages:
        remove_folder(page)
    also = ", and the parent of its matrix in MLflow, which has no other cells" * parent_deleted
    say(f"removed{also}")


def _in_mlflow(record: RunRecord, root: Path) -> ExistingRun | None:
    require("mlflow", "filelock")
    from glitchrun.tracking.sync import find

    try:
        return find(record, root)
    except TrackingUnavailable as error:
        raise TrackingUnavailable(
            f"{error}. Nothing was removed; --local removes the run's folder only"
        ) from error


def _delete(found: ExistingRun, record: RunRecord) -> bool:
    from glitchrun.tracking.sync import delete

    return delete(found, record)


def _last_pages(record: RunRecord, runs: list[RunRecord], root: Path) -> list[Path]:
    """The folders of the studies of which this run is the last."""
    before = empty_studies(root, runs)
    others = [run for run in runs if run.identity != record.identity]
    return [page for page in empty_studies(root, others) if page not in before]


def _lines(record: RunRecord, folder: Path, root: Path, runs: list[RunRecord]) -> list[str]:
    identity = record.identity
    name = f"{identity.experiment} · {identity.name}  {identity.key[:12]}#{identity.attempt}"
    own = used_only_by(record, runs)
    lines = [visible(name), f"  {folder}: {size(folder_size(folder))}"]
    if own:
        held = sum(folder_size(attempt_folder(root, *step)) for step in own)
        steps = f"{counted(len(own), 'step')} that only this run uses: {size(held)}"
        lines.append(f"  {steps}, until `glitchrun gc`")
        lines += [f"    {key[:12]}#{attempt}" for key, attempt in own]
    return lines


def _study_lines(record: RunRecord, pages: list[Path], root: Path) -> Iterator[str]:
    """What happens to the page of the study that the run belongs to."""
    for page in pages:
        yield f"  {page}, the page of its study, which has no other run: {size(folder_size(page))}"
    parent = record.identity.parent
    if not pages and parent and record.identity.key in study_cells(study_folder(root, parent)):
        yield f"  its study's page stays; `glitchrun report {parent}` writes it without the run"


def _mlflow(found: ExistingRun | None, local: bool) -> str:
    if local:
        return "the run stays there (--local)"
    if found is None:
        return "has no such run"
    return f"run {found.run_id}{', deleted there already' if found.is_deleted else ''}"
