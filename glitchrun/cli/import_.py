"""`glitchrun import`: converts results of other tools into one format, and checks their ids."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import click

from glitchrun.errors import UsageError, file_access, require
from glitchrun.imports import ImportedFile, read
from glitchrun.terminal import emit, say


@click.command("import")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--model",
    required=True,
    metavar="PATH",
    help="The model of the file's token ids: as model.path in a spec, or a tokenizer's folder.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    default="-",
    metavar="FILE",
    help="Output file; default, or `-`: standard output.",
)
@click.option(
    "--mismatches",
    type=click.Choice(["refuse", "drop"]),
    default="refuse",
    show_default=True,
    help="What to do with entries whose text is not the model's text of their id.",
)
@click.option(
    "--redact",
    is_flag=True,
    help="Leave out every text and path; ids, verdicts and numbers stay.",
)
def command(file: Path, model: str, output: Path, mismatches: str, redact: bool) -> None:
    """Converts FILE, results of glitchrun or another tool or a plain list, to a list of tokens.

    Checks ids against the model's tokenizer, and drops and counts duplicates. The output keeps
    verdicts and measurements; `tokens: {file: ...}` in a spec and `compare` read it.
    """
    if str(output) != "-" and not os.path.isdir(output.parent):  # noqa: PTH112
        raise UsageError(f"-o {output}: the folder {output.parent} does not exist; create it first")
    found = read(file)
    require("torch", "transformers")
    from glitchrun.model import tokenizer_of
    from glitchrun.report.imported import import_json
    from glitchrun.vocabulary import vocabulary_fit

    tokenizer, rows = tokenizer_of(model)
    fits = vocabulary_fit.check_fit(found.tokens, tokenizer, rows)
    wrong = len(vocabulary_fit.misfits(fits))
    if wrong and (mismatches == "refuse" or wrong == len(fits)):
        remedy = "give --model the model that the file was made with"
        if wrong < len(fits):
            remedy += ", or leave these entries out with --mismatches drop"
        raise vocabulary_fit.misfit_error(
            str(file), found.source.claimed_model, model, fits, remedy
        )
    _write(output, import_json(found, fits, model, rows, redact=redact))
    for line in _summary(found, vocabulary_fit.tallies(fits)):
        say(line, err=True)


def _write(output: Path, pieces: Iterator[str]) -> None:
    from glitchrun.report.writing import replacing

    if str(output) == "-":
        for piece in pieces:
            emit(piece)
        return
    with file_access(output, "cannot be written"), replacing(output) as stream:
        stream.writelines(pieces)


def _summary(found: ImportedFile, ways: dict[str, int]) -> list[str]:
    source = found.source
    verdicts = ", ".join(f"{count:,} {verdict}" for verdict, count in found.verdicts.items())
    counts = f"{found.entries:,} entries, {len(found.tokens):,} tokens ({verdicts or 'none'})"
    lines = [f"{source.file}: {source.format}, {counts}"]
    if found.duplicates:
        contradict = f", {found.conflicts:,} of them contradicting the first" * bool(
            found.conflicts
        )
        lines.append(f"  {found.duplicates:,} duplicates dropped{contradict}")
    lines += [f"  left out: {count:,} {what}" for what, count in found.left_out.items()]
    lines += [f"  {line}" for line in _fit_lines(ways)]
    if source.claimed_model:
        lines.append(f"  the file names the model {source.claimed_model!r}")
    return lines


def _fit_lines(ways: dict[str, int]) -> list[str]:
    total = sum(ways.values())
    if total and ways["unchecked"] == total:
        return ["the file has no texts: ids were checked only against the size of the vocabulary"]
    fitting = ways["same"] + ways["spaces"] + ways["weak"]
    lines = [f"{fitting:,} of {total:,} texts match the model's texts of their ids"]
    notes = {
        "spaces": "of them differ only in spaces",
        "weak": "of them contain U+FFFD, so the match is weak",
        "unchecked": "have no text",
        "different": "with another text dropped",
        "outside": "outside the vocabulary dropped",
    }
    return lines + [f"{ways[way]:,} {note}" for way, note in notes.items() if ways[way]]
