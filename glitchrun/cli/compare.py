"""`glitchrun compare`: runs and imported results side by side."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from string import ascii_uppercase
from typing import TYPE_CHECKING

import click

from glitchrun.errors import ExitCode, UsageError, require
from glitchrun.ledger import ROOT
from glitchrun.report.writing import write_document
from glitchrun.runner.lookup import find_cells, find_run, find_runs_of
from glitchrun.terminal import QuietStream, emit, emit_json, say, terminal_width

if TYPE_CHECKING:
    from glitchrun.ledger import RunRecord
    from glitchrun.report.comparison.pairs import Pair
    from glitchrun.report.comparison.regressions import Regression, Rule
    from glitchrun.report.comparison.sides import Side

_SHOWN = 20


@click.command("compare")
@click.argument("runs", nargs=-1, required=True, metavar="RUN...")
@click.option(
    "--by",
    type=click.Choice(["verdict", "glitch", "confirmed"]),
    help="Which verdict to compare: of attempts where there were any, of the probes, or of "
    "attempts alone. Default: verdict, or glitch if attempts confirmed only some glitch tokens.",
)
@click.option(
    "--step",
    "steps",
    multiple=True,
    metavar="ID",
    help="Compare the verdicts of this step alone, not those of all steps of a run. Given once, it "
    "applies to every run; else once for each run, in their order.",
)
@click.option(
    "--scope",
    type=click.IntRange(min=1),
    metavar="N",
    help="How many tokens could have been examined. Default: the scope of the runs.",
)
@click.option(
    "--match",
    "how",
    type=click.Choice(["auto", "id", "text"]),
    default="auto",
    show_default=True,
    help="How tokens of two sides are matched: by id, or by text where the vocabularies differ.",
)
@click.option(
    "--fail-on",
    type=click.Choice(["regression", "significant-regression"]),
    help="Exit with 5 if a metric of another run is worse than that of the first RUN: by more than "
    "--tolerance; or, if significant, by an exact McNemar test as well. Exit with 6 if that is "
    "not known of a metric, because another run has no value of it.",
)
@click.option(
    "--tolerance",
    type=click.FloatRange(min=0),
    default=0.0,
    show_default=True,
    metavar="SHARE",
    help="With --fail-on: how much worse a metric may be, as a share of the first run's value.",
)
@click.option("--all", "every", is_flag=True, help="List every token and metric.")
@click.option(
    "-o",
    "--output",
    type=click.Choice(["text", "json", "md", "html"]),
    default="text",
    show_default=True,
)
@click.option(
    "--file",
    "path",
    type=click.Path(path_type=Path),
    help="With -o html, the file to write. Default: standard output, but comparison.html if that "
    "is a terminal.",
)
@click.pass_context
def command(
    context: click.Context,
    runs: tuple[str, ...],
    by: str | None,
    steps: tuple[str, ...],
    scope: int | None,
    how: str,
    fail_on: str | None,
    tolerance: float,
    every: bool,
    output: str,
    path: Path | None,
) -> None:
    """Shows verdicts and metrics of two or more RUNs side by side, with their agreement.

    A RUN is a run as for `report`, or a file that `import` reads. The name or key of an experiment
    with a matrix, or of the matrix, selects all its cells. The name of another experiment, given
    alone, selects all its runs. With --fail-on and two studies, each cell of the second is compared
    with that of the same name in the first.
    """
    require("scipy", "rich")
    from glitchrun.report.comparison.matching import matched
    from glitchrun.report.comparison.output import as_json, as_markdown, as_text
    from glitchrun.report.comparison.pairs import all_pairs
    from glitchrun.report.comparison.regressions import Rule, regression
    from glitchrun.report.comparison.sections import sections
    from glitchrun.report.comparison.sides import with_verdicts

    if path is not None and output != "html":
        raise UsageError("--file belongs to -o html; redirect the other formats")
    if fail_on and len(runs) == 2 and (studies := _studies(*runs)):
        rule = Rule(tolerance, significant=fail_on == "significant-regression")
        _compare_studies(context, studies, rule, output)
        return
    found = [one for run in runs for one in _resolve_run(run, alone=len(runs) == 1)]
    if not 2 <= len(found) <= len(ascii_uppercase):
        raise UsageError(f"compare takes 2 to {len(ascii_uppercase)} runs, got {len(found)}")
    sides = [
        _side(label, one, step)
        for label, one, step in zip(ascii_uppercase, found, _each(steps, found), strict=False)
    ]
    by, sides = with_verdicts(matched(sides, how), by)
    pairs = all_pairs(sides, scope)
    rule = Rule(tolerance, significant=fail_on == "significant-regression")
    regressed = regression(sides, rule) if fail_on else None
    if output == "json":
        emit_json(as_json(sides, pairs, by, regressed))
    elif output == "html":
        _write_page(by, sides, pairs, regressed, path)
    else:
        limit = None if every else _SHOWN
        shown = sections(by, sides, pairs, limit, regressed, equal_rows=every)
        say(as_markdown(shown) if output == "md" else as_text(shown, terminal_width()), nl=False)
    if regressed is not None:
        _fail(context, regressed)


def _studies(*names: str) -> list[dict[str, RunRecord]] | None:
    """The cells of two studies by name; None unless both names are those of studies.

    Raises:
        UsageError: the studies share no cell.
    """
    found = [
        {cell.identity.name: cell for cell in find_cells(name, ROOT)}
        for name in names
        if not os.path.exists(name)  # noqa: PTH110 - false for any text, where Path raises
    ]
    if len(found) < 2 or not all(found):
        return None
    if not found[0].keys() & found[1].keys():
        raise UsageError("the studies have no cell of the same name, so nothing can be compared")
    return found


def _compare_studies(
    context: click.Context, studies: list[dict[str, RunRecord]], rule: Rule, output: str
) -> None:
    """Compares each cell of the second study with that of the same name in the first."""
    from glitchrun.report.comparison.output import as_markdown, as_text
    from glitchrun.report.comparison.regressions import regression_of_studies

    if output == "html":
        raise UsageError("two studies are compared as text, md or json")
    regressed = regression_of_studies(studies[0], studies[1], rule)
    if output == "json":
        emit_json({"regression": regressed.to_json()})
    else:
        shown = [regressed.section()]
        say(as_markdown(shown) if output == "md" else as_text(shown, terminal_width()), nl=False)
    _fail(context, regressed)


def _fail(context: click.Context, regressed: Regression) -> None:
    """Ends the command with a line for each regression and exit code 5 if there is any; else with
    exit code 6 if a metric is not decided."""
    for line in regressed.lines():
        say(line, err=True)
    if regressed.worse:
        context.exit(int(ExitCode.GATE_FAILED))
    if regressed.undecided:
        context.exit(int(ExitCode.GATE_INCONCLUSIVE))


def _write_page(
    by: str, sides: list[Side], pairs: list[Pair], found: Regression | None, path: Path | None
) -> None:
    require("jinja2", "matplotlib")
    from glitchrun.report.comparison.output import as_html

    text = as_html(by, sides, pairs, found)
    if path is None and QuietStream(sys.stdout).isatty():
        path = Path("comparison.html")
    if path is None or str(path) == "-":
        emit(text)
        return
    write_document(path, text, "--file")
    say(path)


def _resolve_run(text: str, *, alone: bool) -> list[Path | RunRecord]:
    """The file, the run or the runs that a command-line argument names.

    Args:
        text: The argument.
        alone: Whether it is the only one, so that one run is not enough.
    """
    if os.path.isfile(text):  # noqa: PTH113 - false for any text, where Path raises
        return [Path(text)]
    if cells := find_cells(text, ROOT):
        return [*cells]
    several = find_runs_of(text, ROOT) if alone else []
    return [*several] if len(several) > 1 else [find_run(text, ROOT)]


def _each(steps: tuple[str, ...], found: list[Path | RunRecord]) -> list[str | None]:
    """The step of each side; None for all steps of a run, and for files."""
    runs = sum(not isinstance(one, Path) for one in found)
    if len(steps) not in (0, 1, runs):
        raise UsageError(
            f"--step is given {len(steps)} times for {runs} runs; give it once for each"
        )
    left = iter(steps * (runs if len(steps) == 1 else 1))
    return [None if isinstance(one, Path) else next(left, None) for one in found]


def _side(label: str, one: Path | RunRecord, step: str | None) -> Side:
    from glitchrun.imports import read
    from glitchrun.report.comparison.sides import side_of_file, side_of_run

    if isinstance(one, Path):
        return side_of_file(label, read(one))
    return side_of_run(label, one, step)
