"""`glitchrun apply`: executes the runs of a spec."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import click

from glitchrun.cli.plan import limit_option, redo_option, until_option
from glitchrun.errors import GlitchrunError, UsageError, require
from glitchrun.ledger import ROOT, RunRecord
from glitchrun.runner.lookup import find_cells
from glitchrun.runner.options import Options, read_until
from glitchrun.spec.experiment_loading import load_experiment
from glitchrun.terminal import QuietStream, emit_json, say, terminal_width

if TYPE_CHECKING:
    from glitchrun.plan.build import Plan, PlannedRun
    from glitchrun.runner.apply import Applied
    from glitchrun.runner.progress import Display


@click.command("apply")
@click.argument("spec", type=click.Path(path_type=Path))
@click.option("--set", "sets", multiple=True, metavar="K=V", help="Override a value of the spec.")
@click.option("--only", metavar="NAME", help="Run only the matrix cell of this name.")
@click.option("--fresh", is_flag=True, help="Start a new attempt, even of a finished run.")
@redo_option
@until_option
@limit_option
@click.option("--keep-going", is_flag=True, help="Continue with the next run after a failure.")
@click.option("--yes", is_flag=True, help="Start several runs without confirmation.")
@click.option("--live", is_flag=True, help="Draw genetic searches in the terminal.")
@click.option("--gui", is_flag=True, help="Draw genetic searches in a window.")
@click.option(
    "-o", "--output", type=click.Choice(["text", "json"]), default="text", show_default=True
)
@click.pass_context
def command(
    context: click.Context,
    spec: Path,
    sets: tuple[str, ...],
    only: str | None,
    fresh: bool,
    redo: tuple[str, ...],
    until: tuple[str, ...],
    limit: int | None,
    keep_going: bool,
    yes: bool,
    live: bool,
    gui: bool,
    output: str,
) -> None:
    """Executes SPEC: starts, resumes or skips each of its runs.

    Applying an unchanged, finished spec again does nothing. A run that was stopped or killed
    continues where it stopped.
    """
    with _errors_as_json(output == "json"):
        experiment = load_experiment(spec, sets, require_env=True)
        require("torch", "transformers", "mlflow", "rich")
        # OpenMP reads it when torch is imported. By default its idle threads spin and occupy the
        # cores they wait for: on two busy cores, passive waiting was 3 times as fast.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        from glitchrun.runner.apply import apply

        options = Options(
            only=only,
            fresh=fresh,
            redo=frozenset(redo),
            until=read_until(until),
            limit=limit,
            keep_going=keep_going,
        )
        with _display(live, gui, _confirm_all if yes else _ask) as (display, confirm):
            applied = apply(experiment, ROOT.resolve(), options, display, confirm)
    (_print_json if output == "json" else _print_text)(applied)
    for failure in applied.failures:
        say(f"failed: {failure}", err=True)
    _say_undelivered(applied)
    context.exit(int(applied.exit_code))


@contextmanager
def _display(
    live: bool, gui: bool, confirm: Callable[[Plan], None]
) -> Iterator[tuple[Display, Callable[[Plan], None]]]:
    """The display, and the function that confirms the plan. With `gui`, that also opens the window,
    or raises PreflightError."""
    from glitchrun.runner.live.terminal_display import LiveDisplay
    from glitchrun.runner.live.window_display import WindowDisplay
    from glitchrun.runner.progress import Display

    display = LiveDisplay() if live else Display()
    if not gui:
        yield display, confirm
        return
    require("matplotlib")
    window = WindowDisplay(display)

    def confirm_and_open(plan: Plan) -> None:
        confirm(plan)
        if _waiting(plan):
            window.open()

    try:
        yield window, confirm_and_open
    finally:
        window.release()


@contextmanager
def _errors_as_json(wanted: bool) -> Iterator[None]:
    """With `-o json`, writes an error before the first run as a document too."""
    try:
        yield
    except GlitchrunError as error:
        if wanted:
            document = {"runs": [], "exit_code": int(error.exit_code), "error": str(error)}
            emit_json(document)
        raise


def _confirm_all(plan: Plan) -> None:
    """Accepts every plan."""


def _ask(plan: Plan) -> None:
    """Asks for confirmation before several runs are started from a terminal. Scripts are not
    asked."""
    waiting = _waiting(plan)
    if len(waiting) > 1 and _is_terminal(sys.stdin) and _is_terminal(sys.stderr):
        names = "\n".join(f"  {run.action}  {run.cell.name}" for run in waiting)
        say(f"{len(waiting)} runs:\n{names}", err=True)
        if not click.confirm("Start them?", err=True):
            raise UsageError("canceled; nothing was started")


def _is_terminal(stream: TextIO | None) -> bool:
    return QuietStream(stream).isatty()


def _waiting(plan: Plan) -> list[PlannedRun]:
    return [run for run in plan.runs if run.action in ("start", "resume")]


def _print_json(applied: Applied) -> None:
    from glitchrun.runner.execute import describe

    runs = [describe(outcome.record) for outcome in applied.outcomes]
    error = {"error": "\n".join(applied.failures)} if applied.failures else {}
    document = {"runs": runs, "exit_code": int(applied.exit_code), **error}
    if cells := _cells(applied):
        from glitchrun.report.comparison.results import cells_json

        study = str(applied.study) if applied.study else None
        document["matrix"] = {**cells_json(cells), "study": study}
    emit_json(document)


def _print_text(applied: Applied) -> None:
    from glitchrun.report.summary import summary_lines

    for outcome in applied.outcomes:
        say("\n".join(summary_lines(outcome.record, terminal_width())))
    if cells := _cells(applied):
        from glitchrun.report.comparison.output import as_text
        from glitchrun.report.comparison.results import compare_command
        from glitchrun.report.comparison.sections import matrix_section

        say()
        say(as_text([matrix_section(cells)], terminal_width()), nl=False)
        if applied.study is not None:
            folder = applied.study
            with suppress(ValueError):
                folder = folder.relative_to(Path.cwd())
            say(f"study: {folder / 'study.html'}")
        say(f"next: {compare_command(cells)} -o html, or glitchrun ui")
    elif applied.outcomes:
        say("next: glitchrun ui")


def _cells(applied: Applied) -> list[RunRecord]:
    """The cells of a matrix, those that failed included; empty for a single run."""
    records = [outcome.record for outcome in applied.outcomes]
    parent = records[0].identity.parent if records else None
    if parent is None or (len(records) < 2 and not applied.failures):
        return []
    known = {record.identity.key for record in records}
    others = (run for run in find_cells(parent, ROOT) if run.identity.key not in known)
    failed = [run for run in others if run.status != "FINISHED"] if applied.failures else []
    return [*records, *failed]


def _say_undelivered(applied: Applied) -> None:
    for outcome in applied.outcomes:
        if outcome.undelivered:
            say(
                f"MLflow does not have all of this run ({outcome.undelivered}); it is complete in "
                f"{outcome.record.folder}. Deliver it with: glitchrun sync",
                err=True,
            )
