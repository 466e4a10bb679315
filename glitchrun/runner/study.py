"""The study that the runs of a plan belong to: its key, its cells, and its report.

A run belongs to one study at a time. A spec whose matrix was extended continues its study: the key,
the parent run in MLflow and the folder of the report stay, and so do cells that the matrix has no
longer. If a matrix has cells of another study that continues without them, they become cells of the
newer study.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from glitchrun.errors import GlitchrunError, RunError, TrackingUnavailable, file_access
from glitchrun.ledger import RunRecord, current_attempt, is_held, read_run
from glitchrun.ledger.folders import identities, note_study, reported_cells, study_folder
from glitchrun.ledger.identity import add_to_study
from glitchrun.plan.build import Plan, PlannedRun
from glitchrun.report.formatting import counted
from glitchrun.runner.engine import Session
from glitchrun.tracking.parent import deliver_study
from glitchrun.tracking.store import open_store
from glitchrun.tracking.sync import sync


def key_of(plan: Plan, root: Path) -> str | None:
    """The key of the plan's study, 16 hex digits; None for a single run.

    It is the key of the study that the matrix extends or repeats a part of. For any other matrix it
    is a digest of the keys of its runs.

    Args:
        plan: The plan.
        root: Tracking root.
    """
    if len(plan.runs) == 1:
        return None
    keys = {run.key for run in plan.runs}
    by_run = {
        identity.key: identity.parent  # that of the newest attempt
        for _, identity in identities(root)
        if identity.experiment == plan.experiment
    }
    cells: dict[str, set[str]] = {}
    for key, parent in by_run.items():
        if parent is not None:
            cells.setdefault(parent, set()).add(key)
    own = hashlib.sha256("".join(sorted(keys)).encode()).hexdigest()[:16]
    same = [(len(found), key) for key, found in cells.items() if found <= keys or keys <= found]
    return max(same)[1] if same else own


def begin(plan: Plan, runs: Sequence[PlannedRun], session: Session) -> None:
    """Notes the cells of the session's study, and adds those of `runs` that exist already to it."""
    if session.parent is not None:
        folder = study_folder(session.root, session.parent)
        try:
            note_study(folder, [run.key for run in plan.runs])
        except RunError as error:  # which fails no run
            session.display.say(f"the cells of the study were not noted: {error}")
        gather(runs, session)


def gather(runs: Sequence[PlannedRun], session: Session) -> None:
    """Makes runs that exist already cells of the session's study, also in MLflow.

    Runs of another experiment stay where they are, because MLflow shows no parent and child of
    different experiments. `glitchrun sync` moves what cannot be moved in MLflow now.
    """
    parent = session.parent
    if parent is None:
        return
    planned, spec_path = {run.key: run for run in runs}, str(session.experiment.path)
    moved: list[Path] = []
    for folder, identity in identities(session.root):
        run = planned.get(identity.key)
        if run is None or identity.experiment != run.cell.spec.experiment:
            continue
        name, values = run.cell.name, dict(run.cell.assignments)
        if (identity.parent, identity.name, identity.assignments) == (parent, name, values):
            continue
        if is_held(folder.parent):  # another process executes it
            continue
        try:
            with file_access(folder, "cannot be written"):
                add_to_study(folder, identity, parent, name, values, spec_path)
        except RunError as error:
            session.display.say(f"{name}: not made part of this study: {error}")
        else:
            moved.append(folder)
    if not moved:
        return
    session.display.say(f"{counted(len(moved), 'earlier run')} became part of this study")
    records = [read_run(folder) for folder in moved]
    known = [record for record in records if record.delivered_to and not record.damage]
    for synced in sync(known, session.root):
        if synced.outcome == "failed":
            session.display.say(
                f"{synced.record.identity.name}: still under its former parent in MLflow "
                f"({synced.detail}); move it with: glitchrun sync"
            )


def write(plan: Plan, session: Session) -> Path | None:
    """Writes the report of the matrix and delivers it to MLflow. Returns its folder; None for a
    single run, and if it cannot be written, which fails no run."""
    if session.parent is None:
        return None
    try:
        return _write(plan, session.parent, session)
    except GlitchrunError as exc:
        session.display.say(f"the report of the matrix was not written: {exc}")
        return None


def _write(plan: Plan, parent: str, session: Session) -> Path | None:
    from glitchrun.report.study_files import FILES, write_study  # imports scipy

    found = [current_attempt(session.root, run.cell.spec.experiment, run.key) for run in plan.runs]
    records = [read_run(attempt) for attempt in found if attempt]
    if len(records) < 2:
        return None
    folder = study_folder(session.root, parent)
    cells = {record.identity.key: record.identity.name for record in records}
    lost = any(not (folder / name).exists() for name in FILES)
    changed = any(run.action != "skip" for run in plan.runs) or reported_cells(folder) != cells
    if lost or changed:
        with file_access(folder, "cannot be written"):
            write_study(folder, records)
    try:
        last = _last_of(parent, records)
        deliver_study(last, folder, open_store(session.tracking_uri, session.root))
    except TrackingUnavailable as exc:
        session.display.say(
            f"the study's report is not in MLflow ({exc}); deliver it with: glitchrun sync"
        )
    return folder


def _last_of(parent: str, records: Sequence[RunRecord]) -> RunRecord:
    """The last run of the study itself; cells of another experiment have another parent."""
    own = [record for record in records if record.identity.parent == parent]
    return (own or records)[-1]
