"""`glitchrun report`: writes the report of a run from its ledger."""

from __future__ import annotations

import json
from pathlib import Path

import click

from glitchrun.errors import UsageError, file_access, require
from glitchrun.ledger import ROOT, RunRecord
from glitchrun.ledger.folders import study_folder
from glitchrun.report.writing import write_document
from glitchrun.runner.lookup import find_run, find_study, readable_runs
from glitchrun.terminal import emit, say

FORMATS = ("html", "json", "junit", "md")


@click.command("report")
@click.argument("runs", nargs=-1, metavar="RUN...")
@click.option(
    "--tag",
    "tags",
    multiple=True,
    metavar="KEY=VALUE",
    help="A census of all finished runs with this tag. May be repeated: with all of these tags.",
)
@click.option("--format", "form", type=click.Choice(FORMATS), default="html", show_default=True)
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Output file; `-` for standard output. Default: for html the run's artifacts, or "
    "census.html; standard output for other formats.",
)
def command(runs: tuple[str, ...], tags: tuple[str, ...], form: str, output: Path | None) -> None:
    """Writes the report of RUN: a run's folder, the start of its key, its name, or `latest`.

    The report is made from the ledger, so RUN may also be running or stopped. The name of an
    experiment with a matrix, of its parent run in MLflow, or the parent's key or MLflow id gives
    the report of the study. Several runs, such as those of several models, give a census: a table
    of models and definitions.
    """
    if len(runs) == 1 and not tags:
        parent, cells = find_study(runs[0], ROOT)
        if len(cells) > 1:
            _write_study(parent, cells, form, output)
            return
        _write(cells[0] if cells else find_run(runs[0], ROOT), form, output)
        return
    records = [find_run(run, ROOT) for run in runs]
    records += _tagged(tags) if tags else []
    if not records:
        raise UsageError("report needs a RUN, or --tag KEY=VALUE for a census of several runs")
    text = _census(records, form)
    if form == "html" and output is None:
        output = Path("census.html")
    if output is None or str(output) == "-":
        emit(text)
        return
    write_document(output, text, "-o")
    say(output, err=form == "json")


def _tagged(tags: tuple[str, ...]) -> list[RunRecord]:
    """The newest finished attempt of each run that has all of the tags, oldest first."""
    pairs = [tag.partition("=") for tag in tags]
    for tag, (_, sign, _) in zip(tags, pairs, strict=True):
        if not sign:
            raise UsageError(f"--tag {tag}: write KEY=VALUE")
    found = {
        record.identity.key: record
        for record in readable_runs(ROOT)
        if record.status == "FINISHED"
        and all(record.tags.get(name) == value for name, _, value in pairs)
    }
    if not found:
        raise UsageError(f"no finished run has {' and '.join(tags)}; `glitchrun status` shows tags")
    return [*found.values()]


def _census(records: list[RunRecord], form: str) -> str:
    if form == "junit":
        raise UsageError("--format junit reports one run; a census has html, md and json")
    if form == "html":
        require("jinja2", "matplotlib", "scipy")
    from glitchrun.report import census

    if form == "html":
        return census.census_page(records)
    if form == "json":
        return json.dumps(census.census_json(records), indent=2, allow_nan=False) + "\n"
    from glitchrun.report.comparison.output import as_markdown

    return as_markdown([census.census_section(records)])


def _write_study(parent: str, cells: list[RunRecord], form: str, output: Path | None) -> None:
    require("jinja2", "matplotlib", "scipy")
    from glitchrun.report import study_files
    from glitchrun.report.study import Study

    if form == "html" and output is None:
        folder = study_folder(ROOT, parent)
        with file_access(folder, "cannot be written"):
            study_files.write_study(folder, cells)
        say(folder / study_files.FILES[0])
        return
    if form == "junit":
        from glitchrun.report.machine_readable import junit

        text = junit(*cells)
    else:
        forms = {"html": study_files.as_page, "md": study_files.as_md, "json": study_files.as_json}
        text = forms[form](Study(cells))
    if output is None or str(output) == "-":
        emit(text)
        return
    write_document(output, text, "-o")
    say(output, err=form == "json")


def _write(record: RunRecord, form: str, output: Path | None) -> None:
    text = _text(record, form)
    if form == "html" and output is None:
        output = record.artifacts / "report.html"
    if output is None or str(output) == "-":
        emit(text)
        return
    write_document(output, text, "-o")
    say(output, err=form == "json")


def _text(record: RunRecord, form: str) -> str:
    if form == "html":
        require("jinja2", "matplotlib", "scipy")
        from glitchrun.report.html import render

        return render(record)
    if form == "junit":
        from glitchrun.report.machine_readable import junit

        return junit(record)
    if form == "md":
        from glitchrun.report.markdown import markdown

        return markdown(record)
    from glitchrun.report.machine_readable import run_json

    return json.dumps(run_json(record), indent=2, allow_nan=False) + "\n"
