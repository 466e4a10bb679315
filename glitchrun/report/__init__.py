"""Reports of a run, made from its record alone, without the model.

token_rows.py, totals.py, alarms.py   what the facts of a run add up to
token_files.py, step_tables.py        tokens.jsonl, tokens.json, attempts.jsonl, tables of steps
outcome.py, headline.py               how a run ended; its main result, in a number and sentences
run_details.py, severity_tables.py    how a run was made; how badly tokens fail: as labelled text
summary.py, markdown.py               the report for the terminal and for pull requests
html.py, token_table.py, page/        report.html
machine_readable.py                   the report as JSON and as JUnit XML
figures/                              the figures, for the page and as PNG files
comparison/                           `compare`: runs and imported files side by side
imported.py                           the file that `import` writes
formatting.py, writing.py             numbers, token text and Markdown; files and JSON
"""

from __future__ import annotations

from pathlib import Path

from glitchrun.ledger.files import open_regular
from glitchrun.ledger.record import RunRecord


def write_report(record: RunRecord) -> list[Path]:
    """Writes tokens.jsonl, tokens.json, attempts.jsonl, the steps' tables, the plots and
    report.html into the run's artifacts.

    Returns:
        The paths written.

    Raises:
        MissingExtra: jinja2 or matplotlib is not installed.
        OSError: A file cannot be written.
    """
    from glitchrun.report.figures import drawings, write_plots
    from glitchrun.report.figures.style import style
    from glitchrun.report.html import render
    from glitchrun.report.step_tables import write_tables
    from glitchrun.report.token_files import write_attempts, write_tokens
    from glitchrun.report.writing import replacing

    folder = record.artifacts
    folder.mkdir(parents=True, exist_ok=True)
    paths = [
        *write_tokens(record, folder),
        *write_attempts(record, folder),
        *write_tables(record, folder),
    ]
    with style():
        drawn = drawings(record)
        page = render(record, drawn)
        paths += write_plots(drawn, folder)  # last: it writes titles into the figures
    with replacing(folder / "report.html") as file:
        file.write(page)
    return [*paths, folder / "report.html"]


def lacks_report(record: RunRecord) -> bool:
    """Whether report.html or tokens.jsonl is missing, empty or begins with a zero, as a file does
    that a power cut lost."""
    names = ["report.html"]
    if any(timed.batch.token_facts for step in record.steps for timed in step.batches):
        names.append("tokens.jsonl")
    return any(_first_byte(record.artifacts / name) in (b"", b"\0") for name in names)


def _first_byte(path: Path) -> bytes:
    try:
        with open_regular(path) as file:
            return file.read(1)
    except FileNotFoundError:
        return b""
    except OSError:  # it is there, and must not be replaced
        return b"?"
