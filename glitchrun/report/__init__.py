"""What a run comes to, for people: from its record alone, never from the model.

token_rows.py, totals.py, alarms.py   what the facts of a run add up to
rows.py                 tokens.jsonl and tokens.json
step_tables.py          tables of things other than tokens, as strategies declare them
figures/, plots.py      the figures, and the figures as PNG files
html.py, page/          report.html
document.py, junit.py, markdown.py   the report for machines and for pull requests
comparison/             runs and imported files side by side
imported.py, markup.py  what `import` writes; Markdown that takes no text for markup
summary.py              the lines a run ends with in a terminal
"""

from __future__ import annotations

from pathlib import Path

from glitchrun.ledger.record import RunRecord


def write_report(record: RunRecord) -> list[Path]:
    """Writes tokens.jsonl, tokens.json, the steps' tables, report.html and the plots among the
    run's artifacts.

    Raises:
        MissingExtra: jinja2 or matplotlib is not installed.
    """
    from glitchrun.report.figures import write_plots
    from glitchrun.report.html import write_html
    from glitchrun.report.step_tables import write_tables
    from glitchrun.report.token_files import write_tokens

    folder = record.artifacts
    folder.mkdir(parents=True, exist_ok=True)
    return [
        *write_tokens(record, folder),
        *write_tables(record, folder),
        *write_plots(record, folder),
        write_html(record, folder / "report.html"),
    ]
