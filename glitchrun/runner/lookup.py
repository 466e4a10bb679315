"""Finds the run that a name, a key or a folder identifies."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path

from glitchrun.errors import GlitchrunError, UsageError, file_access
from glitchrun.ledger import RunRecord, find_runs, latest_attempt, read_run, unreadable_lines
from glitchrun.ledger.folders import study_cells, study_folder
from glitchrun.ledger.identity import contains_run
from glitchrun.ledger.record import status_word
from glitchrun.report.formatting import moment
from glitchrun.terminal import say, visible

_LISTED = 12
_KEY = re.compile(r"[0-9a-f]{16}")


def find_run(text: str, root: Path) -> RunRecord:
    """The run that `text` identifies.

    `text` is a folder, `latest`, the start of a key, `KEY#N` for attempt N, a run's name, or the
    `run_id` that `apply -o json` prints. Without `#N` this is the newest attempt. If several runs
    have the name, as after a change of the spec, this is the newest finished one, or else the
    newest; a message on standard error names it.

    Args:
        text: The argument of a command.
        root: Tracking root.

    Raises:
        UsageError: no run or more than one matches; the message lists the runs.
        RunError: the run's files cannot be read.
    """
    record = _in_folder(Path(text)) or _under(root, text)
    report_damage([record])
    return record


def readable_runs(root: Path) -> list[RunRecord]:
    """Every run that can be read, oldest first. Reports the others on standard error."""
    unreadable: list[GlitchrunError] = []
    found = find_runs(root, unreadable.append)
    _report_unreadable(unreadable)
    return found


def _report_unreadable(errors: Sequence[GlitchrunError]) -> None:
    for line in unreadable_lines(errors):
        say(line, err=True)


def report_damage(runs: Iterable[RunRecord]) -> None:
    """Reports damaged ledgers and the remedy on standard error."""
    for run in runs:
        if run.damage:
            say(f"damaged: {run.damage}", err=True)


def _under(root: Path, text: str) -> RunRecord:
    """The run under the tracking root that `text` identifies."""
    newest_first = readable_runs(root)[::-1]
    if not newest_first:
        raise UsageError(f"there are no runs under {root}/: start one with glitchrun apply SPEC")
    if text == "latest":
        return newest_first[0]
    found = _named(text, newest_first)
    if not found:
        raise UsageError(f"no run is called {text!r}; the runs are:\n{_listing(newest_first)}")
    runs = _newest_attempts(found)
    if len(runs) == 1:
        return runs[0]
    names = {(record.identity.experiment, record.identity.name) for record in runs}
    if len(names) > 1 or any(record.identity.key.startswith(text) for record in runs):
        raise UsageError(f"{text!r} matches more than one run; use a key:\n{_listing(found)}")
    return _newest_of_name(text, runs)


def find_cells(text: str, root: Path) -> list[RunRecord]:
    """The cells of the study that `text` identifies, in the order in which they ran.

    Each cell is its newest finished run, or else its newest. If an experiment has several studies,
    these are the cells of the newest. Empty if `text` identifies no study, or a newer run.

    Args:
        text: The study's experiment, the name of its parent run in MLflow, or the start of its key.
        root: Tracking root.
    """
    return find_study(text, root)[1]


def find_study(text: str, root: Path) -> tuple[str, list[RunRecord]]:
    """The key of the study that `text` identifies, and its cells; see `find_cells`. A cell may have
    moved to another study since: its own key then names that one.

    Args:
        text: As for `find_cells`.
        root: Tracking root.
    """
    unreadable: list[GlitchrunError] = []
    newest_first = find_runs(root, unreadable.append)[::-1]
    parent, cells = text, _cells_of(text, root, newest_first) if _KEY.fullmatch(text) else []
    if not cells:
        cells = [run for run in newest_first if run.identity.parent and _is_cell_of(run, text)]
        parent = str(cells[0].identity.parent) if cells else ""
        cells = _cells_of(parent, root, newest_first) if cells else []
    own = [run for run in newest_first if text == run.identity.name]
    if any(run.identity.key.startswith(text) for run in newest_first) or (
        own and cells and own[0].started_at > cells[0].started_at
    ):
        return "", []
    own_cells = [run for run in cells if run.identity.parent == parent] or cells
    cells = [run for run in cells if _matrix(run) == _matrix(own_cells[0])]
    cells.sort(key=lambda run: run.status != "FINISHED")  # stable: the newest stay first
    taken: dict[str, RunRecord] = {}
    for run in cells:
        taken.setdefault(run.identity.name, run)
    if taken:  # otherwise `find_run` reports them
        _report_unreadable(unreadable)
        report_damage(taken.values())
    return parent, sorted(taken.values(), key=lambda run: (run.started_at, run.identity.name))


def _cells_of(parent: str, root: Path, newest_first: Sequence[RunRecord]) -> list[RunRecord]:
    """The runs of a study: those that its folder names. A cell that was taken out of its matrix is
    not among them, and an earlier version gave the parent of an extended matrix another key."""
    keys = study_cells(study_folder(root, parent))
    return [
        run
        for run in newest_first
        if (run.identity.key in keys if keys else run.identity.parent == parent)
    ]


def _is_cell_of(run: RunRecord, text: str) -> bool:
    identity = run.identity
    names = (identity.experiment, identity.sweep, run.delivered_to.get("parent_id"))
    return text in names or (
        identity.parent is not None and bool(text) and identity.parent.startswith(text)
    )


def _matrix(run: RunRecord) -> tuple[str, AbstractSet[str], int | None]:
    """Its experiment, its axes, and the limit of a smoke run."""
    return run.identity.experiment, run.identity.assignments.keys(), run.spec.get("limit")


class Baselines:
    """Finds the runs that gates name as baselines. The runs are read once."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._runs: list[RunRecord] | None = None

    def find(self, text: str, cell: str, own: str) -> RunRecord:
        """The finished run that `text` identifies, other than the run with the key `own`.

        Args:
            text: As for `find_run`; the name of a study stands for its cell of the same name.
            cell: Name of the cell that asks.
            own: Key of its run, which is never its own baseline.

        Raises:
            UsageError: no finished run matches, or several cells of a study that has none of this
                name; the message lists the runs.
            RunError: the run's files cannot be read.
        """
        if found := _in_folder(Path(text)):
            if found.identity.key == own:
                raise UsageError(f"{text} is this run itself")
            if found.status != "FINISHED":
                raise UsageError(f"the run in {text} is {status_word(found.status)}")
            return found
        if self._runs is None:
            self._runs = find_runs(self._root)
        others = [run for run in self._runs[::-1] if run.identity.key != own]
        finished = [run for run in others if run.status == "FINISHED"]
        if text == "latest" and finished:
            return finished[0]
        found_runs = _newest_attempts(
            [run for run in finished if _is_cell_of(run, text)] or _named(text, finished)
        )
        if not found_runs:
            unfinished = " that is finished" if _named(text, others) else ""
            listed = f"the runs are:\n{_listing(finished)}" if finished else "there are no runs"
            raise UsageError(f"no other run{unfinished} is called {text!r}; {listed}")
        same = [run for run in found_runs if run.identity.name == cell]
        names = {(run.identity.experiment, run.identity.name) for run in found_runs}
        if same or len(names) == 1:
            return (same or found_runs)[0]
        raise UsageError(
            f"{text!r} is a study without a cell named {cell!r}; it has:\n{_listing(found_runs)}"
        )


def find_runs_of(experiment: str, root: Path) -> list[RunRecord]:
    """The newest attempt of each run of an experiment, the oldest run first."""
    runs = [run for run in find_runs(root) if run.identity.experiment == experiment]
    return _newest_attempts(runs)


def _newest_attempts(found: Sequence[RunRecord]) -> list[RunRecord]:
    """The newest attempt of each run, in the order of `found`."""
    newest: dict[str, RunRecord] = {}
    for record in found:
        known = newest.setdefault(record.identity.key, record)
        if record.identity.attempt > known.identity.attempt:
            newest[record.identity.key] = record
    return list(newest.values())


def _newest_of_name(text: str, runs: Sequence[RunRecord]) -> RunRecord:
    """The newest finished run, or else the newest. `runs` is sorted from the newest."""
    finished = [record for record in runs if record.status == "FINISHED"]
    taken = (finished or runs)[0]
    which = "newest finished" if finished else "newest"
    others = f"{len(runs) - 1} other{'s' if len(runs) > 2 else ''}"
    say(
        f"{text!r} ran with more than one spec: using the {which} run, {_line(taken)}; "
        f"`glitchrun status` lists {others}",
        err=True,
    )
    return taken


def _in_folder(path: Path) -> RunRecord | None:
    """The run of an attempt's folder, or the newest attempt in a run's folder; else None."""
    if not os.path.isdir(path):  # noqa: PTH112 - false for any text, where Path raises
        return None
    with file_access(path):
        if contains_run(path):
            return read_run(path)
    number = latest_attempt(path)
    return read_run(path / f"attempt-{number}") if number else None


def _named(text: str, runs: list[RunRecord]) -> list[RunRecord]:
    """The runs whose key begins with `text`; else those with this MLflow id, name or experiment."""
    name, _, attempt = text.rpartition("#")
    if name and attempt.isdecimal():
        return [run for run in _named(name, runs) if run.identity.attempt == int(attempt)]
    found = [run for run in runs if text and run.identity.key.startswith(text)]
    found = found or [run for run in runs if run.delivered_to.get("run_id") == text]
    found = found or [run for run in runs if run.identity.name == text]
    return found or [run for run in runs if run.identity.experiment == text]


def _listing(runs: list[RunRecord]) -> str:
    lines = [f"  {_line(run)}" for run in runs[:_LISTED]]
    hidden = len(runs) - len(lines)
    return "\n".join([*lines, f"  … and {hidden} more"] if hidden else lines)


def _line(run: RunRecord) -> str:
    status = status_word(run.status)
    return visible(
        f"{run.identity.key[:12]}#{run.identity.attempt}  {status:<11}  {moment(run.started_at)}  "
        f"{run.identity.experiment} · {run.identity.name}"
    )
